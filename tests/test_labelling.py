"""Pictures one after another through a session: read ahead, held back, each labelled at its own size; videos and a camera that is none."""
import ast
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, until
from onnx import TensorProto, helper
from PIL import Image

from rtseg_deploy import images, stream
from rtseg_deploy.device import frames, labelling
from rtseg_deploy.device.runner import JobError
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ABOUT = {"frame": "pixels", "input": "rgb8", "output": "labels", "enlarge": "bilinear", "size": [24, 32], "mean": MEAN, "std": STD}


class Session:
    """Stands for a network: labels a pixel by a quarter of its red, and takes its time for it."""

    def __init__(self, seconds=0.0, logits=None):
        self.seconds, self.logits, self.fed = seconds, logits, 0

    def feed(self, array):
        self.array, self.fed = array, self.fed + 1

    def step(self):
        time.sleep(self.seconds)

    def output(self):
        return self.array[None, :, :, 0] // 64 if self.logits is None else self.logits

    def facts(self):
        return {"boundary": "network"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "frames", frames)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(count, size=(24, 32)):
    """Paths of pictures that differ."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        paths.append(str(Path(f"in{number:03d}.png").resolve()))
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    return paths


def label(paths, session, held=None, **about):
    """(result, rows) of one job."""
    Path("rows.jsonl").unlink(missing_ok=True)
    job = {"backend": "stub", "stages": {**ABOUT, **about}, "pictures": {"files": paths, "called": [Path(path).name for path in paths]}, "held": held}
    result = labelling.label(job, session)
    return result, [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]


def waited_shares(rows):
    """Of all but the first, and the median of one: a stall of the machine is in the one, not in the other."""
    waited, worked = np.array([(row["waited"], sum(row["seconds"].values())) for row in rows[1:]]).T
    return waited.sum() / (waited + worked).sum(), np.median(waited / (waited + worked))


def test_each_picture_is_labelled_at_its_own_size_and_in_order():
    large = drawn(5, (48, 64))[2:]
    paths = [*drawn(2), *large, str(Path("odd.png").resolve())]
    Image.fromarray(np.full((25, 37, 3), 200, np.uint8)).save("odd.png")
    result, rows = label(paths, Session())
    assert result["pictures"] == len(rows) == 6 and result["environment"]["boundary"].startswith("from an RGB image") and result["memory_bytes"] > 1 << 20
    for number, path in enumerate(paths):
        pixels, found = images.read(path), np.load(f"labels-{number:06d}.npy")
        assert found.shape == pixels.shape[:2] and found.dtype == np.uint8
        if found.shape == (24, 32):
            assert (found == pixels[..., 0] // 64).all()
    assert list(rows[0]["seconds"]) == ["copy in", "network", "copy back"] and list(rows[2]["seconds"])[0] == "resize"


def test_while_the_network_works_the_next_pictures_are_read(monkeypatch):
    """Each is there before the network is done with the one before it, which then waits for nothing."""
    read, quick, session = [], labelling.opened, Session(0.02)

    def opened(path, called):
        pixels = quick(path, called)
        read.append(path)
        return pixels

    def step():
        assert until(lambda: len(read) > min(session.fed, 24))
        Session.step(session)

    monkeypatch.setattr(labelling, "opened", opened)
    monkeypatch.setattr(session, "step", step)
    _, rows = label(drawn(25), session)
    assert waited_shares(rows)[0] < 0.1


def test_a_slow_reader_is_seen(monkeypatch):
    """Each picture is read once the one before it is done with: for all of its reading the network waits."""
    paths, quick = drawn(6), labelling.opened

    def slow(path, called):
        assert until(lambda: len(Path("rows.jsonl").read_text().splitlines()) == paths.index(path))
        time.sleep(0.2)
        return quick(path, called)

    monkeypatch.setattr(labelling, "opened", slow)
    rows = label(paths, Session(0.02))[1]
    assert waited_shares(rows)[1] > 0.3 and np.median([row["waited"] for row in rows]) > 0.1


def test_no_more_results_lie_there_than_are_held():
    paths, session = drawn(12), Session()
    thread = threading.Thread(target=label, args=(paths, session, 3), daemon=True)
    thread.start()
    taken, most = [], 0
    deadline = time.monotonic() + 20
    while len(taken) < 12 and time.monotonic() < deadline:
        time.sleep(0.05)
        there = sorted(Path().glob("labels-*.npy"))
        most = max(most, len(there))
        for path in there[:1]:
            taken.append(path.name)
            path.unlink()
    thread.join(5)
    assert taken == [f"labels-{n:06d}.npy" for n in range(12)] and most == 3 and not thread.is_alive()


def test_reading_by_threads_leaves_the_process_as_it_was():
    """Its limit of memory, and what it warns of: both are the process's, and whichever thread ended last put back what another had set, for good."""
    before, paths = (resource.getrlimit(resource.RLIMIT_DATA), list(warnings.filters)), drawn(40, (480, 640))
    for _ in range(10):
        label(paths, Session())
        assert (resource.getrlimit(resource.RLIMIT_DATA), list(warnings.filters)) == before


def test_what_is_read_ahead_is_bounded():
    reads = []

    def read(number):
        reads.append(number)
        return (number, {}) if number < 50 else None

    source = labelling.ahead(read, 2, 4)
    assert [next(source)[0] for _ in range(3)] == [0, 1, 2]
    time.sleep(0.1)
    assert max(reads) <= 6
    assert [number for number, _ in source] == list(range(3, 50))


def test_a_picture_that_cannot_be_read_is_named_as_the_user_does():
    paths = drawn(3)
    Path(paths[1]).write_bytes(Path(paths[1]).read_bytes()[:900])
    with pytest.raises(JobError, match="in001.png") as error:
        label(paths, Session())
    assert str(Path(paths[1]).parent) not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_labels(bad):
    logits = np.zeros((1, 4, 24, 32), np.float32)
    label(drawn(1), Session(logits=logits), output="logits")
    logits[0, 2, 5, 5] = bad
    with pytest.raises(JobError, match="not finite"):
        label(drawn(1), Session(logits=logits), output="logits")


def test_a_backend_without_labels_is_said(artifact):
    with pytest.raises(RtsegError, match="computes no labels"):
        stream.pictures(artifact, read_artifact(artifact), "null", drawn(1), lambda one: None)


def test_it_is_written_in_python_36():
    ast.parse(Path(labelling.__file__).read_text(), feature_version=(3, 6))
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent)) or shutil.which("vermin")
    if vermin is None:
        pytest.skip("vermin is not installed: pip install 'rtseg-deploy[dev]'")
    done = subprocess.run([vermin, "-t=3.6-", "--violations", labelling.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- in a worker


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch-eager"])
def test_every_backend_takes_the_same_path(artifact, backend):
    Image.fromarray(images.resized(images.read(images.STREET), (96, 128))).save("a.png")
    found = []
    stream.pictures(artifact, read_artifact(artifact), backend, ["a.png", images.STREET], found.append)
    assert [one.number for one in found] == [0, 1] and [one.labels.shape for one in found] == [(96, 128), (360, 480)]
    assert all(list(one.row["seconds"]) == ["normalise", "copy in", "network", "copy back", "labels"] for one in found) and found[0].frame is None
    large, small = (one.labels for one in found[::-1])
    assert (np.asarray(Image.fromarray(large).resize((128, 96), 0)) == small).mean() > 0.9


def test_what_goes_to_a_device_goes_in_parts(monkeypatch):
    paths = drawn(7)
    monkeypatch.setattr(stream, "PART_PICTURES", 3)
    parts = [(first, called, list(sources)) for first, called, sources in stream.parts(paths)]
    assert [first for first, *_ in parts] == [0, 3, 6] and [path for _, called, _ in parts for path in called] == paths
    assert parts[1][2] == ["000000.npy", "000001.npy", "000002.npy"]
    monkeypatch.setattr(stream, "PART_BYTES", 3000)
    assert [len(called) for _, called, _ in stream.parts(paths)] == [2, 2, 2, 1]


def test_a_row_that_is_none_is_refused():
    good = {"read": 1.0, "decode": 0.1, "waited": 0.0, "held": 0.0, "seconds": {"network": 0.1}}
    assert stream.row(json.dumps(good).encode()) == good
    for bad in (b"nonsense", b"[]", json.dumps({**good, "seconds": {"network": "1"}}).encode(), json.dumps({**good, "read": None}).encode()):
        with pytest.raises(RtsegError, match="no row"):
            stream.row(bad)


PEAK = """
import sys
from pathlib import Path
from rtseg_deploy import stream
from rtseg_deploy.records import read_artifact
path, *paths = sys.argv[1:]
kept = []
(result,) = stream.pictures(path, read_artifact(path), "onnxruntime-cpu", paths, kept.append if {keep} else lambda one: None)
print(result["memory_bytes"], int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024)
"""


def peaks(artifact, paths, keep=False):
    """Bytes that the worker and its caller took at most."""
    done = subprocess.run([sys.executable, "-c", PEAK.replace("{keep}", str(keep)), str(artifact), *paths], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return np.array(list(map(int, done.stdout.split())))


def brightest(artifact, copy_of):
    """A network that takes no time: of a 360x480 image, the largest of R, G and B."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input"], ["wide"], to=TensorProto.INT32), helper.make_node("ReduceMax", ["wide"], ["most"], axes=[2], keepdims=0),
         helper.make_node("Unsqueeze", ["most", "zero"], ["one"]), helper.make_node("Cast", ["one"], ["output"], to=TensorProto.UINT8)], "brightest",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, [360, 480, 3])], [helper.make_tensor_value_info("output", TensorProto.UINT8, [1, 360, 480])],
        [helper.make_tensor("zero", TensorProto.INT64, [1], [0])])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    path = copy_of(artifact, sha256=hashlib.sha256(data).hexdigest(), input="rgb8", output="labels", resolution=[360, 480], network_input=[360, 480])
    path.write_bytes(data)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read in /proc")
def test_memory_is_flat(artifact, copy_of):
    """A picture takes 518 kB, and its labels 173 kB: 233 of them, kept by either side, are more than this bound."""
    path, bound = brightest(artifact, copy_of), 25 << 20
    few, many, kept = (peaks(path, [str(images.STREET)] * count, keep) for count, keep in ((10, False), (233, False), (233, True)))
    assert (many - few < bound).all(), (few, many)
    assert (kept - few > bound)[1], "the planted fault"


# ---- videos


def stub(frames_of, announced=None, opens=True, delay=0.0):
    """Stands for OpenCV: a source of these frames."""
    class Capture:
        def __init__(self, source):
            self.left, self.source = list(frames_of), source

        def isOpened(self):
            return opens

        def read(self):
            time.sleep(delay)
            return (True, self.left.pop(0)) if self.left else (False, None)

        def get(self, what):
            return {5: 12.5, 7: len(frames_of) if announced is None else announced}[what]

    return types.SimpleNamespace(VideoCapture=Capture, CAP_PROP_FPS=5, CAP_PROP_FRAME_COUNT=7, COLOR_BGR2RGB=4, cvtColor=lambda one, _: one[..., ::-1].copy())


def follow(monkeypatch, opencv, pictures, session=None):
    Path("rows.jsonl").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    labelling.label({"backend": "stub", "stages": ABOUT, "pictures": pictures, "held": None}, session or Session())
    return [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]


def numbered(count):
    """Frames whose number is their blue: B comes first."""
    found = np.zeros((count, 24, 32, 3), np.uint8)
    found[..., 0] = np.arange(count)[:, None, None]
    return list(found)


def test_every_frame_of_a_video_is_labelled_and_comes_with_its_labels(monkeypatch):
    rows = follow(monkeypatch, stub(numbered(9)), {"video": "x.mp4"})
    assert len(rows) == 9 and rows[0]["rate"] == 12.5 and rows[0]["frames"] == 9
    assert numbers_of(9) == list(range(9))
    assert len(follow(monkeypatch, stub(numbered(9)), {"video": "x.mp4", "limit": 4})) == 4


@pytest.mark.parametrize("opencv, words", [
    (stub([], opens=False), "not a video"), (stub([]), "no frame"), (stub(numbered(5), announced=20), "frame 5 of 20")])
def test_a_bad_video_is_one_line(monkeypatch, opencv, words):
    with pytest.raises(JobError, match=words):
        follow(monkeypatch, opencv, {"video": "x.mp4"})


def test_of_a_camera_the_newest_frame_is_labelled(monkeypatch):
    """It gives ten while the network works: nine are passed over, and what is labelled is the tenth, of just now. (The first frame is worked on twice.)"""
    opencv, session, given, began, fed = stub(numbered(250)), Session(), threading.Semaphore(1), [], []
    asked, read = [], opencv.VideoCapture.read
    monkeypatch.setattr(opencv.VideoCapture, "read", lambda capture: asked.append(1) or given.acquire() and read(capture))

    def step():
        began.append(time.monotonic())
        given.release(10)
        assert until(lambda: len(asked) == 2 + 10 * len(began))          # for one more than it has given

    monkeypatch.setattr(session, "step", step)
    monkeypatch.setattr(session, "feed", lambda array: fed.append(time.monotonic()) or Session.feed(session, array))
    rows = follow(monkeypatch, opencv, {"camera": 0, "limit": 8}, session)
    assert numbers_of(8) == [0, *range(20, 90, 10)] and all(row["decode"] == 0 for row in rows)
    assert all(row["read"] > at for at, row in zip(began[1:], rows[1:]))
    assert np.median([at - row["read"] for at, row in zip(fed[1:], rows)][1:]) < 0.05


def numbers_of(count):
    return [int(np.load(f"frame-{n:06d}.npy")[0, 0, 2]) for n in range(count)]


def test_no_frame_of_a_slow_camera_is_labelled_twice(monkeypatch):
    follow(monkeypatch, stub(numbered(250), delay=0.02), {"camera": 0, "limit": 8})
    assert np.diff(numbers_of(8)).min() >= 1


def test_a_camera_that_is_pulled_out_is_one_line(monkeypatch):
    with pytest.raises(JobError, match="camera 3 gives no more frames"):
        follow(monkeypatch, stub(numbered(5), delay=0.002), {"camera": 3})
