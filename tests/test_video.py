"""Videos that are drawn here, and a camera that is none: an overlay of each frame, kept whatever comes, and the latency of each stage."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run
from PIL import Image

from rtseg_deploy import facts, images, stream, video
from rtseg_deploy.errors import RtsegError

FRAMES, RATE = 12, 12.5


@pytest.fixture(scope="module")
def cv2():
    return pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'rtseg-deploy[eval]'")


def draw(cv2, path, size=(96, 128), frames=FRAMES, code="mp4v"):
    """The street, passing by."""
    street = images.resized(images.read(images.STREET), size)[..., ::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), RATE, size[::-1])
    for number in range(frames):
        writer.write(np.ascontiguousarray(np.roll(street, 4 * number, 1)))
    writer.release()
    return path


def shown(cv2, path):
    """(frames, frames per second) of a video."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (one := capture.read())[0]:
        frames.append(one[1][..., ::-1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_a_video_gets_its_overlay_frame_by_frame(cv2, artifact, tmp_path):
    draw(cv2, tmp_path / "drive.mp4")
    out, err = run("predict", artifact, tmp_path / "drive.mp4", "-o", tmp_path / "out", "--json", "--labels")
    (found,) = json.loads(out)
    frames, rate = shown(cv2, found["overlay"])
    assert len(frames) == found["frames"] == FRAMES and rate == RATE == found["rate"] and found["frames_per_second"] > 0
    assert {"decode", "network", "overlay", "read to written"} <= set(found["stages"]) and "frames/s" in err and "read to written" in err
    assert all(0 <= stage["median_ms"] <= stage["p95_ms"] for stage in found["stages"].values())
    assert found["stages"]["read to written"]["median_ms"] > found["stages"]["network"]["median_ms"]
    labels = sorted((tmp_path / "out/drive.labels").iterdir())
    assert len(labels) == FRAMES and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["drive.labels", "drive.overlay.mp4"]
    for number in (0, FRAMES - 1):
        theirs = images.blended(shown(cv2, tmp_path / "drive.mp4")[0][number], np.asarray(Image.open(labels[number])), facts.class_sets()["camvid"])
        assert np.abs(frames[number][:96, :128].astype(int) - theirs).mean() < 12, "the encoder loses some"


def test_a_table_for_people(cv2, artifact, tmp_path):
    out, _ = run("predict", artifact, draw(cv2, tmp_path / "a.avi", code="MJPG"), "-o", tmp_path, "--frames", 5)
    assert "median ms" in out and "network" in out and "5 frames" in out and str(tmp_path / "a.overlay.mp4") in out
    assert len(shown(cv2, tmp_path / "a.overlay.mp4")[0]) == 5


def test_odd_sides_and_another_size_than_the_networks(cv2, artifact, tmp_path):
    found = video.overlaid(artifact, draw(cv2, tmp_path / "odd.avi", (75, 101), 4, "MJPG"), tmp_path)
    frames, _ = shown(cv2, found["overlay"])
    assert len(frames) == 4 and frames[0].shape[0] >= 75 and frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    assert "normalise" in found["stages"]


def truncated(cv2, path):
    draw(cv2, path, frames=40, code="MJPG")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


BAD = {"nothing": (lambda cv2, path: path.write_bytes(b""), "is not a video that can be read"),
       "text": (lambda cv2, path: path.write_text("x" * 4096), "video"),
       "no frames": (lambda cv2, path: draw(cv2, path, frames=0, code="MJPG"), "")}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_video_is_one_line_and_nothing_is_left(cv2, artifact, tmp_path, case):
    make, words = BAD[case]
    path = tmp_path / "bad.avi"
    make(cv2, path)
    _, err = run("predict", artifact, path, "-o", tmp_path / "out", status=1)
    assert str(path) in err.splitlines()[-1] and words in err.splitlines()[-1] and err.splitlines()[-1].startswith("rtseg-deploy: ")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_of_a_video_that_breaks_off_the_beginning_is_kept(cv2, artifact, tmp_path):
    truncated(cv2, tmp_path / "cut.avi")
    _, err = run("predict", artifact, tmp_path / "cut.avi", "-o", tmp_path / "out", status=1)
    last = err.splitlines()[-1]
    frames, _ = shown(cv2, tmp_path / "out/cut.overlay.mp4")
    assert "breaks off after frame" in last and f"{len(frames)} frames, is in" in last and 5 < len(frames) < 40
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_interrupted_what_was_written_is_kept(cv2, artifact, tmp_path):
    draw(cv2, tmp_path / "long.avi", frames=600, code="MJPG")
    process = subprocess.Popen([sys.executable, "-m", "rtseg_deploy", "predict", str(artifact), str(tmp_path / "long.avi"), "-o", str(tmp_path / "out")],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for line in process.stderr:
        if "frame 1" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    err = process.stderr.read()
    assert process.wait(20) == 1 and "interrupted in" in err.splitlines()[-1]
    frames, _ = shown(cv2, tmp_path / "out/long.overlay.mp4")
    told = int(re.search(r"(\d+) frames, is in", err.splitlines()[-1])[1])
    assert 0 < told <= len(frames) <= told + 1 < 600 and len(list((tmp_path / "out").iterdir())) == 1


def labelled(number, seconds, pixels):
    row = {"read": seconds, "decode": 0.0, "waited": 0.0, "held": 0.0, "seconds": {"network": 0.01}, "rate": 10.0, "frames": 0}
    return stream.Labelled(number, np.zeros(pixels.shape[:2], np.uint8), row, pixels)


def test_a_cameras_film_lasts_as_long_as_what_it_shows(cv2, artifact, tmp_path, monkeypatch):
    """The network labels 3 frames in a second of a camera that gives 10: each is shown until the next; ctrl-C is its end."""
    def frames(path, described, backend, given, take, tell, settings):
        assert given == {"camera": 2, "limit": None}
        for number in range(4):
            take(labelled(number, 100 + number / 3, np.full((60, 80, 3), 60 * number, np.uint8)))
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "frames", frames)
    found = video.overlaid(artifact, "/dev/video2", tmp_path)
    film, rate = shown(cv2, tmp_path / "camera-2.overlay.mp4")
    assert found["frames"] == 4 and len(film) == 11 and rate == 10, "a second and the last frame"
    brightness = [int(frame[:60, :80].mean()) for frame in film]
    assert brightness == sorted(brightness) and len({value // 8 for value in brightness}) == 4


def test_a_disk_that_fills_up_is_seen(cv2, tmp_path):
    film = video.Film(tmp_path / "x.overlay.mp4", facts.class_sets()["camvid"], False, False)
    for number in range(3):
        film.add(labelled(number, 0.0, np.zeros((60, 80, 3), np.uint8)))
    film.written += 1       # one that did not arrive
    with pytest.raises(RtsegError, match="was not written whole"):
        film.close()
    assert not list(tmp_path.iterdir())


def test_what_is_a_video_and_what_a_camera():
    assert all(map(video.is_video, ["a.mp4", "b/c.AVI", "x.webm", "camera:0", "/dev/video10"]))
    assert not any(map(video.is_video, ["a.png", "camera", "camera:x", "folder", "/dev/video"]))


def test_without_opencv_the_extra_is_named(artifact, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    script = f"import sys; sys.modules['cv2'] = None; sys.argv = ['rtseg-deploy', 'predict', {str(artifact)!r}, 'a.mp4', '-o', 'out']\n" \
             "import rtseg_deploy.cli as c; c.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("cv2, which is not installed; pip install 'rtseg-deploy[eval]'")


def test_a_video_is_not_sent_to_a_device(artifact, tmp_path):
    _, err = run("predict", artifact, tmp_path / "a.mp4", "-o", tmp_path, "--on", "ssh://nobody@nowhere", status=2)
    assert "is labelled on this machine" in err


def test_two_videos_of_one_name_are_refused(artifact, tmp_path):
    _, err = run("predict", artifact, "x/a.mp4", "a.avi", "-o", tmp_path, status=1)
    assert "x/a.mp4 and a.avi would both be written as a" in err.splitlines()[-1]


def test_a_folder_is_its_images(artifact, tmp_path):
    (tmp_path / "in").mkdir()
    for number in (10, 2):
        Image.fromarray(images.resized(images.read(images.STREET), (90 + number, 120))).save(tmp_path / f"in/{number}.png")
    Path(tmp_path / "in/notes.txt").write_text("no image")
    out, _ = run("predict", artifact, tmp_path / "in", "-o", tmp_path / "out", "--json")
    rows = json.loads(out)
    assert [Path(row["image"]).name for row in rows] == ["2.png", "10.png"]
    assert [Image.open(row["labels"]).size for row in rows] == [(120, 92), (120, 100)]
    for words, status in ((["in/none.png"], 1), ([tmp_path / "out2"], 1)):
        _, err = run("predict", artifact, *words, "-o", tmp_path / "out3", status=status, cwd=tmp_path)
        assert "no such file" in err.splitlines()[-1]
