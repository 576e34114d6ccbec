"""Checkpoint file -> the network that was trained, or the reason why not. Nothing in the file is executed, nothing is guessed.

A file fits a dialect when, after its renames and drops, keys and shapes equal the network's exactly; the network's name, the
dialect and the number of classes follow from the fit.
"""
import pickle
import re
import struct
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import files, models
from .errors import RtsegError, need

# Training code wraps weights in these, in this order of preference, and DataParallel, Lightning and torch.compile prefix their keys
CONTAINERS = ("ema_net", "net", "state_dict", "model_state_dict", "model", "segmenter")
PREFIXES = ("module.", "model.", "_orig_mod.")
MOST_CLASSES = 10_000
IN_A_BYTE = 255                     # 255 is the label that is ignored
COUNTER = "num_batches_tracked"
HEAD = "classifier.weight"          # of every network here; its first dimension is the number of classes
DEEPEST = 10                        # wrappers within wrappers
TRAINING_ONLY = ("loss.", "criterion.")
# What torch.load raises on damaged files, found by feeding it damaged files
BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError,
          ImportError, MemoryError, struct.error)


@dataclass(frozen=True)
class Trained:
    """A network with its weights: `module` maps normalised N x 3 x H x W to logits at 1/stride."""
    network: models.Network
    dialect: models.Dialect
    classes: int
    normalisation: models.Normalisation
    module: object
    parent: dict                    # file and sha256, or seed


@dataclass(frozen=True)
class Saved:
    """What a training script saved, without its wrappers."""
    state: dict                     # key -> tensor, floating-point ones in float32
    containers: tuple               # of the state dict, outermost first
    prefixes: tuple                 # that every key had, outermost first
    kinds: dict                     # dtype as it was saved -> number of tensors
    beside: dict                    # plain values next to the state dict: epoch, best score


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
    dropped: tuple                  # keys that inference has no use for: auxiliary heads

    @property
    def distance(self):
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    @property
    def arithmetic(self):
        """What two fits that compute the same have in common."""
        return self.network.build, repr({**self.network.variant, **self.dialect.variant}), self.dialect.enlarge, self.classes

    @property
    def name(self):
        return f"{self.network.name}/{self.dialect.name}"


def load(path, model=None, dialect=None):
    """The trained network in a checkpoint file. Raises RtsegError: unreadable, holds code, or fits no network, or more than one."""
    path = Path(path)
    digest = files.sha256(path)
    saved = tensors(read(path), path)
    fit = choose(fits(saved, model, dialect), path, saved)
    module = fit.network.module(fit.classes, fit.dialect)
    module.load_state_dict(fit.state)
    return Trained(fit.network, fit.dialect, fit.classes, fit.dialect.normalisation_for(fit.classes), module.eval(),
                   {"file": str(path), "sha256": digest})


def seeded(name, classes=19, seed=0):
    """A network with random weights, in the paper's arithmetic: for timing a network that nobody has trained yet."""
    torch = need("torch")
    network = models.find(name)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = network.module(classes).eval()
    return Trained(network, network.reading, classes, network.reading.normalisation_for(classes), module, {"seed": seed})


def origin(artifact):
    """The trained network that an artifact was made from. Raises RtsegError where its checkpoint is not there any more."""
    parent = artifact.parent
    if artifact.dialect == "adopted":
        raise RtsegError(f"{artifact.model} was adopted from the ONNX file {parent['file']}: there is no PyTorch network behind it",
                         "time it with --backend onnxruntime-cpu; for another size: rtseg-deploy adopt FILE --resolution HxW")
    if "factory" in parent or "file" not in parent and "seed" not in parent:
        raise RtsegError(f"{artifact.model} was made from {parent.get('factory', 'no checkpoint')}, which a sidecar does not get to run",
                         "time it by its factory: rtseg-deploy bench package.module:factory --resolution HxW")
    if "seed" in parent:
        return seeded(artifact.model, artifact.classes, parent["seed"])
    if files.sha256(parent["file"]) != parent["sha256"]:
        raise RtsegError(f"{parent['file']} is not the checkpoint that the artifact was made from", "export it again, or put the old one back")
    return load(parent["file"], artifact.model, artifact.dialect)


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
    """The Saved state dict in what a training script saved. Raises RtsegError."""
    torch = need("torch")
    containers, prefixes, beside = [], [], {}
    for _ in range(DEEPEST):
        inner = next((c for c in CONTAINERS if isinstance(value.get(c), dict) and value[c]), None) if isinstance(value, dict) else None
        if inner is None:
            break
        beside.update({k: v for k, v in value.items() if isinstance(v, (int, float, str))})
        containers.append(inner)
        value = value[inner]
    state = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)} if isinstance(value, dict) else {}
    state = without_training({k: v for k, v in state.items() if isinstance(k, str)})
    while state and (prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)):
        prefixes.append(prefix)
        state = without_training({k.removeprefix(prefix): v for k, v in state.items()})
    if not state:
        raise nothing_in(value, path)
    kinds = Counter(str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point())
    for key, tensor in state.items():
        refuse_unusual(key, tensor, path)
    return Saved({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, tuple(containers), tuple(prefixes), dict(kinds), beside)


def without_training(state):
    return {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}


def nothing_in(value, path):
    """The error for a file without weights."""
    if isinstance(value, dict) and ({"param_groups", "optimizer", "optimizer_state_dict"} & value.keys()):
        return RtsegError(f"{path} holds an optimizer's state and no weights", "take the file that was saved beside it, with the network's state dict")
    return RtsegError(f"{path} holds no weights", f"a state dict is looked for at the top and under {', '.join(CONTAINERS)}")


def refuse_unusual(key, value, path):
    """Raise RtsegError for a tensor that is no plain, finite, floating-point weight."""
    torch = need("torch")
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise RtsegError(f"{path}: {key} is not a plain dense tensor", "save the weights before they are quantised or made sparse")
    if not value.is_floating_point() and not key.endswith(COUNTER):
        raise RtsegError(f"{path}: {key} holds {str(value.dtype).removeprefix('torch.')}, weights are floating-point", "save the weights as they were trained")
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise RtsegError(f"{path}: {key} is not finite: training diverged, or the file is damaged", "use an earlier checkpoint")
    if key.endswith("running_var") and (value < 0).any():
        raise RtsegError(f"{path}: {key} is a variance below zero: the file is damaged", "use an earlier checkpoint")


def fits(saved, model=None, dialect=None):
    """A Fit for every dialect of every network (or of those that are named), nearest first. Raises RtsegError for an unknown name."""
    chosen = [models.find(model)] if model else list(models.networks().values())
    pairs = [(network, d) for network in chosen for d in network.dialects if d.name == dialect or dialect is None and not d.asked]
    if not pairs and chosen[0].dialects:
        names = dict.fromkeys(d.name for network in chosen for d in network.dialects)
        raise RtsegError(f"no dialect of {model or 'any network'} is called {dialect!r}", f"the known ones: {', '.join(names)}")
    if not pairs:
        raise RtsegError(f"no public weights of {model} are known", "leave --model out, or load your own with --model package.module:factory")
    if dialect is None:
        pairs = [pair for pair in pairs if could_be(saved, pair[1])]
    return sorted((fit_to(saved, *pair, lenient=dialect is not None) for pair in pairs), key=lambda f: f.distance)


def could_be(saved, dialect):
    """Whether a dialect saves files wrapped like this one."""
    return not (dialect.bare and "model." in saved.prefixes) and (not dialect.beside or dialect.beside in saved.beside)


def fit_to(saved, network, dialect, lenient=False):
    """Compare a state dict with what a network expects, in that dialect. lenient: BatchNorm's counters, which inference ignores, may be missing."""
    renamed, twice, dropped = {}, [], []
    for key, value in saved.state.items():
        if any(re.search(p, key) for p in dialect.drops):
            dropped.append(key)
            continue
        name = renamed_key(key, dialect)
        if name in renamed:
            twice.append(key)  # two keys for one tensor: which was trained cannot be known
        renamed[name] = value
    classes, heads = classes_in(saved.state, renamed, dialect)
    expected = shapes(network, dialect, classes)
    if lenient:
        torch = need("torch")
        renamed = {**{key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(COUNTER)}, **renamed}
    found = {key: tuple(value.shape) for key, value in renamed.items()}
    misshapen = [(k, found[k], expected[k]) for k in expected if k in found and found[k] != expected[k]]
    return Fit(network, dialect, classes, renamed,
               missing=tuple(k for k in expected if k not in found),
               extra=(*(k for k in found if k not in expected), *twice), misshapen=(*misshapen, *heads), dropped=tuple(dropped))


def classes_in(state, renamed, dialect):
    """(number of classes, heads that contradict it as in Fit.misshapen), by the first dimension of the heads; 19 where there is no head."""
    rows = dialect.rows or {HEAD: 1}
    heads = {key: (state if dialect.rows else renamed).get(key) for key in rows}
    heads = {key: value for key, value in heads.items() if value is not None and value.ndim}
    if not heads:
        return 19, ()
    first = next(iter(heads))
    classes = heads[first].shape[0] // rows[first]
    if not 0 < classes <= MOST_CLASSES:
        return 19, ()
    wrong = [(key, tuple(value.shape), (classes * rows[key], *value.shape[1:])) for key, value in heads.items() if value.shape[0] != classes * rows[key]]
    return classes, tuple(wrong)


def renamed_key(key, dialect):
    for pattern, replacement in dialect.renames:
        key = re.sub(pattern, replacement, key)
    return key


def shapes(network, dialect, classes):
    """Key -> shape of the network's state dict, in order; no memory is taken for the weights."""
    return _shapes(network.name, dialect.name, classes)


@cache
def _shapes(network, dialect, classes):
    torch = need("torch")
    network = models.find(network)
    dialect = next(d for d in (*network.dialects, network.reading) if d.name == dialect)
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in network.module(classes, dialect).state_dict().items()}


def choose(candidates, path="checkpoint", saved=None):
    """The one exact fit. Raises RtsegError with the nearest one's differences where there is none, or with the question that settles it."""
    exact = [fit for fit in candidates if not fit.distance]
    exact = [fit for fit in exact if fit.classes <= IN_A_BYTE] or exact  # rows of a head that is shuffled to pixels read as classes of one that is not
    if len({fit.arithmetic for fit in exact}) > 1:
        names = " and ".join(f"{fit.name} ({fit.classes} classes)" for fit in exact)
        sources = " or with ".join(fit.dialect.source.partition("@")[0] for fit in exact)
        raise RtsegError(f"{path} fits {names}, whose arithmetic differs: was it trained with {sources}?",
                         "say which: " + " or ".join(f"--dialect {fit.dialect.name}" for fit in exact))
    if exact:
        return exact[0]
    for row in models.lookalikes():
        if saved and any(re.search(row.key, key) for key in saved.state):
            raise RtsegError(f"{path} is {row.what}", row.fix)
    nearest = candidates[0]
    if nearest.missing and not nearest.extra and not nearest.misshapen and all(key.endswith(COUNTER) for key in nearest.missing):
        raise RtsegError(f"{path} fits {nearest.name} but for BatchNorm's counters: a PyTorch before 0.4.1 saved it, or InPlaceABN, whose activation is another",
                         f"if it was trained with plain BatchNorm and ReLU: --dialect {nearest.dialect.name}")
    raise RtsegError(f"{path} fits no known network; the nearest is {nearest.network.name} as {nearest.dialect.source} saves it: "
                     + "; ".join(differences(nearest)), "rtseg-deploy models --dialects lists the implementations that are known")


def differences(fit, shown=3):
    """What keeps a fit from being exact, in words."""
    misshapen = [f"{key} is {_shape(found)}, not {_shape(expected)}" for key, found, expected in fit.misshapen]
    for what, keys in (("missing", fit.missing), ("extra", fit.extra), ("of another shape", misshapen)):
        if keys:
            yield f"{len(keys)} {what} ({', '.join(keys[:shown])}{', …' if len(keys) > shown else ''})"


def _shape(dimensions):
    return "x".join(map(str, dimensions)) or "a scalar"
