"""A plan: what to time, as a TOML file that a person writes. engines/README.md says how one looks.

Keys at the top hold for every row that does not say otherwise; a row names a network, a checkpoint or an artifact. A plan is taken whole or
not at all: what would be run wrongly, twice, or as another figure than it says, is refused before anything runs.
"""
import os
import sys
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from . import facts, limits, models
from .errors import RtsegError
from .lists import refuse_leaving
from .records import OUTPUTS, size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUBJECTS = ("network", "checkpoint", "artifact")
ONE_OF = {"precision": ("fp32", "fp16"), "bn": ("folded", "kept"), "output": OUTPUTS}
DIGITS = 5                          # of a side
ITERATIONS = 100_000                # at most, as on the command line
OWN = {"network": (), "checkpoint": ("classes",), "artifact": ("resolution", "input", "precision", "bn", "output", "classes")}  # what it says itself


@dataclass(frozen=True)
class Row:
    """One thing to time. None where an artifact or a checkpoint says it itself."""
    figure: str = ""                # id of the paper's figure of speed that it is for, or ""
    network: str = ""               # a name of the registry, or
    checkpoint: str = ""            # a file, or
    artifact: str = ""              # one
    resolution: tuple | None = None # (height, width) of the image
    input: tuple | None = None      # what the network is fed: the same where the plan does not say
    precision: str | None = "fp32"
    protocol: str = "network"       # a name of facts/protocols.csv
    iterations: int = 1000
    bn: str | None = "folded"
    output: str | None = "logits"   # as in records.Artifact
    classes: int | None = 19
    device: str = ""                # that the figure is of, a name of facts.devices(); "" is any

    @property
    def subject(self):
        return self.artifact or self.checkpoint or self.network

    @property
    def reduced(self):
        """What the graph resizes the image to first, or None: where the logits come back at the image's size, resizing is timed."""
        return self.input if self.output == "logits" and self.input != self.resolution else None

    @property
    def exported(self):
        """(height, width) of the graph's input."""
        return self.resolution if self.reduced else self.input


KINDS = {field.name: int if field.name in ("iterations", "classes") else str for field in fields(Row)}


@dataclass(frozen=True)
class Plan:
    name: str                       # of the file
    title: str
    rows: tuple


def read(path):
    """The Plan in a file. Raises RtsegError naming the row and what is wrong with it."""
    path = Path(path)
    written = parsed(path)
    title, listed = written.pop("title", ""), written.pop("row", [])
    if not isinstance(title, str) or not isinstance(listed, list) or not listed or not all(isinstance(row, dict) for row in listed):
        raise RtsegError(f"{path} has no rows to time", 'write at least: row = [{ network = "sgcpnet", resolution = "1024x2048" }]')
    if len(listed) > limits.PLAN_ROWS:
        limits.refuse(path, f"has {len(listed):,} rows, more than {limits.PLAN_ROWS:,}", "split it")
    checked(written, f"{path}, above the rows")
    rows, seen = [], set()
    for number, own in enumerate(listed, 1):
        where = f"{path}, row {number}"
        checked(own, where)
        row = made(written, own, path.parent, where)
        if {row, row.figure} & seen:
            raise RtsegError(f"{where} says what an earlier row says", "remove one of them")
        seen |= {row, row.figure} - {""}
        rows.append(row)
    return Plan(path.stem, title, tuple(rows))


def parsed(path):
    """The tables of a TOML file."""
    try:
        return tomllib.loads(limits.light_toml(path))
    except (ValueError, RecursionError) as error:
        raise RtsegError(f"{path} is not a plan: {error}", "engines/README.md says how one looks") from None


def checked(given, where):
    """Refuses keys and values that mean nothing."""
    for name, value in given.items():
        if name not in KINDS:
            raise RtsegError(f"{where}: no key is called {name!r}", f"the known ones: {', '.join(KINDS)}")
        if type(value) is not KINDS[name]:
            raise RtsegError(f"{where}: {name} is {value!r}", f"write {'a number' if KINDS[name] is int else 'text in quotes'}")
        known = {"protocol": protocols(), "device": facts.devices(), **ONE_OF}.get(name)
        if known and value not in known:
            raise RtsegError(f"{where}: {name} is {value!r}", f"the known ones: {', '.join(known)}")
    if not 1 <= given.get("iterations", 1) <= ITERATIONS or given.get("classes", 1) < 1:
        raise RtsegError(f"{where}: iterations go from 1 to {ITERATIONS}, and classes begin at 1", "change the number")


@cache
def protocols():
    return [row["name"] for row in facts.rows("protocols.csv")]


def made(defaults, own, folder, where):
    """The Row of what stands above the rows and in it."""
    named = [name for name in SUBJECTS if name in own] or [name for name in SUBJECTS if name in defaults]
    if len(named) != 1:
        raise RtsegError(f"{where} names {' and '.join(named) or 'nothing'} to time", f"give one of {', '.join(SUBJECTS)}")
    subject = named[0]
    told = [name for name in OWN[subject] if name in own]
    if told:
        raise RtsegError(f"{where}: its {subject} says {' and '.join(told)} itself", "remove that from the row")
    given = {name: value for name, value in {**defaults, **own}.items() if name not in (*SUBJECTS, *OWN[subject])}
    given.update(dict.fromkeys(OWN[subject]), **{subject: own.get(subject, defaults.get(subject))})
    for name in ("resolution", "input"):
        if given.get(name):
            given[name] = sides(given[name], f"{where}: {name}")
    row = Row(**given)
    if subject != "artifact":
        row = replace(row, input=row.input or row.resolution)
    if subject == "network":
        fits(row, where)
    else:
        row = replace(row, **{subject: str(present(folder, row.subject, where))})
    if row.figure:
        agrees(row, where)
    return row


def sides(text, where):
    """(height, width) of HxW."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) <= DIGITS and int(part) > 0 for part in parts):
        raise RtsegError(f"{where} is {text!r}", "write HEIGHTxWIDTH, such as 1024x2048")
    return tuple(map(int, parts))


def present(folder, name, where):
    refuse_leaving(name, folder, where)
    path = folder / name
    if not os.path.isfile(path):    # Path.is_file fails where a name is too long
        raise RtsegError(f"{where}: {path}: no such file", "paths begin at the plan's folder")
    return path


def fits(row, where):
    """Refuses a network that is not known, or a size that it does not take."""
    try:
        network = models.find(row.network)
    except RtsegError as error:
        raise RtsegError(f"{where}: {error.what}", error.fix) from None
    if not row.resolution:
        raise RtsegError(f"{where}: {row.network} has no size of its own", 'add resolution = "HxW"')
    if not network.takes(row.input, network.reading):
        raise RtsegError(f"{where}: {row.network} takes heights and widths that are multiples of {network.grid(network.reading)}, not {size(row.input)}",
                         "choose another size")


def agrees(row, where):
    """Refuses a row that is not what its figure is of."""
    figure = facts.speeds().get(row.figure)
    if not figure:
        raise RtsegError(f"{where}: no figure of speed has the id {row.figure!r}", "the ids are in rtseg_deploy/facts/papers.csv")
    for name in ("device", *("network", "resolution", "input") * bool(row.network)):
        theirs = getattr(figure, name)
        if getattr(row, name) != theirs:
            raise RtsegError(f"{where}: {row.figure} is of {name} {size(theirs) if isinstance(theirs, tuple) else theirs}",
                             "write that, or remove the figure: a row without one is no paper's")


def feasible(row, machine):
    """"" where a machine (its probe) can run a row, or why not. Another device's figure is one to stand beside, so any GPU does for a GPU's."""
    device = facts.devices().get(row.device)
    if not device or not device.compute_capability or "name" in machine["gpu"]:
        return ""
    return f"needs {'an' if device.name[0] in 'RH' else 'a'} {device.name}: this machine has no GPU"
