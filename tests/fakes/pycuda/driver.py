"""A fake of pycuda.driver with one device, or none where FAKE_CUDA is "none". As in the real one, nothing works before init()."""
import os


class Error(Exception):
    pass


class LogicError(Error):
    pass


class RuntimeError(Error):
    pass


def init():
    if os.environ.get("FAKE_CUDA") == "none":
        raise RuntimeError("cuInit failed: no CUDA-capable device is detected")
    READY.append(True)


class Device:
    def __init__(self, number):
        if not READY:
            raise LogicError("cuDeviceGet failed: initialization error")
        if number != 0:
            raise LogicError("cuDeviceGet failed: invalid device ordinal")

    def name(self):
        return "GeForce RTX 2080 Ti"

    def compute_capability(self):
        return (7, 5)

    def total_memory(self):
        return 11554717696


READY = []
