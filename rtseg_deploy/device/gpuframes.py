"""An end-to-end step where a GPU does all of it: what crosses to it is the frame's bytes, and what comes back are the labels'. Beside runner.py, with
frames.py, gpukernels.py and what these need; Python 3.6 and numpy.

Frames stands for a session as frames.Frames does, each stage waited for; Streaming hands in the next frame while the one before is computed. What the
session knows of the network is its enqueue(), and places(): (address, type, shape) of its input and its output on the device.
"""
import time
from ctypes import POINTER, byref, c_size_t, c_ubyte, c_void_p, cast
from functools import partial

import numpy

if __package__:
    from . import frames, gpukernels, runner
else:                               # in a job's folder
    import frames
    import gpukernels
    runner = frames.runner

NO_TIMING, WORD = 2, 4              # of an event; bytes of the number behind the labels that tells whether a logit was not finite


def framed(job, session):
    """What stands for a session on a GPU: with its kernels, or with the host's where they cannot be compiled. Raises JobError for a stream without them."""
    try:
        runner.report(job, stage="compiling the CUDA kernels")
        return (Streaming if job.get("streaming") else Frames)(job, session, gpukernels.Kernels())
    except gpukernels.NoKernels as error:
        if job.get("streaming"):
            raise
        return OnHost(job, session, "%s; %s" % (error, error.answer["fix"]))


class OnHost(frames.Frames):
    """Where there is no compiler for CUDA the host does it, before the copy in and after the copy back."""
    def __init__(self, job, session, why):
        frames.Frames.__init__(self, job, session)
        self.why = why

    def facts(self):
        found = frames.Frames.facts(self)
        return dict(found, note="; ".join(filter(None, [found.get("note"), self.why])))


def pinned(count):
    """An array of so many bytes of the host's memory that a copy reaches by itself."""
    place = c_void_p()
    runner.cuda("cuMemHostAlloc", byref(place), c_size_t(count), 0)
    return numpy.ctypeslib.as_array(cast(place, POINTER(c_ubyte)), (count,))


def device(count):
    place = c_void_p()
    runner.cuda("cuMemAlloc_v2", byref(place), c_size_t(count))
    runner.cuda("cuMemsetD8_v2", place, 0, c_size_t(count))
    return place


def event():
    made = c_void_p()
    runner.cuda("cuEventCreate", byref(made), NO_TIMING)
    return made


class Slot:
    """Where one frame and its labels are, on the host and on the device."""
    def __init__(self, taken, given):
        self.taken, self.given = taken, given       # bytes of the frame, and of the labels and the number behind them
        self.frame, self.result, self.pixels, self.labels = pinned(taken), pinned(given), device(taken), device(given)
        self.arrived, self.computed, self.done, self.since, self.enqueue = event(), event(), event(), None, None

    def bring(self, array, stream):
        self.frame[:] = numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8)
        runner.cuda("cuMemcpyHtoDAsync_v2", self.pixels, c_void_p(self.frame.ctypes.data), c_size_t(self.taken), stream)

    def fetch(self, stream):
        runner.cuda("cuMemcpyDtoHAsync_v2", c_void_p(self.result.ctypes.data), self.labels, c_size_t(self.given), stream)

    def free(self):
        for array, place in ((self.frame, self.pixels), (self.result, self.labels)):
            runner.cuda("cuMemFreeHost", c_void_p(array.ctypes.data))
            runner.cuda("cuMemFree_v2", place)
        for one in (self.arrived, self.computed, self.done):
            runner.cuda("cuEventDestroy_v2", one)


class Frames(frames.Frames):
    count = 1                           # of slots

    def __init__(self, job, session, kernels):
        frames.Frames.__init__(self, job, session)
        self.kernels, self.network, self.slots = kernels, session.enqueue, []

    def feed(self, frame):
        """Take the frame. From here on the session has its memory, and every slot its own; a graph that was captured is of the frame before."""
        self.frame, self.values, self.captured = frame, frames.own_input(self.session), False
        host = list(frames.Frames.plan(self))       # knows the label's size, and how the host does what is not done here
        names = [name for name, _ in host]
        given, self.session.enqueue = frame, self.network
        for _, part in host[:names.index("copy in")]:
            given = part(given)
        self.session.feed(given)
        self.session.step()
        self.normalises = self.about["frame"] != "tensor" and self.about["input"] == "normalised"
        self.before = [row for row in host[:names.index("copy in")] if not self.normalises or row[0] == "decode"]
        self.after = host[names.index("copy back") + 1:] if self.about["output"] == "labels" else []
        self.lay_out(self.prepared(frame))
        self.names, self.parts = zip(*self.plan())

    def lay_out(self, array):
        """Slots of the sizes that this frame needs."""
        _, kind, shape = self.session.places()[1]
        self.label_shape = (1, *self.shape) if self.about["output"] != "labels" else tuple(shape)
        self.label_type = numpy.dtype(kind if self.about["output"] == "labels" else "uint8" if shape[1] < 256 else "int32")
        self.bytes = int(numpy.prod(self.label_shape)) * self.label_type.itemsize
        for slot in self.slots:
            slot.free()
        self.slots, self.frame_shape = [Slot(array.nbytes, self.bytes + -self.bytes % WORD + WORD) for _ in range(self.count)], array.shape
        for slot in self.slots:
            slot.enqueue = partial(self.enqueue_all, slot)
            slot.bring(array, self.session.stream)
        self.session.synchronise()

    def prepared(self, frame):
        for _, part in self.before:
            frame = part(frame)
        return frame

    def plan(self):
        slot = self.slots[0]
        yield from self.before
        yield "copy in", self.waited(lambda array: slot.bring(array, self.session.stream))
        if self.captured:
            yield "graph", self.waited(lambda _: slot.enqueue())
        else:
            yield "normalise" if self.normalises else "hand over", self.waited(lambda _: self.hand_over(slot))
            yield "network", self.waited(lambda _: self.network())
            yield "labels", self.waited(lambda _: self.label(slot))
        yield "copy back", self.waited(lambda _: slot.fetch(self.session.stream), lambda: self.labels_of(slot))
        yield from self.after

    def waited(self, enqueue, then=lambda: None):
        def part(value):
            enqueue(value)
            self.session.synchronise()
            return then()
        return part

    def enqueue_all(self, slot):
        self.hand_over(slot)
        self.network()
        self.label(slot)

    def hand_over(self, slot):
        """From the slot's frame to the network's input."""
        place, kind, shape = self.session.places()[0]
        if self.normalises:
            self.kernels.pixels(self.session.stream, slot.pixels.value, self.frame_shape[:2], place, shape[2:], kind == "float16", self.about["mean"],
                                self.about["std"])
        else:
            runner.cuda("cuMemcpyDtoDAsync_v2", c_void_p(place), slot.pixels, c_size_t(slot.taken), self.session.stream)

    def label(self, slot):
        """From the network's output to the slot's labels."""
        place, kind, shape = self.session.places()[1]
        if self.about["output"] == "labels":
            runner.cuda("cuMemcpyDtoDAsync_v2", slot.labels, c_void_p(place), c_size_t(self.bytes), self.session.stream)
        else:
            behind = slot.labels.value + slot.given - WORD
            self.kernels.labels(self.session.stream, place, shape[1:], kind == "float16", slot.labels.value, behind, self.shape, self.about["enlarge"])

    def labels_of(self, slot):
        """The labels in a slot's memory on the host, which the next frame of that slot overwrites."""
        runner.refuse(slot.result[-WORD:].any(), *runner.NOT_FINITE)
        return slot.result[:self.bytes].view(self.label_type).reshape(self.label_shape)

    def capture(self):
        """From here on what lies between the copies is the launch of one CUDA graph, of each slot one."""
        for slot in self.slots:
            self.session.enqueue = partial(self.enqueue_all, slot)
            self.session.capture()
            slot.enqueue = self.session.enqueue
        self.captured = True
        self.names, self.parts = zip(*self.plan())

    def facts(self):
        found = frames.Frames.facts(self)
        return dict(found, labels="CUDA, %s for %s" % (self.kernels.compiler, self.kernels.capability) if self.about["output"] != "labels" else "the graph")


class Streaming(Frames):
    """Two frames under way. Copies each way have a stream of their own: in one with those to the device, a copy of labels that waits for its frame's
    computation would hold up the next frame's way in."""
    count = 2

    def __init__(self, job, session, kernels):
        Frames.__init__(self, job, session, kernels)
        self.coming, self.going, self.latencies, self.under_way, self.number = c_void_p(), c_void_p(), [], [], 0
        for stream in (self.coming, self.going):
            runner.cuda("cuStreamCreate", byref(stream), 0)

    def step(self):
        """Hand in the frame, and take the labels of the one before, where there is one: they last until the next step."""
        self.hand_in(self.frame)
        if len(self.under_way) == self.count:
            self.take_out()

    def hand_in(self, frame):
        slot = self.slots[self.number % self.count]
        slot.since, self.number = time.perf_counter(), self.number + 1
        slot.bring(self.prepared(frame), self.coming)       # its last labels were taken: nothing of the slot is in use
        self.after_that(self.coming, slot.arrived, self.session.stream)
        slot.enqueue()
        self.after_that(self.session.stream, slot.computed, self.going)
        slot.fetch(self.going)
        runner.cuda("cuEventRecord", slot.done, self.going)
        self.under_way.append(slot)

    def after_that(self, stream, happened, other):
        """What is given to the other stream from here on waits for what this one was given."""
        runner.cuda("cuEventRecord", happened, stream)
        runner.cuda("cuStreamWaitEvent", other, happened, 0)

    def take_out(self):
        slot = self.under_way.pop(0)
        runner.cuda("cuEventSynchronize", slot.done)
        value = self.labels_of(slot)
        for _, part in self.after:
            value = part(value)
        self.latencies.append(time.perf_counter() - slot.since)
        self.result = value

    def drain(self):
        """Take what is still under way."""
        while self.under_way:
            self.take_out()

    def taken(self, steps):
        """Seconds of each of the last so many frames, from when it was handed in until its labels were there."""
        return self.latencies[-steps:]

    def feed(self, frame):
        self.drain()
        Frames.feed(self, frame)

    def facts(self):
        found = Frames.facts(self)
        return dict(found, boundary=found["boundary"] + "; two frames under way, and copies beside the computation")
