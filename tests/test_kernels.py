"""The kernels around a network, on a processor: the same bits as PyTorch and as a slow definition, in C and in numpy, and what becomes of no compiler."""
import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import downloaded
from hypothesis import given
from hypothesis import strategies as st

from rtseg_deploy.device import kernels, runner
from rtseg_deploy.device.frames import Frames

HERE = Path(kernels.__file__).parent
MODES = kernels.MODES
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True, scope="module")
def cached(tmp_path_factory):
    """Compiled once for these tests, and into no user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        kernels.compiled.cache_clear()
        yield
    kernels.compiled.cache_clear()


@pytest.fixture(params=["C", "numpy"])
def way(request, monkeypatch):
    """Either of the two."""
    if request.param == "numpy":
        monkeypatch.setattr(kernels, "compiled", lambda: (None, "not wanted"))
    elif not kernels.compiled()[0]:
        pytest.skip(kernels.compiled()[1])
    return request.param


@pytest.fixture
def compiler():
    if not kernels.compiled()[0]:
        pytest.skip(kernels.compiled()[1])


def theirs(logits, size, enlarge):
    """PyTorch's labels."""
    torch = pytest.importorskip("torch")
    from rtseg_deploy.layers import resize

    same = tuple(size) == logits.shape[2:]
    return (torch.from_numpy(logits) if same else resize(torch.from_numpy(logits), size, enlarge)).argmax(1).numpy()


def logits(kind, classes, height, width, seed=0):
    """1 x classes x height x width of a kind that something could be wrong with."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((1, classes, height, width), np.float32)
    one = normal[:, :1]
    near = np.concatenate([one + 0 * normal[:, :-2], np.nextafter(one, np.float32(np.inf)), one + normal[:, -1:] - 1], 1)[:, -classes:]
    coarse = rng.integers(0, 3, (1, 1, height, width)).astype(np.float32)
    smooth = np.repeat(np.repeat(normal[..., ::8, ::8], 8, 2), 8, 3)[..., :height, :width]
    return np.ascontiguousarray({"random": normal, "flat": np.full_like(normal, 0.3), "equal": one + 0 * normal, "huge": normal * np.float32(1e30),
                                 "tiny": normal * np.float32(1e-38), "steps": normal.round(), "ties": np.float32(0.1) * coarse + np.float32(1e-8) * normal,
                                 "near": near, "smooth": smooth + np.float32(0.01) * normal}[kind], np.float32)


KINDS = ("random", "flat", "equal", "huge", "tiny", "steps", "ties", "near", "smooth")


@pytest.mark.parametrize("enlarge", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [11, 19])
def test_labels_are_pytorchs_for_every_kind_of_logits(compiler, kind, classes, enlarge):
    for have, size in (((45, 60), (360, 480)), ((23, 37), (181, 293)), ((90, 120), (61, 83)), ((30, 40), (30, 200))):
        given = logits(kind, classes, *have)
        assert (kernels.labels(given, size, enlarge, 2) == theirs(given, size, enlarge)).all(), (have, size)


@pytest.mark.parametrize("classes, have, size", [(19, (64, 128), (512, 1024)), (11, (128, 256), (1024, 2048)), (171, (45, 60), (360, 480)),
                                                 (255, (20, 30), (160, 241)), (256, (20, 30), (160, 241)), (300, (20, 30), (20, 300)),
                                                 (1, (20, 30), (160, 240)), (2, (1, 1), (100, 200)), (5, (1, 60), (100, 480)), (5, (60, 1), (480, 7)),
                                                 (19, (128, 256), (128, 256)), (7, (360, 480), (45, 97)), (11, (90, 120), (720, 960))])
def test_labels_are_pytorchs_at_every_size(compiler, classes, have, size):
    for enlarge in MODES:
        given = logits("smooth", classes, *have)
        found = kernels.labels(given, size, enlarge, 2)
        assert (found == theirs(given, size, enlarge)).all() and found.dtype == (np.uint8 if classes < 256 else np.int32)


@pytest.mark.parametrize("size", [(360, 480), (512, 1024), (375, 1242)])
def test_labels_of_real_pictures_are_pytorchs(compiler, shared, size):
    """A sample of what benchmarks/labels.py does over the whole set."""
    import torch

    from rtseg_deploy import checkpoints, images
    from rtseg_deploy.deployed import deployed

    trained = checkpoints.load(shared / "checkpoints/sgcpnet_camvid.pth.tar")
    net, whole = (deployed(trained, output, 17) for output in ("native", "labels"))
    for path in sorted((shared / "camvid/test").glob("*.png"))[::117]:
        x = kernels.network_input(images.resized(images.read(path), size), size, trained.normalisation.mean, trained.normalisation.std)
        with torch.inference_mode():
            found, wanted = (module(torch.from_numpy(x)).numpy() for module in (net, whole))
        assert (kernels.labels(found, size, trained.dialect.enlarge, 2) == wanted).all()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(129, 200), st.sampled_from(MODES), st.sampled_from(KINDS),
       st.integers(0, 99))
def test_labels_are_pytorchs_at_any_size(classes, height, width, goal_height, goal_width, enlarge, kind, seed):
    values = logits(kind, classes, height, width, seed)
    if kernels.compiled()[0]:
        assert (kernels.labels(values, (goal_height, goal_width), enlarge, 3) == theirs(values, (goal_height, goal_width), enlarge)).all()


@pytest.mark.parametrize("enlarge", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_numpy_gives_the_same_labels(kind, enlarge):
    for have, size, classes in (((9, 13), (72, 101), 5), ((40, 50), (31, 199), 19)):
        given = logits(kind, classes, *have)
        assert (kernels.labels_by_numpy(given[0], size, enlarge) == theirs(given, size, enlarge)[0]).all()


def in_double(planes, size, enlarge):
    """The definition: each pixel from its four neighbours, by places and weights that are not rounded."""
    for axis, goal in ((1, size[0]), (2, size[1])):
        have = planes.shape[axis]
        at = np.arange(goal) * ((have - 1) / max(goal - 1, 1)) if enlarge == "corners" else (np.arange(goal) + 0.5) * have / goal - 0.5
        at = at.clip(0, have - 1)
        low = np.minimum(at.astype(int), max(have - 2, 0))
        part = (at - low).reshape((-1, 1) if axis == 1 else (-1,))
        planes = planes.take(low, axis) * (1 - part) + planes.take(np.minimum(low + 1, have - 1), axis) * part
    return planes


@pytest.mark.parametrize("enlarge", ["bilinear", "corners"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tiny"])
@pytest.mark.parametrize("size", [(72, 104), (37, 50), (5, 7)])     # also those where PyTorch's own arithmetic is another one
def test_where_labels_differ_from_the_definition_it_is_a_tie_but_for_rounding(way, kind, enlarge, size):
    given = logits(kind, 11, 9, 13)
    exact = in_double(given[0].astype(np.float64), size, enlarge)
    found = kernels.labels(given, size, enlarge, 2)
    behind = exact.max(0) - np.take_along_axis(exact, found.astype(int), 0)[0]
    # places are rounded too, to 2^-24 of at most 13 columns; the slope is at most twice the greatest magnitude
    assert (behind <= 2 ** -24 * (8 + 2 * 2 * 13) * np.abs(given).max()).all()


def built(folder, sources):
    """A library of other sources: name -> text."""
    folder.mkdir(exist_ok=True)
    for name, text in sources.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SOURCES", [folder / name for name in sources])
        return kernels.loaded(next(filter(None, map(kernels.shutil.which, kernels.COMPILERS))), str(folder))


SOURCES = {path.name: path.read_text() for path in kernels.SOURCES}
FAULTS = {"settled without the margin for rounding": ("  float slack = slack_of(magnitude.value);", "float slack = 0;", "near", "bilinear"),
          "pruned without it": ("class < leaders[leader] ? slack : 0", "0", "near", "bilinear"),
          "the highest of equals": ("int more = value > best[i]", "int more = value >= best[i]", "steps", "bilinear"),
          "the highest of equals at a corner": ("int more = logit.value > best[i]", "int more = logit.value >= best[i]", "steps", "nearest"),
          "another order of the products": ("return FMA(low, first, high * second);", "return FMA(high, second, low * first);", "ties", "bilinear"),
          "three corners": ("(a[i] == b[i]) & (a[i] == a[i + 1]) & (a[i] == b[i + 1])", "(a[i] == b[i]) & (a[i] == a[i + 1])", "random", "bilinear")}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(compiler, tmp_path, monkeypatch, fault):
    right, wrong, kind, enlarge = FAULTS[fault]
    assert sum(text.count(right) for text in SOURCES.values()) == 1
    faulty = built(tmp_path, {name: text.replace(right, wrong) for name, text in SOURCES.items()})
    monkeypatch.setattr(kernels, "compiled", lambda: (faulty, None))
    given = logits(kind, 5, 20, 30)
    assert (kernels.labels(given, (160, 240), enlarge, 1) != theirs(given, (160, 240), enlarge)).any()


PIXELS = """
#include "kernels.h"
void labels(const float *logits, int classes, int height, int width, int *labels, int goal_height, int goal_width, int mode)
{
    for (int y = 0; y < goal_height; y++)
        for (int x = 0; x < goal_width; x++) {
            Source row = source_of(y, height, goal_height, mode), column = source_of(x, width, goal_width, mode);
            labels[y * goal_width + x] = label_at(logits, classes, height, width, row, column);
        }
}
void input(const unsigned char *pixels, int height, int width, float *values, int goal_height, int goal_width)
{
    for (int y = 0; y < goal_height; y++)
        for (int x = 0; x < goal_width; x++)
            for (int channel = 0; channel < 3; channel++)
                values[(channel * goal_height + y) * goal_width + x] = resized_at(
                    pixels, width, channel, pixel_source_of(y, height, goal_height), pixel_source_of(x, width, goal_width));
}
"""


def test_the_bodies_that_cuda_takes_are_the_same_pixel_by_pixel(compiler, tmp_path):
    library = built(tmp_path, {"pixels.c": PIXELS, "kernels.h": SOURCES["kernels.h"]})
    for kind in KINDS:
        for mode, enlarge in enumerate(MODES):
            for size in ((72, 101), (5, 140)):
                given, found = logits(kind, 5, 9, 13), np.empty((1, *size), np.int32)
                library.labels(kernels.pointer(given), 5, 9, 13, kernels.pointer(found), *size, mode)
                assert (found == theirs(given, size, enlarge)).all(), (kind, enlarge, size)
    for size in ((9, 13), (31, 45), (4, 7), (1, 1)):
        pixels, found = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8), np.empty((3, *size), np.float32)
        library.input(kernels.pointer(pixels), 9, 13, kernels.pointer(found), *size)
        assert (found.transpose(1, 2, 0) == kernels.resized(pixels, size)).all()


OTHER = """
import ctypes, sys
import test_kernels as tests
from rtseg_deploy.device import kernels
kernels.compiled = lambda: (ctypes.CDLL(sys.argv[1]), None)
for kind in tests.KINDS:
    for enlarge in kernels.MODES:
        given = tests.logits(kind, 5, 20, 30)
        assert (kernels.labels(given, (91, 150), enlarge) == tests.theirs(given, (91, 150), enlarge)).all(), (kind, enlarge)
"""


@pytest.mark.skipif(kernels.platform.machine() != "x86_64", reason="these are kinds of x86-64")
@pytest.mark.parametrize("name, flags", [("default", []), ("avx2", ["-mavx2", "-mfma"])])
def test_for_an_older_processor_labels_are_those_of_pytorchs_code_for_it(compiler, tmp_path, name, flags):
    if name == "avx2" and not any(" avx2 " in line and " fma " in line for line in kernels.cpu()):
        pytest.skip("this processor has no AVX2")
    library = tmp_path / "plain.so"
    subprocess.run(["cc", *kernels.FLAGS, *flags, str(kernels.SOURCES[0]), "-o", str(library)], check=True)
    path = os.pathsep.join([str(Path(__file__).parent), str(HERE.parent.parent)])
    done = subprocess.run([sys.executable, "-c", OTHER, str(library)], env={**os.environ, "PYTHONPATH": path, "ATEN_CPU_CAPABILITY": name},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_how_many_threads_changes_nothing_and_what_is_given_is_written(compiler):
    given, size = logits("smooth", 19, 64, 128), (512, 1024)
    room, first = np.empty((1, *size), np.uint8), kernels.labels(given, size)
    for threads in (2, 3, 64, 200):
        room[:] = 99
        assert kernels.labels(given, size, threads=threads, out=room) is room and (room == first).all()
    assert kernels.labels(given, size, out=room[:, ::2]) is not room and kernels.labels(given, size, out=room.astype(np.int32)).dtype == np.uint8
    half = given.astype(np.float16)
    assert (kernels.labels(half, size) == kernels.labels(half.astype(np.float32), size)).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(way, wrong):
    for size in ((96, 128), (12, 16)):
        given = logits("random", 5, 12, 16)
        given[0, 3, 7, 11] = wrong
        with pytest.raises(FloatingPointError):
            kernels.labels(given, size)

    class Session:
        output = lambda self: given       # noqa: E731
        feed = step = lambda self, *_: None     # noqa: E731

    about = {"frame": "pixels", "input": "rgb8", "output": "native", "enlarge": "bilinear", "size": [96, 128]}
    whole = Frames({"stages": about, "threads": 1}, Session())
    whole.feed(np.zeros((96, 128, 3), np.uint8))
    with pytest.raises(runner.JobError, match="not finite"):
        whole.step()


# ---- pixels in


def defined(pixels, size):
    """The network's input, pixel by pixel."""
    height, width, _ = pixels.shape
    found = np.empty((1, 3, *size), np.float32)
    places = [np.float32(np.clip((np.arange(goal) + 0.5) * have / goal - 0.5, 0, have - 1)) for have, goal in ((height, size[0]), (width, size[1]))]
    for y, x, channel in np.ndindex(*size, 3):
        (up, down), (left, right) = ((int(at), min(int(at) + 1, have - 1)) for at, have in ((places[0][y], height), (places[1][x], width)))
        vertical, across = float(places[0][y]) - up, float(places[1][x]) - left
        a, b, c, d = (float(pixels[row, column, channel]) for row in (up, down) for column in (left, right))
        value = np.float32(round((a + (c - a) * vertical) + ((b + (d - b) * vertical) - (a + (c - a) * vertical)) * across))
        found[0, channel, y, x] = (value - np.float32(255 * MEAN[channel])) * np.float32(1 / (255 * STD[channel]))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("have, size", [((20, 31), (20, 31)), ((40, 62), (20, 31)), ((23, 37), (19, 50)), ((10, 12), (31, 45)), ((1, 1), (3, 4)),
                                        ((9, 2), (5, 1))])
def test_the_networks_input_is_resized_rounded_and_normalised_as_defined(way, have, size, dtype):
    for pixels in (np.random.default_rng(0).integers(0, 256, (*have, 3), np.uint8), np.full((*have, 3), 255, np.uint8)):
        found = kernels.network_input(pixels, size, MEAN, STD, dtype, 2)
        assert found.dtype == dtype and (found == defined(pixels, size).astype(dtype)).all()


def test_numbers_of_16_bits_are_rounded_as_numpy_rounds_them(compiler):
    pixels = np.arange(3 * 256, dtype=np.int64).reshape(1, 256, 3).astype(np.uint8)
    for mean, std in ((MEAN, STD), (3 * (0.5,), 3 * (1e-7,)), (3 * (0.5,), 3 * (3e4,)), (3 * (0.5,), 3 * (1e7,)), (3 * (0.0,), 3 * (6e-8,))):
        wide, half = (kernels.network_input(pixels, (1, 256), mean, std, dtype, 1) for dtype in ("float32", "float16"))
        with np.errstate(over="ignore"):
            assert (half == wide.astype(np.float16)).all()


def test_the_networks_input_is_written_where_the_session_reads_it(compiler):
    class Session:
        def __init__(self):
            self.input, self.fed = None, []

        def feed(self, array):
            self.fed.append(array)
            self.input = array if self.input is None else self.input

        def step(self):
            pass

        def output(self):
            return logits("random", 5, 3, 4)

    about = {"frame": "pixels", "input": "normalised", "output": "native", "enlarge": "bilinear", "size": [24, 32], "mean": MEAN, "std": STD}
    whole, session = Frames({"stages": about, "threads": 2}, session := Session()), session
    frames = [np.full((48, 64, 3), value, np.uint8) for value in (0, 9)]
    whole.take(frames[0])
    for frame in frames:
        whole.take(frame)
        whole.step()
        assert session.fed[-1] is session.input and (session.input == kernels.network_input(frame, (24, 32), MEAN, STD)).all()
    assert whole.output().shape == (1, 48, 64)


# ---- the compiler


ASKED = """
import sys
sys.path.insert(0, sys.argv[1])
import kernels, numpy
assert kernels.labels(numpy.eye(3, dtype="f")[None, :, None], (8, 24)).max() == 2
assert kernels.network_input(numpy.ones((8, 8, 3), "u1"), (4, 4), [0] * 3, [1] * 3).shape == (1, 3, 4, 4)
print(kernels.facts(2))
"""


def said(cache, path=None, python=sys.executable, **more):
    """What a process of its own says of its kernels."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **({"PATH": str(path)} if path else {}), **more}
    done = subprocess.run([python, "-c", ASKED, str(HERE)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def libraries(cache):
    return sorted(path.name for path in Path(cache).rglob("*") if path.is_file())


def test_two_processes_that_compile_at_once_leave_one_whole_library(compiler, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", ASKED, str(HERE)], stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in both} == {b"C, 2 threads"} and [process.returncode for process in both] == [0, 0]
    (name,) = libraries(tmp_path)
    before = (tmp_path / "rtseg-deploy" / name).stat()
    assert said(tmp_path) == "C, 2 threads" and (tmp_path / "rtseg-deploy" / name).stat() == before
    assert (tmp_path / "rtseg-deploy").stat().st_mode & 0o777 == 0o700


def test_a_library_of_another_system_is_made_anew(compiler, tmp_path):
    said(tmp_path)
    (name,) = libraries(tmp_path)
    (tmp_path / "rtseg-deploy" / name).write_bytes(b"no library")
    assert said(tmp_path) == "C, 2 threads" and libraries(tmp_path) == [name]


def test_a_cache_that_others_can_write_is_not_used(compiler, tmp_path):
    said(tmp_path)
    (name,) = libraries(tmp_path)
    (tmp_path / "rtseg-deploy" / name).write_bytes(b"planted")
    (tmp_path / "rtseg-deploy").chmod(0o777)
    assert said(tmp_path) == "C, 2 threads"
    assert (tmp_path / "rtseg-deploy" / name).read_bytes() == b"planted"


def test_a_cache_of_somebody_else_is_not_used(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.cache() == str(tmp_path / "rtseg-deploy")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert kernels.cache() is None
    kernels.compiled.cache_clear()
    assert kernels.compiled()[0] and not libraries(tmp_path)
    kernels.compiled.cache_clear()


def test_a_cache_that_cannot_be_written_is_done_without(compiler, tmp_path):
    (tmp_path / "file").write_text("")
    assert said(tmp_path / "file") == "C, 2 threads"


def test_without_a_compiler_it_is_numpy_and_said(tmp_path):
    assert said(tmp_path, tmp_path) == "numpy: no C compiler; install a C compiler: sudo apt-get install gcc libc6-dev"


def test_a_compiler_that_fails_is_named_with_its_reason(tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\necho kernels.c:1: error: no space left >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    words = said(tmp_path / "cache", tmp_path)
    assert words.startswith(f"numpy: {tmp_path}/cc fails: ") and "no space left" in words and not libraries(tmp_path / "cache")


def test_a_compiler_that_does_not_know_this_processor_makes_a_plain_library(compiler, tmp_path):
    real = next(filter(None, map(kernels.shutil.which, kernels.COMPILERS)))
    (tmp_path / "cc").write_text(f'#!/bin/sh\ncase "$*" in *march*) exit 1;; esac\nexec {real} "$@"\n')
    (tmp_path / "cc").chmod(0o755)
    assert said(tmp_path / "cache", f"{tmp_path}:{os.environ['PATH']}") == "C, 2 threads"


def test_they_are_written_in_python_36():
    ast.parse((HERE / "kernels.py").read_text(), feature_version=(3, 6))


def test_they_run_in_python_36(tmp_path):
    from conftest import python36
    python = python36() or pytest.skip("no Python 3.6 here")
    (tmp_path / "wheel").mkdir()
    zipfile.ZipFile(downloaded("numpy==1.19.5", "3.6", tmp_path / "wheel")).extractall(tmp_path / "numpy")
    for path in (None, tmp_path / "nothing"):
        assert said(tmp_path / "cache", path, python, PYTHONPATH=str(tmp_path / "numpy")).startswith("numpy: no C" if path else "C, 2")
