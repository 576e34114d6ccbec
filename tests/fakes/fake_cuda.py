"""A fake of CUDA's driver library, with one GPU, its memory, and a clock that only work moves.

What is asked of a stream is done as late as it may be: when the host waits for it. Streams run beside each other; what one of them reads or writes
while another writes it, with nothing that orders the two, raises Race: every operation carries how much of each stream is known to be done before it.
Memory is the host's own, so that kernels compiled for the host (host_cuda.cpp, a module's image here) can work on it.

FAKE_CUDA: none (no device), full (no memory left), old (without graphs), unsynchronised (waiting for the stream returns at once).
FAKE_GPU: its name and compute capability. What the real one would misread is refused: handles and addresses that are not pointers.
"""
import ctypes
import os
import tempfile

NAME, CAPABILITY = os.environ.get("FAKE_GPU", "GeForce RTX 2080 Ti, 7.5").split(", ")
NAME = NAME.encode()
ERRORS = {1: b"invalid argument", 2: b"out of memory", 100: b"no CUDA-capable device is detected", 200: b"device kernel image is invalid",
          400: b"invalid resource handle", 500: b"named symbol not found", 900: b"operation not permitted when stream is capturing"}
HOST_SECONDS = 1 / 8192             # until a call returns; of a graph's launch an eighth
COPY_SECONDS = 1 / 4096             # of a copy that nobody waits for
KERNEL_SECONDS = 1 / 16384


class Race(Exception):
    """Two operations on the same memory, one of them a write, and nothing says which comes first."""


class Stream:
    def __init__(self):
        self.free, self.before = 0.0, {}    # when it will have done what it was given; stream -> how many of its operations are done by then


class Operation:
    def __init__(self, seconds, effect, reads=(), writes=()):
        self.seconds, self.effect, self.reads, self.writes = seconds, effect, reads, writes


def merged(one, other):
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


class Driver:
    Race = Race

    def __init__(self, kind=None):
        self.kind = kind
        self.now = 0.0                      # the host's clock
        self.next, self.memory, self.events, self.recording, self.graphs, self.modules = 1 << 40, {}, {}, None, {}, {}
        self.streams, self.known, self.pending, self.touched = {}, {}, [], {}
        self.files, self.asked = [], []     # names of the kernels and copies, in the order in which they were asked for

    def __getattribute__(self, name):
        if name == "cuStreamBeginCapture_v2" and self.kind == "old":
            raise AttributeError("undefined symbol: " + name)
        return object.__getattribute__(self, name)

    def clock(self):
        return self.now

    def work(self, seconds, effect, host=HOST_SECONDS, stream=None, reads=(), writes=()):
        """Give the device something to do, on the first stream if none is named; reads and writes: addresses."""
        self.give(Operation(seconds, effect, [self.holding(place) for place in reads], [self.holding(place) for place in writes]), stream, host)

    def give(self, operation, stream=None, host=HOST_SECONDS):
        if self.recording is not None:
            self.recording.append(operation)
            return
        name = stream or min(filter(None, self.streams), default=0)
        stream = self.streams.setdefault(name, Stream())
        self.now += host
        stream.free = max(self.now, stream.free) + operation.seconds
        stream.before = merged(stream.before, self.known)
        number = stream.before[name] = stream.before.get(name, 0) + 1
        self.refuse_race(operation, name, stream.before)
        self.pending.append((name, number, operation.effect))

    def refuse_race(self, operation, name, before):
        for places, others in ((operation.reads, ("written",)), (operation.writes, ("written", "read"))):
            for place in places:
                seen = self.touched.setdefault(place, {"written": {}, "read": {}})
                for stream, number in [one for other in others for one in seen[other].items()]:
                    if before.get(stream, 0) < number:
                        raise Race("%#x is in use on stream %#x while stream %#x takes it" % (place, stream, name))
        for kind, places in (("read", operation.reads), ("written", operation.writes)):
            for place in places:
                self.touched[place][kind][name] = before[name]

    def wait(self, before):
        """The host knows that so much is done of each stream: what was not yet done of that is done now, and nothing else."""
        self.known = merged(self.known, before)
        ready = [row for row in self.pending if row[1] <= self.known.get(row[0], 0)]
        self.pending = [row for row in self.pending if row[1] > self.known.get(row[0], 0)]
        for _, _, effect in ready:
            effect()

    def wait_for_all(self):
        for stream in self.streams.values():
            self.now = max(self.now, stream.free)
            self.wait(stream.before)

    def holding(self, address):
        """The start of the memory that an address lies in."""
        for start, data in self.memory.items():
            if start <= address < start + len(data):
                return start
        raise ValueError("%#x is nowhere in memory" % address)

    def replay(self, operations, stream=None):
        """A graph's launch: the host asks once."""
        for operation in operations:
            self.give(operation, stream, HOST_SECONDS / 8 if operation is operations[0] else 0)

    def handle(self, reference):
        self.next += 1 << 12
        reference._obj.value = self.next
        return self.next

    def allocate(self, reference, size):
        data = bytearray(size.value)
        address = ctypes.addressof(ctypes.c_char.from_buffer(data))
        self.memory[address] = data
        reference._obj.value = address
        return 0

    def cuInit(self, flags):
        return 100 if self.kind == "none" else 0

    def cuGetErrorString(self, status, reference):
        reference._obj.value = ERRORS[status]

    def cuDeviceGetName(self, buffer, length, device):
        buffer.value = NAME
        return 0

    def cuDeviceGetPCIBusId(self, buffer, length, device):
        buffer.value = b"00000000:01:00.0"
        return 0

    def cuDeviceTotalMem_v2(self, reference, device):
        reference._obj.value = 11554717696
        return 0

    def cuDriverGetVersion(self, reference):
        reference._obj.value = 12040
        return 0

    def cuDeviceGetAttribute(self, reference, attribute, device):
        reference._obj.value = int(CAPABILITY.split(".")[{75: 0, 76: 1}[attribute]])
        return 0

    def cuDevicePrimaryCtxRetain(self, reference, device):
        self.handle(reference)
        return 0

    def cuCtxSetCurrent(self, context):
        return 0 if pointer(context) else 400

    def cuStreamCreate(self, reference, flags):
        self.streams[self.handle(reference)] = Stream()
        return 0

    def cuStreamSynchronize(self, stream):
        if self.kind != "unsynchronised":
            self.now = max(self.now, self.streams[pointer(stream)].free)
            self.wait(self.streams[pointer(stream)].before)
        return 0

    def cuStreamWaitEvent(self, stream, event, flags):
        stream, (time, before) = self.streams[pointer(stream)], self.events[pointer(event)]
        stream.free, stream.before = max(stream.free, time), merged(stream.before, before)
        return 0

    def cuEventCreate(self, reference, flags):
        self.events[self.handle(reference)] = 0.0, {}
        return 0

    def cuEventRecord(self, event, stream):
        stream = self.streams[pointer(stream)]
        self.events[pointer(event)] = max(self.now, stream.free), dict(stream.before)
        return 0

    def cuEventSynchronize(self, event):
        time, before = self.events[pointer(event)]
        self.now = max(self.now, time)
        self.wait(before)
        return 0

    def cuEventElapsedTime(self, reference, begin, end):
        reference._obj.value = (self.events[pointer(end)][0] - self.events[pointer(begin)][0]) * 1e3
        return 0

    def cuMemAlloc_v2(self, reference, size):
        return 2 if self.kind == "full" else self.allocate(reference, size)

    def cuMemHostAlloc(self, reference, size, flags):
        return self.allocate(reference, size)

    def cuMemFree_v2(self, place):
        self.wait_for_all()
        self.touched.pop(pointer(place), None)
        del self.memory[pointer(place)]
        return 0

    cuMemFreeHost = cuMemFree_v2

    def cuEventDestroy_v2(self, event):
        del self.events[pointer(event)]
        return 0

    def cuMemsetD8_v2(self, place, value, count):
        if self.recording is not None:
            return 900
        self.wait_for_all()
        ctypes.memset(pointer(place), value, count.value)
        return 0

    def cuMemcpyHtoD_v2(self, place, host, size):
        return self.copied(place, host, size)

    cuMemcpyDtoH_v2 = cuMemcpyHtoD_v2

    def copied(self, goal, source, size):
        """At once: it waits for every stream, and is not for capturing."""
        if self.recording is not None:
            return 900
        self.wait_for_all()
        ctypes.memmove(pointer(goal), pointer(source), size.value)
        return 0

    def cuMemcpyHtoDAsync_v2(self, place, host, size, stream):
        return self.copied_later("copy in", place, host, size, stream)

    def cuMemcpyDtoHAsync_v2(self, host, place, size, stream):
        return self.copied_later("copy out", host, place, size, stream)

    def cuMemcpyDtoDAsync_v2(self, goal, source, size, stream):
        return self.copied_later("copy", goal, source, size, stream)

    def copied_later(self, name, goal, source, size, stream):
        goal, source = pointer(goal), pointer(source)
        self.asked.append(name)
        self.work(COPY_SECONDS, lambda: ctypes.memmove(goal, source, size.value), stream=pointer(stream), reads=[source], writes=[goal])
        return 0

    def cuModuleLoadData(self, reference, image):
        if not image.startswith(b"\x7fELF"):
            return 200
        file = tempfile.NamedTemporaryFile(suffix=".so")
        file.write(image)
        file.flush()
        try:
            self.modules[self.handle(reference)] = ctypes.CDLL(file.name)
        except OSError:                     # of a real compiler, for a real GPU
            return 200
        self.files.append(file)             # loaded libraries are told apart by their files' numbers, which are given again
        return 0

    def cuModuleGetFunction(self, reference, module, name):
        library = self.modules[pointer(module)]
        library.signature.restype = ctypes.c_char_p
        signature = library.signature(name)
        if signature is None:
            return 500
        self.modules[self.handle(reference)] = library, name, signature.decode()
        return 0

    def cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
        library, name, signature = self.modules[pointer(function)]
        if not all(0 < side < 65536 for side in (gx, gy, gz)) or not 0 < bx * by * bz <= 1024:
            return 1
        count = {"r": ctypes.c_void_p, "w": ctypes.c_void_p, "i": ctypes.c_int, "f": ctypes.c_float}
        values = [ctypes.cast(parameters[i], ctypes.POINTER(count[kind])).contents for i, kind in enumerate(signature)]
        values = [type(value)(value.value) for value in values]         # as they are now: whoever asks may use the memory again
        places = {kind: [value.value for value, of in zip(values, signature) if of == kind and value.value] for kind in "rw"}
        array = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        self.asked.append(name.decode())
        self.work(KERNEL_SECONDS, lambda kept=values: library.launch(name, gx, gy, bx, by, array), stream=pointer(stream), reads=places["r"],
                  writes=places["w"])
        return 0

    def cuStreamBeginCapture_v2(self, stream, mode):
        self.recording = []
        return 0 if pointer(stream) and mode == 1 else 400

    def cuStreamEndCapture(self, stream, reference):
        self.graphs[self.handle(reference)], self.recording = self.recording, None
        return 0

    def cuGraphInstantiate(self, reference, graph, node, log, size):
        self.graphs[self.handle(reference)] = self.graphs[pointer(graph)]
        return 0

    def cuGraphLaunch(self, graph, stream):
        self.replay(self.graphs[pointer(graph)], pointer(stream))
        return 0


def pointer(value):
    if not isinstance(value, ctypes.c_void_p):
        raise TypeError("%r would be cut to 32 bits" % (value,))
    return value.value


DRIVER = Driver(os.environ.get("FAKE_CUDA"))
