"""Who may write a goal, and who may have the machine: locks of the kernel's (flock), which end with their process, however that ends."""
import fcntl
import functools
import hashlib
import inspect
import os
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from . import files
from .errors import RtsegError

POLL_SECONDS = 0.2                  # whoever waits must not take time from what is timed


class NoLock(Exception):
    """A folder that cannot be written, or a file system without locks."""


def quiet(step, done):
    """A tell that tells nobody."""


@contextmanager
def goal(path, tell=quiet):
    """A block in which no other run on this machine writes that file: each waits for the one before. Raises RtsegError where there are no locks.

    A lock in the user's cache, for the goal's folder need not be there yet, and where it is and takes one a hidden file in it, for what shares the
    folder and not the cache; both are gone afterwards. Not to be nested for one goal. Who takes goals and the machine takes the machine last.
    """
    path = Path(os.path.realpath(Path(path).parent), Path(path).name)
    name, why = hashlib.sha256(os.fsencode(path)).hexdigest()[:32], f"waiting for another run that writes {path.name}"
    with ExitStack() as locks:
        hold(locks, taken(called(f"goal-{name}"), fcntl.LOCK_EX, why, tell))
        with suppress(NoLock):
            hold(locks, locked(path.with_name(f".{path.name}.lock"), fcntl.LOCK_EX, why, tell))
        yield


def hold(locks, file):
    """Until the end: then its name goes while it is held, so that whoever waits sees that it is another file, and opens the next."""
    locks.enter_context(file)
    locks.callback(unlinked, file.name)


def unlinked(name):
    with suppress(OSError):
        os.unlink(name)


@contextmanager
def machine(alone, tell=quiet):
    """A block for what is timed (alone) or what computes or builds (beside others that do): never both on this machine, of this user.

    Whoever comes goes through a turnstile, and stands in it while it waits: what comes after somebody who wants to be alone cannot go before.
    Never to be nested: who waits to be alone would wait for itself.
    """
    why = "waiting until nothing else is timed or computed here" if alone else "waiting for what is timed here"
    with taken(called(f"turnstile-{boot()}"), fcntl.LOCK_EX, why, tell):
        lock = taken(called(f"machine-{boot()}"), fcntl.LOCK_SH if not alone else fcntl.LOCK_EX, why, tell)
    with lock:
        yield


def writes(command):
    """Of a function with `path` and `tell`: it has the goal to itself while it runs, and computes only while nothing is timed."""
    @functools.wraps(command)
    def held(*given, **named):
        told = inspect.signature(command).bind(*given, **named).arguments
        tell = told.get("tell", quiet)
        with goal(told["path"], tell), machine(False, tell):
            return command(*given, **named)
    return held


def boot():
    """What this machine is known by in a cache that it may share with others: containers on it agree, and other machines do not."""
    return files.identity("/proc/sys/kernel/random/boot_id")


def folders():
    """Those of this user in which a lock can be, the first that takes one."""
    with suppress(RtsegError):
        yield files.cache()
    folder = Path(tempfile.gettempdir(), f"rtseg-deploy-{os.getuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid():
            yield folder


def called(name):
    """Where a lock of that name can be: the next folder is made only where the one before takes none."""
    return (folder / f"{name}.lock" for folder in folders())


def taken(paths, how, why, tell):
    """The open file, of the first path that takes a lock, that holds it until it is closed. Raises RtsegError where none does."""
    failed = "there is no folder for it"
    for path in paths:
        try:
            return locked(path, how, why, tell)
        except NoLock as error:
            failed = error
    raise RtsegError(f"nothing can be locked on this machine: {failed}", "name a folder on a disk of its own: XDG_CACHE_HOME=DIR")


def locked(path, how, why, tell):
    while True:
        with ExitStack() as opened:
            file = opened.enter_context(own(path))
            while not free(file, how):
                tell(why, None)
                time.sleep(POLL_SECONDS)
            if same(file, path):
                opened.pop_all()
                return file


def own(path):
    """A lock's file, made where there is none, and no link. Raises NoLock."""
    try:
        return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        raise NoLock(f"{path}: {error.strerror}") from None


def free(file, how):
    """Whether its lock is ours now. Raises NoLock."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoLock(f"{file.name}: {error.strerror}") from None
    return True


def same(file, path):
    """Whether the path is still that of the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
