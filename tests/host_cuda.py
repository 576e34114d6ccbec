"""kernels.cu compiled for this processor by the C++ compiler here, and what it computes of arrays."""
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rtseg_deploy.device import runner

DEVICE = Path(runner.__file__).resolve().parent
SHIM = Path(__file__).resolve().parent / "fakes/host_cuda.cpp"
MODES = ("bilinear", "corners", "nearest")      # in the order of kernels.h
BLOCK = 32, 4


@functools.cache
def library():
    """The path of the compiled kernels: one a process; it goes away with it."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is here: sudo apt-get install g++")
    folder = library.folder = tempfile.TemporaryDirectory(prefix="rtseg-deploy-test-")
    goal = Path(folder.name, "kernels.so")
    subprocess.run([compiler, "-std=c++14", "-O2", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror",
                    "-Wno-unknown-warning-option", "-Wno-unused-function", "-Wno-maybe-uninitialized", f"-I{DEVICE}", SHIM, "-o", goal], check=True)
    return goal


@functools.cache
def loaded():
    return ctypes.CDLL(str(library()))


def launch(name, size, *arguments, block=BLOCK):
    """Run a kernel over a grid that covers `size` (height, width of threads)."""
    values = [ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else ctypes.c_float(one) if isinstance(one, float) else ctypes.c_int(one)
              for one in arguments]
    given = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
    loaded().launch(name.encode(), -(-size[1] // block[0]), -(-size[0] // block[1]), *block, given)


def labels(logits, size, mode="bilinear"):
    """(1 x H x W labels, whether a logit is not finite) of 1 x classes x h x w."""
    logits, classes = np.ascontiguousarray(logits), logits.shape[1]
    found, broken = np.full((1, *size), 99, np.uint8 if classes < 256 else np.int32), np.zeros(1, np.int32)
    kind = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}[logits.dtype]
    launch(f"labels_{kind}", (size[0], -(-size[1] // 4)), logits, found, broken, classes, *logits.shape[2:], *size, MODES.index(mode))
    return found, bool(broken[0])


def network_input(pixels, size, mean, std, dtype=np.float32):
    found = np.full((1, 3, *size), 99, dtype)
    offset, factor = (np.asarray(one, np.float64) for one in (mean, std))
    launch("pixels_f32" if dtype == np.float32 else "pixels_f16", size, np.ascontiguousarray(pixels), found, *pixels.shape[:2], *size,
           *map(float, (255 * offset).astype(np.float32)), *map(float, (1 / (255 * factor)).astype(np.float32)))
    return found


def defined(logits, size, mode="bilinear"):
    """The labels by the definition in kernels.h."""
    logits, found = np.ascontiguousarray(logits, np.float32), np.empty((1, *size), np.int32)
    loaded().defined(ctypes.c_void_p(logits.ctypes.data), ctypes.c_void_p(found.ctypes.data), *logits.shape[1:], *size, MODES.index(mode))
    return found


def nvcc_in(folder):
    """A folder with an nvcc that gives the kernels as they are compiled for this processor, and counts in `calls` how often it was asked."""
    folder.mkdir()
    (folder / "nvcc").write_text(f"""#!/bin/sh
if [ "$1" = --version ]; then echo "Cuda compilation tools, release 10.2, V10.2.89"; exit; fi
echo "$@" >> {folder}/calls
while [ "$1" != -o ]; do shift; done
cp {library()} "$2"
""")
    (folder / "nvcc").chmod(0o755)
    return folder
