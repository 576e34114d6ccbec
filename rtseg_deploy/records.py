"""The values that pass between the commands, all of them through files: see the field comments for their meaning."""
import contextlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from . import files, limits
from .errors import RtsegError

FORMAT = 3  # of every JSON file written here; 1: first, 2: kinds of input, 3: protocols


def size(resolution):
    """(height, width) as the command line writes it."""
    return "{}x{}".format(*resolution)


INPUTS = ("normalised", "rgb8", "rgb8-nchw")
OUTPUTS = ("logits", "labels", "native")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Artifact:
    """What a file is: written beside it as `<file>.json`."""
    kind: str                       # onnx, engine
    model: str                      # a name of the registry
    dialect: str                    # whose checkpoint it was; "seeded" for random weights
    classes: int
    class_set: str                  # a name in facts/classes.csv, or ""
    resolution: tuple               # (height, width) of input, and of output
    network_input: tuple            # (height, width) that the graph resizes the image to first
    enlarge: str                    # how native logits get to the image's size: bilinear, corners, nearest; "" where nobody says
    precision: str                  # fp32, fp16; int8: with Q/DQ pairs, the rest in FP32
    input: str                      # normalised: 1 x 3 x H x W float32; rgb8: H x W x 3 uint8; rgb8-nchw: 1 x 3 x H x W uint8
    output: str                     # logits: 1 x classes x H x W; labels: 1 x H x W; native: 1 x classes x h x w as the network gives it
    normalisation: dict             # mean, std: of RGB / 255; of an rgb8 input it is in the graph
    opset: int
    weights_bytes: int
    parent: dict                    # what it was made from: file and sha256, or seed
    sha256: str = ""                # filled in when the file is written
    target: str = ""                # of an engine
    checks: dict = field(default_factory=dict)    # what was proven of it: fold, parity, layers
    versions: dict = field(default_factory=dict)  # of what made it
    warnings: tuple = ()

    def to_json(self):
        return {"format": FORMAT, **asdict(self)}


def sidecar(path):
    """Where the description of an artifact lies."""
    return Path(f"{path}.json")


def from_json(value, where):
    """An Artifact from a sidecar's object. Raises RtsegError where it is not one."""
    wanted = {f.name: f.type for f in fields(Artifact)}
    missing = [name for name in wanted if name not in value]
    if value.get("format") != FORMAT or missing:
        raise RtsegError(f"{where} is not a sidecar of this version of rtseg-deploy", "export the checkpoint again")
    value = {name: tuple(value[name]) if isinstance(value[name], list) else value[name] for name in wanted}
    sound = all(type(value[name]) is kind for name, kind in wanted.items()) and len(value["resolution"]) == len(value["network_input"]) == 2
    sound = sound and all(type(side) is int and side > 0 for side in (*value["resolution"], *value["network_input"], value["classes"], value["weights_bytes"]))
    sound = sound and value["kind"] in ("onnx", "engine") and value["precision"] in PRECISIONS and value["output"] in OUTPUTS and value["input"] in INPUTS
    sound = sound and re.fullmatch(r"[\w.-]+", value["model"]) and len(value["model"]) <= limits.NAME and not value["model"].startswith(".")
    sound = sound and math.prod(value["resolution"]) <= limits.PIXELS >= math.prod(value["network_input"]) and value["classes"] <= limits.CLASSES
    sound = sound and all(has(value["checks"], {name: kind}) for name, kind in CHECKS.items() if name in value["checks"]) and born(value["parent"])
    ends = ("input", "output") if sound and "tensors" in value["checks"] else ()
    sound = sound and all(type(side) is int for end in ends for side in value["checks"]["tensors"][end]["shape"])
    sound = sound and all(numbers(value["normalisation"].get(name)) for name in ("mean", "std")) and min(value["normalisation"]["std"]) > 0
    sound = sound and isinstance(value["checks"].get("parity"), dict) and finite(value)
    if not sound:
        raise RtsegError(f"{where} is damaged", "export the checkpoint again")
    return Artifact(**value)


# of what is in an Artifact's checks, where it is there: what is relied on
TENSOR = {"name": str, "type": str, "shape": list}
CHECKS = {"built": {"runtime": str, "version": str, "compute_capability": str}, "bytes": int, "tensors": {"input": TENSOR, "output": TENSOR},
          "layers": {"fp16": int, "fp32": int, "fp32_names": list}, "accuracy": dict, "fold": dict, "kept_fp32": dict, "int8": dict}
PARENT = {"file": str, "sha256": str, "seed": int, "factory": str}


def born(parent):
    """Whether an Artifact's parent is one: a file has its sha256."""
    return ("file" in parent) == ("sha256" in parent) and all(has(parent, {name: kind}) for name, kind in PARENT.items() if name in parent)


def has(value, kinds):
    """Whether it is an object with these names, each of that type, or of those in it."""
    return isinstance(value, dict) and all(has(value.get(name), kind) if isinstance(kind, dict) else isinstance(value.get(name), kind)
                                           for name, kind in kinds.items())


def finite(value):
    """Whether all its numbers are JSON's, which has neither NaN nor infinity."""
    try:
        return bool(json.dumps(value, allow_nan=False))
    except ValueError:
        return False


def numbers(value):
    """Whether it is a number for each of R, G and B."""
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(type(number) in (int, float) and math.isfinite(number) for number in value)


def read_artifact(path):
    """The description of an artifact, after its hash is checked. Raises RtsegError: no sidecar, another file, a failed proof."""
    path = Path(path)
    if not path.is_file():
        raise RtsegError(f"{path}: no such file")
    if not sidecar(path).is_file() and not settle(path):
        raise RtsegError(f"{path} has no sidecar {sidecar(path).name}: nothing says what it is or whether it was proven",
                         "make it with: rtseg-deploy export CHECKPOINT -o MODEL.onnx --resolution HxW" if path.suffix not in (".engine", ".plan") else
                         "make it with rtseg-deploy build-engine; or, as engines run native code, only if you trust it: rtseg-deploy verify --trust")
    artifact = from_json(files.read_json(sidecar(path)), sidecar(path))
    again = f"make it again with rtseg-deploy {'build-engine' if artifact.kind == 'engine' else 'export'}"
    if files.sha256(path) != artifact.sha256:
        settle(path)
        if files.read_json(sidecar(path)).get("sha256") != artifact.sha256:     # another run has made it anew since
            return read_artifact(path)
        raise RtsegError(f"{path} was changed after it was made: its sha256 is not the one in {sidecar(path).name}", again)
    if artifact.checks["parity"].get("ok") is not True:
        raise RtsegError(f"{path}: its parity was not proven, so neither its labels nor its speed mean anything", again)
    return artifact


def settle(path):
    """Give a file the sidecar that was ready when its writer was stopped between the two names; whether there was one.

    Whoever wrote it may still be there, about to do the same, so that what it wrote stays where it is.
    """
    ready = files.parts(sidecar(path))
    digest = files.sha256(path) if ready else ""
    for one in ready:
        with contextlib.suppress(OSError, RtsegError):      # of others it may be half written
            if files.read_json(one).get("sha256") == digest:
                name = files.temporary_of(sidecar(sidecar(path)))
                os.link(one, name)
                os.replace(name, sidecar(path))
                return True
    return False


def write_model(path, model, artifact):
    """Write an onnx.ModelProto and its sidecar, both or neither; returns the Artifact with its hash."""
    def fill(temporary):
        temporary.write_bytes(model.SerializeToString())
        return artifact

    return write_artifact(path, fill)


def write_artifact(path, fill):
    """Write a file and its sidecar, both or neither: fill(temporary path) writes the file and returns its Artifact, still without a hash.

    The file gets its name first: without the right sidecar every command refuses it, and see settle.
    """
    for goal in (Path(path), sidecar(path)):
        if goal.is_dir():
            raise RtsegError(f"{goal} is a folder, and a file of that name is to be written", "choose another name")
    with pair(path) as (temporary, description):
        artifact = replace(fill(temporary), sha256=files.sha256(temporary))
        description.write_text(json.dumps(artifact.to_json(), indent=1) + "\n")
    return artifact


@contextlib.contextmanager
def pair(path):
    """Temporary paths of a file and of its sidecar, which says the file's sha256: as files.replacing, for both or neither."""
    if Path(path).is_file():
        settle(path)
    with files.replacing(sidecar(path)) as description, files.replacing(path) as temporary:
        yield temporary, description
        files.synced(description)
        files.synced(description.parent)    # it is to be found where the file has its name and this not yet
