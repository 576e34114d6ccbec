"""A device at the other end of an ssh connection: the system's OpenSSH, with its configuration, keys and jump hosts.

The runner goes there each time. A job's folder there is named by everything that goes into it, so that a copy which was cut goes on where
it was, and a build that ended after the connection did is only fetched. When its results are here it is removed.
"""
import contextlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from . import files, limits, locks
from .device import runner
from .errors import RtsegError
from .launch import BACKENDS, digest, last_line, refuse_other, watched

ADDRESS = re.compile(r"ssh://(?:(?P<user>\w[\w.-]*)@)?(?P<host>\w[\w.-]*)(?::(?P<port>[0-9]+))?(?P<python>/.*)?")
BLOCK = 1 << 20
LOST = 255                          # exit status of ssh itself
BUSY, NO_FOLDER = 75, 73            # exit statuses of the scripts below
KILLED = 128                        # exit status of what a signal ended, less the signal
OLD_DAYS = 7                        # after which what is left of a job that was never finished goes, there and here
READY = b"@rtseg-deploy"            # the line after which a script prints: what a user's shell greets with comes before it
MOST_SAID = 1 << 20                 # bytes that a shell greets with, or a script prints
MOST_ERRORS = 1 << 26               # bytes that ssh and what it runs there may complain in
MOST_TEXT, MOST_RESULT = limits.JSON_BYTES, limits.ARCHIVE_BYTES        # of a result.json, and of what else a job makes

# one job at a time: what is timed there must not share the device with what is built, or copied
ALONE = (f'c="${{XDG_CACHE_HOME:-$HOME/.cache}}/rtseg-deploy"; umask 077; mkdir -p "$c/jobs" && exec 9>"$c/busy" || exit {NO_FOLDER}; '
         f"if command -v flock >/dev/null && ! flock -n 9; then exit {BUSY}; fi; ")

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
    found = ADDRESS.fullmatch(url)
    if not found or not 0 < int(found["port"] or 22) < 1 << 16:
        raise RtsegError(f"{url} is not where a job can run", "--on takes ssh://user@host, ssh://user@host:port or ssh://user@host/path/of/python3")
    return Ssh(url, found["host"], found["user"], int(found["port"] or 0) or None, unquote(found["python"] or "").rstrip("/") or "python3")


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
        if not shutil.which("ssh"):
            raise RtsegError("there is no ssh on this machine", "install OpenSSH's client: sudo apt-get install openssh-client")
        contents = {"runner.py": Path(*job.worker), **job.files, "job.json": json.dumps({**job.request, "progress": True, "leash": True}).encode()}
        hashes = {name: digest(source) for name, source in contents.items()}
        for name in job.hashes:
            refuse_other(job, name, hashes[name])
        with Connection(self) as connection:
            there = connection.folder(files.key(hashes)[:24])
            try:
                self.move(connection, there, contents, hashes, job, folder, tell)
            except RtsegError:
                if connection.goes:
                    connection.remove(there)
                raise
            connection.remove(there)

    def move(self, connection, there, contents, hashes, job, folder, tell):
        """Copy what is not there yet, run it, copy what came of it."""
        held = connection.held(there)
        if job.request["action"] != "build" or "result.json" not in held:   # a figure is of now
            whole = connection.unchanged(there, hashes, held)
            for name, source in contents.items():
                if name not in whole:   # it gets its name only when its hash is right
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


def few_complaints():
    """Of the process that ssh is to be: what it writes to files is no more than that, whatever it is told from there."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_ERRORS if most == resource.RLIM_INFINITY else min(most, MOST_ERRORS), most))


def cache():
    """Where what was fetched before a connection was cut waits for the rest."""
    folder = files.cache()
    for part in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > OLD_DAYS * 86400:
                part.unlink()
    return folder


class Connection:
    """One connection that every command goes through, for as long as the block lasts."""

    def __init__(self, place):
        self.place = place
        self.goes = True            # whether the job's folder there is to be removed after an error: no other run works in it or can go on with it
        self.scratch = tempfile.TemporaryDirectory(prefix="rtseg-ssh-", dir="/tmp")     # a socket's path has at most 107 bytes: TMPDIR may be longer
        options = {"ControlMaster": "auto", "ControlPath": f"{self.scratch.name}/c", "ControlPersist": "60", "ConnectTimeout": "15",
                   "ServerAliveInterval": "5", "ServerAliveCountMax": "3", "BatchMode": "no" if os.isatty(0) else "yes",
                   "ForwardAgent": "no", "ForwardX11": "no"}      # a device gets no use of this user's keys and screen
        port = ["-p", str(place.port)] if place.port else []
        who = f"{place.user}@{place.host}" if place.user else place.host
        self.ssh = ["ssh", "-T", *(part for name, value in options.items() for part in ("-o", f"{name}={value}")), *port, who]
        self.where = " ".join([*port, who])

    def __enter__(self):
        return self

    def __exit__(self, *rest):
        subprocess.run([*self.ssh[:-1], "-O", "exit", self.ssh[-1]], capture_output=True)
        self.scratch.cleanup()

    def command(self, script):
        """The local command that runs a script of sh there, whatever the user's shell is."""
        return [*self.ssh, f"exec sh -c {shlex.quote(script)}"]

    @contextlib.contextmanager
    def running(self, script, **pipes):
        """The process of a script there, its output read up to READY; ended with the block. Raises RtsegError where it fails.

        What it says goes to a file: OpenSSH before 8.5 keeps a pipe of it open for as long as the connection lasts.
        """
        with tempfile.TemporaryFile() as said:
            command = self.command(f"echo; echo {READY.decode()}; {script}")
            with contextlib.suppress(BrokenPipeError), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, preexec_fn=few_complaints,
                                                                        **pipes) as process:
                greeted = 0
                while (line := process.stdout.readline(MOST_SAID)) and line.rstrip(b"\n") != READY:
                    greeted = self.bounded(greeted + len(line))
                yield process
            if process.returncode:
                said.seek(0)
                self.refuse(process.returncode, said.read(MOST_SAID).decode(errors="replace"))

    def bounded(self, size, most=MOST_SAID, what="prints"):
        """A size that is not too large. Raises RtsegError."""
        if size > most:
            raise RtsegError(f"{self.place.host} {what} more than the {limits.amount(most)} that are taken", f"look there: ssh {self.where}")
        return size

    def output(self, script):
        """What a script prints there. Raises RtsegError."""
        with self.running(script, stdin=subprocess.DEVNULL) as process:
            found = process.stdout.read(MOST_SAID + 1)
            self.bounded(len(found))
            return os.fsdecode(found)

    def refuse(self, status, said):
        """Raise RtsegError for what ssh, or a command there, said."""
        host = self.place.host
        self.goes = status not in (LOST, BUSY)
        if status == LOST:
            for pattern, (what, fix) in FAULTS.items():
                if re.search(pattern, said):
                    raise RtsegError(what.format(host=host), fix.format(host=host, where=self.where, url=self.place.url))
            raise RtsegError(f"the connection to {host} was lost: {last_line(said)}", "run it again: it goes on where it was")
        if status == BUSY:
            raise RtsegError(f"{host} is busy with another job of rtseg-deploy", "wait for it, or end it")
        if re.search("No space left|quota exceeded", said):
            raise RtsegError(f"the disk of {host} is full: {last_line(said)}", f"free some space there: ssh {self.where} df -h")
        if status == NO_FOLDER:
            raise RtsegError(f"no folder can be made on {host}: {last_line(said)}", "name one in XDG_CACHE_HOME there, in the file that its shell reads first")
        raise RtsegError(f"{host}: {last_line(said)} (exit status {status})", f"look there: ssh {self.where}")

    def remove(self, there):
        """What cannot be removed goes when it is old."""
        with contextlib.suppress(RtsegError):
            self.output(f"rm -rf {shlex.quote(there)}")

    def folder(self, identity):
        """The job's folder there, made if need be; what is older than a week in its neighbourhood goes."""
        there = self.output(f'{ALONE}set -e; cd "$c/jobs"; find . -mindepth 1 -maxdepth 1 -type d -mtime +{OLD_DAYS} -exec rm -rf {{}} +; '
                            f"mkdir -p {identity}; cd {identity}; touch .; pwd").rstrip("\n")
        if not (there.startswith("/") and there.endswith(f"/{identity}") and "\0" not in there):
            raise RtsegError(f"{self.place.host} does not tell where its folder for jobs is", f"look there: ssh {self.where} pwd")
        return there

    def held(self, there):
        """Name -> bytes of every file in that folder."""
        lines = self.output(f'cd {shlex.quote(there)} && for f in *; do [ -f "$f" ] && wc -c < "$f" && echo "$f"; done; true').split("\n")
        return {name: int(size) for size, name in zip(lines[::2], lines[1::2]) if re.fullmatch(" *[0-9]{1,18}", size)}

    def unchanged(self, there, hashes, held):
        """The names of what a job reads that are in that folder and are what they were when they came: who else may write there may have changed them."""
        names = [name for name in hashes if name in held]
        lines = self.output(f"cd {shlex.quote(there)} && sha256sum {shlex.join(names)}").splitlines() if names else []
        return {name for name in names if f"{hashes[name]}  {name}" in lines}

    def send(self, source, goal, sha256, begin, tell):
        """Copy a file there, from byte `begin` on: where the last copy was cut."""
        name, part = goal.rpartition("/")[2], shlex.quote(goal + ".part")
        length = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        with self.running(f"{ALONE}cat >> {part}", stdin=subprocess.PIPE) as process:
            for sent, block in blocks(source, min(begin, length)):
                tell(f"{self.place.host}: copying {name}", sent / max(length, 1))
                process.stdin.write(block)
        if self.output(f"s=$(sha256sum < {part}); if [ \"${{s%% *}}\" = {sha256} ]; then mv {part} {shlex.quote(goal)}; else rm {part}; echo damaged; fi"):
            raise RtsegError(f"{name} arrived damaged on {self.place.host}", "run it again")

    def start(self, there, tell, action):
        """Run the worker there to its end."""
        script = (f"{ALONE}cd {shlex.quote(there)} && rm -f result.json || exit {NO_FOLDER}; "
                  f"PYTHONDONTWRITEBYTECODE=1 {shlex.quote(self.place.python)} runner.py job.json result.json; exit $?")    # sh stays, to tell its signal
        status, said = watched(self.command(script), lambda step, done: tell(f"{self.place.host}: {step}", done), preexec_fn=few_complaints)
        if status in (126, 127):
            raise RtsegError(f"there is no {self.place.python} on {self.place.host}",
                             f"install Python 3 there, or name it: --on ssh://{self.place.url.split('/')[2]}/path/of/python3")
        if KILLED < status < LOST:
            raise RtsegError(f"the worker for {action} on {self.place.host} was killed by signal {status - KILLED}" +
                             (" (out of memory?)" if status == KILLED + 9 else ""),
                             ("give it less: --workspace 256, and " if action == "build" else "") + "stop what else runs there, such as the desktop")
        if status not in (0, 1) or "result.json" not in self.held(there):
            self.refuse(status, said)

    def fetch(self, there, name, folder, tell):
        """Copy a result into `folder`, from where the last copy was cut."""
        told = self.output(f"cd {shlex.quote(there)} && wc -c < {name} && sha256sum < {name}").split()
        if len(told) < 2 or not (told[0].isdecimal() and re.fullmatch("[0-9a-f]{64}", told[1])):
            raise RtsegError(f"{self.place.host} does not tell the sha256 of {name}", f"look there: ssh {self.where} sha256sum --version")
        size, sha256 = self.bounded(int(told[0][:18]), MOST_TEXT if name.endswith(".json") else MOST_RESULT, f"has {name} of"), told[1]
        part = cache() / f"{there.rpartition('/')[2]}-{sha256[:16]}.part"
        with locks.goal(part, tell):
            self.fetch_rest(there, name, part, size, sha256, tell)
            shutil.move(part, folder / name)

    def fetch_rest(self, there, name, part, size, sha256, tell):
        begin = part.stat().st_size if part.is_file() else 0
        try:
            with self.running(f"tail -c +{begin + 1} {shlex.quote(there)}/{name}", stdin=subprocess.DEVNULL) as process, open(part, "ab") as file:
                while block := process.stdout.read1(BLOCK):
                    file.write(block)
                    tell(f"{self.place.host}: fetching {name}", min(1.0, file.tell() / max(size, 1)))
                    if file.tell() > size:
                        part.unlink()
                        raise RtsegError(f"{name} is longer than {self.place.host} said", "run it again")
            if files.sha256(part) != sha256:
                part.unlink()
                raise RtsegError(f"{name} arrived damaged from {self.place.host}", "run it again")
        except OSError:             # the disk here is full
            part.unlink(missing_ok=True)
            raise
