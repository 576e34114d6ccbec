"""Contenders that take turns, round by round in an order that is drawn anew: processes of rtseg_deploy.turns.

They are of any kind, are asked for page faults and memory too, and one that dies leaves the others to go on.
"""
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rtseg_deploy import launch, turns
from rtseg_deploy.errors import RtsegError

SCRIPT = Path(__file__).with_name("contenders.py")
PATIENCE_SECONDS = 900.0            # for an answer: torch.compile takes minutes where others compute
TENSOR_EVERY = 2                    # rounds: without its normalisation a contender is timed in one of so many


class Process(turns.Process):
    """A contender in its process, from its start to its first labels and on. Raises RtsegError where it dies."""

    def __init__(self, name, given, job, folder, script=SCRIPT):
        self.folder = folder
        folder.mkdir()
        environment = launch.prepared(job, folder)
        (folder / "given.json").write_text(json.dumps(given))
        self.log, begin = tempfile.TemporaryFile(), time.perf_counter()     # noqa: SIM115 (closed with the process)
        turns.Process.__init__(self, name, [sys.executable, str(script), "given.json"], self.log, cwd=folder, env=environment)
        try:
            self.answer(PATIENCE_SECONDS)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - begin

    def ask(self, **what):
        return turns.Process.ask(self, json.dumps(what).encode(), PATIENCE_SECONDS)

    def read(self, line):
        return json.loads(line)

    def ended(self, status):
        self.log.seek(0)
        return RtsegError(f"{self.name} {launch.death(status)}: {launch.last_line(self.log.read().decode(errors='replace'))}")

    def close(self):
        turns.Process.close(self)
        self.log.close()


@dataclass
class Taken:
    """What contenders did: name -> way -> {round: the answer, with "ms", the median of the turn}; and name -> why it ended early."""
    turns: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)

    def ms(self, name, way):
        return {number: turn["ms"] for number, turn in self.turns[name][way].items()}


def rounds(processes, plan, count, tensor, tell=launch.quiet, seed=0):
    """Let processes take turns; plan: name -> {way: frames of a turn}; the way called `tensor` is not taken in each round. Returns Taken."""
    taken, order = Taken({name: {way: {} for way in ways} for name, ways in plan.items()}), random.Random(seed)
    for number in range(count):
        tell(f"round {number + 1} of {count}", number / count)
        for name in order.sample(sorted(set(plan) - set(taken.failed)), len(plan) - len(taken.failed)):
            try:
                turn(taken.turns[name], processes[name], plan[name], number, () if number % TENSOR_EVERY == 0 else (tensor,))
            except RtsegError as error:
                taken.failed[name] = error.what
    return taken


def turn(found, process, plan, number, left_out):
    for way in (way for way in plan if way not in left_out):
        answer = process.ask(way=way, frames=plan[way])
        found[way][number] = {**answer, "ms": 1e3 * median(answer["seconds"])}


def quickest(process, ways, count=5, frames=2):
    """(the way whose frames are quickest, {way: ms}): the ways take turns in one process, and the first turn of each is not counted."""
    ms = {way: [] for way in ways}
    for number in range(count + 1):
        for way in ways:
            seconds = process.ask(way=way, frames=frames)["seconds"]
            ms[way] += [1e3 * value for value in seconds] if number else []
    medians = {way: median(values) for way, values in ms.items()}
    return min(medians, key=medians.get), medians
