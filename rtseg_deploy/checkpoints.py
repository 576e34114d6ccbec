"""Checkpoint file -> the network that was trained, or the reason why not. Nothing in the file is executed, nothing is guessed.

A file fits a dialect when, after its renames and drops, keys and shapes equal the network's exactly; the network's name, the
dialect and the number of classes follow from the fit.
"""
import pickle
import re
import struct
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import files, models
from .errors import RtsegError, need

# Training code wraps weights in these, in this order of preference, and DataParallel, Lightning and torch.compile prefix their keys
CONTAINERS = ("ema_net", "net", "state_dict", "model_state_dict", "model", "segmenter")
PREFIXES = ("module.", "model.", "_orig_mod.")
MOST_CLASSES = 10_000
DEEPEST = 10                        # wrappers within wrappers
TRAINING_ONLY = ("loss.", "criterion.")
# What torch.load raises on damaged files, found by feeding it damaged files
BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError,
          ImportError, MemoryError, struct.error)


@dataclass(frozen=True)
class Trained:
    """A network with its weights: `module` maps normalised N x 3 x H x W to logits at 1/stride."""
    network: models.Network
    dialect: str
    classes: int
    normalisation: models.Normalisation
    module: object
    parent: dict                    # file and sha256, or seed


@dataclass(frozen=True)
class Fit:
    """How near a state dict comes to one dialect."""
    network: models.Network
    dialect: models.Dialect
    classes: int
    state: dict
    missing: tuple
    extra: tuple
    misshapen: tuple                # (key, its shape, the network's)

    @property
    def distance(self):
        return len(self.missing) + len(self.extra) + len(self.misshapen)


def load(path, model=None):
    """The trained network in a checkpoint file. Raises RtsegError: unreadable, holds code, or fits no network."""
    path = Path(path)
    digest = files.sha256(path)
    state = tensors(read(path), path)
    fit = choose(fits(state, model), path)
    module = fit.network.build(fit.classes, **fit.dialect.variant)
    module.load_state_dict(fit.state)
    return Trained(fit.network, fit.dialect.name, fit.classes, fit.dialect.normalisation_for(fit.classes), module.eval(),
                   {"file": str(path), "sha256": digest})


def seeded(name, classes=19, seed=0):
    """A network with random weights: for timing a network that nobody has trained yet."""
    torch = need("torch")
    network = models.find(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = network.build(classes, **network.dialects[0].variant).eval()
    return Trained(network, "seeded", classes, network.dialects[0].normalisation_for(classes), module, {"seed": seed})


def origin(artifact):
    """The trained network that an artifact was made from. Raises RtsegError where its checkpoint is not there any more."""
    parent = artifact.parent
    if "seed" in parent:
        return seeded(artifact.model, artifact.classes, parent["seed"])
    if files.sha256(parent["file"]) != parent["sha256"]:
        raise RtsegError(f"{parent['file']} is not the checkpoint that the artifact was made from", "export it again, or put the old one back")
    return load(parent["file"], artifact.model)


def read(path):
    """The object in a checkpoint file, only tensors and plain values. Raises RtsegError."""
    torch = need("torch")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except BROKEN as error:
        raise _unreadable(path, str(error)) from None


def _numpy_scalars():
    """What older training code stores beside the weights (a best score, say): values, no code."""
    import numpy as np
    return [np._core.multiarray.scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]


def _unreadable(path, reason):
    blocked = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", reason)
    if blocked:
        return RtsegError(f"{path} asks to run {blocked[1]}; a checkpoint must hold only tensors, so nothing of it was executed",
                          "where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pth')")
    if "TorchScript" in reason:
        return RtsegError(f"{path} is a TorchScript program, not a checkpoint",
                          "save the weights alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')")
    return RtsegError(f"{path} is truncated or not a PyTorch checkpoint", "compare its size with the original's; download it again")


def tensors(value, path="checkpoint"):
    """The state dict in what a training script saved, without wrappers and prefixes, in float32. Raises RtsegError."""
    torch = need("torch")
    for _ in range(DEEPEST):
        if isinstance(value, dict) and (inner := next((value[c] for c in CONTAINERS if isinstance(value.get(c), dict)), None)):
            value = inner
    state = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)} if isinstance(value, dict) else {}
    state = {k: v for k, v in state.items() if isinstance(k, str) and not k.startswith(TRAINING_ONLY)}
    while state and (prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        state = {k: v for k, v in state.items() if not k.startswith(TRAINING_ONLY)}
    if not state:
        raise RtsegError(f"{path} holds no weights", f"a state dict is looked for at the top and under {', '.join(CONTAINERS)}")
    for key, value in state.items():
        refuse_unusual(key, value, path)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def refuse_unusual(key, value, path):
    """Raise RtsegError for a tensor that is no plain, finite, floating-point weight."""
    torch = need("torch")
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise RtsegError(f"{path}: {key} is not a plain dense tensor", "save the weights before they are quantised or made sparse")
    if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
        raise RtsegError(f"{path}: {key} holds {str(value.dtype).removeprefix('torch.')}, weights are floating-point", "save the weights as they were trained")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise RtsegError(f"{path}: {key} is not finite: training diverged, or the file is damaged", "use an earlier checkpoint")
    if key.endswith("running_var") and (value < 0).any():
        raise RtsegError(f"{path}: {key} is a variance below zero: the file is damaged", "use an earlier checkpoint")


def fits(state, model=None):
    """A Fit for every dialect of every network (or of one), nearest first."""
    chosen = [models.find(model)] if model else models.networks().values()
    return sorted((fit_to(state, network, dialect) for network in chosen for dialect in network.dialects), key=lambda f: f.distance)


def fit_to(state, network, dialect):
    """Compare a state dict with what a network expects, in that dialect."""
    renamed, twice = {}, []
    for key, value in state.items():
        if not any(re.search(p, key) for p in dialect.drops):
            name = renamed_key(key, dialect)
            if name in renamed:
                twice.append(key)  # two keys for one tensor: which was trained cannot be known
            renamed[name] = value
    head = renamed.get(network.head)
    classes = head.shape[0] if head is not None and head.ndim and 0 < head.shape[0] <= MOST_CLASSES else 19
    expected = shapes(network, dialect, classes)
    found = {key: tuple(value.shape) for key, value in renamed.items()}
    return Fit(network, dialect, classes, renamed,
               missing=tuple(k for k in expected if k not in found),
               extra=(*(k for k in found if k not in expected), *twice),
               misshapen=tuple((k, found[k], expected[k]) for k in expected if k in found and found[k] != expected[k]))


def renamed_key(key, dialect):
    for pattern, replacement in dialect.renames:
        key = re.sub(pattern, replacement, key)
    return key


def shapes(network, dialect, classes):
    """Key -> shape of the network's state dict, in order; no memory is taken for the weights."""
    return _shapes(network.build, tuple(sorted(dialect.variant.items())), classes)


@cache
def _shapes(build, variant, classes):
    torch = need("torch")
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build(classes, **dict(variant)).state_dict().items()}


def choose(candidates, path="checkpoint"):
    """The one exact fit. Raises RtsegError with the nearest one's differences where there is none."""
    exact = [fit for fit in candidates if not fit.distance]
    if len(exact) > 1:
        names = " and ".join(f"{fit.network.name}/{fit.dialect.name}" for fit in exact)
        raise RtsegError(f"{path} fits {names}, whose arithmetic differs", "say which with --model")
    if exact:
        return exact[0]
    nearest = candidates[0]
    raise RtsegError(f"{path} fits no known network; the nearest is {nearest.network.name} as {nearest.dialect.source} saves it: "
                     + "; ".join(_differences(nearest)), "rtseg-deploy models lists the networks and the implementations that are known")


def _differences(fit, shown=3):
    misshapen = [f"{key} is {_shape(found)}, not {_shape(expected)}" for key, found, expected in fit.misshapen]
    for what, keys in (("missing", fit.missing), ("extra", fit.extra), ("of another shape", misshapen)):
        if keys:
            yield f"{len(keys)} {what} ({', '.join(keys[:shown])}{', …' if len(keys) > shown else ''})"


def _shape(dimensions):
    return "x".join(map(str, dimensions)) or "a scalar"
