"""Who does Tasks: this process, one after another, or the workers of a fleet, by Dask (remote.py is their side).

Whatever a fleet loses, this process still has: what a task reads lies here, and what came of it is taken whole or not at all. So a lost worker's task
is given to another one, a lost scheduler is waited for, and a run that is killed goes on where it was.
"""
import contextlib
import json
import queue
import tempfile
import time
import uuid
from collections import OrderedDict, deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path

from . import files, launch, tasks
from .errors import RtsegError, first_line

MACHINE, PROCESSOR, ALL = "machine", "processor", 1000      # Dask's resources of a worker: what is timed takes all of a machine, other work one of so many
ASIDE = 3                           # failures in a row after which a device is given nothing more
WORKERS_TRIED = 2                   # a task that fails on so many is itself at fault
AHEAD = 2                           # tasks that a worker is given for each that it can do at once
PATIENCE = 600.0                    # seconds without a scheduler, or without a worker that could go on
GATHER = 120.0                      # seconds in which a result comes home
HELD = 2 << 30                      # bytes of files that the workers' memory holds for later tasks
LOST = (CancelledError, TimeoutError, OSError)              # what Dask raises where a connection, a worker or a scheduler went


class Serial:
    """This process, or a device that it drives."""

    def __init__(self, place=None):
        self.place, self.remarks = place, []

    def offering(self, device=""):
        """Whether a device that is named does the work, see Fleet.offering."""
        return bool(self.place)

    def run(self, given, tell=launch.quiet, timeline=None):
        """Do the tasks, and those that follow from them right after the one that they follow from."""
        waiting = deque(given)
        while waiting:
            task = waiting.popleft()
            with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
                tasks.lay_out(task, Path(folder))
                began = time.time()
                result = tasks.perform(Path(folder), lambda step, done, title=task.title: tell(f"{title}: {step}", done), self.place)
                noted(timeline, task, "", began, time.time(), result)
                waiting.extendleft(reversed(taken(task, result, Path(folder)) if result["ok"] else refused(task, result)))


def taken(task, result, folder):
    """What follows from a good result. Raises RtsegError where it is none."""
    return list(task.then(result, folder) or ())


def refused(task, result):
    return list(task.then({"ok": False, "error": result["error"], "fix": result.get("fix", "")}, None) or ())


def noted(timeline, task, worker, began, ended, result):
    """A line of who did what when: by it whoever doubts that a figure was timed alone can see it."""
    if timeline:
        timeline.parent.mkdir(parents=True, exist_ok=True)
        row = {"task": task.title, "action": task.request["action"], "device": task.device, "alone": task.alone, "worker": worker, "began": began,
               "ended": ended, "ok": bool(result.get("ok"))}
        with open(timeline, "a") as file:
            file.write(json.dumps(row) + "\n")


@dataclass
class Attempt:
    """A task on its way through a fleet."""
    task: tasks.Task
    hashes: dict = field(default_factory=dict)      # name -> sha256 of what it reads
    failed: dict = field(default_factory=dict)      # name of a worker -> what it said
    future: object = None

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
        self.done, self.since, self.timeline = 0, time.monotonic(), None

    def close(self):
        with contextlib.suppress(*LOST):
            self.client.cancel([one.future for one in self.running.values()])
        self.client.close()

    def workers(self):
        """Name of each worker -> {"address", "resources", "threads"}."""
        try:
            known = self.client.scheduler_info(n_workers=-1)["workers"]
        except LOST:
            return {}
        return {one["name"]: {"address": address, "resources": one["resources"], "threads": one["nthreads"]} for address, one in known.items()}

    def offering(self, device=""):
        """Those that have a device, or a processor."""
        return {name: one for name, one in self.workers().items() if one["resources"].get(device or PROCESSOR)}

    def slots(self):
        return sum(one["threads"] for one in self.offering().values())

    def run(self, given, tell=launch.quiet, timeline=None):
        """Do the tasks, and those that follow from them. Raises RtsegError where the fleet is gone for good."""
        self.timeline, self.done, self.since = timeline, 0, time.monotonic()
        for task in given:
            self.wait_for(Attempt(task))
        while self.running or any(self.waiting.values()):
            self.hold_on(tell)
            self.submit()
            with contextlib.suppress(queue.Empty):
                key = self.ended.get(timeout=0.5)
                while True:
                    self.settle(self.running.pop(key, None))
                    key = self.ended.get_nowait()
            left = len(self.running) + sum(map(len, self.waiting.values()))
            tell(f"{self.done} of {self.done + left} done, {len(self.running)} given out", self.done / max(1, self.done + left))

    def wait_for(self, attempt):
        attempt.future = None
        self.waiting.setdefault(attempt.kind, deque()).append(attempt)

    def hold_on(self, tell):
        """Wait until there is a scheduler; everything that was given out is given out again."""
        while self.client.status != "running":
            for key in list(self.running):
                self.wait_for(self.running.pop(key))
            self.blobs.clear()
            tell("the scheduler is gone: waiting for it", None)
            self.refuse_to_wait("the scheduler is gone")
            time.sleep(0.5)
            if self.client.status == "closed":
                with contextlib.suppress(RtsegError):
                    self.client = self.connect()
        if self.running:
            self.since = time.monotonic() if self.offering() else self.since
        if any(self.waiting.values()) and not self.running:
            self.refuse_to_wait("no worker is left that could go on")

    def refuse_to_wait(self, why):
        if time.monotonic() - self.since > PATIENCE:
            raise RtsegError(f"{why}, for {PATIENCE / 60:.0f} minutes", "what is done is kept; start it, and run this again: it goes on where it was")

    # ---- giving out

    def submit(self):
        """Give out as much as keeps the workers busy, and no more: what waits here needs no memory there."""
        known = self.workers()
        for (device, alone), waiting in self.waiting.items():
            offering = [one for one in known.values() if one["resources"].get(device or PROCESSOR)]
            room = AHEAD * sum(1 if alone else one["threads"] for one in offering)
            out = sum(1 for one in self.running.values() if one.kind == (device, alone))
            if waiting and not offering and self.remarks and not self.running:
                self.give_up(waiting, device)
            while waiting and out < room:
                self.give(waiting.popleft(), known)
                out += 1

    def give_up(self, waiting, device):
        """What only a device could do that was set aside."""
        while waiting:
            for task in refused(waiting.popleft().task, {"error": f"no {device or 'worker'} is left: {self.remarks[-1]}"}):
                self.wait_for(Attempt(task))

    def give(self, attempt, known):
        from . import remote

        attempt.hashes = attempt.hashes or {name: files.sha256(path) for name, path in attempt.task.reads.items()}
        others = [one["address"] for name, one in known.items() if name not in attempt.failed and one["resources"].get(attempt.task.device or PROCESSOR)]
        try:
            blobs = {digest: self.blob(digest, attempt.task.reads[name]) for name, digest in attempt.hashes.items()}
            key = f"rtseg-deploy-{uuid.uuid4().hex}"
            request = {**attempt.task.request, "version": tasks.__version__}
            attempt.future = self.client.submit(remote.do, request, attempt.hashes, blobs, key=key, pure=False, resources=attempt.resources,
                                                workers=others if attempt.failed and others else None, allow_other_workers=bool(attempt.failed and others))
        except LOST:
            self.wait_for(attempt)
            return
        self.running[key] = attempt
        attempt.future.add_done_callback(lambda future: self.ended.put(future.key))

    def blob(self, digest, path):
        """The Future of a file's bytes, which travel to each worker that needs them once."""
        if digest in self.blobs and self.blobs[digest][0].status == "finished":
            self.blobs.move_to_end(digest)
        else:
            data = Path(path).read_bytes()
            key = f"{digest}-{uuid.uuid4().hex[:8]}"
            self.blobs[digest] = self.client.scatter({key: data})[key], len(data)
            while sum(size for _, size in self.blobs.values()) > HELD and len(self.blobs) > 1:
                self.blobs.popitem(last=False)
        return self.blobs[digest][0]

    # ---- taking back

    def settle(self, attempt):
        """Take what came of an attempt, or see to it that it is made again."""
        if attempt is None:         # of a scheduler that is gone
            return
        future = attempt.future
        try:
            error = future.exception(timeout=GATHER)
            reply = None if error else future.result(timeout=GATHER)
        except LOST:
            self.wait_for(attempt)
            return
        if error:                   # of Dask: so many workers died of it; ours come as results
            return self.end(attempt, {"error": f"{type(error).__name__}: {first_line(error)}"})
        if not launch.has(reply, {"worker": str, "began": float, "ended": float, "result": dict, "files": dict}):
            return self.blame(attempt, "a worker without a name", f"what came back of {attempt.task.title} is no result")
        noted(self.timeline, attempt.task, reply["worker"], reply["began"], reply["ended"], reply["result"])
        try:
            with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
                result = unpacked(reply, attempt.task, Path(folder))
                follow = taken(attempt.task, result, Path(folder)) if result["ok"] else None
        except RtsegError as garbage:
            return self.blame(attempt, reply["worker"], garbage.what)
        if follow is None:
            own_fault = not attempt.task.device and not attempt.task.alone and not result.get("machine")
            return self.end(attempt, result) if own_fault else self.blame(attempt, reply["worker"], result["error"], result.get("fix", ""))
        self.in_a_row.pop(reply["worker"], None)
        self.done, self.since = self.done + 1, time.monotonic()
        for task in follow:
            self.wait_for(Attempt(task))

    def end(self, attempt, result):
        """A task that cannot be done."""
        self.done, self.since = self.done + 1, time.monotonic()
        for task in refused(attempt.task, result):
            self.wait_for(Attempt(task))

    def blame(self, attempt, worker, reason, fix=""):
        """A failure that may be the worker's: another one tries, and whoever fails time after time is set aside."""
        attempt.failed[worker] = reason
        self.in_a_row.setdefault(worker, []).append(reason)
        others = set(self.offering(attempt.task.device)) - set(attempt.failed)
        if len(attempt.failed) >= WORKERS_TRIED or not others:
            if len(attempt.failed) >= WORKERS_TRIED:        # the same everywhere: it is not they
                for name in attempt.failed:
                    self.in_a_row[name] = self.in_a_row.get(name, [])[:-1]
            self.end(attempt, {"error": reason, "fix": fix})
        else:
            self.wait_for(attempt)
        if len(self.in_a_row.get(worker, ())) >= ASIDE:
            self.set_aside(worker)

    def set_aside(self, worker):
        from . import remote

        reasons = self.in_a_row.pop(worker)
        self.remarks.append(f"{worker} was set aside after {len(reasons)} failures in a row, the last one: {reasons[-1]}")
        address = self.workers().get(worker, {}).get("address")
        with contextlib.suppress(*LOST):
            if address:
                self.client.run(remote.leave, self.remarks[-1], workers=[address], on_error="ignore")
                self.client.retire_workers(workers=[address], close_workers=True)


def unpacked(reply, task, folder):
    """The result in a reply, its files in a folder. Raises RtsegError where they are not what the task makes, or not what was made."""
    result = reply["result"]
    if result.get("ok") is not True:
        if not launch.has(result, {"error": str}):
            raise RtsegError(f"what came back of {task.title} is no result")
        return {"ok": False, "error": result["error"], "fix": str(result.get("fix", "")), "machine": bool(result.get("machine"))}
    if not launch.has(result, {"made": dict}) or result["made"].keys() != reply["files"].keys() or not result["made"].keys() <= set(task.makes):
        raise RtsegError(f"what came back of {task.title} is not what it makes")
    for name, data in reply["files"].items():
        if not isinstance(data, bytes) or launch.digest(data) != result["made"][name]:
            raise RtsegError(f"{name} of {task.title} came back damaged")
        (folder / name).write_bytes(data)
    return result
