"""A video or a camera -> the same with its classes' colours over it, written as it goes."""
import contextlib
import re
import time
from collections import deque
from pathlib import Path

import numpy as np
from PIL import Image

from . import facts, files, images, stream, tune
from .errors import RtsegError, need
from .records import read_artifact

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm")
CAMERA = re.compile(r"(?:camera:|/dev/video)([0-9]+)")
RATE = 25.0                         # frames per second, of a source that does not tell
RATES = (1, 240)                    # what a source may tell
KEPT = 10_000                       # frames that the figures are of, the last ones: a camera may go on for days
SHOWN = 100                         # frames that the progress is of


def is_video(word):
    return bool(CAMERA.fullmatch(str(word))) or Path(word).suffix.lower() in SUFFIXES


def overlaid(path, word, folder, backend=None, tell=lambda step, done: None, limit=None, labels=False, untuned=False):
    """Label a video file or a camera (camera:0, /dev/video0), until its end, `limit` frames or ctrl-C; writes <stem>.overlay.mp4.

    labels: write each frame's label map too, into <stem>.labels. Returns what was written and how fast, as plain values.
    Raises RtsegError where it cannot be opened or breaks off: what came before that is kept.
    """
    need("cv2")
    artifact, camera = read_artifact(path), CAMERA.fullmatch(str(word))
    stream.refuse_unknown_enlarging(path, artifact)
    choice, = tune.chosen(path, artifact, [backend] if backend else [], tell, untuned=untuned)
    goal = Path(folder, f"{f'camera-{camera[1]}' if camera else Path(word).stem}.overlay.mp4")
    film = Film(goal, facts.class_set(artifact.class_set, artifact.classes), bool(camera), labels)
    given = {"camera": int(camera[1])} if camera else {"video": str(Path(word).resolve())}

    def take(one):
        film.add(one)
        tell(film.said(str(word)), min(1.0, len(film) / whole) if (whole := limit or one.row.get("frames")) else None)

    try:
        stream.frames(path, artifact, choice.backend, {**given, "limit": limit}, take,
                      lambda step, done: None if len(film) else tell(f"{word}: opening", None), choice.settings)
    except KeyboardInterrupt:
        if not len(film):
            raise
        if not camera:
            raise film.broken(f"interrupted in {word}") from None
    except RtsegError as error:
        raise film.broken(error.what.replace(given.get("video", ""), str(word)) if not camera else error.what, error.fix) from None
    finally:
        film.close()
    return {"source": str(word), "overlay": str(goal), "frames": len(film), **film.figures()}


class Film:
    """An .mp4 file that gets its name when it is whole, or as whole as it will be."""

    def __init__(self, goal, names, live, labels):
        self.goal, self.names, self.live, self.labels = goal, names, live, labels
        self.part = files.temporary_of(goal, ".mp4")    # OpenCV goes by the suffix
        self.writer, self.count, self.written, self.times = None, 0, 0, deque(maxlen=KEPT)

    def __len__(self):
        return self.count

    def open(self, one):
        """The writer, at the source's rate, of a frame with the legend beside it."""
        self.cv2, (least, most) = need("cv2"), RATES
        self.rate = one.row["rate"] if least <= one.row["rate"] <= most else RATE
        self.shape, self.began = one.frame.shape, one.row["read"]
        self.legend = np.asarray(images.legend(list(zip(self.names.names, self.names.colours)), one.frame.shape[0]))
        height, width = self.page(one.frame).shape[:2]
        files.begun(self.goal)
        self.writer = self.cv2.VideoWriter(str(self.part), self.cv2.VideoWriter_fourcc(*"mp4v"), self.rate, (width, height))
        if not self.writer.isOpened():
            raise RtsegError(f"{self.goal} cannot be written as a video of {width}x{height} pixels", "see whether the folder can be written")

    def page(self, pixels):
        """With the legend beside it and even sides, as the encoder wants them."""
        height = max(pixels.shape[0], self.legend.shape[0])
        sheet = np.full((height + height % 2, pixels.shape[1] + self.legend.shape[1] + (pixels.shape[1] + self.legend.shape[1]) % 2, 3), 255, np.uint8)
        sheet[:pixels.shape[0], :pixels.shape[1]] = pixels
        sheet[:self.legend.shape[0], pixels.shape[1]:pixels.shape[1] + self.legend.shape[1]] = self.legend
        return sheet

    def add(self, one):
        begin = time.monotonic()
        if self.writer is None:
            self.open(one)
        if one.frame.shape != self.shape:
            raise RtsegError(f"frame {self.count} is of another size than those before it", "cut the video there")
        sheet = self.cv2.cvtColor(self.page(images.blended(one.frame, one.labels, self.names)), self.cv2.COLOR_RGB2BGR)
        # a camera's frames come when the network is ready for them: each stays until the next, so that the film is as long as what it shows
        due = round((one.row["read"] - self.began) * self.rate) + 1 if self.live else self.count + 1
        for _ in range(due - self.written):
            self.writer.write(sheet)
        self.written = max(self.written, due)
        if self.labels:
            with files.replacing(self.goal.with_name(self.goal.name.replace(".overlay.mp4", ".labels")) / f"{self.count:06d}.png") as temporary:
                Image.fromarray(one.labels).save(temporary, format="PNG")
        self.count += 1
        end = time.monotonic()
        self.times.append((end, {"decode": one.row["decode"], "waited": one.row["waited"], **one.row["seconds"], "overlay": end - begin,
                                 "read to written": end - one.row["read"]}))

    def close(self):
        """Give it its name. Raises RtsegError where it is not what was written: OpenCV does not say that a disk is full."""
        if self.writer is None:
            return
        self.writer.release()
        try:
            there = self.cv2.VideoCapture(str(self.part))
            if there.get(self.cv2.CAP_PROP_FRAME_COUNT) < self.written:     # ctrl-C may come when a frame is written and not counted
                raise RtsegError(f"{self.goal} was not written whole, and is not kept", "free some space")
            files.named(self.part, self.goal)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.part.unlink()

    def broken(self, what, fix=""):
        return RtsegError(what, f"what came before, {self.count} frames, is in {self.goal}" if self.count else fix)

    def said(self, word):
        """A line of progress: of the last frames."""
        last = list(self.times)[-SHOWN:]
        spent = {name: 1e3 * float(np.median([times[name] for _, times in last])) for name in ("network", "read to written")}
        return (f"{word}: frame {self.count}, {per_second(last):.1f} frames/s, network {spent['network']:.1f} ms, "
                f"read to written {spent['read to written']:.1f} ms")

    def figures(self):
        stages = {name: np.array([times[name] for _, times in self.times]) * 1e3 for name in (self.times[0][1] if self.times else ())}
        return {"rate": self.rate, "frames_per_second": per_second(self.times),
                "stages": {name: {"median_ms": float(np.median(ms)), "p95_ms": float(np.percentile(ms, 95))} for name, ms in stages.items()}}


def per_second(times):
    """How many frames were written in a second, of (when, …) of each; 0 of a single one."""
    return (len(times) - 1) / (times[-1][0] - times[0][0]) if len(times) > 1 else 0.0


def rows(found):
    """Rows of plain values for a table: a stage each."""
    return [{"stage": name, "median ms": f"{spent['median_ms']:.2f}", "p95 ms": f"{spent['p95_ms']:.2f}"} for name, spent in found["stages"].items()]
