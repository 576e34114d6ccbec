"""The runtimes beside those of the device runner: one file each. A new backend is a new file and nothing else; its name is the file's, with dashes.

A backend's module has unavailable(), which says why it cannot run here and the fix (or None), and open(job), which returns a
session: feed(array), step() to run once, output() for what the last step gave, facts() for the record of a figure. ENVIRONMENT, where it
has one, is set before its worker process starts; PRECISION, where it has one, is what it computes in.
"""
import pkgutil
from importlib import import_module

from ..device import runner
from ..device.runner import JobError
from ..errors import RtsegError

ENGINES = ("tensorrt", "tensorrt_rtx")     # those that run engines; the others take ONNX files
PRECISIONS = ("fp32", "fp16", "bf16", "int8")   # that something is computed in, the most exact first
# share of equal labels below which two backends did not do the same work, or one of them computes too coarsely for it
SAME_LABELS = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.97, "int8": 0.97}


def names():
    """Of all backends, the device runner's own among them."""
    return sorted([*runner.SESSIONS, *(info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__) if info.name != "__main__")])


def on_gpu(name):
    """Whether a backend of that name runs on a GPU."""
    return "cuda" in name or "tensorrt" in name


def computes(precision, name):
    """What a backend of that name computes a file of that precision in."""
    own = getattr(find(name), "PRECISION", "fp32") if name in names() and name not in runner.SESSIONS else "fp32"
    return max(precision, own, key=PRECISIONS.index)


def chosen(artifact, asked=()):
    """The backends that are to run an artifact. Raises RtsegError where one cannot."""
    fitting = [name for name in names() if name not in ENGINES]
    if artifact.kind == "engine":
        fitting = [name for name in ENGINES if name in artifact.versions]
    for name in asked:
        if name not in fitting:
            raise RtsegError(f"backend {name} does not run files of the kind {artifact.kind}" if name in names() else f"no backend is called {name!r}",
                             f"those that do: {', '.join(fitting)}")
    return list(asked) or (fitting if artifact.kind == "engine" else ["onnxruntime-cpu"])


def find(name):
    """The module of a backend that is a file here."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def open_session(job):
    """The session that a worker times. Raises JobError where the backend cannot run here."""
    backend = find(job["backend"])
    reason = backend.unavailable()
    if reason:
        raise JobError(*reason)
    try:
        return backend.open(job)
    except RtsegError as error:
        raise JobError(error.what, error.fix) from None
