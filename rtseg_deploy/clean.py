"""What is on the disk of ours and can be made again: in the cache, among temporary files, and in folders that are named. What a process uses stays.

Never results, engines, artifacts, nor what `tune` found. Links are not followed, and nothing is removed that is not as it was listed.
"""
import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from . import files, locks, records
from .errors import RtsegError, first_line

FRESH_SECONDS = 3600                # what is younger may be about to be used
# in the cache: pattern, what it is
CACHE = (("kernels-*.so", "compiled kernels"), ("kernels-*.cubin", "compiled kernels"), ("tmp*.so", "half-compiled kernels"),
         ("tmp*.cubin", "half-compiled kernels"), ("*.part", "a copy from a device that was cut"), ("results/*.sqlite", "index of a results folder"),
         ("fleet/*", "files of a fleet's tasks"), ("jobs/*", "a job that came over ssh"), ("*.lock", "lock that nobody holds"))
USED = "another run uses it"
BESIDE = ("-journal", "-wal", "-shm")       # of an index


class Held(Exception):
    """Another run has it."""


@dataclass(frozen=True)
class Item:
    path: Path
    what: str
    bytes: int
    seconds: float                  # since it was last changed or used
    stamp: tuple                    # by which it is known again

    def to_json(self):
        return {"path": str(self.path), "what": self.what, "bytes": self.bytes, "days": self.seconds / 86400}


def found(folders=(), older=0.0, keep=None):
    """The Items that would go, the oldest first: those older than so many seconds; with `keep`, only until the rest has no more bytes than that."""
    every = {item.path: item for item in (*of_cache(), *of_temporary(), *(item for folder in folders for item in of_folder(folder)))}
    chosen, left = [], sum(item.bytes for item in every.values())
    for item in sorted(every.values(), key=lambda item: (-item.seconds, item.path)):
        if item.seconds >= older and (keep is None or left > keep):
            chosen.append(item)
            left -= item.bytes
    return chosen


def clean(items, tell=locks.quiet):
    """Remove them; returns [(Item, why it stayed)] of those that did."""
    stayed = []
    for number, item in enumerate(items):
        tell(f"removing {item.path.name}", number / len(items))
        why = why_not(item)
        stayed += [(item, why)] if why else []
    return stayed


def why_not(item):
    """Why it cannot go; "" where it is gone."""
    try:
        if stamp(item.path) != item.stamp:
            return "it was changed meanwhile"
        if item.path.name.endswith(".part") and item.path.name.startswith("."):
            settle(item.path)
        with holding(item):
            if item.path.is_dir():
                shutil.rmtree(item.path)
            else:
                for name in (item.path, *(Path(f"{item.path}{end}") for end in BESIDE * (item.path.suffix == ".sqlite"))):
                    name.unlink(missing_ok=True)
    except FileNotFoundError:
        return ""
    except Held:
        return USED
    except (OSError, RtsegError) as error:
        return getattr(error, "strerror", None) or first_line(error)
    return ""


def holding(item):
    """The lock that whoever uses it would hold, or Held is raised."""
    def refuse(step, done):
        raise Held

    if item.path.suffix == ".lock":
        return locks.taken([item.path], fcntl.LOCK_EX, "", refuse)
    if item.path.parent.name == "jobs":
        return locks.taken([item.path.parent.with_name("busy")], fcntl.LOCK_EX, "", refuse)
    if item.path.parent.name == "fleet":
        return locks.goal(item.path.parent, refuse)
    return nullcontext() if item.path.name.startswith(".") or item.path.is_dir() else locks.goal(item.path, refuse)


def settle(part):
    """What was left of a sidecar may be all that says what its file is."""
    goal = part.with_name(files.PART.fullmatch(part.name)["name"].removesuffix(".json"))
    if goal.is_file():
        records.settle(goal)


# ---- where they are


def of_cache():
    """In the user's cache. Raises RtsegError where there is none."""
    here = files.cache()
    for pattern, what in CACHE:
        for path in here.glob(pattern):
            item = seen(path, what)
            if item and (unheld(path) if path.suffix == ".lock" else over(path) if pattern == "fleet/*" and path.is_dir() else item.seconds > FRESH_SECONDS):
                yield item


def of_temporary():
    """Folders of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob("rtseg-deploy-*-*"):
        if over(path) and (item := seen(path, "folder of a run that ended")):
            yield item


def over(path):
    """Whether it is the temporary folder of a run that ended."""
    return bool(files.SCRATCH.fullmatch(path.name)) and path.is_dir() and not files.alive(path)


def unheld(path):
    """Whether it is a lock that nobody has; that of this machine is always about to be taken."""
    return locks.boot() not in path.name and free(path)


def of_folder(folder):
    """What killed runs left in a folder and those below it, and timing caches."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if files.PART.fullmatch(path.name):
                what = "half-written by a run that ended"
            elif path.name.startswith(".") and path.suffix == ".lock":
                what = "lock that nobody holds"
            elif path.suffix == ".timing-cache":
                what = "what TensorRT timed in a build"
            else:
                continue
            item = seen(path, what)
            if item and not (path.suffix == ".lock" and (item.bytes or not free(path)) or files.PART.fullmatch(path.name) and files.alive(path)):
                yield item


def seen(path, what):
    """The Item at a path; None where there is nothing of this user's, or a link."""
    try:
        about = path.lstat()
        inside = [one.lstat() for one in path.rglob("*")] if stat.S_ISDIR(about.st_mode) else []
    except OSError:                 # it is gone since
        return None
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)) or about.st_uid != os.getuid():
        return None
    last = max(max(one.st_mtime, one.st_atime) if stat.S_ISREG(one.st_mode) else one.st_mtime for one in (about, *inside))
    return Item(path, what, sum(one.st_size for one in (about, *inside) if stat.S_ISREG(one.st_mode)), max(0.0, time.time() - last), stamp(path, about))


def stamp(path, about=None):
    about = about or path.lstat()
    return about.st_dev, about.st_ino, about.st_mtime_ns, stat.S_IFMT(about.st_mode)


def free(path):
    """Whether nobody holds a lock."""
    with suppress(OSError, locks.NoLock), open(path, "rb") as file:
        return locks.free(file, fcntl.LOCK_EX)
    return False


# ---- what a person reads


def rows(items):
    """Rows of plain values for a table."""
    return [{"file": str(item.path), "what": item.what, "size": size(item.bytes), "age": age(item.seconds)} for item in items]


def size(count):
    """Bytes as they are read: of two digits or three."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000


def age(seconds):
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
