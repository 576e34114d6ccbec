"""The CUDA kernels: their body on this processor against its definition and PyTorch, compiled for every GPU that a compiler here knows, and on a fake
of CUDA that sees what is read or overwritten too early. What only a GPU can say has the marker `gpu`."""
import ast
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import host_cuda
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, downloaded, script
from host_cuda import MODES
from hypothesis import given
from hypothesis import strategies as st
from test_runner import FAKES, load

from rtseg_deploy import facts, launch
from rtseg_deploy.backends import torch_cuda
from rtseg_deploy.device import frames, gpuframes, gpukernels, kernels, runner

RNG = np.random.default_rng(0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAPABILITIES = sorted({target.compute_capability for target in facts.targets().values()})


def enlarged(logits, size, mode):
    """float32 logits at `size`, by PyTorch."""
    how = {"mode": "nearest"} if mode == "nearest" else {"mode": "bilinear", "align_corners": mode == "corners"}
    return F.interpolate(torch.from_numpy(np.asarray(logits, np.float32)), size=size, **how)


def made(kind, classes, size, rng=RNG):
    values = rng.standard_normal((1, classes, *size)).astype(np.float32)
    return {"random": values, "flat": np.zeros_like(values), "equal": np.repeat(values[:, :1], classes, 1), "huge": values * np.float32(1e30),
            "tiny": values * np.float32(1e-38), "ties": np.round(2 * values)}[kind]


# ---- the body, on this processor


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["random", "flat", "equal", "huge", "tiny", "ties"])
@pytest.mark.parametrize("classes", [1, 11, 19, 171, 256])
def test_labels_are_pytorchs_to_the_bit(classes, kind, mode):
    for have, size in (((12, 16), (96, 128)), ((13, 9), (93, 77)), ((60, 70), (55, 131))):
        logits = made(kind, classes, have)
        found, broken = host_cuda.labels(logits, size, mode)
        assert not broken and found.dtype == (np.uint8 if classes < 256 else np.int32)
        assert (found == host_cuda.defined(logits, size, mode)).all()
        assert (found == enlarged(logits, size, mode).argmax(1).numpy()).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(MODES), st.sampled_from([1, 2, 11, 19]), st.integers(1, 9), st.integers(1, 9), st.integers(1, 70),
       st.integers(1, 70), st.sampled_from(["random", "ties"]))
def test_labels_are_their_definition_at_every_size(seed, mode, classes, height, width, goal_height, goal_width, kind):
    """Enlarged, reduced, by fractions, with rests of blocks and of the pixels of a thread."""
    logits = made(kind, classes, (height, width), np.random.default_rng(seed))
    assert (host_cuda.labels(logits, (goal_height, goal_width), mode)[0] == host_cuda.defined(logits, (goal_height, goal_width), mode)).all()


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_logits_are_read_exactly(mode):
    for kind in ("random", "ties"):
        logits = made(kind, 19, (12, 16)).astype(np.float16)
        assert (host_cuda.labels(logits, (96, 128), mode)[0] == host_cuda.labels(logits.astype(np.float32), (96, 128), mode)[0]).all()


def test_every_half_is_the_number_that_it_is():
    """Against another class that is zero, scaled by steps: the label of each tells its order among all halves."""
    bits = np.arange(65536, dtype=np.uint16)
    halves = bits.view(np.float16)
    halves = halves[np.isfinite(halves)]
    for shift in (0, 1, 7):
        pair = np.stack([np.roll(halves, shift), halves]).reshape(1, 2, 1, -1)
        assert (host_cuda.labels(pair, (1, halves.size))[0] == (pair[:, 1] > pair[:, 0])).all()
    sums = np.stack([halves[:-1], halves[1:]], -1).reshape(1, 1, -1, 2)     # each cell has a half and the one after it, and a rounding between them
    other = (np.float32(0.5) * sums[..., 0] + np.float32(0.5) * sums[..., 1]).astype(np.float16)
    pair = np.concatenate([sums, np.stack([other, other], -1)], 1)
    assert (host_cuda.labels(pair, (pair.shape[2], 3), "corners")[0] == host_cuda.defined(pair, (pair.shape[2], 3), "corners")).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_logit_that_is_not_finite_is_told(value, dtype):
    for place in ((0, 0, 0, 0), (0, 4, 5, 7), (0, 1, 2, 3)):
        logits = made("random", 5, (6, 8)).astype(dtype)
        assert not host_cuda.labels(logits, (48, 64))[1]
        logits[place] = value
        assert host_cuda.labels(logits, (48, 64))[1]


def test_blocks_and_their_rests_leave_no_pixel_out():
    logits = made("random", 11, (9, 17))
    expected = host_cuda.defined(logits, (71, 133))
    for block in ((1, 1), (32, 4), (7, 3), (64, 16)):
        found, broken = np.full((1, 71, 133), 99, np.uint8), np.zeros(1, np.int32)
        host_cuda.launch("labels_f32", (71, 34), logits, found, broken, 11, 9, 17, 71, 133, 0, block=block)
        assert (found == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("have, size", [((24, 32), (24, 32)), ((48, 96), (24, 32)), ((25, 33), (24, 32)), ((10, 13), (24, 32)), ((1, 1), (5, 6))])
def test_a_frame_becomes_what_the_host_makes_of_it(have, size, dtype):
    pixels = RNG.integers(0, 256, (*have, 3), np.uint8)
    assert (host_cuda.network_input(pixels, size, MEAN, STD, dtype) == kernels.network_input(pixels, size, MEAN, STD, dtype)).all()


def test_numbers_become_halves_as_numpy_rounds_them():
    """Of a picture with each value, normalised by means and deviations that reach what overflows, vanishes, and lies between two halves."""
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for std in (1 / 255 / 2**exponent for exponent in range(-24, 20)):
        for mean in (0.0, 0.5, 0.123, 1 / 16 / 255, 3 / 16 / 255):      # sixteenths: from 128 on halfway between two
            found = host_cuda.network_input(pixels, (16, 16), [mean] * 3, [std] * 3, np.float16)
            with np.errstate(over="ignore"):
                assert (found == host_cuda.network_input(pixels, (16, 16), [mean] * 3, [std] * 3).astype(np.float16)).all()


# ---- compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nvcc_compiles_them_for_every_target_that_it_knows(capability, tmp_path):
    nvcc = next((one for one in gpukernels.compilers() if isinstance(one, gpukernels.Nvcc)), None)
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    known = runner.output_of(60, nvcc.path, "--list-gpu-arch")      # 11.0 and newer
    if known and f"compute_{capability.replace('.', '')}" not in known.split():
        with pytest.raises(runner.JobError, match="nsupported gpu architecture"):
            nvcc.compiled(capability)
        pytest.skip(f"{nvcc.version} makes nothing for {capability}")
    assert nvcc.compiled(capability).startswith(b"\x7fELF")
    subprocess.run([nvcc.path, "-ptx", "-arch=compute_" + capability.replace(".", ""), *gpukernels.OPTIONS, "-I", gpukernels.HERE, "-o", tmp_path / "ptx",
                    gpukernels.HERE / "kernels.cu"], check=True, stdin=subprocess.DEVNULL)
    assert_kernels((tmp_path / "ptx").read_text())


@pytest.fixture(scope="session")
def nvrtc(tmp_path_factory):
    """CUDA 11.8's, which knows every target, from the package index."""
    folder = tmp_path_factory.mktemp("nvrtc")
    zipfile.ZipFile(downloaded("nvidia-cuda-nvrtc-cu11==11.8.89", "3.11", folder)).extractall(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder)])
        (path,) = [path for path in gpukernels.libraries() if path.startswith(str(folder))]
    return gpukernels.Nvrtc(path)


@pytest.mark.xdist_group("nvrtc")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nvrtc_compiles_them_for_every_target(nvrtc, monkeypatch, capability):
    assert nvrtc.version == "NVRTC 11.8" and nvrtc.compiled(capability).startswith(b"\x7fELF")
    monkeypatch.setattr(nvrtc, "kind", "PTX")       # as before 11.1
    assert_kernels(nvrtc.compiled(capability).decode())


@pytest.mark.xdist_group("nvrtc")
def test_nvrtc_leaves_the_encoding_of_files_alone(nvrtc, tmp_path):
    (tmp_path / "text").write_text("…", "utf-8")
    nvrtc.compiled("6.2")
    assert (tmp_path / "text").read_text() == "…"


@pytest.mark.xdist_group("nvrtc")
def test_what_nvrtc_says_of_an_error_is_told(nvrtc, monkeypatch, tmp_path):
    with pytest.raises(runner.JobError, match="(?i)invalid value for --gpu-architecture"):
        nvrtc.compiled("1.0")
    for name in gpukernels.SOURCES:
        (tmp_path / name).write_bytes((gpukernels.HERE / name).read_bytes().replace(b"GROUP = 4", b"GROUP = four"))
    monkeypatch.setattr(gpukernels, "HERE", tmp_path)
    with pytest.raises(runner.JobError, match='error: identifier "four" is undefined'):
        nvrtc.compiled("6.2")


def assert_kernels(ptx):
    """All four, and nothing that the compiler contracted: where the sources have one fused operation, PTX has one, and no more."""
    assert set(re.findall(r"\.entry (\w+)", ptx)) == {"labels_f32", "labels_f16", "pixels_f32", "pixels_f16"}
    assert "fma.rn.f32" in ptx and not re.search(r"fma\.rn\.f64|\bmad\.f|ftz", ptx)
    pixels = ptx[ptx.index(".entry pixels_f32"):]
    assert "fma.rn.f32" not in pixels[:pixels.index("\n}")]


# ---- on a fake of CUDA, which runs the kernels here


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """The fake, and an nvcc that makes what it can load."""
    made = load(FAKES / "fake_cuda.py").Driver()
    monkeypatch.setitem(vars(ctypes.cdll), "libcuda.so.1", made)
    monkeypatch.setattr(gpuframes.time, "perf_counter", made.clock)
    monkeypatch.setenv("PATH", str(host_cuda.nvcc_in(tmp_path / "bin")), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


class Network(runner.Stream):
    """As a session on a GPU is: its logits are those of `logits`, at an eighth of its input."""
    def __init__(self, driver, size, classes=5, dtype=np.float32):
        runner.Stream.__init__(self)
        self.driver, self.shapes, self.dtype = driver, ((1, 3, *size), (1, classes, size[0] // 8, size[1] // 8)), np.dtype(dtype)
        self.memory = [gpuframes.device(int(np.prod(shape)) * self.dtype.itemsize) for shape in self.shapes]

    def feed(self, array):
        data = np.ascontiguousarray(array, self.dtype)
        runner.cuda("cuMemcpyHtoD_v2", self.memory[0], ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes))

    def enqueue(self):
        taken, given = (np.frombuffer(self.driver.memory[place.value], self.dtype).reshape(shape) for place, shape in zip(self.memory, self.shapes))

        def effect():
            given[...] = logits(taken.astype(np.float32), given.shape[1])
        self.driver.work(1 / 1024, effect, stream=self.stream.value, reads=[self.memory[0].value], writes=[self.memory[1].value])

    def places(self):
        return [(place.value, self.dtype.name, list(shape)) for place, shape in zip(self.memory, self.shapes)]

    def facts(self):
        return {"boundary": "network"}


def logits(values, classes):
    """1 x 3 x H x W -> 1 x classes x H/8 x W/8."""
    _, _, height, width = values.shape
    mixed = np.random.default_rng(1).standard_normal((classes, 3)).astype(np.float32)
    return np.einsum("kc,chw->khw", mixed, values.reshape(3, height // 8, 8, width // 8, 8).mean((2, 4)))[None]


def about(size, **more):
    return {"frame": "pixels", "input": "normalised", "output": "native", "enlarge": "bilinear", "size": list(size), "mean": MEAN, "std": STD, **more}


def expected(pixels, size, mode="bilinear", classes=5, dtype=np.float32):
    taken = kernels.network_input(pixels, size, MEAN, STD, dtype)
    return host_cuda.defined(logits(taken.astype(np.float32), classes).astype(dtype), pixels.shape[:2], mode)


def noise(*size):
    """A frame of blocks: of noise a mean of 8 x 8 pixels is nearly the same everywhere."""
    return RNG.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8).repeat(8, 0).repeat(8, 1)[:size[0], :size[1]]


SIZE = 32, 48


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frame", [SIZE, (53, 91)])
def test_a_step_on_the_gpu_is_frame_to_labels(driver, dtype, mode, frame):
    network = Network(driver, SIZE, dtype=dtype)
    whole, pixels = gpuframes.framed({"stages": about(SIZE, enlarge=mode)}, network), [noise(*frame) for _ in range(3)]
    for one in pixels:
        whole.take(one)
        whole.step()
        assert (whole.output() == expected(one, SIZE, mode, dtype=dtype)).all() and whole.output().dtype == np.uint8
    assert list(whole.taken(2)) == ["copy in", "normalise", "network", "labels", "copy back"]
    told = whole.facts()
    assert told["labels"] == "CUDA, nvcc 10.2.89 for 7.5" and told["boundary"].endswith("copy in, normalise, network, labels, copy back")


def test_each_stage_is_waited_for(driver):
    whole = gpuframes.framed({"stages": about(SIZE)}, Network(driver, SIZE))
    whole.feed(noise(*SIZE))
    whole.step()
    kernel, copy, network = 1 / 8192 + 1 / 16384, 1 / 8192 + 1 / 4096, 1 / 8192 + 1 / 1024
    assert [seconds for (seconds,) in whole.taken(1).values()] == [copy, kernel, network, kernel, copy]


def test_the_kernels_are_in_the_networks_graph(driver):
    whole, pixels = gpuframes.framed({"stages": about(SIZE)}, Network(driver, SIZE)), noise(*SIZE)
    whole.feed(pixels)
    whole.capture()
    driver.asked.clear()
    for one in (pixels, noise(*SIZE)):
        whole.take(one)
        whole.step()
        assert (whole.output() == expected(one, SIZE)).all()
    assert list(whole.taken(1)) == ["copy in", "graph", "copy back"] and driver.asked == ["copy in", "copy out"] * 2
    assert whole.taken(1)["graph"] == [1 / 65536 + 1 / 1024 + 2 / 16384]


def test_a_frame_of_another_size_takes_memory_of_its_own_and_gives_the_old_back(driver):
    whole = gpuframes.framed({"stages": about(SIZE)}, Network(driver, SIZE))
    whole.take(noise(40, 60))
    held = len(driver.memory)
    for frame in ((53, 91), SIZE, (40, 60)):
        pixels = noise(*frame)
        whole.take(pixels)
        whole.step()
        assert (whole.output() == expected(pixels, SIZE)).all() and len(driver.memory) == held


def test_classes_beyond_a_byte(driver):
    whole, pixels = gpuframes.framed({"stages": about(SIZE)}, Network(driver, SIZE, 300)), noise(*SIZE)
    whole.feed(pixels)
    whole.step()
    assert whole.output().dtype == np.int32 and (whole.output() == expected(pixels, SIZE, classes=300)).all()


def test_logits_that_are_not_finite_are_an_error_there(driver):
    network = Network(driver, SIZE)
    whole = gpuframes.framed({"stages": about(SIZE, mean=(np.inf,) * 3)}, network)
    whole.feed(noise(*SIZE))
    with pytest.raises(runner.JobError, match="not finite"):
        whole.step()


def test_what_the_graph_does_itself_is_copied_there_and_back(driver):
    """An input of the frame's own bytes, and labels of the graph's."""
    class Whole(Network):
        def __init__(self, driver):
            Network.__init__(self, driver, SIZE)
            self.shapes, self.memory = ((*SIZE, 3), (1, *SIZE)), [gpuframes.device(SIZE[0] * SIZE[1] * 3), gpuframes.device(SIZE[0] * SIZE[1] * 4)]

        def places(self):
            return [(place.value, kind, list(shape)) for place, kind, shape in zip(self.memory, ("uint8", "int32"), self.shapes)]

        def feed(self, array):
            assert array.dtype == np.uint8 and array.shape == self.shapes[0]

        def enqueue(self):
            taken = np.frombuffer(self.driver.memory[self.memory[0].value], np.uint8).reshape(self.shapes[0])
            given = np.frombuffer(self.driver.memory[self.memory[1].value], np.int32).reshape(self.shapes[1])
            self.driver.work(1 / 1024, lambda: np.copyto(given, taken.argmax(2)), stream=self.stream.value, reads=[self.memory[0].value],
                             writes=[self.memory[1].value])

    whole, pixels = gpuframes.framed({"stages": about(SIZE, input="rgb8", output="labels")}, Whole(driver)), noise(*SIZE)
    whole.feed(pixels)
    whole.step()
    assert (whole.output() == pixels.argmax(2)).all() and list(whole.taken(1)) == ["copy in", "hand over", "network", "labels", "copy back"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_sessions_tell_where_their_tensors_are(dtype):
    """Of ONNX Runtime and PyTorch by their own words, which are the same of tensors in the host's memory."""
    ort = pytest.importorskip("onnxruntime")
    arrays = np.zeros((1, 3, 4, 6), dtype), np.zeros((1, 5, 2, 3), dtype)
    fed, given = (ort.OrtValue.ortvalue_from_numpy(one, "cpu", 0) for one in arrays)
    name = np.dtype(dtype).name
    expected = [(fed.data_ptr(), name, [1, 3, 4, 6]), (given.data_ptr(), name, [1, 5, 2, 3])]
    assert runner.OnnxRuntimeOnGpu.places(types.SimpleNamespace(fed=fed, given=given)) == expected
    session = types.SimpleNamespace(input=torch.from_numpy(arrays[0]), result=torch.rand(1, 5, 2, 3).to(memory_format=torch.channels_last))
    whole = session.result.flatten().tolist()
    assert torch_cuda.Session.places(session) == [(session.input.data_ptr(), name, [1, 3, 4, 6]), (session.result.data_ptr(), "float32", [1, 5, 2, 3])]
    assert session.result.is_contiguous() and session.result.flatten().tolist() == whole


# ---- compiled once, and kept


def calls(tmp_path):
    path = tmp_path / "bin/calls"
    return path.read_text().count("\n") if path.exists() else 0


def test_they_are_compiled_once(driver, tmp_path):
    runner.Stream()
    for _ in range(2):
        assert gpukernels.Kernels().compiler == "nvcc 10.2.89" and calls(tmp_path) == 1
    folder = tmp_path / "cache/rtseg-deploy"
    (kept,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    kept.write_bytes(kept.read_bytes() + b"and more")
    gpukernels.Kernels()
    assert calls(tmp_path) == 2 and hashlib.sha256(kept.read_bytes()[32:]).digest() == kept.read_bytes()[:32]
    folder.chmod(0o777)                         # anybody may have put it there
    gpukernels.Kernels()
    assert calls(tmp_path) == 3


@pytest.mark.parametrize("change", ["sources", "compiler", "gpu"])
def test_another_source_compiler_or_gpu_is_compiled_for(driver, tmp_path, monkeypatch, change):
    runner.Stream()
    gpukernels.Kernels()
    if change == "sources":
        shutil.copytree(gpukernels.HERE, tmp_path / "device", ignore=shutil.ignore_patterns("*.py*"))
        (tmp_path / "device/kernels.h").write_text((gpukernels.HERE / "kernels.h").read_text() + "\n")
        monkeypatch.setattr(gpukernels, "HERE", tmp_path / "device")
    elif change == "compiler":
        (tmp_path / "bin/nvcc").write_text((tmp_path / "bin/nvcc").read_text().replace("V10.2.89", "V10.2.300"))
    else:
        monkeypatch.setattr(runner, "gpu", lambda: {"compute_capability": "6.2"})
    gpukernels.Kernels()
    assert calls(tmp_path) == 2


def test_a_compiler_that_fails_is_not_the_last_word(driver, tmp_path, monkeypatch):
    """nvcc does not know the GPU; the next compiler does."""
    said = "nvcc fatal   : Unsupported gpu architecture 'sm_62'"
    (tmp_path / "bin/nvcc").write_text(f'#!/bin/sh\nif [ $1 = --version ]; then echo V13.0.88; exit; fi\necho "{said}"; exit 1\n')

    class Other:
        version = "NVRTC 11.8"

        def image(self, capability):
            return host_cuda.library().read_bytes()
    monkeypatch.setattr(gpukernels, "libraries", lambda: [])
    runner.Stream()
    with pytest.raises(gpukernels.NoKernels, match="Unsupported gpu architecture 'sm_62'") as failed:
        gpukernels.Kernels()
    assert "nvidia-cuda-nvrtc" in failed.value.answer["fix"]
    found = gpukernels.compilers
    monkeypatch.setattr(gpukernels, "compilers", lambda: [*found(), Other()])
    assert gpukernels.Kernels().compiler == "NVRTC 11.8"


def test_without_a_compiler_the_host_does_it_and_says_so(driver, monkeypatch):
    monkeypatch.setattr(gpukernels, "compilers", lambda: [])

    class Fetched(Network):
        def output(self):
            return np.frombuffer(self.driver.memory[self.memory[1].value], np.float32).reshape(self.shapes[1])
    network, pixels = Fetched(driver, SIZE), noise(*SIZE)
    whole = gpuframes.framed({"stages": about(SIZE)}, network)
    whole.feed(pixels)
    whole.step()
    assert isinstance(whole, frames.Frames) and (whole.output() == expected(pixels, SIZE)).all()
    assert "neither nvcc nor NVRTC; install a compiler for CUDA" in whole.facts()["note"]
    with pytest.raises(runner.JobError, match="neither nvcc nor NVRTC"):
        gpuframes.framed({"stages": about(SIZE), "streaming": True}, network)


# ---- streaming


@pytest.fixture
def stream(driver):
    whole = gpuframes.framed({"stages": about(SIZE), "streaming": True}, Network(driver, SIZE))
    whole.feed(noise(*SIZE))
    return whole


def streamed(whole, pixels):
    """The labels of each frame, in turn."""
    found = []
    for one in pixels:
        whole.take(one)
        whole.step()
        found += [whole.output().copy()] if one is not pixels[0] else []
    whole.drain()
    return [*found, whole.output().copy()]


@pytest.mark.parametrize("graph", [False, True])
def test_frames_that_overlap_keep_their_labels(stream, graph):
    if graph:
        stream.capture()
    pixels = [noise(*SIZE) for _ in range(9)]
    found = streamed(stream, pixels)
    assert len(found) == 9 and all((labels == expected(one, SIZE)).all() for one, labels in zip(pixels, found))
    assert len({labels.tobytes() for labels in found}) == 9


def test_copies_overlap_the_computation(driver, stream):
    """By the fake's clock, where a computation takes 1/1024 s and 2/16384 s of kernels, each copy 1/4096 s, each call 1/8192 s."""
    stream.capture()
    begin = driver.now
    streamed(stream, [noise(*SIZE) for _ in range(50)])
    computed = 1 / 1024 + 2 / 16384
    assert computed < (driver.now - begin) / 50 < 1.05 * computed + 1 / 65536
    latencies = stream.taken(50)
    assert len(latencies) == 50 and min(latencies) > computed + 2 / 4096 and np.median(latencies) > 1.5 * computed     # not what one follows from the other


def test_streaming_is_timed_as_latency_and_throughput(driver, monkeypatch, tmp_path):
    monkeypatch.setattr(runner.clock_steps, "__defaults__", (driver.clock,))
    monkeypatch.setattr(runner.warm_up, "__defaults__", (1.0, driver.clock))
    monkeypatch.setattr(runner.time, "perf_counter", driver.clock)
    monkeypatch.setattr(runner, "need", lambda name: {"gpuframes": gpuframes, "numpy": np}[name])
    pixels = noise(*SIZE)
    np.save(tmp_path / "0.npy", pixels)
    job = {"stages": about(SIZE), "streaming": True, "cuda_graph": True, "inputs": [tmp_path / "0.npy"], "labels": [str(tmp_path / "labels.npy")],
           "iterations": 40, "backend": "tensorrt"}
    result = runner.time_steps(job, Network(driver, SIZE))
    assert len(result["seconds"]) == 40 and "stages" not in result and "device_seconds" not in result
    assert np.median(result["seconds"]) > 1.5 * (result["ended"] - result["began"]) / 40
    assert (result["ended"] - result["began"]) >= 40 * (1 / 1024 + 2 / 16384)                                         # none was under way before or after
    assert (np.load(tmp_path / "labels.npy") == expected(pixels, SIZE)[0]).all()


# ---- what goes wrong is seen


def race(driver):
    return pytest.raises(driver.Race, match="in use on stream")


def test_a_kernel_on_another_stream_is_seen(driver):
    """It would read what the network still writes."""
    network = Network(driver, SIZE)
    whole = gpuframes.framed({"stages": about(SIZE)}, network)
    whole.feed(noise(*SIZE))
    other, slot = ctypes.c_void_p(), whole.slots[0]
    runner.cuda("cuStreamCreate", ctypes.byref(other), 0)
    whole.hand_over(slot)
    network.enqueue()
    network.stream, right = other, network.stream
    with race(driver):
        whole.label(slot)
    network.stream = right
    whole.label(slot)


def test_labels_that_are_read_before_they_are_there_are_seen(driver):
    network = Network(driver, SIZE)
    whole, pixels = gpuframes.framed({"stages": about(SIZE)}, network), noise(*SIZE)
    whole.feed(pixels)
    network.synchronise = lambda: None
    whole.step()
    assert (whole.output() == 0).all()
    del network.synchronise
    network.synchronise()
    assert (whole.output() == expected(pixels, SIZE)).all()


def test_a_slot_that_is_used_again_too_early_is_seen(driver, stream):
    for one in (noise(*SIZE), noise(*SIZE)):
        stream.hand_in(one)
    with race(driver):                          # its labels are still on their way out
        stream.hand_in(noise(*SIZE))


@pytest.mark.parametrize("forgotten", ["arrived", "computed"])
def test_an_order_between_streams_that_is_forgotten_is_seen(driver, stream, monkeypatch, forgotten):
    after = stream.after_that
    monkeypatch.setattr(stream, "after_that", lambda from_, event, to: None if event in [getattr(slot, forgotten) for slot in stream.slots]
                        else after(from_, event, to))
    with race(driver):
        streamed(stream, [noise(*SIZE) for _ in range(3)])


# ---- what travels


@pytest.mark.parametrize("module", [gpuframes, gpukernels])
def test_what_travels_is_written_in_python_36(module):
    text = Path(module.__file__).read_text()
    ast.parse(text, feature_version=(3, 6))
    assert {node.names[0].name.partition(".")[0] for node in ast.parse(text).body if isinstance(node, ast.Import)} <= {*sys.stdlib_module_names, "numpy"}
    assert Path(module.__file__).name in launch.GPU_FRAMES


# ---- on a GPU


needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch can use")]


@pytest.fixture
def gpu_labels():
    """benchmarks/gpu_labels.py, which holds the kernels against PyTorch on the GPU."""
    return script(ROOT / "benchmarks/gpu_labels.py")


@pytest.mark.parametrize("mode", MODES)
def test_what_the_gpu_is_held_to_passes_ties_and_finds_a_wrong_label(gpu_labels, mode):
    """Here, on a processor's labels."""
    for kind, have in (("random", (13, 9)), ("ties", (12, 16)), ("huge", (12, 16)), ("tiny", (7, 9)), ("flat", (7, 9))):
        logits, size = made(kind, 19, have), (93, 77)
        labels = torch.from_numpy(host_cuda.labels(logits, size, mode)[0].astype(np.int64))
        assert gpu_labels.beyond_a_tie(torch.from_numpy(logits), size, mode, labels) == 0
        labels[0, 50, 40] = int(enlarged(logits, size, mode)[0, :, 50, 40].argmin())     # the next class may be as likely
        assert gpu_labels.beyond_a_tie(torch.from_numpy(logits), size, mode, labels) == (0 if kind == "flat" else 1)


@pytest.mark.parametrize("classes", [pytest.param(classes, marks=needs_gpu) for classes in (11, 19, 171, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_a_gpu_labels_are_pytorchs(gpu_labels, classes, dtype):
    for kind in ("random", "flat", "equal", "huge", "tiny", "ties"):
        for have, size, mode in (((64, 128), (512, 1024), "bilinear"), ((45, 60), (360, 480), "corners"), ((53, 71), (301, 457), "bilinear"),
                                 ((64, 128), (512, 1024), "nearest"), ((90, 120), (64, 77), "bilinear")):
            values = torch.from_numpy(made(kind, classes, have))
            values = (values.clamp(-6e4, 6e4) if dtype == torch.float16 else values).to("cuda", dtype)
            found = gpu_labels.Labels(values, size, mode)()
            assert (found == enlarged(values.float().cpu(), size, mode).argmax(1)).all()
            assert gpu_labels.beyond_a_tie(values, size, mode, found) == 0


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=needs_gpu) for dtype in (torch.float32, torch.float16)])
def test_on_a_gpu_they_are_five_times_as_fast_as_enlarging_and_argmax(gpu_labels, dtype):
    row = gpu_labels.compared((128, 256), (1024, 2048), 19, dtype)
    assert row["differ beyond a tie"] == 0 and row["times as fast"] >= 5


@pytest.mark.parametrize("protocol, graph", [pytest.param(*how, marks=needs_gpu) for how in (("end-to-end", False), ("end-to-end", True), ("streaming", False),
                                                                                               ("streaming", True))])
def test_on_a_gpu_a_frame_becomes_the_labels_that_it_becomes_on_the_host(trained, tmp_path, protocol, graph):
    from rtseg_deploy import bench, images
    from rtseg_deploy.export import export

    export(trained, tmp_path / "net.onnx", (360, 480), output="native")
    ask = bench.Ask(("torch-cuda",), iterations=100, results=tmp_path, image=str(images.STREET), protocol=protocol, cuda_graph=graph)
    (_, figure), = bench.bench(tmp_path / "net.onnx", ask)
    assert figure.environment["labels"].startswith("CUDA, ")
    if protocol == "streaming":
        assert figure.statistics["back_to_back_ms"] < figure.statistics["mean_ms"]
    ask = replace(ask, backends=("torch-eager", "torch-cuda"), protocol="end-to-end", cuda_graph=False)
    _, (_, both) = bench.bench(tmp_path / "net.onnx", ask)
    assert both.same_labels["torch-eager"] > 0.999
