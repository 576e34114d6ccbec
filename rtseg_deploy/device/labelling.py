"""Labels picture after picture: beside runner.py, frames.py and kernels.py, for its sessions; Python 3.6 and numpy. On the machine of the package also
OpenCV, for videos, and encoded pictures; a device gets them decoded.

job["pictures"] has "files", .npy files in this folder or paths of encoded pictures, and "called", what the user calls each; or "video", a path; or
"camera", its number; "limit": how many frames of it. Picture n leaves labels-NNNNNN.npy of its own size, a video or a camera frame-NNNNNN.npy too,
and after that a line in rows.jsonl: "read", when it was begun to be read (time.monotonic), seconds to "decode" it, for which the network "waited" for
it, and for which it was "held" until earlier results were taken; "seconds" of each stage; "rate" and "frames" as a video or a camera tells them.
At most job["held"] results lie there at a time, and whoever takes them deletes them; any number where it is None.
"""
import io
import itertools
import json
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy

runner = sys.modules.get("rtseg_deploy.device.runner") or sys.modules["__main__"]      # whichever of the two was started
ROWS, LABELS, FRAME = "rows.jsonl", "labels-%06d.npy", "frame-%06d.npy"
READERS = 4                         # threads that decode, or as many as there are processors
AHEAD = 2                           # pictures read ahead for each of them
LOOK_SECONDS = 0.002                # how often it is seen whether a result was taken
BROKEN = 0.95                       # a video that ends before this share of the frames that it announces is broken


def label(job, session):
    whole, number, given = runner.need("frames").Frames(job, session), 0, job["pictures"]
    total = len(given["files"]) if "files" in given else given.get("limit")
    with open(ROWS, "a") as rows:
        for pixels, row in source(given):
            row["held"] = hold(job, number)
            if not number:
                begin(job, session, whole, pixels)
            row["seconds"] = seconds_of(whole, pixels)
            runner.save_labels(whole.output(), LABELS % number)
            if "files" not in given:
                runner.write(FRAME % number, saved(pixels))
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            number += 1
            total = total or row.get("frames")
            runner.report(job, stage="labelling", done=min(1.0, number / total) if total else 0.0)
    peak = 1024 * int(runner.line_of("/proc/self/status", r"VmHWM:\s*(\d+)") or 0)       # of this process alone: rusage has its parent's too
    return {"pictures": number, "memory_bytes": peak, "environment": dict(runner.environment(), **whole.facts())}


def saved(array):
    data = io.BytesIO()
    numpy.save(data, array)
    return data.getvalue()


def begin(job, session, whole, pixels):
    """What is set up at a first step is not in the first picture's seconds."""
    whole.take(pixels)
    session.step()
    runner.refuse(session.output() is None, "backend %s computes no labels" % job["backend"], "use another --backend")


def seconds_of(whole, pixels):
    """Label a picture; returns stage -> seconds."""
    whole.take(pixels)
    whole.step()
    found = {name: seconds for name, (seconds,) in whole.taken(1).items()}
    whole.samples.clear()
    return found


def hold(job, number):
    """Wait until few enough results lie there; returns the seconds."""
    begin = time.monotonic()
    while job.get("held") and os.path.exists(LABELS % (number - job["held"])):
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - begin


def source(given):
    """The function that reads a picture, and how: pictures of a list by several threads, frames of a video by one, a camera
    by one that is never behind."""
    if "files" in given:
        threads = min(READERS, os.cpu_count() or 1)
        return ahead(partial(picture, given["files"], given["called"]), threads, threads * AHEAD)
    if "video" in given:
        return ahead(Video(given["video"], given.get("limit")).read, 1, AHEAD)
    return one_by_one(Camera(given["camera"], given.get("limit")).read)


def one_by_one(read):
    """As `ahead`, without reading ahead: a frame is as new as it can be."""
    for number in itertools.count():
        begin = time.monotonic()
        found = read(number)
        if found is None:
            return
        yield found[0], dict(found[1], waited=time.monotonic() - begin)


def ahead(read, threads, depth):
    """(pixels, row) of read(0), read(1), … until it gives None, so many of them read ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(read, number) for number in range(depth))
        for number in itertools.count(depth):
            begin = time.monotonic()
            found = waiting.popleft().result()
            if found is None:
                return
            pixels, row = found
            row["waited"] = time.monotonic() - begin
            waiting.append(pool.submit(read, number))
            yield pixels, row


def picture(files, called, number):
    if number >= len(files):
        return None
    begin = time.monotonic()
    pixels = numpy.load(files[number]) if files[number].endswith(".npy") else opened(files[number], called[number])
    return pixels, {"read": begin, "decode": time.monotonic() - begin}


def opened(path, called):
    """The pixels of an encoded picture, on the machine of the package. Raises JobError with the user's name of it."""
    images = runner.need("rtseg_deploy.images")
    try:
        return numpy.array(images.read(path))       # its own: what Pillow made cannot be written to, and PyTorch warns of that
    except images.RtsegError as error:
        raise runner.JobError(error.what.replace(path, called), error.fix) from None


def frame_of(bgr, begin, capture, cv2):
    row = {"read": begin, "decode": time.monotonic() - begin, "rate": capture.get(cv2.CAP_PROP_FPS), "frames": int(capture.get(cv2.CAP_PROP_FRAME_COUNT))}
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), row


class Video:
    """Every frame of a file."""
    def __init__(self, path, limit):
        self.cv2, self.path, self.limit = runner.need("cv2"), path, limit
        self.capture, self.ended = self.cv2.VideoCapture(path), False
        runner.refuse(not self.capture.isOpened(), "%s is not a video that can be read" % path, "see whether a player opens it")

    def read(self, number):
        begin = time.monotonic()
        if self.ended or self.limit == number:
            return None
        there, bgr = self.capture.read()
        if there:
            return frame_of(bgr, begin, self.capture, self.cv2)
        self.ended, announced = True, self.capture.get(self.cv2.CAP_PROP_FRAME_COUNT)
        runner.refuse(not number, "%s has no frame that can be read" % self.path, "see whether a player shows it")
        runner.refuse(number < BROKEN * announced, "%s breaks off after frame %d of %d" % (self.path, number, announced), "what came before it is labelled")
        return None


class Camera:
    """The newest frame: what comes while the network works is passed over."""
    def __init__(self, number, limit):
        self.cv2, self.name, self.limit = runner.need("cv2"), "camera %s" % number, limit
        self.capture, self.newest, self.there = self.cv2.VideoCapture(number), None, threading.Condition()
        runner.refuse(not self.capture.isOpened(), "%s cannot be opened" % self.name, "see which there are: ls /dev/video*")
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        going = True
        while going:
            going, bgr = self.capture.read()
            with self.there:
                self.newest = (going, bgr, time.monotonic())
                self.there.notify()

    def read(self, number):
        if self.limit == number:
            return None
        with self.there:
            self.there.wait_for(lambda: self.newest is not None)
            going, bgr, begin = self.newest
            self.newest = None if going else self.newest
        runner.refuse(not going, "%s gives no more frames, after %d" % (self.name, number), "see whether it is still plugged in")
        pixels, row = frame_of(bgr, begin, self.capture, self.cv2)
        return pixels, dict(row, decode=0.0, frames=0)
