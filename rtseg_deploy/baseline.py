"""Whether anything has become slower than a baseline by more than a limit. The interval decides: where it spans the limit, nothing is decided.

Of each configuration on each device the newest result counts, of those under equal conditions where there are some. Each has its own interval of 95 %: of
40 that are slower by exactly the limit, one is expected to be called too slow.
"""
from dataclasses import dataclass
from pathlib import Path

from . import archive, compare
from .errors import RtsegError
from .locks import quiet
from .report import milliseconds
from .trends import NAMES

FIGURES = archive.Wanted(kind=("benchmark",))


@dataclass(frozen=True)
class Held:
    """A configuration of now (B) beside that of the baseline (A)."""
    name: str
    limit: float                    # share of the baseline's time
    comparison: compare.Comparison

    @property
    def verdict(self):
        return "too slow" if self.comparison.low > 1 + self.limit else "within" if self.comparison.high <= 1 + self.limit else "undecided"

    def to_json(self):
        return {"name": self.name, "limit": self.limit, "held": self.verdict, **self.comparison.to_json()}


def held(baseline, now, limit, vary=(), tell=quiet, warn=lambda lines: None):
    """([Held], lines on what was not compared and why) of the files and folders of now. Raises RtsegError where nothing could be compared."""
    old, new = newest([baseline], tell, warn), newest(now, tell, warn)
    done, left = [], []
    for key, rows in new.items():
        if key not in old:
            left.append(f"{named(rows)}: not in {baseline}")
            continue
        for conditions, row in rows.items():
            before = old[key].get(conditions) or next(iter(old[key].values()))
            try:
                done.append(Held(named(rows), limit, compared(before["file"], row["file"], vary)))
            except RtsegError as error:
                left.append(f"{named(rows)}: {error.what}")
    left += [f"{named(rows)}: only in {baseline}" for key, rows in old.items() if key not in new]
    if not done:
        raise RtsegError(f"nothing can be compared with {baseline}: {left[0] if left else 'there is no result of bench'}",
                         "name results of the same networks on the same device")
    return done, left


def newest(paths, tell, warn):
    """{(configuration, device): {conditions: row of the newest result}} of files and folders."""
    found = {}
    rows = [row for path in paths for row in (archive.rows(path, FIGURES, tell=tell, warn=warn)[0] if Path(path).is_dir() else [archive.row(path)])]
    for row in sorted(rows, key=lambda row: row["time"], reverse=True):
        found.setdefault((row["configuration"], row["device"]), {}).setdefault(row["conditions"], row)
    return found


def named(rows):
    row = next(iter(rows.values()))
    return " ".join([*(row[name] for name in NAMES), "on", row["device"]])


def compared(first, second, vary):
    """Of the conditions that may vary, a result has those of its backend."""
    there = {name for path in (first, second) for name in compare.conditions(compare.read(path))}
    return compare.compare(first, second, there & set(vary))


def texts(one):
    """What a table has of a Held."""
    found = one.comparison
    return {"configuration": one.name, "baseline ms": milliseconds(found.a_ms), "now ms": milliseconds(found.b_ms), "time an image": found.percent,
            f"limit +{100 * one.limit:g} %": one.verdict, "status": "unstable" if found.unstable else ""}
