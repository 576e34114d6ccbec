"""Files that are whole or absent: hashes, and writing beside the goal."""
import hashlib
import json
import os
from contextlib import contextmanager
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
    """A temporary path beside `path`: it takes the name when the block ends well, and is gone when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(path):
    """A JSON object. Raises RtsegError where there is none."""
    try:
        value = json.loads(limits.light_json(limits.data(path, limits.JSON_BYTES), path), parse_int=limits.whole)
    except (ValueError, RecursionError) as error:
        raise RtsegError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RtsegError(f"{path} holds no JSON object")
    return value
