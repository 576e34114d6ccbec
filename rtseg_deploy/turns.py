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
import time
from pathlib import Path

import numpy as np

from . import files, launch, statistics, stream
from .device import runner
from .errors import RtsegError

START_SECONDS = 180                 # in which a worker has its first labels: torch.compile takes a minute
TURN_SECONDS = 60                   # in which a turn is over


class Process:
    """A process that answers lines with lines, and is stopped whenever it is not asked anything. Its subclasses read a line, and say why it ended."""

    def __init__(self, name, command, errors=subprocess.DEVNULL, **options):
        self.name = name
        self.process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, **options)

    def ask(self, line, limit):
        with contextlib.suppress(BrokenPipeError):      # it has ended, and left why
            self.process.stdin.write(line + b"\n")
        self.process.send_signal(signal.SIGCONT)
        return self.answer(limit)

    def answer(self, limit):
        """What it tells next, after which it is stopped. Raises RtsegError where that takes more seconds than the limit, or it ends."""
        until = time.monotonic() + limit
        while select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            line = self.process.stdout.readline()
            if not line:
                raise self.ended(self.process.wait())
            if (told := self.read(line)) is not None:
                self.process.send_signal(signal.SIGSTOP)
                return told
        raise RtsegError(f"{self.name} gave no answer in {limit:.0f} s", "run it again with less beside it")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Worker(Process):
    """The worker of one backend with its settings. Raises RtsegError where that cannot run, or no longer runs."""

    def __init__(self, path, artifact, backend, settings, pixels, threads=None):
        job = launch.on_backend("turns", path, artifact, backend, [pixels], threads, stages=stream.around(artifact, "pixels"), settings=settings)
        self.folder = files.scratch()
        environment = launch.prepared(job, Path(self.folder.name), progress=True)
        Process.__init__(self, f"the worker of {backend}", [sys.executable, *job.worker, "job.json", "result.json"], cwd=self.folder.name, env=environment)
        with contextlib.ExitStack() as opening:
            opening.callback(self.close)
            self.answer(START_SECONDS)
            (self.labels,) = launch.labels_in(Path(self.folder.name), job)
            opening.pop_all()

    def turn(self, steps):
        """Seconds of each of so many steps."""
        return self.ask(b"%d" % steps, TURN_SECONDS + steps)

    def read(self, line):
        return json.loads(line[len(runner.REPORT):]).get("seconds") if line.startswith(runner.REPORT) else None

    def ended(self, status):
        result = Path(self.folder.name, "result.json")
        if not result.is_file():
            return RtsegError(f"{self.name} {launch.death(status)}", "run it again with less beside it")
        found = files.read_json(result)
        return RtsegError(found.get("error", f"{self.name} ended by itself"), found.get("fix", ""))

    def close(self):
        Process.close(self)
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
