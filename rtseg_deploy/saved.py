"""Checkpoint file -> the state dict in it, without what training code wraps around it. Nothing in the file is executed."""
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import limits
from .errors import RtsegError, need

# Training code wraps weights in these, in this order of preference, and DataParallel, Lightning and torch.compile prefix their keys
CONTAINERS = ("ema_net", "net", "state_dict", "model_state_dict", "model_state", "model", "segmenter")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
COUNTER = "num_batches_tracked"
PICKLES = 5                         # of a file before PyTorch 1.6: a magic number, a version, the machine, the object, the keys of its storages
DEEPEST = 10                        # wrappers within wrappers
TRAINING_ONLY = ("loss.", "loss_fn.", "ce_loss.", "criterion.", "n_averaged")
# What torch.load raises on damaged files, found by feeding it damaged files
BROKEN = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError,
          ImportError, MemoryError, struct.error)


@dataclass(frozen=True)
class Saved:
    """What a training script saved, without its wrappers."""
    state: dict                     # key -> tensor, floating-point ones in float32
    containers: tuple               # of the state dict, outermost first
    prefixes: tuple                 # that every key had, outermost first
    kinds: dict                     # dtype as it was saved -> number of tensors
    beside: dict                    # plain values next to the state dict: epoch, best score


def read(path):
    """The object in a checkpoint file, only tensors and plain values. Raises RtsegError."""
    torch = need("torch")
    refuse_large(path)
    if is_safetensors(path):
        return read_safetensors(path)
    refuse_long(path)
    try:
        with limits.memory(path), torch.serialization.safe_globals(_values()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except BROKEN as error:
        raise _unreadable(path, str(error)) from None


def refuse_large(path):
    """Raise RtsegError where a file, or what is packed in it, takes more memory than weights do: PyTorch unpacks whatever it finds."""
    try:
        size, members = os.stat(path).st_size, 0
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = len(archive.infolist())
                size = max(size, sum(one.file_size for one in archive.infolist()))
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror or 'cannot be read'}") from None
    except (zipfile.BadZipFile, NotImplementedError, *BROKEN) as error:
        raise _unreadable(path, str(error)) from None
    if size > limits.CHECKPOINT_BYTES or members > limits.CHECKPOINT_MEMBERS:
        limits.refuse(path, f"holds more than {limits.amount(limits.CHECKPOINT_BYTES)} or {limits.CHECKPOINT_MEMBERS:,} parts",
                      "save the weights alone: torch.save(model.state_dict(), 'weights.pth')")


def refuse_long(path):
    """Raise RtsegError where a pickle has more steps than weights need, or a name whose refusal PyTorch words by expressions that take cubic time."""
    steps = 0
    try:
        with limits.memory(path), opened(path) as files:
            for step, value, _ in (one for file in files for one in pickletools.genops(file)):
                steps += 1
                if steps > limits.PICKLE_STEPS or step.name == "GLOBAL" and len(value) > limits.PICKLE_NAME:
                    limits.refuse(path, f"has more than {limits.PICKLE_STEPS:,} steps or {limits.PICKLE_NAME} letters of a name in its pickle")
    except (OSError, zipfile.BadZipFile, zlib.error, *BROKEN) as error:
        raise _unreadable(path, str(error)) from None


@contextmanager
def opened(path):
    """A block with the open file of each pickle that PyTorch reads: those in an archive, or one after another at the beginning of the file.

    By its first bytes, as PyTorch decides it: a file may be an archive by its end alone.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.peek(4)[:4] == b"PK\3\4":
            archive = stack.enter_context(zipfile.ZipFile(file))
            yield (stack.enter_context(archive.open(one)) for one in archive.infolist()
                   if one.filename.endswith("data.pkl") and one.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        else:
            yield (file for _ in range(PICKLES) if file.peek(1))


def is_safetensors(path):
    """By its name, or by its beginning: the length of a JSON object, and the object."""
    if Path(path).suffix == ".safetensors":
        return True
    try:
        with open(path, "rb") as file:
            return file.read(10)[8:10] == b'{"'
    except OSError:
        return False


def read_safetensors(path):
    library, loader = need("safetensors"), need("safetensors.torch")
    try:
        return loader.load_file(path)
    except (library.SafetensorError, OSError, *BROKEN) as error:
        raise _unreadable(path, str(error)) from None


class Beside:
    """Stands for an object that a training script saved beside its weights; nothing of the object's own class is loaded or run."""

    def __init__(self, *arguments, **keywords):
        pass

    def __setstate__(self, state):
        pass


class Kind(Beside):
    """Stands for numpy's dtype: its name, such as f8. numpy's own takes flags from the file, with which bytes become addresses."""

    def __init__(self, name, *_):
        self.name = name


def number(kind, data):
    """The number of numpy's that was saved as a kind and bytes: a best score, an epoch. Raises ValueError for anything else."""
    import numpy as np

    if not isinstance(kind, Kind) or kind.name not in NUMBERS:
        raise ValueError("no number of numpy's")
    value, = np.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), kind.name)
    return value


NUMBERS = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")
# of argument parsers, mmengine's log of losses, and folders; numpy's arrays are never weights here
TRAINING_OBJECTS = ("argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer", "numpy.ndarray",
                    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
                    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")))


def _values():
    """What training code stores beside the weights, a best score or a log: stand-ins, none of which runs anything or takes what the file asks for.

    numpy 2 renamed the module that its scalars and arrays name.
    """
    return [(Kind, "numpy.dtype"), *((number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
            *((Beside, name) for name in TRAINING_OBJECTS)]


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
        others = {k: plain(v) for k, v in value.items() if not isinstance(v, torch.Tensor)}
        beside.update({k: v for k, v in others.items() if isinstance(v, (int, float, str))})
        containers.append(inner)
        value = value[inner]
    state = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)} if isinstance(value, dict) else {}
    state = without_training({k: v for k, v in state.items() if isinstance(k, str)})
    while state and (prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)):
        prefixes.append(prefix)
        state = without_training({k.removeprefix(prefix): v for k, v in state.items()})
    if not state:
        raise nothing_in(value, path)
    if 4 * sum(v.numel() for v in state.values()) > limits.CHECKPOINT_BYTES:
        limits.refuse(path, f"has weights of more than {limits.amount(limits.CHECKPOINT_BYTES)}")
    kinds = Counter(str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point())
    for key, tensor in state.items():
        refuse_unusual(key, tensor, path)
    return Saved({k: v.float() if v.is_floating_point() else v for k, v in state.items()}, tuple(containers), tuple(prefixes), dict(kinds), beside)


def plain(value):
    """Python's number for numpy's."""
    return value.tolist() if hasattr(value, "tolist") else value


def without_training(state):
    return {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}


def nothing_in(value, path):
    """The error for a file without weights."""
    if isinstance(value, dict) and ({"param_groups", "optimizer", "optimizer_state_dict"} & value.keys()):
        return RtsegError(f"{path} holds an optimizer's state and no weights", "take the file that was saved beside it, with the network's state dict")
    inner = [str(k) for k, v in (value.items() if isinstance(value, dict) else ())
             if isinstance(v, dict) and any(hasattr(w, "is_floating_point") for w in v.values())]
    if inner:
        return RtsegError(f"{path} has no weights where they are looked for, and tensors under {', '.join(inner)}", "save the right one of these alone")
    return RtsegError(f"{path} holds no weights", f"a state dict is looked for at the top and under {', '.join(CONTAINERS)}")


def refuse_unusual(key, value, path):
    """Raise RtsegError for a tensor that is no plain, finite, floating-point weight."""
    torch = need("torch")
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise RtsegError(f"{path}: {key} is not a plain dense tensor", "save the weights before they are quantised or made sparse")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():     # one number can stand for any size, until it is computed with
        raise RtsegError(f"{path}: {key} is larger than what is stored of it", "save the weights as they were trained")
    if not value.is_floating_point() and not key.endswith(COUNTER):
        raise RtsegError(f"{path}: {key} holds {str(value.dtype).removeprefix('torch.')}, weights are floating-point", "save the weights as they were trained")
    if value.is_floating_point() and not torch.isfinite(value.float()).all():
        raise RtsegError(f"{path}: {key} is not finite: training diverged, or the file is damaged", "use an earlier checkpoint")
    if key.endswith("running_var") and (value < 0).any():
        raise RtsegError(f"{path}: {key} is a variance below zero: the file is damaged", "use an earlier checkpoint")
