"""Who does Tasks: this process, one after another, or the workers of a fleet (fleet.py, remote.py)."""
import json
import time
from collections import deque
from pathlib import Path

from . import files, launch, tasks
from .errors import RtsegError

TIMELINE = "timeline.jsonl"         # beside what was made: who did what when, see noted
MACHINE, PROCESSOR, ALL = "machine", "processor", 1000      # what a worker has for tasks: what is timed takes all of a machine, other work one of so many


class Serial:
    """This process, or a device that it drives."""

    def __init__(self, place=None):
        self.place = place

    def has(self, device=""):
        """Whether a device that is named does the work, see Fleet.has."""
        return bool(self.place)

    def run(self, given, tell=launch.quiet, timeline=None):
        """Do the tasks, and those that follow from them right after the one that they follow from."""
        waiting = deque(given)
        while waiting:
            task = waiting.popleft()
            with files.scratch() as folder:
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


def why(result):
    """What a result that is none says, in a line."""
    return RtsegError(result["error"], result.get("fix", "")).line


def noted(timeline, task, worker, began, ended, result):
    """A line of who did what when: by it whoever doubts that a figure was timed alone can see it."""
    if timeline:
        timeline.parent.mkdir(parents=True, exist_ok=True)
        row = {"task": task.title, "action": task.request["action"], "device": task.device, "alone": task.alone, "worker": worker, "began": began,
               "ended": ended, "ok": bool(result.get("ok"))}
        with open(timeline, "a") as file:
            file.write(json.dumps(row) + "\n")
