"""What a fleet is given to do, and whether what came of it is what one process would have made."""
import json
import shutil
from collections import Counter
from pathlib import Path

from rtseg_deploy import files
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact, sidecar

# of a result: what differs from run to run, and where it lies
OF_TIME = {"seconds", "warmup_seconds", "warmup_converged", "minor_faults", "empty_seconds", "began", "ended", "time", "load", "back_to_back_seconds",
           "telemetry", "statistics", "status", "stages", "waited_share", "memory_bytes", "build_seconds", "file", "result", "decode", "waited"}


class Work:
    """Commands over plans, which a fleet does or this process; what they make goes into a folder."""

    def __init__(self, folder, bench=(), build=(), trained=None, data=None, count=0, backends=("null", "onnxruntime-cpu")):
        self.folder, self.trained, self.data, self.count, self.backends = Path(folder), trained, data, count, backends
        self.given = {"bench": bench, "build-engine": build, "eval": trained}
        for name, rows in (("times", bench), ("engines", build)):
            (self.folder / f"{name}.toml").write_text("row = [\n" + ",\n".join(map(row, rows)) + "\n]\n")

    def commands(self, goal):
        """name -> arguments."""
        mine = goal / "trained.onnx"        # eval notes what it finds in the sidecar
        if self.trained and not mine.exists():
            goal.mkdir(parents=True, exist_ok=True)
            shutil.copy(sidecar(self.trained), sidecar(mine))
            shutil.copy(self.trained, mine)
        how = [word for name in self.backends for word in ("--backend", name)]
        every = {"bench": ["bench", self.folder / "times.toml", *how, "--warmup", 0.1, "-o", goal / "results"],
                 "build-engine": ["build-engine", self.folder / "engines.toml", "--target", "rtx-2080ti", "--engines", goal / "engines"],
                 "eval": ["eval", mine, "--data", self.data, "--count", self.count, "-o", goal / "accuracy"]}
        return {name: [*every[name], "--json"] for name, given in self.given.items() if given}


def row(given):
    return "    { " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items()) + " }"


def faults(goal, expected):
    """Lines about what one folder has and the other has not, what is twice there, and what is half written."""
    mine, theirs = table(goal), table(expected)
    yield from (f"{name} is missing" for name in theirs.keys() - mine.keys())
    yield from (f"{name} is too much" for name in mine.keys() - theirs.keys())
    for name in mine.keys() & theirs.keys():
        yield from (f"{name}: {line}" for line in differences(mine[name], theirs[name]))
    yield from (f"{path} is left" for path in goal.rglob("*") if path.name.startswith(".") or path.suffix == ".part")


def table(goal):
    """Name -> what is there, without what is of the hour; what cannot be read is told as it is."""
    found = {}
    for path in sorted(goal.rglob("*")):
        name = str(path.relative_to(goal))
        if path.suffix == ".json":
            found[name] = lasting(files.read_json(path))
        elif path.suffix in (".onnx", ".engine"):
            found[name] = sound(path)
        elif path.suffix == ".jsonl" and path.name != "timeline.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            twice = [name for name, times in Counter(line["name"] for line in lines).items() if times > 1]
            found[name] = {"twice": twice, "rows": {line["name"]: lasting(line) for line in lines}}
    return found


def sound(path):
    try:
        return {"sha256": read_artifact(path).sha256}
    except RtsegError as error:
        return {"unsound": error.what}


def lasting(value):
    if isinstance(value, dict):
        lasts = {name: lasting(one) for name, one in value.items() if name not in OF_TIME}
        if value.get("kind") == "benchmark":        # doubts that only time raises
            lasts["notes"] = [note for note in value["notes"] if not note.partition(":")[0].replace("-", "").isalpha() or " " in note.partition(":")[0]]
            lasts["warnings"] = [one for one in value["warnings"] if one["flag"] == "other-work"]
        return lasts
    return [lasting(one) for one in value] if isinstance(value, list) else value


def differences(one, other, where=""):
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            yield from differences(one.get(name), other.get(name), f"{where}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, theirs) in enumerate(zip(one, other)):
            yield from differences(mine, theirs, f"{where}[{number}]")
    elif one != other:
        yield f"{where}: {str(one)[:80]} and not {str(other)[:80]}"


def overlaps(goal, outcomes):
    """Lines about figures that were timed while their machine did something else: by when its tasks went on, and by the clock in the results.

    outcomes: what `bench PLAN --json` printed.
    """
    tasks = [json.loads(line) for path in goal.rglob("timeline.jsonl") for line in path.read_text().splitlines()]
    for one in tasks:
        yield from (f"{one['worker']}: {other['task']} went on while {one['task']} was timed" for other in tasks if one["alone"] and other is not one
                    and one["worker"] == other["worker"] and one["began"] < other["ended"] and other["began"] < one["ended"])
    where, rows = {one["task"].partition(" ")[0]: one["worker"] for one in tasks if one["action"] == "bench" and one["ok"]}, []
    for one in outcomes:
        rows += [one["row"]] * (one["row"] not in rows)
    yield from at_once((where.get(str(1 + rows.index(one["row"]))), run["began"], run["ended"], one["result"]) for one in outcomes if "result" in one
                       for run in one["runs"])


def at_once(spans):
    """Lines about those of one worker that overlap. spans: (worker, begin, end, name)."""
    last = {}
    for worker, began, ended, name in sorted(spans, key=lambda span: span[1]):
        if worker in last and began < last[worker][0]:
            yield f"{worker}: {name} began before {last[worker][1]} ended"
        last[worker] = max(last.get(worker, (ended, name)), (ended, name))
