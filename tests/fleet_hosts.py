"""Machines on this machine: network namespaces with addresses and disks of their own at one bridge, for a fleet that can be hurt.

All of it is in one process namespace, whose first process is this one: when that ends, however it does, the kernel ends every process in it, and the
networks and mounts go with them. So nothing is left behind, and two runs do not meet.
"""
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "RTSEG_HOSTS_INSIDE"
NAMES = Path("/run/netns")
PORT = 8786


def unshared():
    """The command that puts another one into namespaces of its own; as root, or as a user who may be root there."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *own, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def why_not():
    """Why there can be no such machines here; "" where there can."""
    try:
        made = subprocess.run([*unshared(), "sh", "-c", f"mkdir -p {NAMES} && mount -t tmpfs none {NAMES} && ip netns add one && "
                               "ip link add name bridge type bridge && ip link add name port type veth peer name eth0 netns one"],
                              capture_output=True, text=True)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return "" if not made.returncode else f"no network namespaces here: {made.stderr.strip()}"


def enter():
    """A folder for such machines, and this process the first of those namespaces: the caller's module is run anew in them."""
    if not os.environ.get(INSIDE):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            sys.exit(subprocess.run([*unshared(), sys.executable, *sys.argv], env={**os.environ, INSIDE: folder}).returncode)
    if os.getpid() != 1:
        raise SystemExit(f"{INSIDE} is set, and this is no namespace of its own")
    NAMES.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", NAMES], check=True)
    return Path(os.environ.pop(INSIDE))


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True)


class Hosts:
    """So many machines: the first has the scheduler, the last the commands, the others the workers. Each has a folder: its disk, its home."""

    def __init__(self, workers, folder):
        self.folder, self.processes, self.logs = Path(folder), [], 0
        self.names = ["scheduler", *(f"worker{number}" for number in range(workers)), "home"]
        self.address = f"tcp://10.99.0.1:{PORT}"
        ip("link", "add", "name", "bridge", "type", "bridge")
        ip("link", "set", "bridge", "up")
        for number, name in enumerate(self.names, 1):
            ip("netns", "add", name)
            ip("link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", "bridge", "up")
            for words in (("addr", "add", f"10.99.0.{number}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
                ip("-n", name, *words)
            (self.home(name) / "tmp").mkdir(parents=True)
        self.workers = self.names[1:-1]

    def home(self, name):
        return self.folder / name

    def run(self, host, *command, **environment):
        """Start a Python command of ours on a machine; returns its Popen, with the path of what it prints."""
        self.logs += 1
        log, home = self.folder / f"{self.logs:04d}-{host}.log", self.home(host)
        own = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "TMPDIR": home / "tmp", "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": 1, **environment}
        with open(log, "wb") as said, open(f"{log}.out", "wb") as out:
            process = subprocess.Popen(["nsenter", f"--net={NAMES / host}", sys.executable, *map(str, command)], stdout=out, stderr=said,
                                       stdin=subprocess.DEVNULL, env={**os.environ, **{name: str(value) for name, value in own.items()}})
        process.host, process.log, process.out = host, log, Path(f"{log}.out")
        self.processes.append(process)
        return process

    def rtseg(self, host, *arguments, **environment):
        return self.run(host, "-m", "rtseg_deploy", *arguments, **environment)

    def scheduler(self):
        process = self.rtseg("scheduler", "scheduler", "--host", "10.99.0.1", "--port", PORT, "--insecure")
        said(process, "scheduler at")
        return process

    def worker(self, host, store=None, *script):
        """A worker on a machine; script: what is run instead of the command, with its first arguments."""
        return self.run(host, *(script or ("-m", "rtseg_deploy")), "worker", "--scheduler", self.address, "--insecure", "--store",
                        store or self.home(host) / "store")

    def cut(self, host, yes=True):
        """Take a machine's cable out, or put it in again."""
        ip("link", "set", host, "down" if yes else "up")

    def small_disk(self, host, size):
        """The machine's disk has only so much."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", self.home(host)], check=True)
        (self.home(host) / "tmp").mkdir()

    def end(self, process, how=signal.SIGKILL):
        """End a process, and wait until it is gone."""
        process.send_signal(how)
        process.wait()
        if process in self.processes:
            self.processes.remove(process)

    def close(self):
        for process in list(self.processes):
            self.end(process)

    def left(self, seconds=10):
        """Command lines of what runs here beside what was started and not ended; a worker's worker may take a moment to see that it is alone."""
        limit = time.monotonic() + seconds
        while found := self.strangers():
            if time.monotonic() > limit:
                return found
            time.sleep(0.1)
        return []

    def strangers(self):
        return [line for number, line in running() if number not in {1, *(process.pid for process in self.processes)} and not self.below(number)]

    def below(self, number):
        """Whether a process was started by one that is still there."""
        known = {process.pid for process in self.processes}
        while number > 1:
            if number in known:
                return True
            number = parent(number)
        return False


def running():
    """(number, command line) of each process here; what ended and was left to us is cleared away."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    if parent(int(entry.name)) == 1:
                        os.waitpid(int(entry.name), os.WNOHANG)
                elif line := (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip():
                    yield int(entry.name), line


def parent(number):
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def said(process, text, seconds=120):
    """Wait until a process has printed that. Raises RuntimeError where it ends before."""
    limit = time.monotonic() + seconds
    while text not in process.log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"{process.args} did not say {text!r}: {process.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
