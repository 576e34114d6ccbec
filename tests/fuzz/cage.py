"""One input read under what must hold of any: it is taken or refused in one line, within 10 s and 2 GiB, and nothing is written outside the folder."""
import contextlib
import mmap
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from rtseg_deploy.errors import RtsegError

SECONDS = 10
MEMORY = 2 << 30                    # bytes that an input may make the process take
RESERVED = 3 << 30                  # and of addresses: what is reserved and not touched is not taken
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# audit event -> which of its arguments are paths that it changes
CHANGES = {"os.rename": (0, 1), "os.remove": (0,), "os.mkdir": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,), "os.truncate": (0,),
           "os.chmod": (0,), "os.chown": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1), "os.utime": (0,), "os.setxattr": (0,)}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "socket.connect", "socket.bind", "pty.spawn"}
STEP = 1 << 20                      # of the memory that the parent sees the last input in


class Broken(BaseException):
    """An input after which something did not hold. No Exception: no reader may take it for its own."""


class Watch:
    """Raises Broken where this process writes outside a folder or starts something, for as long as it is on."""

    def __init__(self, folder, starts):
        self.folder, self.starts, self.on, self.seen = os.path.realpath(folder), starts, False, ""
        sys.addaudithook(self)

    def __call__(self, event, given):
        if not self.on:
            return
        if event == "open":
            path, mode, flags = given
            changed = [path] if isinstance(flags, int) and flags & WRITES or isinstance(mode, str) and set(mode) & set("wax+") else []
        else:
            changed = [given[place] for place in CHANGES.get(event, ())]
        outside = [path for path in changed if not self.inside(path)]
        if outside or event in STARTS and not self.starts:
            self.on, self.seen = False, f"{event} {[str(one)[:300] for one in outside or given]}"
            raise Broken(self.seen)

    def inside(self, path):
        if isinstance(path, int):
            return True
        self.on = False             # what looks at a path opens nothing
        try:
            whole = os.path.abspath(os.fsdecode(path))
            whole = whole if whole == self.folder else os.path.realpath(os.path.dirname(whole))
        except ValueError:          # a NUL: nothing can be written there
            return True
        finally:
            self.on = True
        return (whole + os.sep).startswith(self.folder + os.sep) or os.fsdecode(path) == os.devnull


def enter(kind, folder, clock=True):
    """Make this process, a child, one that can only read inputs of a kind; returns read(bytes), which raises Broken. clock: where nobody else has one."""
    folder = Path(folder)
    for name, place in (("TMPDIR", "tmp"), ("XDG_CACHE_HOME", "cache"), ("HOME", "home")):
        (folder / place).mkdir(exist_ok=True)
        os.environ[name] = str(folder / place)
    tempfile.tempdir = None
    sys.dont_write_bytecode, os.fsync = True, lambda file: None     # nobody cuts the power here, and a disk is slow
    warnings.simplefilter("ignore")
    os.chdir(folder)
    kind.beside()
    Path(kind.file).parent.mkdir(exist_ok=True)
    for data in kind.valid:         # what is imported on the way is not what an input takes
        Path(kind.file).write_bytes(data)
        with contextlib.suppress(RtsegError):
            kind.read(kind.file)
    base = status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (base + RESERVED, base + RESERVED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = sorted(os.listdir(folder))
    watch = Watch(folder, kind.starts)
    if clock:
        signal.signal(signal.SIGALRM, late)

    def read(data):
        Path(kind.file).write_bytes(data)
        tidy(folder, before)
        grown = peak()
        began = time.monotonic()
        if clock:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        watch.on, watch.seen = True, ""
        try:
            kind.read(kind.file)
        except RtsegError as error:
            said = f"{error.what}{error.fix}"
            if "\n" in said:
                raise Broken(f"more than one line: {said}") from None
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is what is looked for)
            if watch.seen:
                raise Broken(f"wrote outside: {watch.seen}\n{traceback.format_exc()}") from None
            raise Broken(f"{type(error).__name__}\n{traceback.format_exc()}") from None
        finally:
            watch.on = False
            if clock:
                signal.setitimer(signal.ITIMER_REAL, 0)
        if watch.seen:
            raise Broken(f"wrote outside: {watch.seen}")
        if time.monotonic() - began > SECONDS:
            raise Broken(f"took {time.monotonic() - began:.0f} s")
        if peak() - grown > MEMORY:
            raise Broken(f"took {peak() - grown:,} bytes")
    return read


def late(*_):
    raise Broken(f"took more than {SECONDS} s")


def tidy(folder, before):
    for name in os.listdir(folder):
        if name not in before:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def status(name):
    """Bytes that /proc says of this process."""
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")).split()[1]) << 10


def child(work, last, seconds):
    """Run work() in a fork; returns (what it wrote with its last words, "" if nothing broke; the last input that it had begun)."""
    words = tempfile.TemporaryFile()    # noqa: SIM115 (the child's too)
    pid = os.fork()
    if not pid:
        said = ""
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            work()
        except BaseException as error:  # noqa: BLE001
            said = str(error) or traceback.format_exc()
        os.write(words.fileno(), "\n".join(line[:300] for line in said.splitlines()[-60:]).encode(errors="replace"))
        os._exit(0)
    ended, deadline = 0, time.monotonic() + seconds
    while not ended:
        ended, code = os.waitpid(pid, os.WNOHANG)
        # a hang in a library, which no alarm of Python's ends
        if not ended and (time.monotonic() > deadline or time.time() - (last.begun() or time.time()) > 2 * SECONDS):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"killed: took more than {2 * SECONDS} s", last.data()
        time.sleep(0.01)
    words.seek(0)
    said = words.read().decode(errors="replace")
    if os.WIFSIGNALED(code):
        said = f"died by signal {os.WTERMSIG(code)}"
    return said, last.data()


class Last:
    """The input that a child is at, seen by its parent: 8 bytes of the time that it began, 8 of its length, and itself."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 2 * STEP)

    def keep(self, data):
        self.memory[:16] = int(1000 * time.time()).to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self.memory[16:16 + len(data)] = data

    def done(self):
        self.memory[:8] = bytes(8)

    def begun(self):
        return int.from_bytes(self.memory[:8], "little") / 1000

    def data(self):
        return bytes(self.memory[16:16 + int.from_bytes(self.memory[8:16], "little")])
