"""The CUDA kernels of kernels.cu: compiled on this machine for its GPU, kept, and launched. Beside runner.py, kernels.py, kernels.cu and kernels.h;
Python 3.6, its standard library, and nvcc or NVRTC.

CUDA's driver is called as runner.py calls it, through ctypes: pycuda does no more than that here, and is one more thing to compile on a Jetson.
"""
import ctypes
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from ctypes import addressof, byref, c_char_p, c_float, c_int, c_size_t, c_void_p, create_string_buffer
from functools import partial
from pathlib import Path

if __package__:
    from . import kernels, runner
else:                               # in a job's folder
    import kernels
    runner = sys.modules.get("rtseg_deploy.device.runner") or sys.modules["__main__"]      # whichever of the two was started

HERE, SOURCES, DIGEST = Path(__file__).parent, ("kernels.cu", "kernels.h"), 32
BLOCK, GROUP = (32, 4), 4                       # threads, and pixels of a row that one of them labels: kernels.cu has the same
OPTIONS = ("-std=c++11", "-fmad=false")         # nothing is contracted: PyTorch's arithmetic is written out
NVCC_SECONDS = 300                              # a Jetson takes its time
FIX = "install a compiler for CUDA there: nvcc (a Jetson: sudo apt-get install cuda-nvcc-10-2), or pip install nvidia-cuda-nvrtc-cu12"


class NoKernels(runner.JobError):
    """They cannot be had here."""


class Kernels:
    """Loaded into the context that is current."""
    def __init__(self):
        self.module, self.functions, reasons = c_void_p(), {}, []
        self.capability = runner.gpu()["compute_capability"]
        for compiler in compilers():
            try:
                runner.cuda("cuModuleLoadData", byref(self.module), compiler.image(self.capability))
                self.compiler = compiler.version
                return
            except runner.JobError as error:    # what one has not, such as an old GPU or a new one, another may have
                reasons.append("%s: %s" % (compiler.version, error))
        raise NoKernels("the CUDA kernels cannot be compiled here: %s" % ("; ".join(reasons) or "there is neither nvcc nor NVRTC"), FIX)

    def launch(self, name, size, stream, *arguments):
        """Ask for a kernel over `size` (height, width) threads; arguments as its parameters are, in their C types."""
        if name not in self.functions:
            self.functions[name] = c_void_p()
            runner.cuda("cuModuleGetFunction", byref(self.functions[name]), self.module, name.encode())
        given = (c_void_p * len(arguments))(*[addressof(one) for one in arguments])
        grid = [-(-side // threads) for side, threads in zip((size[1], size[0]), BLOCK)]
        runner.cuda("cuLaunchKernel", self.functions[name], *grid, 1, *BLOCK, 1, 0, stream, given, None)

    def labels(self, stream, logits, shape, half, found, broken, size, mode):
        """Labels of `size` from classes x height x width logits, as addresses; `broken` becomes 1 where a logit is not finite."""
        numbers = [c_int(one) for one in (*shape, *size, kernels.MODES.index(mode))]
        self.launch("labels_f16" if half else "labels_f32", (size[0], -(-size[1] // GROUP)), stream, c_void_p(logits), c_void_p(found), c_void_p(broken),
                    *numbers)

    def pixels(self, stream, frame, shape, given, size, half, mean, std):
        """The network's normalised input of `size` from a frame of `shape`, as addresses; mean and std of RGB / 255."""
        offset, factor = kernels.scale(mean, std)
        self.launch("pixels_f16" if half else "pixels_f32", size, stream, c_void_p(frame), c_void_p(given), *map(c_int, (*shape, *size)),
                    *map(c_float, (*offset, *factor)))


# ---- compilers


def compilers():
    """Of CUDA, those that are here."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc:
        yield Nvcc(nvcc)
    for path in libraries():
        try:
            yield Nvrtc(path)
        except (OSError, AttributeError):       # one of its own libraries is not there, or it is none
            continue


def libraries():
    """Paths of NVRTC, the newest first: of CUDA as it is installed, and of its wheels, as PyTorch brings them."""
    places = ["/usr/local/cuda*/lib64", "/usr/lib/*-linux-gnu", *(os.path.join(folder, "nvidia/*/lib") for folder in sys.path if folder)]
    found = {os.path.realpath(path) for place in places for path in glob.glob(place + "/libnvrtc.so*")}
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.rpartition(".so")[2])], reverse=True)


class Nvcc:
    def __init__(self, path):
        self.path = path
        said = runner.output_of(60, path, "--version") or ""
        self.version = "nvcc " + "".join(re.findall(r"V([\d.]+)", said)[:1])

    def image(self, capability):
        return kept(self.version, capability, partial(self.compiled, capability))

    def compiled(self, capability):
        with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
            goal = os.path.join(folder, "kernels.cubin")
            command = [self.path, "-cubin", "-arch=sm_" + capability.replace(".", ""), "-I", str(HERE), *OPTIONS, "-o", goal, str(HERE / "kernels.cu")]
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=NVCC_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                raise runner.JobError("it does not run: %s" % error) from None
            runner.refuse(done.returncode or not os.path.isfile(goal), first_error(done.stdout), FIX)
            return Path(goal).read_bytes()


class Nvrtc:
    """The compiler as a library. Before 11.1 it makes PTX alone, which the driver compiles."""
    def __init__(self, path):
        self.library, major, minor = ctypes.CDLL(path), c_int(), c_int()
        self.library.nvrtcVersion(byref(major), byref(minor))
        self.version, self.kind = "NVRTC %d.%d" % (major.value, minor.value), "CUBIN" if hasattr(self.library, "nvrtcGetCUBIN") else "PTX"

    def image(self, capability):
        return kept(self.version, capability, partial(self.compiled, capability))

    def compiled(self, capability):
        with ThreadPoolExecutor(1) as pool:     # it leaves the C locale to its thread, and with that ASCII to every file that Python opens there
            return pool.submit(self.compile, capability).result()

    def compile(self, capability):
        program, (source, header) = c_void_p(), ((HERE / name).read_bytes() for name in SOURCES)
        self.call("nvrtcCreateProgram", byref(program), source, b"kernels.cu", 1, (c_char_p * 1)(header), (c_char_p * 1)(b"kernels.h"))
        try:
            options = ["-arch=%s_%s" % ("sm" if self.kind == "CUBIN" else "compute", capability.replace(".", "")), *OPTIONS]
            status = self.library.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*[one.encode() for one in options]))
            runner.refuse(status, first_error(self.taken(program, "nvrtcGetProgramLog").strip(b"\0\n ") or self.reason(status)), FIX)
            return self.taken(program, "nvrtcGet" + self.kind)
        finally:
            self.library.nvrtcDestroyProgram(byref(program))

    def taken(self, program, what):
        size = c_size_t()
        self.call(what + "Size", program, byref(size))
        buffer = create_string_buffer(size.value)
        self.call(what, program, buffer)
        return buffer.raw

    def call(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        runner.refuse(status, "%s: %s" % (function, self.reason(status).decode()), FIX)

    def reason(self, status):
        self.library.nvrtcGetErrorString.restype = c_char_p
        return self.library.nvrtcGetErrorString(status) or b"error %d" % status


def first_error(said):
    """The line of a compiler's words that tells what is wrong."""
    lines = [line for line in said.decode("utf-8", "replace").strip("\0\n ").split("\n") if line.strip()]
    return next((line for line in lines if "error" in line or "fatal" in line), lines[0] if lines else "it says nothing")[:300]


def kept(compiler, capability, compiled):
    """The image: what compiled() gives, or gave before for these sources, this compiler and such a GPU. Another process may do the same meanwhile."""
    folder = kernels.cache()
    if not folder:
        return compiled()
    parts = [*((HERE / name).read_bytes() for name in SOURCES), repr((compiler, capability, OPTIONS)).encode()]
    path = os.path.join(folder, "kernels-%s.cubin" % hashlib.sha256(b"\0".join(parts)).hexdigest()[:32])
    found = Path(path).read_bytes() if os.path.isfile(path) else b""
    if found[:DIGEST] == hashlib.sha256(found[DIGEST:]).digest():       # a driver tells little of an image that is damaged
        return found[DIGEST:]
    image = compiled()
    handle, part = tempfile.mkstemp(suffix=".cubin", dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(hashlib.sha256(image).digest() + image)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
    return image

