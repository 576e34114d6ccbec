"""Where a job runs: here, in a process of its own. A job is job.json, its answer result.json; see device/runner.py."""
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import backends
from .device import runner
from .errors import RtsegError
from .files import read_json

PACKAGE_PARENT = Path(__file__).resolve().parent.parent
RUNNER = [runner.__file__]                          # TensorRT, as on a device
BACKENDS = ["-m", "rtseg_deploy.backends"]          # every other runtime
POLL_SECONDS = 0.5                                  # a waiting parent must not take time from what is timed


def on_backend(action, path, artifact, backend, threads=None, own=None):
    """The job that asks a backend to infer or time an artifact; threads: all of this process's processors if not given.

    own: the arguments of own.load, for a network that only its own code can build.
    """
    parent = dict(artifact.parent)
    if "file" in parent:
        parent["file"] = str(Path(parent["file"]).resolve())
    return {"action": action, "backend": backend, "environment": getattr(backends.find(backend), "ENVIRONMENT", {}),
            "artifact": str(Path(path).resolve()), "described": {**artifact.to_json(), "parent": parent}, "threads": threads or cpus(), "own": own}


def cpus():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(job, worker, arrays=(), tell=lambda step, done: None):
    """(result, labels of each array). Raises RtsegError with the worker's error and fix.

    arrays: inputs as the artifact takes them. tell(step, fraction done or None) is called while it runs.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        paths = [Path(folder, f"{number}.npy") for number in range(len(arrays))]
        for path, array in zip(paths, arrays):
            buffer = io.BytesIO()   # numpy, writing by itself, does not say that the disk is full
            np.save(buffer, array)
            path.write_bytes(buffer.getbuffer())
        labels = [path.with_name("labels-" + path.name) for path in paths]
        job = {**job, "inputs": list(map(str, paths)), "labels": list(map(str, labels)), "progress": str(Path(folder, "progress.json"))}
        Path(folder, "job.json").write_text(json.dumps(job))
        status = wait_for(worker, folder, job.get("environment", {}), tell)
        if not Path(folder, "result.json").is_file():
            raise RtsegError(f"the worker for {job['action']} {death(status)}: {last_line(Path(folder, 'log'))}", "run it again with less beside it")
        result = read_json(Path(folder, "result.json"))
        if not result["ok"]:
            raise RtsegError(result["error"], result["fix"])
        return result, [np.load(path) if path.is_file() else None for path in labels]


def wait_for(worker, folder, environment, tell):
    """Run a worker to its end, telling its progress; it never outlives the caller. Returns its exit status."""
    path = os.pathsep.join([str(PACKAGE_PARENT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **environment}
    with open(Path(folder, "log"), "wb") as log:
        process = subprocess.Popen([sys.executable, *worker, "job.json", "result.json"], cwd=folder, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while True:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    follow(Path(folder, "progress.json"), tell)
        finally:
            process.kill()
            process.wait()


def follow(path, tell):
    """Tell what the worker last reported; while it times it reports nothing, and the clock stands in."""
    if not path.is_file():
        return
    event = json.loads(path.read_text())
    done = event.get("done")
    if "expected_s" in event:
        done = min(0.99, (time.time() - path.stat().st_mtime) / max(event["expected_s"], 1e-9))
    tell(event["stage"], done)


def death(status):
    if status >= 0:
        return f"ended with status {status} and no result"
    return f"was killed by {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")


def last_line(log):
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")[:300]
