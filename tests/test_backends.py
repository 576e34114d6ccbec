"""The backends beside the runner's: the same labels, BatchNorm as it was asked for, and settings that mean what they say."""
import ctypes
import sys
import types
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_runner import FAKES, load
from torch import nn

from rtseg_deploy import backends, bench, checkpoints, demo, images, launch, links
from rtseg_deploy.backends import openvino_bf16, torch_compile, torch_cuda, torch_eager
from rtseg_deploy.device import runner
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'rtseg-deploy[openvino]'")


@pytest.fixture
def opened(artifact):
    """Open a backend on the trained network and run one step on noise; returns (session, labels)."""
    def opened(backend, path=artifact, **more):
        described = read_artifact(path)
        job = launch.on_backend("time", path, described, backend, [], 2, **more)
        session = backends.open_session({**job.request, "artifact": str(path)})
        session.feed(bench.picture(described, None)[0])
        session.step()
        output = session.output()
        return session, output.argmax(1) if output.ndim == 4 else output
    return opened


@pytest.mark.parametrize("backend, bn", [("torch-eager", "folded"), pytest.param("openvino", None, marks=needs_openvino)])
def test_backends_label_alike(opened, backend, bn):
    _, expected = opened("torch-eager")
    session, labels = opened(backend, bn=bn)
    assert (labels == expected).mean() > 0.9999 and session.facts()["bn"] == "folded"


@needs_openvino
def test_openvino_computes_what_the_record_says(opened):
    """On a CPU with BF16 it would compute in BF16 unless told otherwise."""
    session, _ = opened("openvino")
    assert str(session.compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    facts = session.facts()
    assert facts["threads"] == min(2, launch.cpus()) and facts["settings"]["NUM_STREAMS"] == "1" and facts["boundary"].endswith("in host memory")


@needs_openvino
def test_openvino_binds_once(opened):
    session, _ = opened("openvino")
    before = session.output()
    session.input[:] = -session.input
    session.step()
    assert np.shares_memory(before, session.output()) and (before != opened("openvino")[0].output()).any()


@pytest.mark.parametrize("backend", ["torch-eager", pytest.param("openvino", marks=needs_openvino)])
def test_fp16_is_not_timed_as_fp32(opened, artifact, copy_of, backend):
    with pytest.raises(runner.JobError, match=f"{backend} (times FP32 alone|runs FP32 and INT8 files)"):
        opened(backend, copy_of(artifact, precision="fp16"))


def bf16_here():
    return find_spec("openvino") is not None and openvino_bf16.unavailable() is None


@needs_openvino
def test_openvino_in_bf16_says_so_and_labels_nearly_alike(opened, artifact):
    if not bf16_here():
        pytest.skip(openvino_bf16.unavailable()[0])
    expected, session = opened("openvino")[0].output(), opened("openvino-bf16")[0]
    assert str(session.compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'bfloat16'>"
    scale = np.abs(session.output() - expected).max() / expected.std()
    assert 1e-3 < scale < 0.5           # in FP32 it would be 1e-5
    assert session.facts()["backend"] == "openvino-bf16" and "BF16" in session.facts()["note"]
    assert backends.computes("fp32", "openvino-bf16") == "bf16" and backends.computes("int8", "openvino-bf16") == "int8"


@needs_openvino
def test_without_bf16_it_is_told(monkeypatch):
    import openvino

    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]
    monkeypatch.setattr(openvino, "Core", Core)
    assert "no instructions for BF16" in openvino_bf16.unavailable()[0] and "--backend openvino" in openvino_bf16.unavailable()[1]


@needs_openvino
def test_a_backend_is_a_step_of_the_chain(trained, artifact, copy_of):
    """Of whatever output the file has; an input that is another one shows."""
    pixels = images.resized(images.read(demo.images.STREET), (96, 128))
    reading = links.reading_of(trained, (96, 128))
    (wanted,) = links.in_pytorch("pytorch", "", trained, reading).answers([pixels])
    (found,) = links.by_backend(artifact, "openvino").answers([pixels])
    assert np.abs(found.logits - wanted.logits).max() < 1e-3 and (found.labels == wanted.labels).all()
    wrong = copy_of(artifact, normalisation={"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]})
    (found,) = links.by_backend(wrong, "openvino").answers([pixels])
    assert np.abs(found.logits - wanted.logits).max() > 0.1
    with pytest.raises(RtsegError, match="no backend is called 'none'"):
        links.by_backend(artifact, "none")


@needs_openvino
def test_openvino_runs_int8_files_in_int8(artifact, tmp_path):
    import onnx

    from rtseg_deploy import int8
    described = replace(read_artifact(artifact), precision="int8")
    fed = images.fed(images.resized(images.read(demo.images.STREET), (96, 128)), "normalised", described.normalisation)
    onnx.save(int8.quantised(onnx.load(artifact), iter([fed])), tmp_path / "net.onnx")
    sessions = {}
    for backend in ("onnxruntime-cpu", "openvino"):
        job = {**launch.on_backend("infer", artifact, described, backend, [], 2).request, "artifact": str(tmp_path / "net.onnx")}
        sessions[backend] = links.opened(job)
        sessions[backend].feed(fed)
        sessions[backend].step()
    first, second = (np.array(session.output()).argmax(1) for session in sessions.values())
    assert (first == second).mean() > backends.SAME_LABELS["int8"] and len(np.unique(first)) > 3
    nodes = [node.get_rt_info() for node in sessions["openvino"].compiled.get_runtime_model().get_ops()]
    kinds = [str(info["runtimePrecision"].astype(str)) for info in nodes if info["layerType"].astype(str) == "Convolution"]
    assert sum(kind in ("u8", "i8") for kind in kinds) > len(kinds) / 2


# ---- BatchNorm folded in PyTorch


def shaken(module):
    """With statistics that a fold which forgets one of them does not survive."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(-2, 2)
            norm.bias.data.normal_()
    return module


def norms(module):
    return [name for name, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d)]


@pytest.mark.parametrize("name, before, kept", [("sgcpnet", 71, 0), ("ddrnet-23-slim", 55, 12), ("bisenetv2", 54, 1)])
def test_what_can_be_folded_is_and_nothing_changes(name, before, kept):
    module = shaken(checkpoints.seeded(name).module)
    folded = torch_eager.folded(module, (128, 256))
    image = torch.randn(1, 3, 128, 256)
    with torch.inference_mode():
        expected, found = module(image), folded(image)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (len(norms(module)), len(norms(folded))) == (before, kept)


class Twice(nn.Module):
    """Its convolution's result is read by more than its BatchNorm."""
    def __init__(self, shared):
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), shared

    def forward(self, x):
        y = self.a(x)
        return self.b(self.a(self.b(y))) if self.shared else self.b(y) + y


@pytest.mark.parametrize("shared", [False, True])
def test_what_else_reads_a_convolution_keeps_its_norm(shared):
    module = shaken(Twice(shared).eval())
    folded, image = torch_eager.folded(module, (8, 8)), torch.randn(1, 3, 8, 8)
    assert norms(folded) == ["b"] and torch.equal(folded(image), module(image))


# ---- torch.compile


NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
"""


@pytest.mark.skipif(torch_compile.unavailable() is not None, reason=f"torch.compile cannot run here: {torch_compile.unavailable()}")
def test_a_compiled_network_labels_alike_and_is_compiled_before_the_clock(opened, tmp_path):
    """A small network of one's own: others take a minute."""
    from rtseg_deploy import own
    from rtseg_deploy.export import export
    (tmp_path / "compiled_net.py").write_text(NETWORK)
    load = {"spec": "compiled_net:build", "folder": str(tmp_path)}
    torch.manual_seed(0)
    export(own.load(**load), tmp_path / "net.onnx", (64, 96), output="native")     # an enlargement is a kernel, which takes long to compile
    torch.manual_seed(0)
    _, expected = opened("torch-eager", tmp_path / "net.onnx", own=load)
    torch.manual_seed(0)
    session, labels = opened("torch-compile", tmp_path / "net.onnx", own=load)
    assert (labels == expected).mean() > 0.9999 and len(set(labels.ravel())) > 1
    assert session.facts()["bn"] == "folded" and "frozen" in session.facts()["compiled"]
    kernels = session.profile(3)
    assert kernels and not any("batch_norm" in row["name"] for row in kernels) and all(row["seconds"] > 0 for row in kernels)


def test_without_a_compiler_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert "no C++ compiler" in torch_compile.unavailable()[0]
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(torch_compile.sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in torch_compile.unavailable()[0]


# ---- torch on CUDA


@pytest.fixture
def faked(monkeypatch):
    """PyTorch's CUDA by the fake driver: a step of the network is work of 1/1024 s for it. Returns the driver and what was asked of torch.cuda."""
    driver, asked = load(FAKES / "fake_cuda.py").Driver(), {}
    monkeypatch.setitem(vars(ctypes.cdll), "libcuda.so.1", driver)
    monkeypatch.setattr(runner.clock_steps, "__defaults__", (driver.clock,))
    monkeypatch.setattr(torch_cuda.Session, "place", "cpu")
    monkeypatch.setattr(torch_cuda, "unavailable", lambda: None)
    cuda = types.SimpleNamespace(ExternalStream=lambda address: ("stream", address), set_stream=lambda stream: asked.update(stream=stream),
                                 current_stream=lambda: asked["stream"], synchronize=lambda: asked.update(copied=True), CUDAGraph=lambda: Graph(driver),
                                 graph=lambda graph, stream: graph)
    for name, value in vars(cuda).items():
        monkeypatch.setattr(torch.cuda, name, value)
    network = torch_eager.network

    def working(*arguments):
        module = network(*arguments)
        module.register_forward_hook(lambda *call: driver.work(1 / 1024, lambda: None))
        return module
    monkeypatch.setattr(torch_eager, "network", working)
    return driver, asked


class Graph:
    def __init__(self, driver):
        self.driver = driver

    def __enter__(self):
        self.driver.recording = []

    def __exit__(self, *error):
        self.recorded, self.driver.recording = self.driver.recording, None

    def replay(self):
        self.driver.replay(self.recorded)


@pytest.mark.parametrize("graph", [False, True])
def test_torch_on_a_gpu_is_timed_as_an_engine_is(opened, faked, graph):
    asked, (_, expected) = faked[1], opened("torch-eager")
    session, labels = opened("torch-cuda")
    assert isinstance(session, runner.Stream) and asked["stream"] == ("stream", session.stream.value) and asked["copied"]
    assert (labels == expected).mean() > 0.9999
    if graph:
        session.capture()
    seconds = runner.clock_steps(session.step, 5)
    enqueue = 1 / 65536 if graph else 1 / 8192
    assert seconds == [1 / 1024 + enqueue] * 5
    found = runner.device_times(session, seconds)
    assert found["enqueue_seconds"] == (enqueue,) * 5 and found["back_to_back_seconds"] == pytest.approx(5 / 1024 + enqueue)


def test_torch_on_a_gpu_computes_fp32(opened, faked):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    session, _ = opened("torch-cuda", bn="folded")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    facts = session.facts()
    assert facts["bn"] == "folded" and facts["tf32"] is False and "device memory" in facts["boundary"] and "malloc" not in facts


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_told(artifact, tmp_path):
    with pytest.raises(RtsegError, match="PyTorch finds no GPU"):
        bench.bench(artifact, bench.Ask(("torch-cuda",), iterations=5, results=tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")
@pytest.mark.parametrize("graph", [False, True])
def test_on_a_real_gpu(artifact, tmp_path, graph):
    ask = bench.Ask(("torch-eager", "torch-cuda"), iterations=100, results=tmp_path)
    done = bench.bench(artifact, ask)
    if graph:
        done = done[:1] + bench.bench(artifact, replace(ask, backends=("torch-cuda",), cuda_graph=True))
    figure = done[1][1]
    assert len(figure.runs[0].device_seconds) == 100 and figure.runs[0].back_to_back_seconds > 0
    assert graph or figure.same_labels["torch-eager"] > 0.999
