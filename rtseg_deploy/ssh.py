"""A device at the other end of an ssh connection: the system's OpenSSH, with its configuration, keys and jump hosts.

The runner goes there each time. A job's folder there is named by everything that goes into it, so that a copy which was cut goes on where
it was, and a build that ended after the connection did is only fetched. When its results are here it is removed.
"""
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from . import files
from .device import runner
from .errors import RtsegError
from .launch import BACKENDS, digest, last_line, watched

BLOCK = 1 << 20
LOST = 255                          # exit status of ssh itself
BUSY, NO_FOLDER = 75, 73            # exit statuses of the scripts below
KILLED = 128                        # exit status of what a signal ended, less the signal
CACHE = '"${XDG_CACHE_HOME:-$HOME/.cache}/rtseg-deploy"'
OLD_DAYS = 7                        # after which the folder of a job that was never finished goes

# what ssh says -> (what is told, the fix)
FAULTS = {
    r"Permission denied|Too many authentication failures": ("{host} takes none of your keys", "ssh-copy-id {where}, or name the key in ~/.ssh/config"),
    r"Could not resolve hostname|Name or service not known": ("no host is called {host}", "check the name in --on {url}"),
    r"No route to host|Network is unreachable": ("there is no route to {host}", "check the cable and the network, then: ping {host}"),
    r"Connection refused": ("{host} takes no ssh connection", "check the port; on the device: sudo systemctl start ssh"),
    r"timed out": ("{host} does not answer", "is it on? then: ping {host}"),
    r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED": ("the key of {host} is not known, or not the one that is known",
                                                                            "connect by hand once and compare it: ssh {where}"),
}


def place(url):
    """The Ssh of an --on argument; None for none. Raises RtsegError for anything but ssh://[user@]host[:port][/path/of/python]."""
    if not url:
        return None
    wanted = "--on takes ssh://user@host, ssh://user@host:port or ssh://user@host/path/of/python3"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RtsegError(f"{url}: {error}", wanted) from None
    names = [parts.hostname, *([parts.username] if parts.username else [])]
    if parts.scheme != "ssh" or parts.password or parts.query or parts.fragment or not all(name and re.fullmatch(r"\w[\w.-]*", name) for name in names):
        raise RtsegError(f"{url} is not where a job can run", wanted)
    return Ssh(url, parts.hostname, parts.username, port, parts.path.rstrip("/") or "python3")


@dataclass(frozen=True)
class Ssh:
    url: str
    host: str
    user: str | None
    port: int | None
    python: str

    @property
    def name(self):
        return self.host

    def run(self, job, folder, tell):
        """Leave result.json and the job's results in `folder`. Raises RtsegError where there is no result."""
        if job.worker == BACKENDS:
            raise RtsegError(f"backend {job.request['backend']} runs on this machine only", f"with --on: {', '.join(runner.SESSIONS)}")
        contents = {"runner.py": Path(runner.__file__), **job.files, "job.json": json.dumps({**job.request, "progress": True, "leash": True}).encode()}
        hashes = {name: digest(source) for name, source in contents.items()}
        with Connection(self) as connection:
            there = connection.folder(hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:24])
            try:
                self.move(connection, there, contents, hashes, job, folder, tell)
            except RtsegError:
                if not connection.lost:
                    connection.remove(there)
                raise
            connection.remove(there)

    def move(self, connection, there, contents, hashes, job, folder, tell):
        """Copy what is not there yet, run it, copy what came of it."""
        held = connection.held(there)
        if job.request["action"] != "build" or "result.json" not in held:   # a figure is of now
            for name, source in contents.items():
                if name not in held:    # it gets its name only when its hash is right
                    connection.send(source, f"{there}/{name}", hashes[name], held.get(name + ".part", 0), tell)
            connection.start(there, tell, job.request["action"])
        connection.fetch(there, "result.json", folder, tell)
        if files.read_json(folder / "result.json").get("ok") is True:
            for name in job.results:
                connection.fetch(there, name, folder, tell)


def blocks(source, begin):
    """(bytes before it, block) of a path or of bytes, from byte `begin` on."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        file.seek(begin)
        while block := file.read(BLOCK):
            yield file.tell() - len(block), block


def cache():
    """Where what was fetched before a connection was cut waits for the rest."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rtseg-deploy")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Connection:
    """One connection that every command goes through, for as long as the block lasts."""

    def __init__(self, place):
        self.place = place
        self.lost = False
        self.scratch = tempfile.TemporaryDirectory(prefix="rtseg-ssh-")
        options = {"ControlMaster": "auto", "ControlPath": f"{self.scratch.name}/%C", "ControlPersist": "60", "ConnectTimeout": "15",
                   "ServerAliveInterval": "5", "ServerAliveCountMax": "3", "BatchMode": "no" if os.isatty(0) else "yes"}
        port = ["-p", str(place.port)] if place.port else []
        who = f"{place.user}@{place.host}" if place.user else place.host
        self.ssh = ["ssh", "-T", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")), *port, who]

    def __enter__(self):
        return self

    def __exit__(self, *rest):
        subprocess.run([*self.ssh[:-1], "-O", "exit", self.ssh[-1]], capture_output=True)
        self.scratch.cleanup()

    def command(self, script):
        """The local command that runs a script of sh there, whatever the user's shell is."""
        return [*self.ssh, f"exec sh -c {shlex.quote(script)}"]

    def output(self, script):
        """What a script prints there. Raises RtsegError."""
        done = subprocess.run(self.command(script), stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            self.refuse(done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def refuse(self, status, said):
        """Raise RtsegError for what ssh, or a command there, said."""
        where = " ".join([*(["-p", str(self.place.port)] if self.place.port else []), self.ssh[-1]])
        if status == LOST:
            self.lost = True
            for pattern, (what, fix) in FAULTS.items():
                if re.search(pattern, said):
                    raise RtsegError(what.format(host=self.place.host), fix.format(host=self.place.host, where=where, url=self.place.url))
            raise RtsegError(f"the connection to {self.place.host} was lost: {last_line(said)}", "run it again: it goes on where it was")
        if re.search("No space left|quota exceeded", said):
            raise RtsegError(f"the disk of {self.place.host} is full: {last_line(said)}", f"free some space there: ssh {where} df -h")
        if status in (126, 127):
            raise RtsegError(f"there is no {self.place.python} on {self.place.host}",
                             f"install Python 3 there, or name it: --on {self.place.url.rstrip('/')}/path/of/python3")
        raise RtsegError(f"{self.place.host}: {last_line(said)} (exit status {status})", f"look there: ssh {where}")

    def remove(self, there):
        self.output(f"rm -rf {shlex.quote(there)}")

    def folder(self, identity):
        """The job's folder there, made if need be; what is older than a week in its neighbourhood goes."""
        return self.output(f'set -e; umask 077; c={CACHE}; mkdir -p "$c/jobs/{identity}"; cd "$c/jobs"; '
                           f'find . -mindepth 1 -maxdepth 1 -type d -mtime +{OLD_DAYS} -exec rm -rf {{}} +; cd {identity}; touch .; pwd').rstrip("\n")

    def held(self, there):
        """Name -> bytes of every file in that folder."""
        lines = self.output(f'cd {shlex.quote(there)} && for f in *; do [ -f "$f" ] && wc -c < "$f" && echo "$f"; done; true').split("\n")
        return {name: int(size) for size, name in zip(lines[::2], lines[1::2])}

    def send(self, source, goal, sha256, begin, tell):
        """Copy a file there, from byte `begin` on: where the last copy was cut."""
        length, part = len(source) if isinstance(source, bytes) else source.stat().st_size, shlex.quote(goal + ".part")
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(self.command(f"cat >> {part}"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said)
            try:
                for sent, block in blocks(source, min(begin, length)):
                    tell(f"{self.place.host}: copying {goal.rpartition('/')[2]}", sent / max(length, 1))
                    process.stdin.write(block)
            except BrokenPipeError:
                pass                # why, it says itself
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                status = process.wait()
            said.seek(0)
            if status:
                self.refuse(status, said.read().decode(errors="replace"))
        if self.output(f"s=$(sha256sum < {part}); if [ \"${{s%% *}}\" = {sha256} ]; then mv {part} {shlex.quote(goal)}; else rm {part}; echo damaged; fi"):
            raise RtsegError(f"{goal.rpartition('/')[2]} arrived damaged on {self.place.host}", "run it again")

    def start(self, there, tell, action):
        """Run the worker there to its end. One job at a time: what is timed there must not share the device with what is built."""
        script = (f"cd {shlex.quote(there)} && rm -f result.json && exec 9>../../busy || exit {NO_FOLDER}; "
                  f"if command -v flock >/dev/null && ! flock -n 9; then exit {BUSY}; fi; "
                  f"PYTHONDONTWRITEBYTECODE=1 {shlex.quote(self.place.python)} runner.py job.json result.json")
        status, said = watched(self.command(script), lambda step, done: tell(f"{self.place.host}: {step}", done))
        if status == BUSY:
            raise RtsegError(f"{self.place.host} is busy with another job of rtseg-deploy", "wait for it, or end it")
        if KILLED < status < LOST:
            raise RtsegError(f"the worker for {action} on {self.place.host} was killed by signal {status - KILLED}" +
                             (" (out of memory?)" if status == KILLED + 9 else ""), "give it less: --workspace 256, and stop the desktop there")
        if status not in (0, 1) or "result.json" not in self.held(there):
            self.refuse(status, said)

    def fetch(self, there, name, folder, tell):
        """Copy a result into `folder`, from where the last copy was cut."""
        size, sha256 = self.output(f"cd {shlex.quote(there)} && wc -c < {name} && sha256sum < {name}").split()[:2]
        part = cache() / f"{there.rpartition('/')[2]}-{sha256[:16]}.part"
        begin = part.stat().st_size if part.is_file() else 0
        with open(part, "ab") as file, tempfile.TemporaryFile() as said:
            process = subprocess.Popen(self.command(f"tail -c +{begin + 1} {shlex.quote(there)}/{name}"), stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=said)
            while block := process.stdout.read1(BLOCK):
                file.write(block)
                tell(f"{self.place.host}: fetching {name}", min(1.0, file.tell() / max(int(size), 1)))
            process.stdout.close()
            if status := process.wait():
                said.seek(0)
                self.refuse(status, said.read().decode(errors="replace"))
        if files.sha256(part) != sha256:
            part.unlink()
            raise RtsegError(f"{name} arrived damaged from {self.place.host}", "run it again")
        shutil.move(part, folder / name)
