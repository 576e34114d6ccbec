"""Workers that take turns: each has its network ready and is stopped while another works, so that what the machine does meanwhile is in all of them.

Stopped by a signal, for a runtime's threads may spin for a second after their last step, on the processors that are another's then.
"""
import contextlib
import json
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from . import files, launch, statistics, stream
from .device import runner
from .errors import RtsegError

START_SECONDS = 180                 # in which a worker has its first labels: torch.compile takes a minute
TURN_SECONDS = 60                   # in which a turn is over


class Worker:
    """A process of its own for one backend with its settings. Raises RtsegError where that cannot run, or no longer runs."""

    def __init__(self, path, artifact, backend, settings, pixels, threads=None):
        job = launch.on_backend("turns", path, artifact, backend, [pixels], threads, stages=stream.around(artifact, "pixels"), settings=settings)
        self.backend, self.folder = backend, tempfile.TemporaryDirectory(prefix="rtseg-deploy-")
        environment = launch.prepared(job, Path(self.folder.name), progress=True)
        self.process = subprocess.Popen([sys.executable, *job.worker, "job.json", "result.json"], cwd=self.folder.name, env=environment, bufsize=0,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with contextlib.ExitStack() as opening:
            opening.callback(self.close)
            self.told(START_SECONDS)
            (self.labels,) = launch.labels_in(Path(self.folder.name), job)
            opening.pop_all()

    def turn(self, steps):
        """Seconds of each of so many steps."""
        with contextlib.suppress(BrokenPipeError):      # it has ended, and left why
            self.process.stdin.write(b"%d\n" % steps)
        self.process.send_signal(signal.SIGCONT)
        return self.told(TURN_SECONDS + steps)

    def told(self, limit):
        """The seconds that it tells next, after which it is stopped."""
        until = time.monotonic() + limit
        while select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            line = self.process.stdout.readline()
            if not line:
                raise self.ended()
            if line.startswith(runner.REPORT) and "seconds" in (event := json.loads(line[len(runner.REPORT):])):
                self.process.send_signal(signal.SIGSTOP)
                return event["seconds"]
        raise RtsegError(f"{self.backend} gave no labels in {limit:.0f} s", "try it by itself: rtseg-deploy bench")

    def ended(self):
        result = Path(self.folder.name, "result.json")
        status = self.process.wait()
        if not result.is_file():
            return RtsegError(f"the worker of {self.backend} {launch.death(status)}", "run it again with less beside it")
        found = files.read_json(result)
        return RtsegError(found.get("error", f"the worker of {self.backend} ended by itself"), found.get("fix", ""))

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.folder.cleanup()


@contextlib.contextmanager
def kept():
    """keep(worker) -> worker: all that were kept are closed at the end."""
    with contextlib.ExitStack() as stack:
        def keep(worker):
            stack.callback(worker.close)
            return worker
        yield keep


def rounds(workers, steps, count, tell=launch.quiet):
    """workers: name -> Worker. Name -> the median step of each of `count` turns, in seconds; in each round all take one, in another order."""
    found, order, rng = {name: [] for name in workers}, list(workers), random.Random(0)
    for number in range(count):
        rng.shuffle(order)
        for name in order:
            found[name].append(float(np.median(workers[name].turn(steps))))
        tell(number + 1)
    return found


def ratio(times, reference):
    """(median, low, high) of the ratios within the rounds: what slows down a whole round slows down both."""
    ratios = np.array(times) / np.array(reference)
    return (float(np.median(ratios)), *statistics.sign_interval(ratios))
