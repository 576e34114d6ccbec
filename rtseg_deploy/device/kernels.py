"""Labels from a network's logits, and a network's input from a picture, in one pass each and without a plane at full size: kernels.c where a C compiler
is found, numpy to the same bits where none is. Travels with a job, beside kernels.c and kernels.h; Python 3.6 and numpy.

The labels are those of PyTorch's interpolate and argmax on contiguous float32 logits, on a processor: its arithmetic where height and width of what
it makes add up to more than 128, fused as its build for this processor is. Below that, and for channels_last, PyTorch has another one, which differs
where classes are equal up to rounding. What is read of logits that are not finite raises FloatingPointError.
"""
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy

MODES = ("bilinear", "corners", "nearest")          # in kernels.h's order
COMPILERS, INSTALL = ("cc", "gcc", "clang"), "install a C compiler: sudo apt-get install gcc libc6-dev"
FLAGS = ("-std=c99", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "kernels.h")]
NOT_FINITE, NO_MEMORY = 1, 2                        # what kernels.c returns
BAND, TOGETHER = 32, 4096                           # rows that numpy enlarges together, pixels that it computes again together


def labels(logits, size, enlarge="bilinear", threads=1, out=None):
    """1 x classes x h x w logits -> 1 x height x width labels of `size`: uint8, int32 from 256 classes. `out`, where it fits, is written and returned.

    Of equal classes the lowest. Raises FloatingPointError where a logit is not finite.
    """
    logits = numpy.ascontiguousarray(logits, numpy.float32)
    _, classes, height, width = logits.shape
    out = fitting(out, (1, *size), numpy.uint8 if classes < 256 else numpy.int32)
    library, _ = compiled()
    if not library:
        out[0] = labels_by_numpy(logits[0], size, enlarge)
        return out
    status = library.labels(pointer(logits), classes, height, width, pointer(out), out.itemsize, *size, MODES.index(enlarge), threads)
    if status == NOT_FINITE:
        raise FloatingPointError("a logit is not finite")
    if status == NO_MEMORY:
        raise MemoryError("no memory for labels of %d x %d" % size)
    return out


def network_input(pixels, size, mean, std, dtype="float32", threads=1, out=None):
    """H x W x 3 uint8 RGB -> 1 x 3 x height x width of `size`: resized to it, rounded to uint8 again, and normalised by mean and std of RGB / 255."""
    pixels = numpy.ascontiguousarray(pixels, numpy.uint8)
    height, width, _ = pixels.shape
    out = fitting(out, (1, 3, *size), dtype)
    offsets, factors = scale(mean, std)
    library, _ = compiled()
    if not library:
        pixels = pixels if (height, width) == tuple(size) else resized(pixels, size)
        out[0] = ((pixels - offsets) * factors).transpose(2, 0, 1)
    elif library.network_input(pointer(pixels), height, width, pointer(out), out.itemsize, *size, pointer(offsets), pointer(factors), threads):
        raise MemoryError("no memory for an input of %d x %d" % size)
    return out


def facts(threads):
    """What computes them, in words, and how to get the faster one."""
    library, reason = compiled()
    return "C, %d thread%s" % (threads, "s" * (threads != 1)) if library else "numpy: %s" % reason


def fitting(out, shape, dtype):
    """The array that is to be written: `out`, or a new one where that is none, of another shape or type, or not in one piece."""
    fits = out is not None and out.shape == tuple(shape) and out.dtype == dtype and out.flags.c_contiguous and out.flags.writeable
    return out if fits else numpy.empty(shape, dtype)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def scale(mean, std):
    """(255 mean, 1 / (255 std)), each rounded once."""
    mean, std = (numpy.array(values, numpy.float64) for values in (mean, std))
    return (255 * mean).astype(numpy.float32), (1 / (255 * std)).astype(numpy.float32)


# ---- C
@functools.lru_cache(maxsize=None)
def compiled():
    """(the library, None), or (None, why there is none and what to do). It is made once for these sources, this compiler and this processor."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None, "no C compiler; %s" % INSTALL
    try:
        folder = cache()
        if folder:
            return loaded(compiler, folder), None
        with tempfile.TemporaryDirectory() as folder:       # loaded, it is there for as long as this process
            return loaded(compiler, folder), None
    except subprocess.CalledProcessError as error:
        return None, "%s fails: %s; %s" % (compiler, last_line(error.output), INSTALL)
    except (OSError, AttributeError) as error:
        return None, "what %s makes cannot be used: %s; %s" % (compiler, error, INSTALL)


def last_line(output):
    lines = output.decode(errors="replace").strip().splitlines()
    return next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")


def cache():
    """The user's folder for what is compiled; None where it cannot be written, or where somebody else could have."""
    folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rtseg-deploy")
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        about = os.stat(folder)
    except OSError:
        return None
    return folder if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(folder, os.W_OK) else None


def loaded(compiler, folder):
    """The library in a folder, compiled where it is not there, or was made for another system."""
    path = os.path.join(folder, "kernels-%s.so" % identity(compiler))
    try:
        return ctypes.CDLL(path)
    except OSError:
        compile_to(compiler, path)
        return ctypes.CDLL(path)


def identity(compiler):
    """What the library depends on, as a digest."""
    parts = [path.read_bytes() for path in SOURCES]
    parts += [subprocess.check_output([compiler, "--version"], stderr=subprocess.STDOUT), repr((FLAGS, platform.machine(), cpu())).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


@functools.lru_cache(maxsize=None)
def cpu():
    """What /proc/cpuinfo says of the processor's kind, without what changes; empty where there is none."""
    try:
        with open("/proc/cpuinfo") as lines:
            return sorted({line.strip() for line in lines if line.startswith(("model name", "flags", "Features", "CPU part", "CPU implementer"))})
    except OSError:
        return []


def compile_to(compiler, path):
    """Compile for this processor, or, where the compiler does not know it, for each of its kind. Another process may do the same meanwhile."""
    handle, part = tempfile.mkstemp(suffix=".so", dir=os.path.dirname(path))
    os.close(handle)
    command = [compiler, *FLAGS, str(SOURCES[0]), "-o", part]
    try:
        try:
            subprocess.check_output([*command, "-march=native"], stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            subprocess.check_output(command, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


# ---- numpy: kernels.h's functions, of arrays
def labels_by_numpy(logits, size, enlarge):
    """As `labels`, of classes x h x w. Only bands of rows are at full size, and of those one class; what is near a tie is computed again, as C has it."""
    finite([logits.min(), logits.max()])
    if enlarge == "nearest" or logits.shape[1:] == tuple(size):
        rows, columns = (nearest(have, goal) for have, goal in zip(logits.shape[1:], size))
        return greatest(logits)[0].take(rows, 0).take(columns, 1)
    rows, columns = (sources(have, goal, enlarge) for have, goal in zip(logits.shape[1:], size))
    return numpy.concatenate([band(logits, [part[at:at + BAND] for part in rows], columns) for at in range(0, size[0], BAND)])


def finite(values):
    if not numpy.isfinite(values).all():
        raise FloatingPointError("a logit is not finite")


def greatest(planes):
    """The label of each pixel, the greatest and the second greatest logit, from one plane after another."""
    found = best = second = None
    for number, plane in enumerate(planes):
        if best is None:
            found, best, second = numpy.zeros(plane.shape, numpy.int32), plane.copy(), numpy.full_like(plane, -numpy.inf)
            continue
        second = numpy.maximum(second, numpy.minimum(best, plane))
        found[plane > best] = number
        best = numpy.maximum(best, plane)
    return found, best, second


def band(logits, rows, columns):
    """The labels of some rows."""
    begin, end = rows[0].min(), rows[1].max() + 1
    here, below = logits[:, begin:end], rows[1] - begin
    above = rows[0] - begin
    first, second = (part[:, None] for part in rows[2:])
    across = (plane.take(columns[0], 1) * columns[2] + plane.take(columns[1], 1) * columns[3] for plane in here)
    found, best, other = greatest(plane.take(above, 0) * first + plane.take(below, 0) * second for plane in across)
    ys, xs = numpy.nonzero(best - other <= numpy.abs(here).max() * numpy.float32(2.0 ** -20) + numpy.float32(2.0 ** -121))     # see slack_of in kernels.h
    for at in range(0, len(ys), TOGETHER):
        y, x = ys[at:at + TOGETHER], xs[at:at + TOGETHER]
        left, right = (columns[side].take(x) for side in (0, 1))
        upper, lower = (blended(here[:, row.take(y), left], here[:, row.take(y), right], columns[2].take(x), columns[3].take(x)) for row in (above, below))
        found[y, x] = blended(upper, lower, rows[2].take(y), rows[3].take(y)).argmax(0)
    return found


def nearest(have, goal):
    if have == goal:
        return numpy.arange(have)
    return numpy.minimum((numpy.arange(goal, dtype=numpy.float32) * (numpy.float32(have) / numpy.float32(goal))).astype(int), have - 1)


def sources(have, goal, enlarge):
    """Both neighbours of each row or column, and their weights."""
    at = numpy.arange(goal, dtype=numpy.float32)
    if have == goal:
        return at.astype(int), at.astype(int), numpy.ones(goal, numpy.float32), numpy.zeros(goal, numpy.float32)
    if enlarge == "corners":
        place = at * (numpy.float32(have - 1) / numpy.float32(max(goal - 1, 1)))
    else:
        place = fused(numpy.float32(have) / numpy.float32(goal), at + numpy.float32(0.5), numpy.float32(-0.5)).clip(0)
    low = numpy.minimum(place.astype(int), have - 1)
    second = (place - low.astype(numpy.float32)).clip(0, 1)
    return low, numpy.minimum(low + 1, have - 1), 1 - second, second


def blended(low, high, first, second):
    return fused(low, first, high * second)


def fused(a, b, c):
    """a b + c of float32, rounded once where this processor's compiler does so too.

    The product is exact in double. The sum is rounded to odd there, which leaves the last rounding right: Boldo and Melquiond, Emulation of FMA, 2008.
    """
    if platform.machine() not in ("aarch64", "arm64") and not any(" fma " in line for line in cpu()):
        return a * b + c
    product, c = numpy.multiply(a, b, dtype=numpy.float64), numpy.asarray(c, numpy.float64)
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)
    bits = total.view(numpy.int64)
    odd = bits + numpy.where((lost != 0) & (bits & 1 == 0), numpy.where((lost > 0) == (total > 0), 1, -1), 0)
    return odd.view(numpy.float64).astype(numpy.float32)


def resized(pixels, size):
    """H x W x 3 uint8 at (height, width): bilinear between pixel centres, rounded."""
    values = pixels
    for axis, goal in ((0, size[0]), (1, size[1])):
        have = pixels.shape[axis]
        at = ((numpy.arange(goal) + 0.5) * have / goal - 0.5).clip(0, have - 1).astype(numpy.float32)
        low = numpy.minimum(at.astype(int), max(have - 2, 0))
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        first, second = (values.take(index, axis).astype(numpy.float64) for index in (low, numpy.minimum(low + 1, have - 1)))
        values = first + (second - first) * part
    return numpy.rint(values).astype(numpy.uint8)
