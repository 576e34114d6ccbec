"""Checkpoint file -> the network that was trained, or the reason why not. Nothing is guessed.

A file fits a dialect when, after its renames and drops, keys and shapes equal the network's exactly; the network's name, the
dialect and the number of classes follow from the fit.
"""
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import files, limits, models
from .errors import RtsegError, need
from .saved import COUNTER, read, tensors

MOST_CLASSES = limits.CLASSES
IN_A_BYTE = 255                     # 255 is the label that is ignored
HEAD = "classifier.weight"          # of every network here; its first dimension is the number of classes


@dataclass(frozen=True)
class Trained:
    """A network with its weights: `module` maps normalised N x 3 x H x W to logits at 1/stride."""
    network: models.Network
    dialect: models.Dialect
    classes: int
    normalisation: models.Normalisation
    module: object
    parent: dict                    # file and sha256, or seed
    otherwise: tuple = ()           # dialects of the same keys and another arithmetic, that are taken only when asked for


@dataclass(frozen=True)
class Fit:
    """How near a state dict comes to one dialect."""
    network: models.Network
    dialect: models.Dialect
    classes: int
    state: dict
    missing: tuple
    extra: tuple
    misshapen: tuple                # (key, its shape, the network's); missing keys are ours, the others the file's
    dropped: tuple                  # keys that inference has no use for: auxiliary heads

    @property
    def distance(self):
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    @property
    def common(self):
        """How many tensors are where and as they should be."""
        return len(self.state) - len(self.extra) - len(self.misshapen)

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
                   {"file": str(path), "sha256": digest}, () if dialect else otherwise(fit))


def otherwise(fit):
    """Names of the dialects of the same implementation and keys that are considered only when asked for."""
    def owner(d):
        return d.source.partition("@")[0]
    return tuple(d.name for d in fit.network.dialects if d.asked and d.renames == fit.dialect.renames and owner(d) == owner(fit.dialect))


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
    if not os.path.isfile(parent["file"]):      # what a sidecar names may also be a pipe, or a device without end
        raise RtsegError(f"{parent['file']}: no such file", "export it again, or put the checkpoint back")
    if files.sha256(parent["file"]) != parent["sha256"]:
        raise RtsegError(f"{parent['file']} is not the checkpoint that the artifact was made from", "export it again, or put the old one back")
    return load(parent["file"], artifact.model, artifact.dialect)


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
    return sorted((fit_to(saved, *pair, lenient=dialect is not None) for pair in pairs),
                  key=lambda f: (f.distance > 0, f.distance - f.common))


def could_be(saved, dialect):
    """Whether a dialect saves files wrapped like this one."""
    prefixed = "model." in saved.prefixes and "pytorch-lightning_version" not in saved.beside  # Lightning puts it before any network's keys
    return not (dialect.bare and prefixed) and (not dialect.beside or dialect.beside in saved.beside)


def fit_to(saved, network, dialect, lenient=False):
    """Compare a state dict with what a network expects, in that dialect. lenient: BatchNorm's counters, which inference ignores, may be missing."""
    renamed, theirs, twice, dropped = {}, {}, [], []
    for key, value in saved.state.items():
        if any(re.search(p, key) for p in dialect.drops):
            dropped.append(key)
            continue
        name = renamed_key(key, dialect)
        if name in renamed:
            twice.append(key)  # two keys for one tensor: which was trained cannot be known
        renamed[name], theirs[name] = value, key
    classes, heads = classes_in(saved.state, renamed, dialect)
    expected = shapes(network, dialect, classes)
    if lenient:
        torch = need("torch")
        renamed = {**{key: torch.zeros((), dtype=torch.int64) for key in expected if key.endswith(COUNTER)}, **renamed}
    found = {key: tuple(value.shape) for key, value in renamed.items()}
    misshapen = [(theirs[k], found[k], expected[k]) for k in expected if k in found and found[k] != expected[k]]
    return Fit(network, dialect, classes, renamed,
               missing=tuple(k for k in expected if k not in found),
               extra=(*(theirs[k] for k in found if k not in expected), *twice), misshapen=(*misshapen, *heads), dropped=tuple(dropped))


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
    if nearest.common <= 0 and len({fit.network.name for fit in candidates}) > 1:
        some = next(iter(saved.state)) if saved else ""
        raise RtsegError(f"{path} shares no tensor with any known network; its first key is {some}", "a network of your own: --model package.module:factory")
    if nearest.missing and not nearest.extra and not nearest.misshapen and all(key.endswith(COUNTER) for key in nearest.missing):
        raise RtsegError(f"{path} fits {nearest.name} but for BatchNorm's counters: PyTorch before 0.4.1 saved it, or InPlaceABN, whose activation is another",
                         f"if it was trained with plain BatchNorm and ReLU: --dialect {nearest.dialect.name}")
    raise RtsegError(f"{path} fits no known network; the nearest is {nearest.network.name} as {nearest.dialect.source} saves it: "
                     + "; ".join(differences(nearest)), "rtseg-deploy models --dialects lists the implementations that are known")


def differences(fit, shown=3):
    """What keeps a fit from being exact, in words."""
    misshapen = [f"{key} is {_shape(found)}, not {_shape(expected)}" for key, found, expected in fit.misshapen]
    for what, keys in (("missing (here called ", fit.missing), ("extra (", fit.extra), ("of another shape (", misshapen)):
        if keys:
            yield f"{len(keys)} {what}{', '.join(keys[:shown])}{', …' if len(keys) > shown else ''})"


def _shape(dimensions):
    return "x".join(map(str, dimensions)) or "a scalar"
