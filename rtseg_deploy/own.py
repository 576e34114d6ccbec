"""A network of one's own: `package.module:factory`, a function that returns an nn.Module from N x 3 x H x W to logits.

Its code is run, so it is named on the command line and never taken from a file.
"""
import os
import re
import sys
from importlib import import_module

from . import checkpoints, files, models, saved
from .errors import RtsegError, first_line, need

NORMALISATIONS = {"imagenet": models.IMAGENET, "cityscapes": models.CITYSCAPES, "coco": models.COCO, "ade20k": models.ADE20K,
                  "none": models.Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


# what someone else's code may raise while it is imported or called
THEIR_FAULTS = (Exception, SystemExit)


def is_own(name):
    """Whether a name means a factory, and not a network of the registry."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name or "") is not None


def load(spec, checkpoint=None, normalisation="imagenet", folder=None):
    """The Trained network that a factory makes, with a checkpoint's weights where one is given.

    folder: where its package is looked for first; the current one if not given. Raises RtsegError.
    """
    torch = need("torch")
    module = made(spec, folder or os.getcwd())
    parent = {"factory": spec}
    if checkpoint:
        parent.update(file=str(checkpoint), sha256=files.sha256(checkpoint))
        fill(module, saved.tensors(saved.read(checkpoint), checkpoint), checkpoint, spec)
    module = module.eval().float()
    network = models.Network(spec.replace(":", "."), "a network of one's own", type(module))
    dialect = models.Dialect("own", "its own code", NORMALISATIONS[normalisation])
    with torch.inference_mode():
        classes = classes_of(module, torch, spec)
    return checkpoints.Trained(network, dialect, classes, dialect.normalisation, module, parent)


def made(spec, folder):
    """The module that a factory returns. Raises RtsegError where there is none."""
    torch = need("torch")
    name, _, factory = spec.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        package = import_module(name)
    except ModuleNotFoundError as error:
        raise RtsegError(f"{spec}: there is no module {error.name!r}", f"{folder} and Python's path were searched; run it where the package lies") from None
    except THEIR_FAULTS as error:
        raise RtsegError(f"{name} cannot be imported: {type(error).__name__}: {first_line(error)}", "RTSEG_DEBUG=1 shows where") from error
    if not callable(function := getattr(package, factory, None)):
        raise RtsegError(f"{spec}: {name} has no function {factory}", "name one that returns an nn.Module")
    try:
        module = function()
    except THEIR_FAULTS as error:
        raise RtsegError(f"{spec} fails: {type(error).__name__}: {first_line(error)}", "it is called without arguments; RTSEG_DEBUG=1 shows where") from error
    if not isinstance(module, torch.nn.Module):
        raise RtsegError(f"{spec} returns a {type(module).__name__}, not an nn.Module", "return the network, built and ready for its weights")
    return module


def fill(module, held, checkpoint, spec):
    """Load a Saved state dict, exactly. Raises RtsegError with the differences."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    prefixes = ["".join(held.prefixes[n:]) for n in range(len(held.prefixes), -1, -1)]  # of those taken off, some may be the network's own
    state = next((named for prefix in prefixes if (named := {prefix + key: value for key, value in held.state.items()}).keys() == expected.keys()), held.state)
    found = {key: tuple(value.shape) for key, value in state.items()}
    wrong = {key for key in expected.keys() & found.keys() if expected[key] != found[key]}
    for what, keys in (("missing", expected.keys() - found.keys()), ("extra", found.keys() - expected.keys()), ("of another shape", wrong)):
        if keys:
            raise RtsegError(f"{checkpoint} is no checkpoint of {spec}: {len(keys)} keys {what}, such as {min(keys)}",
                             "give the factory the arguments it was trained with")
    module.load_state_dict(state)


def classes_of(module, torch, spec):
    """How many classes a network tells apart, asked with a small image."""
    try:
        result = module(torch.zeros(1, 3, 256, 256))
    except THEIR_FAULTS as error:
        raise RtsegError(f"{spec} cannot take 1x3x256x256: {first_line(error)}", "it is to map N x 3 x H x W to logits; RTSEG_DEBUG=1 shows where") from error
    if not isinstance(result, torch.Tensor) or result.ndim != 4:
        raise RtsegError(f"{spec} gives a {type(result).__name__}, not one tensor N x classes x h x w", "return the main logits alone in evaluation mode")
    return result.shape[1]
