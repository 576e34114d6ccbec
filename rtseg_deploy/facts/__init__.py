"""Facts as rows, each with its source: targets, classes of data sets, and what the papers print of their own networks."""
import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ..errors import RtsegError


def rows(name):
    """The rows of a CSV file of this folder as dicts of strings."""
    with files(__package__).joinpath(name).open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Target:
    name: str
    device: str
    compute_capability: str
    runtime: str                    # what serves it
    ahead_of_time: bool             # engines can be built on a machine without the device
    source: str


@cache
def targets():
    """Name -> Target."""
    return {row["name"]: Target(**{**row, "ahead_of_time": row["ahead_of_time"] == "yes"}) for row in rows("targets.csv")}


def target(name):
    """The target of that name. Raises RtsegError listing the known ones."""
    try:
        return targets()[name]
    except KeyError:
        raise RtsegError(f"no target is called {name!r}", f"the known ones: {', '.join(targets())}") from None


@dataclass(frozen=True)
class Figure:
    """What a paper prints of one of its own networks; None where it prints nothing. The image is resized from `resolution` to `input` first."""
    network: str                    # a name of the registry
    paper: str
    table: str
    resolution: tuple               # (height, width)
    input: tuple
    parameters: float | None        # in the paper's unit, as is
    gflops: float | None
    fps: float | None
    ms: float | None
    device: str


@cache
def papers():
    """Every Figure, in the order of the papers' tables."""
    def number(text):
        return float(text) if text else None

    def sides(text):
        return tuple(map(int, text.split("x")))

    return [Figure(**{**row, **{c: sides(row[c]) for c in ("resolution", "input")}, **{c: number(row[c]) for c in ("parameters", "gflops", "fps", "ms")}})
            for row in rows("papers.csv")]


@cache
def counting():
    """Paper -> how it counts: parameters_as, gflops_as, source."""
    return {row["paper"]: row for row in rows("counting.csv")}


@cache
def differences():
    """(network, column) -> why the paper's figure cannot be met."""
    return {(row["network"], row["column"]): row["reason"] for row in rows("differences.csv")}


@dataclass(frozen=True)
class ClassSet:
    """What the labels of a data set mean: label i is names[i], drawn in colours[i] (R, G, B)."""
    name: str
    names: tuple
    colours: tuple


@cache
def class_sets():
    """Name -> ClassSet."""
    by_set = {}
    for row in rows("classes.csv"):
        by_set.setdefault(row["set"], []).append(row)
    return {name: ClassSet(name, tuple(r["name"] for r in group), tuple(tuple(int(r[c]) for c in "rgb") for r in group))
            for name, group in by_set.items()}


def class_set(name, classes):
    """The set of that name, or the one with so many classes, or numbered ones; it has `classes` members. Raises RtsegError."""
    if name:
        chosen = class_sets().get(name)
        if chosen is None:
            raise RtsegError(f"no class set is called {name!r}", f"the known ones: {', '.join(class_sets())}")
        if len(chosen.names) != classes:
            raise RtsegError(f"{name} has {len(chosen.names)} classes, this network {classes}")
        return chosen
    for chosen in class_sets().values():
        if len(chosen.names) == classes:
            return chosen
    # odd steps visit all of 0..255 before they repeat, so no two classes share a colour
    colours = tuple(tuple((n + 1) * step % 256 for step in (97, 157, 211)) for n in range(classes))
    return ClassSet("", tuple(f"class {n}" for n in range(classes)), colours)
