"""What lies around the network between a frame in host memory and its labels there, stage by stage: Frames(job, session) stands for a session.

Comes with a job that asks for it, beside runner.py: Python 3.6, numpy, and Pillow where a file is decoded. job["stages"] has
frame: "pixels" (H x W x 3 uint8), "file" (an encoded picture) or "tensor" (the network's own input);
mean and std of RGB / 255, input, output and enlarge (as in the artifact's description), size: (height, width) that the network takes.
A stage that the graph does itself is not there: its time is in "network".
"""
import io
import time

import numpy


class Frames:
    def __init__(self, job, session):
        self.session, self.about = session, job["stages"]
        self.samples, self.frame = [], None

    def take(self, frame):
        """Another frame: of another size its stages are others."""
        if self.frame is None or frame.shape != self.frame.shape:
            self.feed(frame)
        self.frame = frame

    def feed(self, array):
        """Take the frame; the session gets it too, once, so that what it sets up at its first input is not timed."""
        self.frame = array
        self.names, self.parts = zip(*self.plan())
        for part in self.parts[:self.names.index("copy in")]:
            array = part(array)
        self.session.feed(array)

    def plan(self):
        """(name, function of what the last one gave) of each stage."""
        about = self.about
        height, width = self.shape = self.pixels().shape[:2] if about["frame"] != "tensor" else about["size"]
        smaller = [height, width] != list(about["size"])
        if about["frame"] == "file":
            yield "decode", decoded
        if about["frame"] != "tensor":
            if smaller:
                yield "resize", self.reduced
            if about["input"] == "normalised":
                yield "normalise", self.normalised
            elif about["input"] == "rgb8-nchw":
                yield "transpose", planes
        yield "copy in", self.session.feed
        yield "network", self.step_network
        yield "copy back", self.fetched
        if about["output"] == "native" or (smaller and about["output"] == "logits"):
            yield "enlarge", self.enlarged
        if about["output"] != "labels":
            yield "argmax", labels
        elif smaller:
            yield "enlarge", self.repeated

    def pixels(self):
        return decoded(self.frame) if self.about["frame"] == "file" else self.frame

    def step(self):
        """Every stage once, each after the one before."""
        value, times = self.frame, [time.perf_counter()]
        for part in self.parts:
            value = part(value)
            times.append(time.perf_counter())
        self.samples.append(times)
        self.result = value

    def taken(self, steps):
        """Stage -> its seconds in each of the last so many steps."""
        found = numpy.diff(numpy.array(self.samples[-steps:]), axis=1)
        return {name: column.tolist() for name, column in zip(self.names, found.T)}

    def output(self):
        return self.result

    def facts(self):
        found = self.session.facts()
        return dict(found, boundary="from %s in host memory to labels of its size there: %s" % (
            {"pixels": "an RGB image", "file": "an encoded picture", "tensor": "the network's input"}[self.about["frame"]], ", ".join(self.names)),
            network=found["boundary"])

    def reduced(self, pixels):
        return numpy.rint(scaled(pixels.transpose(2, 0, 1).astype(numpy.float32), self.about["size"])).astype(numpy.uint8).transpose(1, 2, 0)

    def normalised(self, pixels):
        mean, std = (numpy.array(self.about[name], numpy.float64) for name in ("mean", "std"))
        values = (pixels - (255 * mean).astype(numpy.float32)) * (1 / (255 * std)).astype(numpy.float32)
        return numpy.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def step_network(self, _):
        self.session.step()

    def fetched(self, _):
        self.given = self.session.output()      # for whoever checks it
        return self.given

    def enlarged(self, logits):
        return scaled(logits[0], self.shape, self.about["enlarge"])[None]

    def repeated(self, found):
        """Labels are never interpolated: each takes the nearest one."""
        rows, columns = (((numpy.arange(goal) + 0.5) * have / goal).astype(int) for goal, have in zip(self.shape, found.shape[1:]))
        return found[:, rows][:, :, columns]


def decoded(data):
    from PIL import Image
    return numpy.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))


def planes(pixels):
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def labels(logits):
    found = logits.argmax(1)
    return found.astype(numpy.uint8 if logits.shape[1] < 256 else numpy.int32)


def scaled(planes, size, mode="bilinear"):
    """Channels x h x w to (height, width), as PyTorch's interpolate: nearest, bilinear between pixel centres, or corners (aligned)."""
    for axis, goal in ((1, size[0]), (2, size[1])):
        have = planes.shape[axis]
        if mode == "nearest":
            planes = planes.take(numpy.arange(goal) * have // goal, axis)
            continue
        at = numpy.arange(goal) * ((have - 1) / max(goal - 1, 1)) if mode == "corners" else (numpy.arange(goal) + 0.5) * have / goal - 0.5
        at = numpy.clip(at, 0, have - 1).astype(numpy.float32)
        low = numpy.minimum(at.astype(int), max(have - 2, 0))
        part = (at - low).reshape((-1, 1) if axis == 1 else (-1,))
        first, second = planes.take(low, axis), planes.take(numpy.minimum(low + 1, have - 1), axis)
        planes = first + (second - first) * part
    return planes
