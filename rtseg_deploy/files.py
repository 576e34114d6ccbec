"""Files that are whole or absent: hashes, and writing beside the goal."""
import errno
import functools
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from . import limits
from .errors import RtsegError


def sha256(path):
    """Hex digest of a file. Raises RtsegError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror}") from None
    except ValueError as error:     # a name with a NUL in it
        raise RtsegError(f"{str(path)!r} is no name of a file: {error}") from None


def _digest(file):  # hashlib.file_digest came with Python 3.11
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path):
    """A temporary path beside `path`: it takes the name when the block ends well, and is gone when it does not.

    What was written is on the disk before it has its name, and the name before the block is left: of a lost power no half file comes. What a process
    that was killed left of the same goal is removed.
    """
    temporary = begun(path)
    try:
        yield temporary
        named(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def begun(path, suffix=""):
    """Where to write what is to become a file; what was left of it is gone."""
    path = Path(path)
    folder(path.parent)
    for left in parts(path):
        with suppress(OSError):
            if not alive(left):
                left.unlink()
    return temporary_of(path, suffix)


def named(temporary, path):
    """Give a temporary file its name, so that it outlasts a lost power."""
    synced(temporary)
    os.replace(temporary, path)
    synced(Path(path).parent)


def same(source, goal):
    """The same file under another name, whatever takes its own name afterwards: by a link where the file system can."""
    try:
        os.link(os.path.realpath(source), goal)
    except OSError:                 # on another disk, or another user's
        shutil.copyfile(source, goal)


def folder(path):
    """Make a folder, and those above it, so that they outlast a lost power too."""
    above = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in above:
        synced(made.parent)


def synced(path):
    """Returns when a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:     # a file system that keeps no folders on a disk
            raise
    finally:
        os.close(handle)


# ---- whose a temporary file is


WRITER = "(?P<machine>[0-9a-f]{8})-(?P<process>[0-9]+)-(?P<began>[0-9]+)"
PART = re.compile(rf"\.(?P<name>.+)\.{WRITER}\.part(\.mp4)?")
SCRATCH = re.compile(rf"rtseg-deploy-{WRITER}-\w+")
ABANDONED_SECONDS = 86400           # after which what another machine writes is taken for left


def temporary_of(path, suffix=""):
    """Where this thread writes what is to have a name when it is whole."""
    return path.with_name(f".{path.name}.{writer()}.part{suffix}")


def parts(path):
    """The temporary files of a goal that are there, of whatever process."""
    return [one for one in path.parent.glob(f".{glob.escape(path.name)}.*.part*") if (found := PART.fullmatch(one.name)) and found["name"] == path.name]


def writer():
    """What tells apart who writes: this machine since it began, this thread, and when that began."""
    number = threading.get_native_id()
    return f"{identity('/proc/sys/kernel/random/boot_id', '/proc/self/ns/pid')}-{number}-{began(number)}"


def scratch(folder=None):
    """A temporary folder, in a folder or where the system has them, gone with the block; where its process is killed in it the name says whose it was."""
    return tempfile.TemporaryDirectory(prefix=f"rtseg-deploy-{writer()}-", dir=folder)


def alive(part):
    """Whether who writes a temporary file, or in a temporary folder, may still do so."""
    found, here = PART.fullmatch(part.name) or SCRATCH.fullmatch(part.name), writer().partition("-")[0]
    if found["machine"] != here:            # before this machine was started anew, or on another one, or in another container
        return time.time() - part.stat().st_mtime < ABANDONED_SECONDS
    return began(found["process"]) == found["began"]


def began(process):
    """When a process or a thread began, in ticks since the machine did; "" where there is none, and 0 of all where the system does not tell."""
    if not os.path.isdir("/proc/self"):
        return "0"
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@functools.cache
def identity(*names):
    """A short digest of what the system says under some names, of a link where that leads; of this machine's name where it has none of them."""
    said = []
    for name in names:
        try:
            said.append(os.readlink(name) if os.path.islink(name) else Path(name).read_text())
        except OSError:
            said.append(platform.node())
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:8]


def cache():
    """The folder of what this user can do without: $XDG_CACHE_HOME or ~/.cache. Raises RtsegError where it cannot be made."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "rtseg-deploy")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RtsegError(f"{folder}: {error.strerror}", "name another folder: XDG_CACHE_HOME=DIR") from None
    return folder


def write(path, data):
    """Write bytes or text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data if isinstance(data, bytes) else data.encode())


def write_json(path, value):
    write(path, json.dumps(value, indent=1) + "\n")


def key(value):
    """Hex digits by which a value is known: the same for equal ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path):
    """A JSON object. Raises RtsegError where there is none."""
    try:
        value = json.loads(limits.light_json(limits.data(path, limits.JSON_BYTES), path), parse_int=limits.whole)
    except (ValueError, RecursionError) as error:
        raise RtsegError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RtsegError(f"{path} holds no JSON object")
    return value
