"""Tasks done by the workers of a fleet, through Dask (remote.py is their side).

Whatever a fleet loses, this process still has: what a task reads lies here, and what came of it is taken whole or not at all. So a lost worker's task
is given to another one, a lost scheduler is waited for, and a run that is killed goes on where it was.
"""
import asyncio
import contextlib
import heapq
import queue
import time
import uuid
from collections import Counter, OrderedDict, deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

from distributed import Client, LocalCluster
from distributed.client import ClosedClientError

from . import facts, files, launch, remote, tasks
from .crew import ALL, MACHINE, PROCESSOR, noted, refused, taken
from .errors import RtsegError, first_line

ASIDE = 3                           # failures in a row after which a device is given nothing more
WORKERS_TRIED = 3                   # a task that fails on so many is itself at fault; two machines may be broken at once
AHEAD = 2                           # tasks that a worker is given for each that it can do at once
PATIENCE = 600.0                    # seconds without a scheduler, or without a worker that could go on
GATHER = 120.0                      # seconds in which a result comes home
HELD = 2 << 30                      # bytes of files that the workers' memory holds for later tasks
LOST = (CancelledError, ClosedClientError, TimeoutError, asyncio.TimeoutError, OSError)     # what Dask raises where a connection, a worker or a scheduler went


@dataclass
class Attempt:
    """A task on its way through a fleet."""
    task: tasks.Task
    hashes: dict = field(default_factory=dict)      # name -> sha256 of what it reads
    failed: dict = field(default_factory=dict)      # name of a worker -> what it said
    future: object = None
    worker: str = ""                # that has it

    @property
    def of(self):
        """What a result is to say that it is of."""
        return files.key([self.task.request, self.hashes])

    @property
    def resources(self):
        """What a worker must have free: see MACHINE."""
        return {self.task.device or PROCESSOR: 1, MACHINE: ALL if self.task.alone else 1}

    @property
    def kind(self):
        return self.task.device, self.task.alone


class Fleet:
    """The workers of a Dask scheduler. connect() -> distributed.Client; remarks: what the user is to know when it is over."""
    place = None

    def __init__(self, connect):
        self.connect, self.client, self.remarks = connect, connect(), []
        self.running, self.waiting, self.ended, self.blobs, self.in_a_row = {}, {}, queue.SimpleQueue(), OrderedDict(), {}
        self.done, self.since, self.timeline, self.aside, self.held = 0, time.monotonic(), None, set(), 0
        self.there = self.workers()

    def close(self):
        with contextlib.suppress(*LOST):
            self.client.cancel([one.future for one in self.running.values()])
        with contextlib.suppress(*LOST):        # a scheduler that does not answer: this process ends, and it will see that
            self.client.close()

    def workers(self):
        """Name of each worker -> {"address", "resources", "threads"}."""
        try:
            known = self.client.scheduler_info(n_workers=-1).get("workers", {})     # none where it is just being found again
        except LOST:
            return {}
        return {one["name"]: {"address": address, "resources": one["resources"], "threads": one["nthreads"]} for address, one in known.items()
                if one["name"] not in self.aside}

    def has(self, device=""):
        """Whether one had a device, or a processor, when this began: a moment without workers decides nothing."""
        return any(one["resources"].get(device or PROCESSOR) for one in self.there.values())

    def slots(self):
        return sum(one["threads"] for one in self.there.values() if one["resources"].get(PROCESSOR))

    def run(self, given, tell=launch.quiet, timeline=None):
        """Do the tasks, and those that follow from them. Raises RtsegError where the fleet is gone for good."""
        self.timeline, self.done, self.since = timeline, 0, time.monotonic()
        for task in given:
            self.wait_for(Attempt(task))
        while self.running or any(self.waiting.values()):
            self.hold_on(tell)
            known = self.workers()
            self.since = time.monotonic() if known and self.running else self.since
            self.recall(known)
            self.submit(known)
            with contextlib.suppress(queue.Empty):
                key = self.ended.get(timeout=0.5)
                while True:
                    self.settle(self.running.pop(key, None))
                    key = self.ended.get_nowait()
            left = len(self.running) + sum(map(len, self.waiting.values()))
            tell(f"{self.done} of {self.done + left} done, {len(self.running)} given out", self.done / max(1, self.done + left))

    def recall(self, known):
        """What was given to workers that are gone is given to others."""
        for key, attempt in list(self.running.items()):
            if attempt.worker not in known and not attempt.future.done():
                del self.running[key]
                with contextlib.suppress(*LOST):
                    attempt.future.cancel()
                self.wait_for(attempt)

    def wait_for(self, attempt):
        attempt.future = None
        self.waiting.setdefault(attempt.kind, deque()).append(attempt)

    def hold_on(self, tell):
        """Wait until there is a scheduler; everything that was given out is given out again."""
        while self.client.status != "running":
            for key in list(self.running):
                self.wait_for(self.running.pop(key))
            self.blobs.clear()
            self.held = 0
            tell("the scheduler is gone: waiting for it", None)
            self.refuse_to_wait("the scheduler is gone")
            time.sleep(0.5)
            if self.client.status == "closed":
                with contextlib.suppress(RtsegError):
                    self.client = self.connect()
        self.refuse_to_wait("no worker is left that could go on")

    def refuse_to_wait(self, why):
        if time.monotonic() - self.since > PATIENCE:
            raise RtsegError(f"{why}, for {PATIENCE / 60:.0f} minutes", "what is done is kept; start it, and run this again: it goes on where it was")

    # ---- giving out

    def submit(self, known):
        """Give out as much as keeps the workers busy, and no more: what waits here needs no memory there. What is timed goes first: it ends a row.

        Each task to the worker that has the least to do. Dask itself would give it to one that has its files already, and so all of them to one.
        """
        out = Counter(one.worker for one in self.running.values())
        for device, alone in sorted(self.waiting, key=lambda kind: not kind[1]):
            waiting = self.waiting[device, alone]
            offering = {name: one for name, one in known.items() if one["resources"].get(device or PROCESSOR)}
            if waiting and not offering and self.remarks and not self.running:
                self.give_up(waiting, device)
            free = [(out[name] / one["threads"], name) for name, one in offering.items()]
            heapq.heapify(free)
            while waiting and free and free[0][0] < AHEAD:
                load, name = next((pair for pair in sorted(free) if pair[1] not in waiting[0].failed and pair[0] < AHEAD), free[0])
                self.give(waiting.popleft(), name, offering[name]["address"])
                out[name] += 1
                free[free.index((load, name))] = (load + 1 / offering[name]["threads"], name)
                heapq.heapify(free)

    def give_up(self, waiting, device):
        """What only a device could do that was set aside."""
        while waiting:
            for task in refused(waiting.popleft().task, {"error": f"no {device or 'worker'} is left: {self.remarks[-1]}"}):
                self.wait_for(Attempt(task))

    def give(self, attempt, worker, address):
        attempt.hashes = attempt.hashes or {name: files.sha256(path) for name, path in attempt.task.reads.items()}
        key = f"rtseg-deploy-{uuid.uuid4().hex}"
        request = {**attempt.task.request, "version": tasks.__version__, "of": attempt.of}
        try:
            blobs = self.blobs_of(attempt, address)
            attempt.future = self.client.submit(remote.do, request, attempt.hashes, blobs, key=key, pure=False, resources=attempt.resources, workers=[address])
        except (*LOST, KeyError):   # KeyError: the scheduler's, of a worker that left
            self.wait_for(attempt)
            return
        attempt.worker = worker
        self.running[key] = attempt
        attempt.future.add_done_callback(lambda future: self.ended.put(future.key))

    def blobs_of(self, attempt, address):
        """sha256 -> Future of the bytes of each file that it reads. What no worker has goes to the one that is to do it; others get it from there, once."""
        paths = {digest: Path(attempt.task.reads[name]) for name, digest in attempt.hashes.items()}
        missing = {("file", digest, uuid.uuid4().hex): path.read_bytes() for digest, path in paths.items()
                   if digest not in self.blobs or self.blobs[digest][0].status != "finished"}
        for key, future in (self.client.scatter(missing, workers=[address]) if missing else {}).items():
            digest, size = key[1], len(missing[key])
            self.held += size - self.blobs.pop(digest, (None, 0))[1]
            self.blobs[digest] = future, size
        for digest in paths:
            self.blobs.move_to_end(digest)
        found = {digest: self.blobs[digest][0] for digest in paths}
        while self.held > HELD and len(self.blobs) > 1:
            self.held -= self.blobs.popitem(last=False)[1][1]
        return found

    # ---- taking back

    def settle(self, attempt):
        """Take what came of an attempt, or see to it that it is made again."""
        if attempt is None:         # of a scheduler that is gone
            return
        try:
            error = attempt.future.exception(timeout=GATHER)
            reply = None if error else attempt.future.result(timeout=GATHER)
        except LOST:
            self.wait_for(attempt)
            return
        if error:                   # of Dask: so many workers died of it; ours come as results
            return self.end(attempt, {"error": f"{type(error).__name__}: {first_line(error)}"})
        if not launch.has(reply, {"began": float, "ended": float, "result": dict, "files": dict}):
            return self.blame(attempt, f"what came back of {attempt.task.title} is no result")
        noted(self.timeline, attempt.task, attempt.worker, reply["began"], reply["ended"], reply["result"])
        try:
            with files.scratch() as folder:
                result = unpacked(reply, attempt, Path(folder))
                follow = taken(attempt.task, result, Path(folder)) if result["ok"] else None
        except RtsegError as garbage:
            return self.blame(attempt, garbage.what)
        if follow is None:
            return self.blame(attempt, result["error"], result["fix"])
        self.in_a_row.pop(attempt.worker, None)
        self.done, self.since = self.done + 1, time.monotonic()
        for worker, reason in attempt.failed.items():
            self.count(attempt.task.device == "", worker, reason)
        for task in follow:
            self.wait_for(Attempt(task))

    def end(self, attempt, result):
        """A task that cannot be done."""
        self.done, self.since = self.done + 1, time.monotonic()
        for task in refused(attempt.task, result):
            self.wait_for(Attempt(task))

    def blame(self, attempt, reason, fix=""):
        """A failure that may be the worker's: another one tries."""
        attempt.failed[attempt.worker] = reason
        others = {name for name, one in self.workers().items() if one["resources"].get(attempt.task.device or PROCESSOR)} - set(attempt.failed)
        if len(attempt.failed) >= WORKERS_TRIED or not others:
            if len(attempt.failed) >= WORKERS_TRIED:        # the same everywhere: it is not they
                for name in attempt.failed:
                    self.in_a_row[name] = self.in_a_row.get(name, [])[:-1]
            self.end(attempt, {"error": reason, "fix": fix})
        else:
            self.wait_for(attempt)
        self.count(attempt.task.device != "", attempt.worker, reason)

    def count(self, applies, worker, reason):
        """Whoever fails time after time is set aside: a device at once, a processor by what another one then did, for it may be the tasks that are wrong."""
        self.in_a_row.setdefault(worker, []).extend([reason] * applies)
        if len(self.in_a_row[worker]) >= ASIDE:
            self.set_aside(worker)

    def set_aside(self, worker):
        reasons = self.in_a_row.pop(worker)
        self.remarks.append(f"{worker} was set aside after {len(reasons)} failures in a row, the last one: {reasons[-1]}")
        address = self.workers().get(worker, {}).get("address")
        self.aside.add(worker)
        with contextlib.suppress(*LOST):
            if address:
                self.client.run(remote.leave, self.remarks[-1], workers=[address], on_error="ignore")
                self.client.retire_workers(workers=[address], close_workers=True)


def unpacked(reply, attempt, folder):
    """The result in a reply, its files in a folder. Raises RtsegError where they are not what the task makes, or not what was made."""
    result, title = reply["result"], attempt.task.title
    if result.get("ok") is not True:
        if not launch.has(result, {"error": str}):
            raise RtsegError(f"what came back of {title} is no result")
        return {"ok": False, "error": result["error"], "fix": str(result.get("fix", ""))}
    if not launch.has(result, {"made": dict}) or result["made"].keys() != reply["files"].keys() or not result["made"].keys() <= set(attempt.task.makes):
        raise RtsegError(f"what came back of {title} is not what it makes")
    if result.get("of") != attempt.of:
        raise RtsegError(f"what came back of {title} is of another task")
    for name, data in reply["files"].items():
        if not isinstance(data, bytes) or launch.digest(data) != result["made"][name]:
            raise RtsegError(f"{name} of {title} came back damaged")
        (folder / name).write_bytes(data)
    return result


# ---- connections


def client(address, tls):
    """A distributed.Client. Raises RtsegError where no scheduler answers."""
    try:
        return Client(address, security=remote.security(tls, address), timeout=remote.CONNECT_SECONDS, set_as_default=False, name="rtseg-deploy")
    except (OSError, TimeoutError, ValueError) as error:
        raise remote.unreachable(address, error) from None


@contextlib.contextmanager
def joined(address, tls=None):
    """The Fleet of a scheduler, which has to have workers."""
    found = Fleet(lambda: client(address, tls))
    try:
        limit = time.monotonic() + remote.CONNECT_SECONDS
        while not found.there:
            found.there = found.workers()
            if time.monotonic() > limit:
                raise RtsegError(f"the scheduler at {address} has no workers", f"start one on each machine: rtseg-deploy worker --scheduler {address}")
            time.sleep(0.1)
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def local(slots):
    """A Fleet of this machine alone and its own GPU: one worker, so that what is timed is timed alone."""
    device = facts.device_called(launch.probe()["gpu"].get("name"))
    own = remote.resources(None, [name for name, target in facts.targets().items() if target.device == device])
    with files.scratch() as folder:
        cluster = LocalCluster(n_workers=1, threads_per_worker=slots, processes=False, dashboard_address=None, resources=own, worker_dashboard_address=None)
        with cluster, cluster.get_client() as one:
            one.register_plugin(remote.Post(folder, None, slots))
            yield Fleet(lambda: one)
