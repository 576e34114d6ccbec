"""One configuration over time, on each machine: every figure beside the one before it there, and what else had changed.

Figures of two machines stand beside each other and are never made a ratio.
"""
from dataclasses import dataclass, replace

from . import archive, compare
from .errors import RtsegError
from .sheets import figures, moment

MOST = 8                            # configurations that are shown at once
NAMES = ("network", "resolution", "precision", "input", "output", "backend", "protocol")
WORDS = {"slower": "slower", "faster": "faster", "none": "no difference shown"}


@dataclass(frozen=True)
class Point:
    """A result, and what became of the time an image since the one before it."""
    row: dict                       # of the archive
    change: compare.Comparison | None = None
    why: str = ""                   # there is no change to say

    def to_json(self):
        return {**self.row, "change": self.change and self.change.to_json(), "why": self.why}


def trends(folder, wanted, count, tell, warn):
    """[(the configuration in words, its Points)] of those that are wanted, of each machine the newest. Raises RtsegError where they are many."""
    found, _ = archive.rows(folder, replace(wanted, kind=("benchmark",)), tell=tell, warn=warn)
    series = {}
    for row in reversed(found):     # the oldest first, and a copy only once
        series.setdefault(row["configuration"], {}).setdefault(row["device"], {})[row["sha256"]] = row
    if len(series) > MOST:
        many = {name: len({row[name] for row in found}) for name in NAMES}
        raise RtsegError(f"{len(series)} configurations fit, and {MOST} at most are shown at once",
                         f"choose: {', '.join(f'one of {count} {name}s' for name, count in many.items() if count > 1)}")
    return [(title(machines), [point for _, rows in sorted(machines.items()) for point in points(list(rows.values()), count)])
            for machines in series.values()]


def title(machines):
    row = next(row for rows in machines.values() for row in rows.values())
    return " ".join(row[name] for name in NAMES)


def points(rows, count):
    """The last ones of a machine."""
    found, before = [], None
    for row in rows[-count - 1:]:
        point, before = since(before, row)
        found.append(point)
    return found[-count:]


def since(before, row):
    """(its Point, (its file, what is in it)); before is such a pair, None where there is none."""
    now = None
    try:
        now = row["file"], compare.read(row["file"])
        return Point(row, before and compare.compared(*before, *now, None)), now
    except RtsegError as error:     # gone meanwhile, or no interval
        return Point(row, why=error.what), now


def texts(point):
    """What a table has of a Point."""
    row, change = point.row, point.change
    varied = [f"{name} {one} → {other}" for name, (one, other) in change.varied.items()] if change else []
    return {"device": row["device"], "time, UTC": moment(row), **figures(row), "time an image": change.percent if change else point.why,
            "which is": WORDS[change.verdict] if change else "", "also changed": ", ".join(varied), "status": row["status"], "id": row["id"]}
