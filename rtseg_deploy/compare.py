"""Whether two figures differ: the ratio of their times with an interval, or why they cannot be compared.

Where both have several processes, the interval is Welch's of the logarithms of the processes' means. Else it is from blocks of steps, as in
statistics.py, and knows nothing of what differs from one process to the next.
"""
from dataclasses import asdict, dataclass
from math import exp, hypot, sqrt

import numpy as np

from . import facts, files, statistics
from .errors import RtsegError
from .records import FORMAT, size

PASSING = ("time", "load", "note", "on", "messages", "gpu", "environment", "chosen", "tuned")      # of an environment: no conditions; settings are one
WORDS = {"slower": "B is slower than A", "faster": "B is faster than A", "none": "no difference shown between A and B"}


@dataclass(frozen=True)
class Comparison:
    """Of B with A; times are milliseconds an image, and the interval holds the ratio in 95 of 100."""
    a: str
    b: str
    a_ms: float
    b_ms: float
    ratio: float                    # B's time / A's
    low: float
    high: float
    by: str                         # what the interval is from
    varied: dict                    # condition -> [A's, B's]: different on purpose
    unstable: tuple                 # why a figure is not to be believed
    notes: tuple

    @property
    def verdict(self):
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "none"

    @property
    def percent(self):
        """Of the time an image, with its interval."""
        return "{} % (95 %: {} to {} %)".format(*(f"{100 * (value - 1):+.1f}".replace("-", "−") for value in (self.ratio, self.low, self.high)))

    @property
    def says(self):
        return f"{WORDS[self.verdict]}: {self.percent.replace(' (', ' time an image (', 1)}"

    def to_json(self):
        return {**asdict(self), "verdict": self.verdict, "says": self.says}


def compare(first, second, vary=()):
    """The Comparison of two result files; vary: conditions that may differ, None for any.

    Raises RtsegError: no results, conditions that differ, another device.
    """
    return compared(first, read(first), second, read(second), vary)


def compared(first, a, second, b, vary):
    """The Comparison of what is in two result files."""
    varied = differing(a, b, vary)
    low, ratio, high, by = interval(a, b)
    unstable = [f"{name} is {one['status']}{said(one)}" for name, one in (("A", a), ("B", b)) if one["status"] != "stable"]
    notes = [] if min(len(a["runs"]), len(b["runs"])) > 1 else ["one process says nothing of what differs between processes: bench --processes 5"]
    if a["artifact"]["sha256"] != b["artifact"]["sha256"]:
        notes.append("not the same file was timed")
    ms = [1e3 * float(np.mean(means(one))) for one in (a, b)]
    return Comparison(str(first), str(second), *ms, ratio, low, high, by, varied, tuple(unstable), tuple(notes))


def said(result):
    return "".join(f"; {warning['flag']}: {warning['says']}" for warning in result["warnings"])


# ---- what a file holds


def read(path):
    """A result file's object. Raises RtsegError where it is none."""
    value = files.read_json(path)
    if value.get("kind") != "benchmark" or value.get("format") != FORMAT:
        raise RtsegError(f"{path} is not a result file of this version of rtseg-deploy", "time it again with: rtseg-deploy bench")
    if not sound(value):
        raise RtsegError(f"{path} is damaged", "time it again with: rtseg-deploy bench")
    return value


def sound(value):
    kinds = {"artifact": dict, "backend": str, "resolution": list, "input": str, "protocol": str, "boundary": str, "bn": str, "runs": list, "status": str,
             "warnings": list}
    if not all(type(value.get(name)) is kind for name, kind in kinds.items()) or not value["runs"]:
        return False
    words = all(type(value["artifact"].get(name)) is str for name in ("model", "precision", "input", "output", "sha256"))
    warned = all(isinstance(one, dict) and {"flag", "says"} <= one.keys() for one in value["warnings"])
    clocked = value["protocol"] in facts.protocols() and all(isinstance(run, dict) and timed(run, clock(value)) for run in value["runs"])
    return words and warned and clocked and len(value["resolution"]) == 2


def timed(run, by):
    """Whether its times are times."""
    seconds, together = run.get("seconds"), run.get("back_to_back_seconds")
    numbers = isinstance(seconds, list) and seconds and all(type(value) in (int, float) and 0 < value < 1e6 for value in seconds)
    return numbers and type(together) in (int, float) and (together > 0 or by != "together") and isinstance(run.get("environment"), dict)


def clock(result):
    return facts.protocol(result["protocol"]).clock


def means(result):
    """The timed figure of each process, in seconds: by the protocol's clock, around each step or around all of them together."""
    if clock(result) == "together":
        return [run["back_to_back_seconds"] / len(run["seconds"]) for run in result["runs"]]
    return [float(np.mean(run["seconds"])) for run in result["runs"]]


def gpu(environment):
    """Its name and driver, empty for a processor."""
    found = environment.get("gpu") or {}
    return found if isinstance(found, dict) else {"name": found}


def device(result):
    environment = result["runs"][0]["environment"]
    return gpu(environment).get("name") or environment.get("model") or environment.get("cpu")


def configuration(result):
    """Name -> what was timed, and how: the conditions without the machine's."""
    artifact = result["artifact"]
    return {"network": artifact["model"], "classes": artifact.get("classes"), "resolution": size(result["resolution"]), "precision": artifact["precision"],
             "bn": result["bn"], "input": artifact["input"], "fed": result["input"], "output": artifact["output"], "protocol": result["protocol"],
             "boundary": result["boundary"], "backend": result["backend"]}


def conditions(result):
    """Name -> what has to be equal for two figures to be of the same thing; the environment is the first process'."""
    named, environment = configuration(result), result["runs"][0]["environment"]
    driver = {name: value for name, value in gpu(environment).items() if name in ("driver", "cuda")}
    return {**named, **{name: value for name, value in {**driver, **environment}.items() if name not in (*named, *PASSING)}}


def differing(a, b, vary):
    """Condition -> [A's, B's] of those that were varied on purpose. Raises RtsegError for any other, and for two devices in any case."""
    one, other = conditions(a), conditions(b)
    if device(a) != device(b):
        raise RtsegError(f"A was measured on {device(a)} and B on {device(b)}: a ratio of two devices' times says nothing of the networks",
                         "see what to expect of a device with: rtseg-deploy estimate")
    if vary is None:
        return {name: [one.get(name), other.get(name)] for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)}
    if unknown := set(vary) - one.keys() - other.keys():
        raise RtsegError(f"no condition is called {', '.join(sorted(unknown))}", f"choose from {', '.join(dict.fromkeys([*one, *other]))}")
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if "backend" in vary:           # what only one of two backends has, such as its version, differs with it
        names = [name for name in names if name in one and name in other]
    if refused := [name for name in names if name not in vary]:
        told = "; ".join(f"{name}: {one.get(name)} and {other.get(name)}" for name in refused)
        raise RtsegError(f"the conditions differ: {told}", f"if that is what is compared: {' '.join(f'--vary {name}' for name in refused)}")
    return {name: [one.get(name), other.get(name)] for name in names}


# ---- the interval


def interval(a, b):
    """(low, ratio, high, what it is from) of B's time / A's."""
    first, second = means(a), means(b)
    ratio = float(np.mean(second) / np.mean(first))
    if len(first) > 1 and len(second) > 1:
        reach, by = exp(welch(np.log(first), np.log(second))), f"the means of {len(first)} and {len(second)} processes"
    else:
        series = [np.concatenate([run["seconds"] for run in one["runs"]]) for one in (a, b)]
        if "together" in (clock(a), clock(b)) or min(map(len, series)) < statistics.FEW:
            raise RtsegError(f"one bracket around all steps, or fewer than {statistics.FEW} steps, has no interval", "time both again with --processes 5")
        reach, by = exp(by_blocks(*series)), "blocks of one process' steps"
    return ratio / reach, ratio, ratio * reach, by


def welch(first, second):
    """Half the width of the interval of the difference of two means (Welch, 1947)."""
    shares = [one.var(ddof=1) / len(one) for one in (first, second)]
    if not sum(shares):
        return 0.0
    freedom = sum(shares) ** 2 / sum(share**2 / (len(one) - 1) for share, one in zip(shares, (first, second)))
    return statistics.student(int(freedom)) * sqrt(sum(shares))


def by_blocks(first, second):
    """The same for two series, from blocks: symmetric, since a spike in either of them sends the difference another way."""
    (m, error, ms, errors), (n, other, ns, others) = (statistics.draws(one, statistics.block(one), seed) for seed, one in enumerate((first, second)))
    whole = hypot(error / m, other / n)
    if not whole:
        return 0.0
    off = np.log(ns / n) - np.log(ms / m)
    return whole * float(np.quantile(np.abs(off) / np.maximum(np.hypot(errors / ms, others / ns), statistics.SMALLEST_SHARE * whole), statistics.LEVEL))
