"""A fake of CUDA's driver library, with one GPU, its memory, and a clock that only work moves.

FAKE_CUDA: none (no device), full (no memory left), old (without graphs), unsynchronised (waiting for the stream returns at once).
FAKE_GPU: its name and compute capability. What the real one would misread is refused: handles and addresses that are not pointers.
"""
import ctypes
import os

NAME, CAPABILITY = os.environ.get("FAKE_GPU", "GeForce RTX 2080 Ti, 7.5").split(", ")
NAME = NAME.encode()
ERRORS = {2: b"out of memory", 100: b"no CUDA-capable device is detected", 400: b"invalid resource handle"}
HOST_SECONDS = 1 / 8192             # until a call returns; of a graph's launch an eighth


class Driver:
    def __init__(self, kind=None):
        self.kind = kind
        self.now = self.free = 0.0          # the host's clock; when the device will have done what it was given
        self.next, self.memory, self.events, self.recording, self.graphs = 1 << 40, {}, {}, None, {}

    def __getattribute__(self, name):
        if name == "cuStreamBeginCapture_v2" and self.kind == "old":
            raise AttributeError("undefined symbol: " + name)
        return object.__getattribute__(self, name)

    def clock(self):
        return self.now

    def work(self, seconds, effect, host=HOST_SECONDS):
        """Give the device something to do."""
        if self.recording is not None:
            self.recording.append((seconds, effect))
            return
        self.now += host
        self.free = max(self.now, self.free) + seconds
        effect()

    def handle(self, reference):
        self.next += 1 << 12
        reference._obj.value = self.next
        return self.next

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
        self.handle(reference)
        return 0

    def cuStreamSynchronize(self, stream):
        if pointer(stream) and self.kind != "unsynchronised":
            self.now = max(self.now, self.free)
        return 0

    def cuEventCreate(self, reference, flags):
        self.events[self.handle(reference)] = None
        return 0

    def cuEventRecord(self, event, stream):
        self.events[pointer(event)] = max(self.now, self.free)
        return 0 if pointer(stream) else 400

    def cuEventSynchronize(self, event):
        self.now = max(self.now, self.events[pointer(event)])
        return 0

    def cuEventElapsedTime(self, reference, begin, end):
        reference._obj.value = (self.events[pointer(end)] - self.events[pointer(begin)]) * 1e3
        return 0

    def cuMemAlloc_v2(self, reference, size):
        if self.kind == "full":
            return 2
        self.memory[self.handle(reference)] = bytearray(size.value)
        return 0

    def cuMemcpyHtoD_v2(self, place, host, size):
        self.memory[pointer(place)][:] = ctypes.string_at(pointer(host), size.value)
        return 0

    def cuMemcpyDtoH_v2(self, host, place, size):
        ctypes.memmove(pointer(host), bytes(self.memory[pointer(place)]), size.value)
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
        for seconds, effect in self.graphs[pointer(graph)]:
            self.work(seconds, effect, HOST_SECONDS / 8)
        return 0


def pointer(value):
    if not isinstance(value, ctypes.c_void_p):
        raise TypeError("%r would be cut to 32 bits" % (value,))
    return value.value


DRIVER = Driver(os.environ.get("FAKE_CUDA"))
