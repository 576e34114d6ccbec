"""The runtimes: one file each. A new backend is a new file and nothing else; its name is the file's, with dashes.

A backend's module has unavailable(), which says why it cannot run here and the fix (or None), and open(job), which returns a
session: feed(array), step() to run once, output() for what the last step gave, facts() for the record of a figure. ENVIRONMENT, where it
has one, is set before its worker process starts.
"""
import pkgutil
from importlib import import_module

from ..device.runner import JobError
from ..errors import RtsegError


def names():
    """Of all backends."""
    return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__) if info.name != "__main__")


def find(name):
    """The module of a backend. Raises RtsegError with the known names."""
    if name not in names():
        raise RtsegError(f"no backend is called {name!r}", f"the known ones: {', '.join(names())}")
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
