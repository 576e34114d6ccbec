"""What lies around the network between a frame in host memory and its labels there, stage by stage: Frames(job, session) stands for a session.

Comes with a job that asks for it, beside runner.py and kernels.py: Python 3.6, numpy, and Pillow where a file is decoded. job["stages"] has
frame: "pixels" (H x W x 3 uint8), "file" (an encoded picture) or "tensor" (the network's own input);
mean and std of RGB / 255, input, output and enlarge (as in the artifact's description), size: (height, width) that the network takes.
A stage that the graph does itself is not there: its time is in "network".
"""
import io
import os
import sys
import time

import numpy

if __package__:
    from . import kernels, runner
else:                               # in a job's folder
    import kernels
    runner = sys.modules.get("rtseg_deploy.device.runner") or sys.modules["__main__"]      # whichever of the two was started


class Frames:
    def __init__(self, job, session):
        self.session, self.about = session, job["stages"]
        self.threads = job.get("threads") or len(os.sched_getaffinity(0))
        self.samples, self.frame, self.found = [], None, None

    def take(self, frame):
        """Another frame: of another size its stages are others."""
        if self.frame is None or frame.shape != self.frame.shape:
            self.feed(frame)
        self.frame = frame

    def feed(self, array):
        """Take the frame; the session gets it too, once, so that what it sets up at its first input is not timed."""
        self.frame, self.values = array, own_input(self.session)
        self.names, self.parts = zip(*self.plan())
        if "labels" in self.names:
            kernels.compiled()                      # not within the clock
        for part in self.parts[:self.names.index("copy in")]:
            array = part(array)
        self.session.feed(numpy.array(array))       # which it may keep
        self.values = own_input(self.session)

    def plan(self):
        """(name, function of what the last one gave) of each stage."""
        about = self.about
        height, width = self.shape = self.pixels().shape[:2] if about["frame"] != "tensor" else tuple(about["size"])
        smaller = [height, width] != list(about["size"])
        if about["frame"] == "file":
            yield "decode", decoded
        if about["frame"] != "tensor":
            if about["input"] == "normalised":
                yield "normalise", self.normalised
            elif smaller:
                yield "resize", self.reduced
            if about["input"] == "rgb8-nchw":
                yield "transpose", planes
        yield "copy in", self.session.feed
        yield "network", self.step_network
        yield "copy back", self.fetched
        if about["output"] != "labels":
            yield "labels", self.labelled
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
        computed = {"labels": kernels.facts(self.threads)} if "labels" in self.names else {}
        return dict(found, **computed, boundary="from %s in host memory to labels of its size there: %s" % (
            {"pixels": "an RGB image", "file": "an encoded picture", "tensor": "the network's input"}[self.about["frame"]], ", ".join(self.names)),
            network=found["boundary"])

    def reduced(self, pixels):
        return kernels.resized(pixels, self.about["size"])

    def normalised(self, pixels):
        """Resized too, where it has to be, and where the session has an array for it, into that."""
        about, kind = self.about, "float32" if self.values is None else self.values.dtype
        self.values = kernels.network_input(pixels, about["size"], about["mean"], about["std"], kind, self.threads, self.values)
        return self.values

    def step_network(self, _):
        self.session.step()

    def fetched(self, _):
        return self.session.output()

    def labelled(self, logits):
        if logits is None:              # of a backend that computes nothing
            return None
        try:
            self.found = kernels.labels(logits, self.shape, self.about["enlarge"], self.threads, self.found)
        except FloatingPointError:
            raise runner.JobError(*runner.NOT_FINITE) from None
        return self.found

    def repeated(self, found):
        """Labels are never interpolated: each takes the nearest one."""
        rows, columns = (((numpy.arange(goal) + 0.5) * have / goal).astype(int) for goal, have in zip(self.shape, found.shape[1:]))
        return found[:, rows][:, :, columns]


def decoded(data):
    from PIL import Image
    return numpy.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))


def planes(pixels):
    return numpy.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def own_input(session):
    """The array in host memory that a session reads its input from; None where it has none."""
    found = getattr(session, "input", None)
    return found if isinstance(found, numpy.ndarray) else None
