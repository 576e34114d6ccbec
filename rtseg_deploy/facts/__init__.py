"""Facts as rows, each with its source: devices, targets, TensorRT's parsers, classes of data sets, what the papers print of their own networks."""
import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ..errors import RtsegError


def rows(name):
    """The rows of a CSV file of this folder as dicts of strings."""
    with files(__package__).joinpath(name).open(newline="") as file:
        return list(csv.DictReader(file))


def begins(version, prefixes):
    """Whether one of the prefixes is the beginning of a version: 8.6 is of 8.6.1, and 1 is not of 10.0."""
    return any(version.split(".")[:len(prefix.split("."))] == prefix.split(".") for prefix in prefixes)


def number(text):
    return float(text) if text else None


@dataclass(frozen=True)
class Device:
    """What a chip can do at best; None where it has no such thing or nobody says. Rates are dense, at the boost clock."""
    name: str
    compute_capability: str         # "" for a CPU
    memory_gib: float | None
    fp32_tflops: float
    fp16_tflops: float              # of the fastest way to compute on FP16 data
    fp16_by: str                    # which way that is
    bandwidth_gbs: float            # of its memory, in 10^9 bytes a second
    l2_mib: float
    fast_fp16: bool                 # what TensorRT's platform_has_fast_fp16 says
    fast_int8: bool
    source: str


@cache
def devices():
    """Name -> Device."""
    def value(column, text):
        if column in ("fast_fp16", "fast_int8"):
            return text == "yes"
        return number(text) if column.endswith(("_gib", "_tflops", "_gbs", "_mib")) else text

    return {row["name"]: Device(**{column: value(column, text) for column, text in row.items()}) for row in rows("devices.csv")}


def device_called(*texts):
    """The Device whose name is in what a machine says of itself; None where none is. Not where it goes on as another one's: a Ti, a D, a Super."""
    said = " ".join(text for text in texts if text and isinstance(text, str)).replace("(R)", "").replace("(TM)", "")
    longer = r"(?! ?(?:Ti|D|Super|NVL|Laptop)\b)(?!\w)"
    return next((device for name, device in devices().items() if re.search(rf"\b{re.escape(name)}{longer}", said, re.IGNORECASE)), None)


@dataclass(frozen=True)
class Target:
    """A device and the TensorRT that engines are built with for it."""
    name: str
    device: Device
    tensorrt: tuple                 # versions that serve it, as prefixes; "rtx" for TensorRT-RTX
    parser: str                     # of `runtime`: a name of parsers()
    runtime: str                    # what engines are built with, unless said otherwise
    ahead_of_time: bool             # engines can be built on a machine without the device
    jetpack: str
    cuda: str
    python: str
    opset: int                      # that export writes for it
    workspace_mib: int              # that its builder gets unless told otherwise
    external_tactics: bool          # its TensorRT leaves cuDNN's and cuBLAS' tactics out by default, which costs this chip speed
    source: str

    @property
    def compute_capability(self):
        return self.device.compute_capability

    def served_by(self, version):
        """Whether that version of TensorRT, such as 8.6.1, serves it."""
        return begins(version, self.tensorrt)


@cache
def targets():
    """Name -> Target."""
    return {row["name"]: Target(**{**row, "device": devices()[row["device"]], "tensorrt": tuple(row["tensorrt"].split()), "opset": int(row["opset"]),
                                   "workspace_mib": int(row["workspace_mib"]), "external_tactics": row["external_tactics"] == "yes",
                                   "ahead_of_time": row["ahead_of_time"] == "yes"}) for row in rows("targets.csv")}


def target(name):
    """The target of that name. Raises RtsegError listing the known ones."""
    try:
        return targets()[name]
    except KeyError:
        raise RtsegError(f"no target is called {name!r}", f"the known ones: {', '.join(targets())}") from None


@dataclass(frozen=True)
class Parser:
    """The reader of ONNX files of one family of TensorRT versions."""
    name: str
    versions: tuple                 # of TensorRT that it comes with, as prefixes
    serves: str
    opset: int                      # the newest that it states
    types: tuple                    # ONNX's names of those that it takes
    source: str


@cache
def parsers():
    """Name -> Parser, oldest first."""
    return {row["name"]: Parser(**{**row, "opset": int(row["opset"]), "versions": tuple(row["versions"].split()), "types": tuple(row["types"].split())})
            for row in rows("parsers.csv")}


def parser_of(version, otherwise):
    """The Parser that comes with a version of TensorRT; of the name `otherwise` where the version is not known."""
    return next((parser for parser in parsers().values() if version and begins(version, parser.versions)), parsers()[otherwise])


@cache
def group_channels():
    """(parser, compute capability, precision) -> channels a group that small groups of a convolution are widened to, where they are expanded otherwise."""
    return {(row["parser"], row["compute_capability"], row["precision"]): int(row["channels"]) for row in rows("groups.csv")}


@cache
def operators():
    """ONNX operator -> (names of the parsers that take it, what says the same elsewhere or ""). parsers() has the sources."""
    return {row["operator"]: (tuple(row["parsers"].split()), row["instead"]) for row in rows("operators.csv")}


@dataclass(frozen=True)
class Rule:
    """What a parser does not take, misreads, or does otherwise than is expected."""
    name: str
    operators: tuple                # that it is for; "*" is each, "model" the whole
    parsers: tuple
    capability: str                 # the compute capability that it is for, or ""
    severity: str                   # error, warning, note
    condition: tuple                # ((predicate of rules.py, its arguments), …): all must hold
    reason: str
    fix: str
    repair: str                     # a name in repairs.REPAIRS, or ""
    source: str


@cache
def rules():
    """Name -> Rule."""
    def condition(text):
        return tuple((words[0], tuple(words[1:])) for words in map(str.split, text.split(" & ")))

    return {row["name"]: Rule(**{**row, "operators": tuple(row["operators"].split()), "parsers": tuple(row["parsers"].split()),
                                 "condition": condition(row["condition"])}) for row in rows("rules.csv")}


@dataclass(frozen=True)
class Figure:
    """What a paper prints of one of its own networks; None where it prints nothing. The image is resized from `resolution` to `input` first."""
    id: str                         # of a row in tables.csv: of a speed that is printed beside two splits, the first
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
    def sides(text):
        return tuple(map(int, text.split("x")))

    return [Figure(**{**row, **{c: sides(row[c]) for c in ("resolution", "input")}, **{c: number(row[c]) for c in ("parameters", "gflops", "fps", "ms")}})
            for row in rows("papers.csv")]


@cache
def speeds():
    """Id -> Figure, of those that say a speed."""
    return {figure.id: figure for figure in papers() if figure.fps or figure.ms}


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


@dataclass(frozen=True)
class Overhead:
    """What a runtime costs on a device beside the network itself; None where nobody says."""
    launch_us: float | None         # of an operation that an eager framework runs
    libraries_mib: float | None     # CUDA's, that are loaded into the device's memory


@cache
def overheads():
    """Name of a device -> Overhead."""
    return {row["device"]: Overhead(number(row["launch_us"]), number(row["libraries_mib"])) for row in rows("overheads.csv")}


@cache
def _timed():
    return {(row["paper"], row["table"]): row for row in rows("timed.csv")}


def timed(paper, table):
    """What a paper timed for a table: software, output (native or logits, as in records.Artifact), classes, protocol, iterations, bn, source."""
    return _timed().get((paper, table)) or _timed()[paper, ""]


ROMAN = {roman: str(n) for n, roman in enumerate(["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"], 1)}


def plain(name):
    """The name of a paper or a table as nobody types it: BiSeNet V1 is bisenetv1, Table II is 2."""
    letters = "".join(re.findall("[a-z0-9]+", name.casefold())).removeprefix("table")
    return ROMAN.get(letters, letters)


def timed_by(paper):
    """What a paper timed for most of its tables. Raises RtsegError listing the known papers."""
    known = [name for name, table in _timed() if not table]
    for name in known:
        if plain(name) == plain(paper):
            return timed(name, "")
    raise RtsegError(f"no paper is called {paper!r}", f"the known ones: {', '.join(known)}")


@cache
def outside():
    """Why figures lie where they do beside what is estimated: rows of paper, table, network, device, verdict (each empty for any), reason, source."""
    return rows("outside.csv")


@dataclass(frozen=True)
class Protocol:
    """What is timed, and how; "" where nothing is said."""
    name: str
    clock: str                      # each: a bracket a step; together: one around all; both; overlapping: each from its begin to its end, and all
    boundary: str                   # what is inside the clock, in a few words
    frame: str                      # what a step begins with: "" the network's own input, where the runtime has it; see device/frames.py
    input: str                      # of the artifact, as is output
    output: str
    fixed: bool                     # another input or output would be another protocol
    precision: str                  # that the paper timed, as is bn
    bn: str                         # BatchNorm: folded, kept
    iterations: int
    about: str
    source: str


@cache
def protocols():
    """Name -> Protocol."""
    return {row["name"]: Protocol(**{**row, "iterations": int(row["iterations"]), "fixed": row["fixed"] == "yes"}) for row in rows("protocols.csv")}


def protocol(name):
    """The protocol of that name. Raises RtsegError listing the known ones."""
    try:
        return protocols()[name]
    except KeyError:
        raise RtsegError(f"no protocol is called {name!r}", f"the known ones: {', '.join(protocols())}") from None
