"""The device worker as a process of its own, under Python 3.6 and this one, against a fake of every TensorRT that it is to drive."""
import ast
import ctypes
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import downloaded

from rtseg_deploy.device import building, runner

RUNNER = Path(runner.__file__).resolve()
FAKES = Path(__file__).resolve().parent / "fakes"
MIB = 1 << 20
MIXED = [["conv1", "FLOAT"], ["conv2", "FLOAT"], ["argmax", "INT32"]]               # for weakly typed versions: the builder chooses
TYPED = [["conv1", "HALF"], ["conv2", "HALF"], ["cast", "FLOAT"], ["argmax", "INT32"]]


def load(path):
    """A file as a module, under a name that hides no other."""
    spec = importlib.util.spec_from_file_location("loaded_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sys.path.append(str(FAKES))     # the fakes find their driver as an import; the real tensorrt comes first
api = load(FAKES / "api.py")
fake = functools.cache(load(FAKES / "tensorrt.py").make)
VERSIONS = list(api.RELEASES)
WEAK = [version for version in VERSIONS if version not in api.STRONGLY_TYPED.split()]
STRONG = api.STRONGLY_TYPED.split()
every_version = pytest.mark.parametrize("version", VERSIONS)


def runtime(version):
    return "tensorrt_rtx" if version == "rtx" else "tensorrt"


@pytest.fixture
def run(tmp_path):
    """Run one job in an empty folder; returns the result. -S, for what is installed here must not be found in place of nothing."""
    def run(python, job, version=None, fakes=True, numpys=None, **environment):
        job = dict({"onnx": "graph.onnx", "engine": "net.engine", "precision": "fp32", "runtime": runtime(version)}, **job)
        (tmp_path / "job.json").write_text(json.dumps(job))
        shutil.copy(building.__file__, tmp_path)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FAKE_"))}
        if fakes:
            kept["PYTHONPATH"] = os.pathsep.join([str(FAKES), *filter(None, [numpys])])
        if version:
            kept["FAKE_TENSORRT"] = version
        command = [str(FAKES / "drive.py"), str(RUNNER)] if fakes else [str(RUNNER)]
        done = subprocess.run([python, "-S", *command, "job.json", "result.json"], cwd=tmp_path, capture_output=True, text=True,
                              env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **environment}, timeout=60)
        assert done.stderr == "" and [line for line in done.stdout.splitlines() if not line.startswith("@rtseg {")] == []
        said = [json.loads(line[len("@rtseg "):]) for line in done.stdout.splitlines()]
        assert bool(said) <= bool(job.get("progress"))
        result = json.loads((tmp_path / "result.json").read_text())
        assert done.returncode == (0 if result["ok"] else 1)
        return dict(result, said=said) if said else result
    return run


@pytest.fixture
def build(run, tmp_path):
    """Build a graph; returns (result, what the fake engine says of itself, or None where no engine was written)."""
    def build(python, version, graph, **job):
        (tmp_path / "graph.onnx").write_text(json.dumps(graph))
        result = run(python, dict({"action": "build"}, **job), version)
        engine = tmp_path / "net.engine"
        return result, json.loads(engine.read_text()) if engine.exists() else None
    return build


def assert_told(result, *words):
    """A failure is one line that says these words, and something to do about it."""
    assert result["ok"] is False and result["fix"]
    assert "\n" not in result["error"]
    for word in words:
        assert word in result["error"]


# ---- without TensorRT


@pytest.mark.parametrize("action", ["probe", "build"])
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_a_machine_without_tensorrt_is_told_how_to_get_it(python, run, tmp_path, action, module):
    (tmp_path / "graph.onnx").write_text("{}")
    result = run(python, {"action": action, "runtime": module}, fakes=False)
    assert_told(result, module)
    assert "install" in result["fix"]
    assert {path.name for path in tmp_path.iterdir()} == {"job.json", "graph.onnx", "result.json", "building.py"}


# ---- probe


GPU = {"name": "GeForce RTX 2080 Ti", "compute_capability": "7.5", "memory_bytes": 11554717696, "bus": "00000000:01:00.0", "driver": None, "cuda": "12.4"}


@every_version
def test_probe_tells_versions_and_device(python, run, version):
    result = run(python, {"action": "probe"}, version)
    assert result["ok"], result
    found, name = result["probe"], runtime(version)
    assert (found[name], found[{"tensorrt": "tensorrt_rtx", "tensorrt_rtx": "tensorrt"}[name]]) == (api.RELEASES[version], None)
    assert {**found["gpu"], "driver": None} == GPU
    assert found["onnxruntime"] is None and found["providers"] == [] and found["python"] and found["cpu"] and found["cpus"] >= 1


def test_probe_tells_of_onnxruntime_and_numpy_where_they_are(tmp_path):
    (tmp_path / "job.json").write_text('{"action": "probe"}')
    subprocess.run([sys.executable, str(RUNNER), "job.json", "result.json"], cwd=tmp_path, check=True, timeout=120)
    found = json.loads((tmp_path / "result.json").read_text())["probe"]
    assert found["numpy"] == np.__version__ and "CPUExecutionProvider" in found["providers"] and found["onnxruntime"]


def test_probe_tells_why_there_is_no_device(python, run):
    result = run(python, {"action": "probe"}, "10.13", FAKE_CUDA="none")
    assert result["ok"] and "no CUDA-capable device" in result["probe"]["gpu"]["error"]


def test_without_a_driver_there_is_no_device(python, run):
    result = run(python, {"action": "probe", "runtime": None}, fakes=False)
    if "name" in result["probe"]["gpu"]:
        pytest.skip("there is a GPU here")
    assert result["ok"] and "libcuda" in result["probe"]["gpu"]["error"]


def test_probe_without_tensorrt_still_tells_of_the_machine(python, run):
    result = run(python, {"action": "probe", "runtime": "tensorrt"}, "rtx")
    assert_told(result, "no tensorrt on")
    assert result["probe"]["gpu"]["compute_capability"] == "7.5" and result["probe"]["python"]
    assert result["probe"]["tensorrt_rtx"] == api.RELEASES["rtx"]


def test_probe_brings_home_what_the_tools_print_even_one_that_never_ends(python, run, tmp_path):
    tools = {"nvidia-smi": 'case "$*" in *event*) exit 2;; esac; echo "pci.bus_id, value"; echo "00000000:01:00.0, $2"',
             "tegrastats": "echo 'RAM 1873/3830MB GR3D_FREQ 0%@114'; exec sleep 60", "nvpmodel": "echo 'NV Power Mode: MAXN'; echo 0"}
    for name, text in tools.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + text + "\n")
        (tmp_path / name).chmod(0o755)
    begin = time.monotonic()
    said = run(python, {"action": "probe"}, "8.2", PATH=f"{tmp_path}:{os.environ['PATH']}")["probe"]["said"]
    assert time.monotonic() - begin < 20
    assert said["nvpmodel -q"] == "NV Power Mode: MAXN\n0\n" and said["tegrastats --interval 200"].startswith("RAM 1873/3830MB")
    smi = [text for command, text in said.items() if command.startswith("nvidia-smi")]
    assert smi[0].splitlines()[0] == "pci.bus_id, value" and smi[1] is None and "throttle" in smi[2]


# ---- build


@every_version
def test_fp32_engine(python, build, version, tmp_path):
    result, engine = build(python, version, {"layers": MIXED}, workspace_bytes=256 * MIB, progress=True)
    assert result["ok"], result
    assert (result["version"], result["runtime"]) == (api.RELEASES[version], runtime(version))
    assert result["layers"] == {"fp16": 0, "fp32": 2, "fp32_names": ["conv1", "conv2"]}
    assert result["gpu"]["name"] == GPU["name"] and result["flags"] == [] and result["timing_cache_sha256"] is None and "tactics" not in result
    assert result["bytes"] == (tmp_path / "net.engine").stat().st_size and result["build_seconds"] >= 0
    assert [event["stage"].split()[0] for event in result["said"]] == ["parsing", "building"]
    assert engine["config"]["flags"] == []                                  # neither FP16 nor TF32, which is on by default
    assert "EXPLICIT_BATCH" in engine["network_flags"] or version not in ("8.2", "8.6")
    assert engine["config"]["compute_capabilities"] == []


@every_version
def test_workspace_goes_the_way_that_the_version_has(python, build, version):
    _, engine = build(python, version, {"layers": MIXED}, workspace_bytes=256 * MIB)
    old, new = engine["config"]["max_workspace_size"], engine["config"]["pools"]
    assert (old, new) == ((256 * MIB, {}) if version == "8.2" else (None, {"WORKSPACE": 256 * MIB}))


@pytest.mark.parametrize("version", WEAK)
def test_fp16_engine_where_the_builder_chooses(python, build, version):
    result, engine = build(python, version, {"layers": MIXED[:2]}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 0, "fp32_names": []}
    assert engine["config"]["flags"] == ["FP16"]


@pytest.mark.parametrize("version", WEAK)
def test_integer_layers_of_an_fp16_engine_are_in_neither_count(build, version):
    result, _ = build(sys.executable, version, {"layers": MIXED}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 0, "fp32_names": []}


@pytest.mark.parametrize("version", STRONG)
def test_fp16_engine_where_the_graph_decides(python, build, version):
    result, engine = build(python, version, {"layers": TYPED}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 1, "fp32_names": ["cast"]}
    assert engine["config"]["flags"] == [] and engine["layers"] == TYPED


@every_version
def test_fp16_without_a_layer_in_fp16_is_refused(python, build, version):
    """Weakly typed: the builder ignores the flag, as it may. Strongly typed: the graph is FP32."""
    result, engine = build(python, version, {"layers": MIXED, "ignore_fp16": True}, precision="fp16")
    assert_told(result, "FP16")
    assert engine is None


@pytest.mark.parametrize("kind", ["CAST", "CONSTANT", "SHUFFLE"])
@pytest.mark.parametrize("version", ["11.1", "rtx"])
def test_a_cast_to_fp16_makes_no_fp16_engine(build, version, kind):
    layers = [["conv1", "FLOAT"], ["mover", "HALF"], ["conv2", "FLOAT"]]
    result, engine = build(sys.executable, version, {"layers": layers, "kinds": {"mover": kind}}, precision="fp16")
    assert not result["ok"] and "FP16" in result["error"] and engine is None


def test_compute_capability_is_set_ahead_of_time(python, build):
    result, engine = build(python, "rtx", {"layers": MIXED}, compute_capability="7.5")
    assert result["ok"], result
    assert engine["config"]["compute_capabilities"] == ["SM75"]


@pytest.mark.parametrize("version, capability", [*((version, "7.5") for version in VERSIONS[:-1]), ("rtx", "6.1"), ("rtx", "9.0")])
def test_compute_capability_is_refused_where_it_cannot_be_set(python, build, version, capability):
    result, engine = build(python, version, {"layers": MIXED}, compute_capability=capability)
    assert_told(result, capability, api.RELEASES[version])
    assert engine is None


@every_version
def test_parser_errors_come_home(python, build, version, tmp_path):
    errors = ["In node 3: no importer for HardSwish", "In node 9: bad Resize"]
    result, engine = build(python, version, {"layers": MIXED, "parse_errors": errors}, progress=True)
    assert_told(result, *errors, api.RELEASES[version])
    assert engine is None
    assert [event["stage"] for event in result["said"]] == ["parsing"]       # nobody tried to build it


def test_a_parser_error_of_several_lines_becomes_one(build):
    """The parser puts what TensorRT said on further lines of its message."""
    error = "Invalid Node - Pad_14\n[shuffleNode.cpp] Error Code 4: no\n"
    result, _ = build(sys.executable, "8.6", {"layers": MIXED, "parse_errors": [error]})
    assert_told(result, "Invalid Node - Pad_14", "Error Code 4: no")


@every_version
def test_a_file_that_is_no_graph_comes_home(run, version, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"\x08 no graph")
    assert_told(run(sys.executable, {"action": "build"}, version), "Failed to parse")
    assert not (tmp_path / "net.engine").exists()


@every_version
def test_the_builders_reason_comes_home(python, build, version):
    """The reason, not the last line of the log: 8.2 adds there only that it has no engine."""
    result, engine = build(python, version, {"layers": MIXED, "fail": "Could not find any implementation for node conv2"})
    assert_told(result, "Could not find any implementation for node conv2", api.RELEASES[version])
    assert engine is None


def test_whatever_else_goes_wrong_comes_home_too(python, run):
    result = run(python, {"action": "build", "onnx": "absent.onnx"}, "10.13")
    assert result["ok"] is False and "absent.onnx" in result["error"]


def test_tf32_stays_where_it_is_asked_for(build):
    result, engine = build(sys.executable, "11.1", {"layers": MIXED}, tf32=True)
    assert result["flags"] == engine["config"]["flags"] == ["TF32"]


@pytest.mark.parametrize("version, level", [("8.2", None), ("8.6", 5), ("11.1", 5)])
def test_the_optimisation_level_goes_where_there_is_one_and_is_told(python, build, version, level):
    result, engine = build(python, version, {"layers": MIXED}, optimization_level=5)
    assert result["optimization_level"] == engine["config"]["level"] == level


TIMING = b"GeForce RTX 2080 Ti:"


@pytest.mark.parametrize("version", VERSIONS[:-1])
@pytest.mark.parametrize("before, kept", [(None, True), (TIMING + b" old", True), (b"Jetson TX2: old", False), (b"garbage", False)])
def test_a_timing_cache_is_read_and_written_back_unless_it_is_another_devices(build, tmp_path, version, before, kept):
    if before:
        (tmp_path / "cache").write_bytes(before)
    result, _ = build(sys.executable, version, {"layers": MIXED}, timing_cache="cache")
    assert (tmp_path / "cache").read_bytes() == (before if before and kept else TIMING) + b" conv1 conv2 argmax"
    assert len(result["timing_cache_sha256"]) == 64
    assert any("another device" in message for message in result["messages"]) is not kept


def test_rtx_never_touches_a_timing_cache(build, tmp_path):
    result, _ = build(sys.executable, "rtx", {"layers": MIXED}, timing_cache="cache", compute_capability="7.5")
    assert result["ok"] and result["timing_cache_sha256"] is None and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("version", WEAK)
def test_layers_kept_in_fp32_are_held_to_it(python, build, version):
    result, engine = build(python, version, {"layers": MIXED, "shapes": ["conv2"]}, precision="fp16", keep_fp32=["conv1", "conv2", "argmax"])
    assert result["ok"], result
    assert result["kept_fp32"] == ["conv1"] and "OBEY_PRECISION_CONSTRAINTS" in result["flags"]
    assert engine["layers"] == [["conv1", "FLOAT"], ["conv2", "HALF"], ["argmax", "INT32"]]
    assert result["layers"] == {"fp16": 1, "fp32": 1, "fp32_names": ["conv1"]}


def test_layers_that_are_not_there_cannot_be_kept(build):
    """One that is there is: a parser may name the layers of some nodes otherwise."""
    result, engine = build(sys.executable, "8.2", {"layers": MIXED}, precision="fp16", keep_fp32=["conv1", "conv9"])
    assert result["kept_fp32"] == ["conv1"] and engine
    result, engine = build(sys.executable, "8.2", {"layers": MIXED}, precision="fp16", keep_fp32=["conv9"], engine="other.engine")
    assert_told(result, "no layer called conv9")
    assert "conv1" in result["fix"]


@pytest.mark.parametrize("version", STRONG)
def test_where_types_are_the_graphs_it_must_carry_the_casts(build, version):
    result, engine = build(sys.executable, version, {"layers": TYPED}, precision="fp16", keep_fp32=["conv1"])
    assert_told(result, "types from the graph")
    assert "casts" in result["fix"] and engine is None


SOURCES = ["CUBLAS", "CUBLAS_LT", "CUDNN"]


@pytest.mark.parametrize("version, preview", [("8.2", {}), ("8.6", {"DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": False}), ("10.13", {})])
def test_external_tactics(python, build, version, preview):
    _, engine = build(python, version, {"layers": MIXED}, tactics="external")
    assert (engine["config"]["sources"], engine["config"]["preview"]) == (SOURCES, preview)
    assert build(python, version, {"layers": MIXED})[1]["config"]["sources"] is None


@pytest.mark.parametrize("faster, slower", [("default", "external"), ("external", "default")])
def test_of_both_tactics_the_faster_is_kept(build_with_numpy, faster, slower):
    seconds = {faster: 1 / 512, slower: 1 / 256}
    result, engine = build_with_numpy("8.6", {"layers": MIXED, "seconds": seconds}, tactics="both")
    assert result["ok"], result
    assert bool(engine["config"]["sources"]) == (faster == "external")
    assert result["tactics"] == {faster: pytest.approx(1e3 / 512 + 0.122, rel=0.01), slower: pytest.approx(1e3 / 256 + 0.122, rel=0.01), "chosen": faster}


@pytest.mark.parametrize("version", STRONG)
def test_external_tactics_are_refused_where_there_are_none(build, version):
    result, engine = build(sys.executable, version, {"layers": MIXED}, tactics="external")
    assert_told(result, "no external tactics")
    assert engine is None


def test_memory_that_runs_out_names_the_workspace_to_try(build):
    result, _ = build(sys.executable, "8.2", {"layers": MIXED, "fail": "[convBaseRunner.cpp] Error Code 1: Cuda Runtime (out of memory)"})
    assert "--workspace 256" in result["fix"]


# ---- sessions: load, infer, time


@pytest.fixture(scope="session")
def numpy36(tmp_path_factory):
    """A folder with a numpy for Python 3.6 and x86-64."""
    folder = tmp_path_factory.mktemp("numpy36")
    zipfile.ZipFile(downloaded("numpy==1.19.5", "3.6", folder)).extractall(folder)
    return str(folder)


@pytest.fixture
def numpys(python, request):
    """Where this Python's numpy lies."""
    return request.getfixturevalue("numpy36") if python != sys.executable else str(Path(np.__file__).parent.parent)


@pytest.fixture
def build_with_numpy(python, numpys, run, tmp_path):
    def build(version, graph, **job):
        (tmp_path / "graph.onnx").write_text(json.dumps(graph))
        result = run(python, dict({"action": "build"}, **job), version, numpys=numpys)
        return result, json.loads((tmp_path / "net.engine").read_text()) if result["ok"] else None
    return build


PICTURE = np.random.default_rng(0).standard_normal((1, 3, 4, 6), np.float32)


@pytest.fixture
def session(python, numpys, run, build, tmp_path):
    """Build an engine and do something with it on one picture; returns (result, labels)."""
    def session(version, action, graph=None, **more):
        result, _ = build(python, version, dict({"layers": MIXED}, **(graph or {})))
        assert result["ok"], result
        np.save(tmp_path / "0.npy", more.pop("picture", PICTURE))
        environment = {name: more.pop(name) for name in [*more] if name.isupper()}
        job = {"action": action, "backend": runtime(version), "artifact": "net.engine", "inputs": ["0.npy"], "labels": ["labels.npy"], "iterations": 20,
               "described": {"input": "normalised", "precision": "fp32"}, **more}
        result = run(python, job, version, numpys=numpys, **environment)
        return result, np.load(tmp_path / "labels.npy") if (tmp_path / "labels.npy").exists() else None
    return session


@every_version
def test_an_engine_labels(session, version):
    result, labels = session(version, "infer", progress=True)
    assert result["ok"], result
    assert result["said"] == [{"stage": "image 1 of 1", "done": 0.0}]
    assert (labels == PICTURE.argmax(1)[0]).all() and labels.dtype == np.uint8
    assert result["environment"]["backend"] == runtime(version) and result["environment"]["boundary"].startswith("network, its normalised input")


@pytest.mark.parametrize("version, kind", [("8.6", "UINT8"), ("8.6", "HALF"), ("10.13", "INT64"), ("11.1", "FLOAT")])
def test_every_type_of_output_comes_home(session, version, kind):
    shape = [1, 3, 4, 6] if kind in ("HALF", "FLOAT") else [1, 4, 6]
    result, labels = session(version, "infer", {"tensors": [["input", True, "FLOAT", [1, 3, 4, 6]], ["output", False, kind, shape]]})
    assert result["ok"], result
    assert (labels == PICTURE.argmax(1)[0]).all()


@pytest.mark.parametrize("picture", [PICTURE[:, :, :2], PICTURE.astype(np.float16)])
def test_another_input_than_the_engines_is_refused(session, picture):
    result, _ = session("10.13", "infer", picture=picture)
    assert_told(result, "float32 [1, 3, 4, 6]", str(picture.dtype), str(list(picture.shape)))


@every_version
def test_time_by_the_host_by_events_until_the_call_returns_and_back_to_back(session, version):
    """By the fake's clock: the device takes 1/1024 s a step, and the host 1/8192 s to ask for it."""
    result, labels = session(version, "time", progress=True)
    assert result["ok"], result
    assert result["seconds"] == [9 / 8192] * 20 and result["device_seconds"] == pytest.approx([9 / 8192] * 20)
    assert result["enqueue_seconds"] == [1 / 8192] * 20
    assert result["back_to_back_seconds"] == pytest.approx(20 / 1024 + 1 / 8192)
    assert len(result["warmup_seconds"]) >= runner.WARMUP_STEPS and (labels == PICTURE.argmax(1)[0]).all()
    assert [event["stage"] for event in result["said"]] == ["warming up", "timing"]
    assert result["said"][1]["expected_s"] == pytest.approx(3 * 20 * 9 / 8192)


@pytest.mark.parametrize("version", ["8.2", "11.1"])
def test_a_step_that_does_not_wait_for_the_device_is_found(session, version):
    result, labels = session(version, "time", FAKE_CUDA="unsynchronised")
    assert_told(result, "a step took", "did not wait for the device")
    assert "seconds" not in result and labels is None


def test_steps_back_to_back_that_do_not_wait_are_found(monkeypatch):
    class Session:
        now, free, asked = 0.0, 0.0, 0

        def enqueue(self):
            self.now, self.free, self.asked = self.now + 1, max(self.now + 1, self.free) + 8, self.asked + 1

        def record(self, number):
            self.begin, self.end = (max(self.now, self.free), 0) if number == 0 else (self.begin, max(self.now, self.free))

        def synchronise(self):
            self.now = self.now if self.asked > 10 else self.free

        def elapsed(self):
            return self.end - self.begin

    session = Session()
    monkeypatch.setattr(runner.clock_steps, "__defaults__", (lambda: session.now,))
    with pytest.raises(runner.JobError, match="back to back"):
        runner.device_times(session, [9.0] * 10)


def test_a_cuda_graph_is_launched_at_once(session):
    result, labels = session("8.6", "time", cuda_graph=True)
    assert result["ok"], result
    assert result["enqueue_seconds"] == [1 / 65536] * 20 and (labels == PICTURE.argmax(1)[0]).all()


def test_a_driver_without_graphs_says_so(session):
    assert_told(session("8.2", "time", cuda_graph=True, FAKE_CUDA="old")[0], "cuStreamBeginCapture_v2")


@pytest.mark.parametrize("fault, words", [("none", "no CUDA-capable device"), ("full", "out of memory")])
def test_a_gpu_that_cannot_is_told(session, fault, words):
    result, _ = session("8.6", "infer", FAKE_CUDA=fault)
    assert_told(result, words)
    assert ("--workspace 256" in result["fix"]) == (fault == "full")


@every_version
def test_load_tells_what_goes_in_and_comes_out(python, run, build, version):
    build(python, version, {"layers": MIXED})
    result = run(python, {"action": "load", "artifact": "net.engine"}, version)
    assert result["ok"], result
    assert result["inputs"] == [{"name": "input", "input": True, "type": "float32", "shape": [1, 3, 4, 6]}]
    assert result["outputs"] == [{"name": "output", "input": False, "type": "int32", "shape": [1, 4, 6]}]


@pytest.mark.parametrize("change, words", [({"version": "8.2"}, "version"), ({"device": "Jetson TX2"}, "incompatible device"), (None, "Magic tag")])
def test_an_engine_from_elsewhere_is_refused_with_the_reason(python, run, build, tmp_path, change, words):
    _, engine = build(python, "10.13", {"layers": MIXED})
    (tmp_path / "net.engine").write_text(json.dumps({**engine, **change}) if change else "no engine")
    result = run(python, {"action": "load", "artifact": "net.engine"}, "10.13")
    assert_told(result, words, api.RELEASES["10.13"])
    assert "build it here" in result["fix"]


def test_without_numpy_nothing_is_fed(python, run, build):
    build(python, "8.2", {"layers": MIXED})
    job = {"backend": "tensorrt", "artifact": "net.engine", "inputs": ["0.npy"], "labels": ["l.npy"], "iterations": 2}
    for action in ("infer", "time"):
        result = run(python, {"action": action, **job}, "8.2")
        assert_told(result, "no numpy on")
        assert "python3-numpy" in result["fix"]


def test_without_onnxruntime_it_is_told(python, run):
    result = run(python, {"action": "infer", "backend": "onnxruntime-cpu", "artifact": "x", "threads": None, "described": {}}, fakes=False)
    assert_told(result, "no onnxruntime on")
    assert "install" in result["fix"]


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_a_provider_that_is_not_used_is_an_error(artifact, backend, monkeypatch):
    monkeypatch.setattr(runner, "Stream", None)
    monkeypatch.setattr(runner.OnnxRuntimeOnGpu, "__init__", runner.OnnxRuntime.__init__)
    with pytest.raises(runner.JobError, match="cannot use .*only CPUExecutionProvider") as error:
        runner.OnnxRuntimeOnGpu({"backend": backend, "artifact": str(artifact), "threads": 1, "described": {"input": "normalised", "precision": "fp32"}})
    assert "onnxruntime-gpu" in error.value.answer["fix"]


class FakeOnnxRuntime:
    """As much of ONNX Runtime as a session on a GPU calls; a step is work for the fake driver."""
    __version__ = "1"
    SessionOptions = types.SimpleNamespace

    def __init__(self, driver, providers):
        self.driver, self.providers, self.asked, self.run_settings = driver, providers, None, {}
        self.OrtValue = types.SimpleNamespace(ortvalue_from_numpy=lambda array, place, number: (array, place, number))

    def get_available_providers(self):
        return self.providers

    def RunOptions(self):
        return types.SimpleNamespace(add_run_config_entry=self.run_settings.__setitem__)

    def InferenceSession(self, path, options, providers):
        self.asked, self.bound = dict(providers), {}
        binding = types.SimpleNamespace(bind_ortvalue_input=self.bound.__setitem__, bind_output=lambda *given: self.bound.update({given[0]: given[1:]}),
                                        get_outputs=lambda: ["kept"], bind_ortvalue_output=self.bound.__setitem__)
        return types.SimpleNamespace(
            get_providers=lambda: list(self.asked), io_binding=lambda: binding, get_inputs=lambda: [types.SimpleNamespace(name="in")],
            get_outputs=lambda: [types.SimpleNamespace(name="out")], run_with_iobinding=lambda binding, how: self.driver.work(1 / 1024, lambda: None))


@pytest.mark.parametrize("backend, order", [("onnxruntime-cuda", ["CUDA", "CPU"]), ("onnxruntime-tensorrt", ["Tensorrt", "CUDA", "CPU"])])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_a_gpu_works_in_its_memory_on_our_stream_and_lets_us_wait(monkeypatch, backend, order, precision):
    driver = load(FAKES / "fake_cuda.py").Driver()
    ort = FakeOnnxRuntime(driver, ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", ort)
    monkeypatch.setitem(vars(ctypes.cdll), "libcuda.so.1", driver)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    session = runner.own_session({"backend": backend, "artifact": "net.onnx", "threads": None, "described": {"input": "rgb8", "precision": precision}})
    assert list(ort.asked) == [name + "ExecutionProvider" for name in order] and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    assert ort.asked["CUDAExecutionProvider"] == {"device_id": "0", "user_compute_stream": str(session.stream.value), "use_tf32": "0"}
    assert ort.asked.get("TensorrtExecutionProvider", {}).get("trt_fp16_enable") == ({"fp32": "0", "fp16": "1"}[precision] if "Tensorrt" in order else None)
    assert ort.run_settings == {"disable_synchronize_execution_providers": "1"}
    session.feed(PICTURE)
    assert ort.bound["in"][1:] == ("cuda", 0) and ort.bound["out"] == "kept"
    monkeypatch.setattr(runner.clock_steps, "__defaults__", (driver.clock,))
    seconds = runner.clock_steps(session.step, 5)
    assert seconds == [9 / 8192] * 5 and runner.device_times(session, seconds)["enqueue_seconds"] == (1 / 8192,) * 5
    assert session.facts()["boundary"] == "network, its rgb8 input and its output in device memory" and session.facts()["note"] == ""


def test_a_full_disk_is_told(run, build, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "net.engine.part").symlink_to("/dev/full")
    result, engine = build(sys.executable, "8.2", {"layers": MIXED})
    assert_told(result, "No space left")
    assert "free some space" in result["fix"] and engine is None and not (tmp_path / "net.engine.part").is_symlink()


def started(python, tmp_path, **job):
    """A worker that reads its input from a pipe, which is never written to."""
    os.mkfifo(tmp_path / "graph.onnx")
    shutil.copy(building.__file__, tmp_path)
    (tmp_path / "job.json").write_text(json.dumps({"action": "build", "runtime": "tensorrt", "onnx": "graph.onnx", "engine": "e", "precision": "fp32", **job}))
    return subprocess.Popen([python, "-S", str(FAKES / "drive.py"), str(RUNNER), "job.json", "result.json"], cwd=tmp_path, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env={**os.environ, "FAKE_TENSORRT": "8.2", "PYTHONPATH": str(FAKES)})


def test_on_a_leash_it_ends_with_whoever_started_it(python, tmp_path):
    process = started(python, tmp_path, leash=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.stdin.close()
    assert process.wait(10) == 4 and not (tmp_path / "result.json").exists()
    process.stdout.close()


def test_nobody_reads_how_far_it_is(python, tmp_path):
    (tmp_path / "wait").mkdir()
    process = started(python, tmp_path, progress=True)
    process.stdout.readline()
    process.stdout.close()
    with open(tmp_path / "graph.onnx", "w") as pipe:
        pipe.write(json.dumps({"layers": MIXED}))
    assert process.wait(10) == 4 and not (tmp_path / "result.json").exists()
    process.stdin.close()


# ---- the fakes: a name that a version has not is not there, or no test above could fail


@every_version
def test_the_fakes_have_the_names_of_the_table_and_no_other(version):
    trt = fake(version)
    for name, versions in api.API.items():
        owner, _, member = name.partition(".")
        assert (hasattr(trt, owner) and (not member or hasattr(getattr(trt, owner), member))) == (version in versions.split()), name
    assert {name for name in vars(trt) if not name.startswith("_")} <= {name.partition(".")[0] for name in api.API}


def test_the_table_is_what_the_facts_say():
    """A few rows written a second time, so that a slip in the table does not pass as a fact."""
    def has(version, owner, member):
        return hasattr(getattr(fake(version), owner, None), member)

    assert [has(v, "BuilderFlag", "FP16") for v in VERSIONS] == [True, True, True, False, False]
    assert [has(v, "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") for v in VERSIONS] == [True, True, True, False, False]
    assert [has(v, "IBuilderConfig", "set_memory_pool_limit") for v in VERSIONS] == [False, True, True, True, True]
    assert [has(v, "IBuilderConfig", "max_workspace_size") for v in VERSIONS] == [True, True, False, False, False]
    assert [has(v, "IExecutionContext", "execute_async_v3") for v in VERSIONS] == [False, True, True, True, True]
    assert [has(v, "ComputeCapability", "SM75") for v in VERSIONS] == [False, False, False, False, True]
    assert VERSIONS == ["8.2", "8.6", "10.13", "11.1", "rtx"]


@every_version
def test_the_fakes_refuse_what_the_real_ones_refuse(version):
    trt = fake(version)
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.no_such_setting = 1
    with pytest.raises(TypeError):
        config.set_flag(3)
    with pytest.raises(TypeError):
        config.profiling_verbosity = 1
    with pytest.raises(TypeError):
        trt.OnnxParser(builder.create_network(0), trt.Logger()).parse("text")
    with pytest.raises(TypeError):
        trt.Builder(type("Unready", (trt.ILogger,), {"__init__": lambda self: None})())
    if version not in ("8.2", "8.6"):
        with pytest.raises(AttributeError):
            config.max_workspace_size = 1


@every_version
def test_only_8x_needs_an_explicit_batch(version, capfd):
    trt = fake(version)
    network = trt.Builder(trt.Logger()).create_network(0)
    parser = trt.OnnxParser(network, trt.Logger())
    assert parser.parse(json.dumps({"layers": MIXED}).encode()) == (version not in ("8.2", "8.6"))
    assert ("explicit batch" in capfd.readouterr().err) == (version in ("8.2", "8.6"))


@pytest.mark.parametrize("version, bindings, half", [
    ("8.2", "Bindings", "FP16"), ("10.13", "Bindings", "Half"), ("11.1", "I/O Tensors", "Half"),
])
def test_the_fake_inspector_tells_what_the_build_lets_it_tell(version, bindings, half):
    trt = fake(version)
    text = {}
    for verbosity in ("LAYER_NAMES_ONLY", "DETAILED"):
        plan = {"version": version, "layers": [["conv1", "HALF"]], "config": {"profiling_verbosity": verbosity}}
        engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(json.dumps(plan).encode())
        text[verbosity] = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
        assert bindings in text[verbosity]
    assert text["LAYER_NAMES_ONLY"]["Layers"] == ["conv1"]
    assert half in text["DETAILED"]["Layers"][0]["Outputs"][0]["Format/Datatype"]


# ---- the clock


def test_the_clock_gives_the_durations_and_nothing_beside_them():
    now, planted, calls = [100.0], [0.5, 0.25, 2.0, 0.125], []

    def step():
        now[0] += planted[len(calls)]
        calls.append(1)

    assert runner.clock_steps(step, 4, lambda: now[0]) == planted


def test_a_busy_loop_of_known_length_is_measured_as_long():
    """Within 2 %: a loop that ends by the clock itself can be late, where something else runs, but never early."""
    def step():
        end = time.perf_counter() + 0.003
        while time.perf_counter() < end:
            pass

    seconds = runner.clock_steps(step, 100)
    assert min(seconds) >= 0.003 and sorted(seconds)[20] < 1.02 * 0.003


# Binary fractions of a second add up without rounding.
@pytest.mark.parametrize("seconds, steps, steady", [
    (1 / 64, 128 + 2 * 20, True),                       # 50 steps come first: on until 2 s, and two windows
    (1 / 256, 512 + 2 * 64, True),                      # windows of a quarter of a second
    (0.25, 50 + 2 * 20, True),                          # 2 s come first: on until 50 steps
    (1.0, 30, False),                                   # neither matters at 30 s
    (40.0, 1, False),
    (1 / 65536, runner.WARMUP_STEPS_LIMIT, False),      # nor after so many steps
])
def test_warm_up_stops_in_time(seconds, steps, steady):
    now = [0.0]

    def step():
        now[0] += seconds

    assert runner.warm_up(step, clock=lambda: now[0]) == ([seconds] * steps, steady)


@pytest.mark.parametrize("speed, steady", [
    (lambda n: 1 / 64 if n < 155 else 1 / 128, True),   # a card whose clock rises late
    (lambda n: 1 / 64 * 1.001 ** -n, False),            # and one that never stops getting faster
])
def test_warm_up_goes_on_until_it_is_steady(speed, steady):
    now, calls = [0.0], []

    def step():
        calls.append(now[0])
        now[0] += speed(len(calls))

    samples, found = runner.warm_up(step, 8.0, lambda: now[0])
    assert found is steady and len(samples) > 128 + 2 * 20


def test_a_window_that_differs_in_its_quartiles_alone_is_not_steady():
    now, calls = [0.0], []

    def step():
        calls.append(1)
        window = max(0, len(calls) - 128) // 20
        now[0] += 1 / 64 * (1 + (0.1 * (window % 2) if len(calls) % 3 == 0 else 0))

    assert not runner.warm_up(step, 8.0, lambda: now[0])[1]


# ---- the floor: Python 3.6 and nothing to install


TRAVELS = [RUNNER, Path(building.__file__)]


def imports(path):
    """(module, line, at top level) of every import of a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in [alias.name for alias in node.names] if isinstance(node, ast.Import) else ["." * node.level + (node.module or "")]:
                yield name.partition(".")[0], node.lineno, node in tree.body


@pytest.mark.parametrize("path", TRAVELS, ids=lambda path: path.stem)
def test_the_runner_is_written_in_python_36(path):
    ast.parse(path.read_text(), feature_version=(3, 6))
    vermin = shutil.which("vermin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if vermin is None:
        pytest.skip("vermin is not installed: pip install 'rtseg-deploy[dev]'")
    done = subprocess.run([vermin, "-t=3.6-", "--violations", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", TRAVELS, ids=lambda path: path.stem)
def test_the_runner_needs_nothing_installed(path):
    newer = {"contextvars", "dataclasses", "graphlib", "tomllib", "zoneinfo"}
    for name, line, top in imports(path):
        assert name in sys.stdlib_module_names - newer and top, f"line {line} imports {name}"
