"""A network of one's own: `package.module:factory`, a function that returns an nn.Module from N x 3 x H x W to logits.

Its code is run, so it is named on the command line and never taken from a file.
"""
import os
import re
import sys
from importlib import import_module

from . import checkpoints, files, models, saved
from .errors import RtsegError, need

NORMALISATIONS = {"imagenet": models.IMAGENET, "cityscapes": models.CITYSCAPES, "coco": models.COCO, "ade20k": models.ADE20K,
                  "none": models.Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


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
        fill(module, saved.tensors(saved.read(checkpoint), checkpoint).state, checkpoint, spec)
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
        function = getattr(import_module(name), factory)
    except ModuleNotFoundError as error:
        raise RtsegError(f"{spec}: there is no module {error.name!r}", f"{folder} and Python's path were searched; run it where the package lies") from None
    except AttributeError:
        raise RtsegError(f"{spec}: {name} has no {factory}", "name a function that returns an nn.Module") from None
    module = function()
    if not isinstance(module, torch.nn.Module):
        raise RtsegError(f"{spec} returns a {type(module).__name__}, not an nn.Module", "return the network, built and ready for its weights")
    return module


def fill(module, state, checkpoint, spec):
    """Load a state dict, exactly. Raises RtsegError with the differences."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
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
    except RuntimeError as error:
        raise RtsegError(f"{spec} cannot take 1x3x256x256: {str(error).splitlines()[0]}") from None
    if not isinstance(result, torch.Tensor) or result.ndim != 4:
        raise RtsegError(f"{spec} gives a {type(result).__name__}, not one tensor N x classes x h x w", "return the main logits alone in evaluation mode")
    return result.shape[1]
