"""The CUDA kernels: their body on this processor against its definition and PyTorch, compiled for every GPU that a compiler here knows, and on a fake
of CUDA that sees what is read or overwritten too early. What only a GPU can say has the marker `gpu`."""
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import host_cuda
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from host_cuda import MODES
from hypothesis import given
from hypothesis import strategies as st
from test_runner import FAKES, load

from rtseg_deploy import facts
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
        for mean in (0.0, 0.5, 0.123):
            found = host_cuda.network_input(pixels, (16, 16), [mean] * 3, [std] * 3, np.float16)
            with np.errstate(over="ignore"):
                assert (found == host_cuda.network_input(pixels, (16, 16), [mean] * 3, [std] * 3).astype(np.float16)).all()


# ---- compiled


def image_of(compiler, capability):
    try:
        return compiler.compiled(capability)
    except runner.JobError as error:
        pytest.skip(f"{compiler.version}: {error}")


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


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_nvrtc_compiles_them_for_every_target_that_it_knows(capability):
    paths = gpukernels.libraries()
    if not paths:
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    for path in paths:
        nvrtc = gpukernels.Nvrtc(path)
        image = image_of(nvrtc, capability)
        assert image.startswith(b"\x7fELF") == (nvrtc.kind == "CUBIN")
        nvrtc.kind = "PTX"                      # as before 11.1
        assert_kernels(nvrtc.compiled(capability).decode())


def assert_kernels(ptx):
    """All four, and nothing that the compiler contracted: where the sources have one fused operation, PTX has one, and no more."""
    assert set(re.findall(r"\.entry (\w+)", ptx)) == {"labels_f32", "labels_f16", "pixels_f32", "pixels_f16"}
    assert "fma.rn.f32" in ptx and not re.search(r"fma\.rn\.f64|\bmad\.f|ftz", ptx)
    pixels = ptx[ptx.index(".entry pixels_f32"):]
    assert "fma.rn.f32" not in pixels[:pixels.index("\n}")]
