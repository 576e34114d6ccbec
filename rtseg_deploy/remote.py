"""A worker of a fleet, and the scheduler that it asks: Dask's, with what is ours. Whoever reaches either can run code there: loopback, or TLS.

A worker does each task in a process of its own, in a folder whose files are links into its store: files by their sha256, which stay for later tasks.
"""
import asyncio
import fcntl
import ipaddress
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from itertools import count
from pathlib import Path

import dask
from distributed import Scheduler, Security, Status, Worker, get_worker
from distributed.comm import connect
from distributed.comm.core import FatalCommClosedError
from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker import thread_state

from . import crew, facts, files, launch, locks
from .errors import RtsegError, first_line

STORE_BYTES = 10 << 30              # of files for later tasks; the oldest go
AGAIN_SECONDS = 2.0                 # between tries to reach a scheduler
ENDING = signal.SIGINT, signal.SIGTERM
CONNECT_SECONDS = 10                # for one
PREFIX = "rtseg-deploy-"
DEATHS = 100                        # of workers while they have a task: it has a process of its own, so it is not what kills them
TLS = ("ca.pem", "cert.pem", "key.pem")
HERE_ALONE = "127.0.0.1:0"          # where Dask's pages of what goes on are: they know no TLS

dask.config.set({
    "distributed.scheduler.active-memory-manager.start": False,     # it drops what two workers have: files would travel again and again
    "distributed.admin.low-level-log-length": 20,   # messages that each end of a connection keeps for its developers, with all that is in them
    "distributed.worker.profile.enabled": False,    # wakes 100 times a second, beside what is timed; so do the rest, less often
    "distributed.worker.memory.monitor-interval": "1s", "distributed.admin.tick.interval": "1s", "distributed.admin.system-monitor.interval": "5s"})
for logger in ("distributed", "distributed.client"):        # each lost connection is a traceback there; what is to be known of it is told
    logging.getLogger(logger).setLevel(logging.INFO if os.environ.get("RTSEG_DEBUG") else logging.CRITICAL)


class Unwanted(Exception):
    """Whoever asked for a task no longer waits for it."""


class Post(WorkerPlugin):
    """What a worker knows of itself. on: the device that it drives through ssh; processors: shares of this machine's, one for each task at a time."""
    name = "rtseg-deploy"

    def __init__(self, store, on, slots):
        self.store, self.on, self.slots, self.why, self.own = Path(store), on, slots, "", None

    def setup(self, worker):
        self.worker = worker
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locks.goal(self.store):
            self.sweep()
            self.own = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.store))
            self.held = locks.taken([self.own / ".lock"], fcntl.LOCK_EX, "", launch.quiet)      # until this process ends
        mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.shares = [set(mine[slot::self.slots] or mine[slot % len(mine):][:1]) for slot in range(self.slots)] if mine else [None] * self.slots
        self.all, self.free = set(mine) or None, list(range(self.slots))

    def sweep(self):
        """Remove the folders of workers that were killed, of those of this store."""
        for folder in self.store.glob(f"{PREFIX}*"):
            with open(folder / ".lock", "ab") as lock:
                if locks.free(lock, fcntl.LOCK_EX):
                    shutil.rmtree(folder)

    async def over(self):
        """Returns when nothing goes on here any more: what comes next is to have the machine."""
        while self.own and len(self.free) < self.slots:
            await asyncio.sleep(0.1)
        if self.own:
            shutil.rmtree(self.own)

    def lay_out(self, hashes, blobs, folder):
        """Put what a task reads into its folder, by links of its own; alone in the store, for what another task brings may push out what this one takes."""
        with locks.goal(self.store):
            for name, digest in hashes.items():
                os.link(self.kept(digest, blobs[digest]), folder / name)

    def kept(self, digest, blob):
        """The path of a file in the store. Raises RtsegError where the bytes are others."""
        path = self.store / digest
        if not path.is_file():
            if launch.digest(blob) != digest:
                raise RtsegError("a file arrived damaged")
            files.write(path, blob)
            self.bound()
        os.utime(path)
        return path

    def bound(self):
        """Remove the oldest files that are too many."""
        found = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(self.store) if entry.is_file())
        total = sum(size for _, size, _ in found)
        for _, size, path in found[:-1]:
            if total <= STORE_BYTES:
                return
            os.unlink(path)
            total -= size


def do(request, hashes, blobs):
    """Do a task on this worker. hashes: name -> sha256 of what it reads, blobs: sha256 -> bytes. Returns the reply that fleet.Fleet.settle takes."""
    worker = get_worker()
    post, began = worker.plugins[Post.name], time.time()
    try:
        result, made = done(post, request, hashes, blobs, lambda: wanted(worker, thread_state.key))
    except RtsegError as error:
        result, made = {"ok": False, "error": error.what, "fix": error.fix}, {}
    except OSError as error:
        result, made = {"ok": False, "error": f"{error.filename or 'writing'}: {error.strerror or error}"}, {}
    except Unwanted:
        result, made = {"ok": False, "error": "nobody waits for it"}, {}
    return {"began": began, "ended": time.time(), "result": result, "files": made}


def wanted(worker, key):
    """Not where it was cancelled, nor where the scheduler is gone, who has given it to another worker."""
    state = worker.state.tasks.get(key)
    return worker.status not in (Status.closing, Status.closed, Status.failed) and state is not None and state.state == "executing"


def done(post, request, hashes, blobs, still_wanted):
    """(result, name -> bytes of the files that were made)."""
    slot = post.free.pop()
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=post.own) as name:
            folder = Path(name)
            post.lay_out(hashes, blobs, folder)
            (folder / "job.json").write_text(json.dumps({**request, "on": post.on, "leash": True, "progress": True}))
            worked(folder, post.all if request["action"] == "bench" else post.shares[slot], still_wanted)
            result = files.read_json(folder / "result.json")
            return result, {file: (folder / file).read_bytes() for file in result.get("made", ())}
    finally:
        post.free.append(slot)


def worked(folder, processors, still_wanted):
    """Run the task's own process to its end. Raises RtsegError where it leaves no result, Unwanted where it need not go on."""
    def told(step, share):
        if not still_wanted():
            raise Unwanted

    options = {"preexec_fn": lambda: os.sched_setaffinity(0, processors)} if processors else {}
    command = [sys.executable, "-m", "rtseg_deploy.tasks", "job.json", "result.json"]
    status, log = launch.watched(command, told, cwd=folder, env={**launch.environment(), "TMPDIR": str(folder)}, **options)
    if not (folder / "result.json").is_file():
        raise RtsegError(f"the process of the task {launch.death(status)}: {launch.last_line(log)}")


def leave(why, dask_worker=None):
    """A worker is to end, and to say why; Dask tells which."""
    dask_worker.plugins[Post.name].why = why


# ---- who may be talked to


def security(folder, address=""):
    """Dask's Security of a folder with ca.pem, cert.pem and key.pem; None where none is named. Raises RtsegError, also where the address does without."""
    if not folder and address.startswith("tls://"):
        raise RtsegError(f"{address} takes nobody without a certificate", "add --tls FOLDER, see docs/fleet.md")
    if not folder:
        return None
    if address and not address.startswith("tls://"):
        raise RtsegError(f"{address} is not encrypted, and --tls asks for that", "tls://HOST:PORT, or leave --tls out")
    paths = [Path(folder, name) for name in TLS]
    for path in paths:
        if not path.is_file():
            raise RtsegError(f"{path}: no such file", f"--tls takes a folder with {', '.join(TLS)}")
    keys = {f"tls_{role}_{part}": str(path) for role in ("client", "scheduler", "worker") for part, path in zip(("cert", "key"), paths[1:])}
    return Security(tls_ca_file=str(paths[0]), require_encryption=True, **keys)


def unreachable(address, error):
    """The RtsegError of a scheduler that does not answer."""
    if isinstance(error, FatalCommClosedError):         # no later try will do better
        why = getattr(error.__cause__, "verify_message", "") or first_line(error)
        return RtsegError(f"{address} has a certificate that is not taken here: {why}", "all of a fleet have certificates of one CA, see docs/fleet.md")
    return RtsegError(f"no scheduler answers at {address}: {first_line(error)}", "start one: rtseg-deploy scheduler")


def refuse_open(host, tls, insecure):
    """Raise RtsegError where anybody could reach it: whoever does runs code here."""
    if not (tls or insecure or loopback(host)):
        raise RtsegError(f"at {host} anybody who reaches this port could run code on this machine",
                         "add --tls FOLDER, see docs/fleet.md; or, in a network that you alone are in, --insecure")


def loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def resources(on, targets):
    """What a worker has for tasks: see crew.MACHINE."""
    for name in targets:
        facts.target(name)
    return {crew.MACHINE: crew.ALL, **({} if on else {crew.PROCESSOR: crew.ALL}), **dict.fromkeys(targets, 1)}


# ---- processes


def scheduler(host, port, tls, insecure, told):
    """Serve until a signal; told(address) once it listens."""
    refuse_open(host, tls, insecure)
    dask.config.set({"distributed.scheduler.allowed-failures": DEATHS})

    async def serve():
        protocol = "tls://" if tls else "tcp://"
        async with Scheduler(host=host, port=port, protocol=protocol, security=security(tls), dashboard=False,
                             dashboard_address=HERE_ALONE) as served:
            told(served.address)
            await stopped(served.finished())

    asyncio.run(serve())


def worker(address, targets, on, slots, store, tls, host, insecure, told):
    """Work for a scheduler until a signal; where it is gone, until it is back. Returns why it was set aside. told(line)."""
    refuse_open(host or route(address), tls, insecure)
    if on and slots != 1:
        raise RtsegError(f"{on} does one thing at a time", "leave --slots out")
    known = security(tls, address)
    name, store = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}", Path(store or files.cache() / "fleet")

    async def once(number):
        await (await connect(address, CONNECT_SECONDS, **(known or Security()).get_connection_args("worker"))).close()      # Dask itself would try in silence
        post = Post(store, on, slots)
        async with Worker(address, nthreads=slots, name=name if not number else f"{name}-{number}", resources=resources(on, targets), security=known,
                          host=host, death_timeout=CONNECT_SECONDS, dashboard=False, dashboard_address=HERE_ALONE, local_directory=str(store / "dask"),
                          plugins=[post]) as one:
            told(f"{one.name} works for {address}: {', '.join(targets) or 'processor'}, {slots} at a time")
            signalled = await stopped(one.finished())
        await post.over()
        return signalled, post.why

    for number in count():
        try:
            signalled, why = asyncio.run(once(number))
            if signalled or why:
                return why
            said = "the scheduler is gone"
        except FatalCommClosedError as error:
            raise unreachable(address, error) from None
        except (OSError, TimeoutError, asyncio.TimeoutError, RuntimeError) as error:      # RuntimeError: a worker that could not start
            said = unreachable(address, error).what
        told(f"{said}: trying again")
        time.sleep(AGAIN_SECONDS)


async def dask_setup(worker):
    """Makes a worker of `dask worker --preload rtseg_deploy.remote`, as dask-jobqueue begins them, one of a fleet; its --resources are told there."""
    await worker.plugin_add(Post(files.cache() / "fleet", None, worker.state.nthreads))


def route(address):
    """The address of this machine from which a scheduler is reached, as its workers and clients see it."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))
            return probe.getsockname()[0]
    except (OSError, ValueError):
        raise RtsegError(f"{address} is no address of a scheduler that can be reached", "it is like tcp://192.168.1.5:8786") from None


async def stopped(finished):
    """Whether a signal ended the waiting, and not what is waited for. The next signal ends the process."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for one in ENDING:
        loop.add_signal_handler(one, stop.set)
    waits = [asyncio.ensure_future(finished), asyncio.ensure_future(stop.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for one in ENDING:
        loop.remove_signal_handler(one)
    for one in waits:
        one.cancel()
    return stop.is_set()
