"""Where a job runs: here in a process of its own, or on a device at the other end of an ssh connection (ssh.py).

A job is a folder: job.json, what it reads, and afterwards result.json and what it makes; see device/runner.py. A place takes a job
and leaves result.json and what was made in a folder here; how the files move there and back is all that places differ in.
"""
import hashlib
import io
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError

from . import backends, files, limits, locks, telemetry
from .device import runner
from .errors import RtsegError, first_line, need
from .locks import quiet
from .records import has

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
RUNNER = (runner.__file__,)                         # TensorRT and ONNX Runtime, here as on a device
BACKENDS = ("-m", "rtseg_deploy.backends")          # every other runtime
FRAMES = ("frames.py", "kernels.py", "kernels.c", "kernels.h")      # what is around a network
GPU_FRAMES = ("gpuframes.py", "gpukernels.py", "kernels.cu")        # and on a GPU
POLL_SECONDS = 0.5                                  # a waiting parent must not take time from what is timed
TELEMETRY = "telemetry.jsonl"                       # rows of sampler.py
LOG_BYTES, LOG_LINE = 1 << 16, 1 << 12              # of a worker's last words, and of one of them
ALONE = {"time": True, "profile": True, "build": False, "label": False, "infer": False}     # on this machine, see locks.machine; the others are short

# action -> names and types of what its good result has, at least: a device may answer anything
ANSWERS = {"probe": {"probe": dict}, "infer": {"environment": dict},
           "build": {"layers": {"fp16": int, "fp32": int, "fp32_names": list}, "bytes": int, "build_seconds": (int, float), "messages": list, "runtime": str,
                     "version": str},
           "time": {"seconds": list, "warmup_seconds": list, "warmup_converged": bool, "minor_faults": int, "empty_seconds": (int, float),
                    "began": (int, float), "ended": (int, float), "environment": dict},
           "profile": {"layers": list, "environment": dict}, "label": {"pictures": int, "memory_bytes": int, "environment": dict}}
GPU = {"name": str, "compute_capability": str, "memory_bytes": int}


@dataclass(frozen=True)
class Job:
    """One thing to do. Names in `request` are of files in the job's folder."""
    request: dict                   # job.json
    files: dict = field(default_factory=dict)       # name -> path or bytes: what it reads
    results: tuple = ()             # names of what it makes
    worker: tuple = RUNNER          # what Python is to run
    hashes: dict = field(default_factory=dict)      # name -> the sha256 that a file has to have when it is taken


def on_backend(action, path, artifact, backend, arrays, threads=None, own=None, **more):
    """The Job that asks a backend to infer or time an artifact on arrays, inputs as it takes them.

    threads: all of this process's processors if not given. own: the arguments of own.load, for a network that only its own code can build.
    """
    if artifact.kind == "onnx":
        refuse_outside(path)
    own_worker = backend in runner.SESSIONS
    parent = {} if own_worker else dict(artifact.parent)     # where a checkpoint lies is nobody else's business
    if "file" in parent:
        parent["file"] = str(Path(parent["file"]).resolve())
    names = [f"{number}.npy" for number in range(len(arrays))]
    labels = tuple(f"labels-{name}" for name in names) if action != "profile" else ()
    request = {"action": action, "backend": backend, "artifact": f"network.{artifact.kind}", "described": {**artifact.to_json(), "parent": parent},
               "threads": threads, "own": own, "inputs": names, "labels": list(labels), **more}
    if action == "time":
        request["sampled"], labels = TELEMETRY, (*labels, TELEMETRY)
    beside = {"time": ("sampler.py", *FRAMES * bool(more.get("stages"))), "profile": ("layers.py",),
              "label": ("labelling.py", *FRAMES), "turns": ("turns.py", *FRAMES)}.get(action, ())
    if FRAMES[0] in beside and backends.on_gpu(backend):
        beside += GPU_FRAMES
    return Job(request, {f"network.{artifact.kind}": Path(path), **{name: Path(runner.__file__).with_name(name) for name in beside},
                         **dict(zip(names, map(saved, arrays)))}, labels, RUNNER if own_worker else BACKENDS, {f"network.{artifact.kind}": artifact.sha256})


def refuse_outside(path):
    """Raise RtsegError for an ONNX file that would have a runtime read other files: weights that lie elsewhere, an engine of Microsoft's EPContext.

    Files that need no look, all of ours, hold none of these words; what only measures has no onnx to look with.
    """
    data = Path(path).read_bytes()
    if any(word in data for word in (b"location", b"com.microsoft")):
        need("onnx")
        from . import graphs

        graphs.whole(path)


def saved(array):
    """An array as the bytes of an .npy file."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def digest(source):
    """The sha256 of a path or of bytes."""
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else files.sha256(source)


def refuse_other(job, name, sha256):
    """Raise RtsegError where a file is no longer the one that the job is of: its sidecar was read before, and another run may have made it anew."""
    if job.hashes.get(name) not in (None, "", sha256):
        raise RtsegError(f"{job.files[name]} was changed while it was used", "run it again")


def labels_in(folder, job):
    """What an infer or time job left of each input; None where the backend computes none."""
    return [labels(folder / name) if (folder / name).is_file() else None for name in job.request["labels"]]


def labels(path):
    """The H x W labels of an .npy file that a device made. Raises RtsegError for anything else, before its header decides how much memory is taken."""
    import numpy as np

    try:
        if path.stat().st_size > limits.LABEL_BYTES:
            limits.refuse(path.name, f"made on the device, is larger than the {limits.amount(limits.LABEL_BYTES)} that labels can have", "run it again")
        found = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, TypeError, SyntaxError, TokenError, ArithmeticError, RecursionError, MemoryError, OSError) as error:
        raise RtsegError(f"{path.name}, made on the device, is no array: {first_line(error)}", "run it again") from None
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise RtsegError(f"{path.name}, made on the device, holds {found.dtype} of shape {found.shape} and no labels", "run it again")
    return np.array(found)


def sound(action, result):
    """Whether a good result holds what its job was for."""
    if not has(result, ANSWERS.get(action, {})):
        return False
    gpu = result["probe"].get("gpu") if action == "probe" else result.get("gpu", {"error": ""})
    return (has(gpu, {"error": str}) or has(gpu, GPU)) and (action != "time" or timed(result))


def timed(result):
    """Whether every time that it tells is one, and every list of them of the steps has one for each."""
    stages = result.get("stages", {})
    if not isinstance(stages, dict):
        return False
    steps = [result["seconds"], *stages.values(), *(result[name] for name in ("device_seconds", "enqueue_seconds") if name in result)]
    single = [result["empty_seconds"], result["ended"] - result["began"], result.get("back_to_back_seconds", 1)]
    return all(isinstance(one, list) and len(one) == len(steps[0]) > 0 for one in steps) and all(
        isinstance(one, (int, float)) and 0 <= one < math.inf for one in sum(steps, [*single, *result["warmup_seconds"]])) and min(steps[0]) > 0


def cpus():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def ran(job, place=None, tell=quiet, take=lambda folder: None):
    """(result, folder with the files that the job made), for as long as the block lasts. Raises RtsegError with the worker's error and fix.

    tell(step, fraction done or None) is called while it runs, and take(folder) after it, for what is to be taken as soon as it is here.
    """
    def told(step, done):
        tell(step, done)
        take(Path(folder))

    with files.scratch() as folder:
        (place or Here()).run(job, Path(folder), told)
        take(Path(folder))
        result = files.read_json(Path(folder, "result.json"))
        if result.get("ok") is not True:
            raise failed(result, place)
        if not sound(job.request["action"], result):
            raise RtsegError(f"what came back of the job to {job.request['action']} is no result of it", "run it again")
        yield result, Path(folder)


def failed(result, place):
    """The error of a worker's result. What a device proposes to type is its word, not ours."""
    fix = str(result.get("fix", ""))[:LOG_LINE]
    return RtsegError(str(result.get("error", "the job failed and does not say why"))[:LOG_LINE], f"{place.name} says: {fix}" if place and fix else fix)


def probe(place=None, tell=quiet, **needed):
    """What a machine is and what it has: see runner.probe. Raises RtsegError where the `runtime` that is needed is not there."""
    with ran(Job({"action": "probe", **needed}), place, tell) as (result, _):
        return telemetry.read(result["probe"])


def prepared(job, folder, **more):
    """Lay out what a job's worker reads in a folder here; returns the environment that the worker needs."""
    for name, source in job.files.items():
        if isinstance(source, bytes):
            (folder / name).write_bytes(source)
        elif Path(source).resolve().is_relative_to(PACKAGE_PARENT / __package__):
            (folder / name).symlink_to(Path(source).resolve())
        else:
            files.same(source, folder / name)
        if job.hashes.get(name):
            refuse_other(job, name, files.sha256(folder / name))
    request = {**job.request, **more}
    if "threads" in request:
        request["threads"] = request["threads"] or cpus()
    (folder / "job.json").write_text(json.dumps(request))
    backend = getattr(backends.find(request["backend"]), "ENVIRONMENT", {}) if job.worker == BACKENDS else {}
    return {**environment(), **backend}


def environment():
    """Of a process of ours in any folder: it imports this package, and nothing from where it runs."""
    path = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


class Here:
    """This machine."""
    name = ""                       # of a place, where it is to be told

    def run(self, job, folder, tell):
        """Leave result.json and the job's results in `folder`. Raises RtsegError where there is no result."""
        environment, alone = prepared(job, folder, progress=True, leash=True), ALONE.get(job.request["action"])
        with nullcontext() if alone is None else locks.machine(alone, tell):
            status, log = watched([sys.executable, *job.worker, "job.json", "result.json"], tell, cwd=folder, env=environment)
        if not (folder / "result.json").is_file():
            less = ", and give it less: --workspace 256" if job.request["action"] == "build" else ""
            raise RtsegError(f"the worker for {job.request['action']} {death(status)}: {last_line(log)}", f"run it again with less beside it{less}")


def watched(command, tell, **options):
    """Run a worker to its end, telling the progress that it prints; returns (exit status, its last words).

    It never outlives the caller: its standard input is open for as long as this process lives, and a worker on a leash ends with it.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **options)
        try:
            printed = follow(process, tell)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - LOG_BYTES))
        return status, printed + errors.read().decode(errors="replace")


def follow(process, tell):
    """Tell what a worker reports until it ends; while it times it reports nothing, and the clock stands in. Returns what else it printed."""
    buffer, rest, event, since = b"", b"", None, 0.0
    while True:
        ready, _, _ = select.select([process.stdout], [], [], POLL_SECONDS)
        block = os.read(process.stdout.fileno(), 1 << 16) if ready else None
        if block == b"" or (block is None and process.poll() is not None):
            return rest.decode(errors="replace")
        *lines, buffer = (buffer + (block or b"")).split(b"\n")
        for line in lines:
            if line.startswith(runner.REPORT) and len(line) < LOG_BYTES:
                event, since = reported(line) or event, time.monotonic()
            else:
                rest = (rest + line + b"\n")[-LOG_BYTES:]
        buffer = buffer[-LOG_BYTES:]    # of a line that does not end
        if event is not None:
            done = event.get("done")
            if "expected_s" in event:
                done = min(0.99, (time.monotonic() - since) / max(event["expected_s"], 1e-9))
            tell(event["stage"], done)


def reported(line):
    """The event in a line of a worker; None where it is not one that the runner writes."""
    try:
        event = json.loads(line[len(runner.REPORT):])
    except (ValueError, RecursionError):
        return None
    return event if has({"done": 0, "expected_s": 0, **event} if isinstance(event, dict) else event,
                        {"stage": str, "done": (int, float), "expected_s": (int, float)}) else None


def death(status):
    if status >= 0:
        return f"ended with status {status} and no result"
    return f"was killed by {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")


def last_line(log):
    return next((line for line in reversed(log.split("\n")) if line.strip()), "it printed nothing")[:300]
