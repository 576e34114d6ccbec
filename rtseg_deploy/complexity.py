"""How large a network is, counted on its structure: nothing is computed and no memory is taken.

Every operation that PyTorch dispatches is seen, so a count needs no list of layers and holds for a network of one's own.
"""
import math
from collections import Counter
from dataclasses import dataclass

from .errors import need

FLOAT = 4                           # bytes


@dataclass(frozen=True)
class Operation:
    """One call of PyTorch. macs: multiply-accumulates, or one for each element (and each element of a window) where it multiplies nothing."""
    name: str                       # aten's
    macs: int
    elements: int                   # of what it gives
    outputs: int                    # channels of a convolution; 0 for the rest
    bias: bool
    window: int                     # elements that a pool or a mean reads for each that it gives; 1 for the rest
    kernel: int                     # elements of a convolution's kernel; 1 for the rest


@dataclass(frozen=True)
class Call:
    """One call of PyTorch as it was dispatched; its tensors are on the meta device and hold no memory."""
    name: str                       # aten's
    where: str                      # path of the module that made it
    arguments: tuple
    result: object                  # a tensor; the first, where there are several


def calls(module, resolution):
    """(input, every Call that gives a tensor) of a module on one image of (height, width), in order."""
    torch = need("torch")
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.module_tracker import ModuleTracker

    found, tracker = [], ModuleTracker()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            first = result[0] if isinstance(result, (tuple, list)) else result
            if isinstance(first, torch.Tensor) and function.namespace == "aten":
                found.append(Call(function.__name__.partition(".")[0], max(tracker.parents, key=len), arguments, first))
            return result

    image = torch.empty(1, 3, *resolution, device="meta")
    with torch.inference_mode(), tracker, Recorder():
        module(image)
    return image, found


def titles(found):
    """A name for each Call: the module that made it, and what it is."""
    return numbered([f"{call.where.partition('.')[2]} {call.name}".strip() for call in found])


def numbered(names):
    """The names, with a number where one is there again."""
    seen = Counter()
    for name in names:
        seen[name] += 1
        yield f"{name} #{seen[name]}" if seen[name] > 1 else name


def operations(module, resolution):
    """Every Operation of a module on one image of (height, width), in order."""
    return [operation(call.name, call.arguments, call.result) for call in calls(module, resolution)[1] if call.name not in VIEWS]


# what moves no numbers, or only to other places
VIEWS = {"view", "reshape", "unsqueeze", "squeeze", "permute", "transpose", "slice", "select", "narrow", "expand", "detach", "alias", "unbind", "empty",
         "pixel_shuffle"}


def operation(name, arguments, result):
    if name == "conv2d":
        weight = arguments[1]
        bias = len(arguments) > 2 and arguments[2] is not None
        return Operation(name, result.numel() * weight[0].numel(), result.numel(), weight.shape[0], bias, 1, math.prod(weight.shape[2:]))
    if name in ("mm", "bmm", "matmul"):
        return Operation(name, result.numel() * arguments[0].shape[-1], result.numel(), 0, False, 1, 1)
    window = 1
    if "pool2d" in name and "adaptive" not in name:
        window = math.prod(arguments[1])
    if name in ("mean", "sum"):
        window = arguments[0].numel() // result.numel()
    return Operation(name, result.numel() * (4 if "bilinear" in name else window), result.numel(), 0, False, window, 1)


def complexity(network, resolution, classes=19, dialect=None):
    """What one image of (height, width) costs in a network; macs and the rest are None where the network does not take that size.

    parameters; macs: multiply-accumulates of its convolutions, bias, BatchNorm, activations and resizes not counted, as most papers do;
    all_macs: those of every operation (see Operation); weights_bytes, activation_bytes: in float32, every operation's result once.
    """
    torch = need("torch")
    with torch.device("meta"):
        module = network.module(classes, dialect).eval()
    parameters = sum(p.numel() for p in module.parameters())
    counted = {"parameters": parameters, "weights_bytes": FLOAT * parameters, "macs": None, "all_macs": None, "activation_bytes": None}
    if network.takes(resolution, dialect or network.reading):
        found = operations(module, resolution)
        counted.update(macs=sum(op.macs for op in found if op.outputs), all_macs=sum(op.macs for op in found),
                       activation_bytes=FLOAT * sum(op.elements for op in found))
    return counted


# ---- the papers' own ways of counting: what "GFLOPs" and "M parameters" mean in each (facts/counting.csv)


def convolutions(found):
    return sum(op.macs for op in found if op.outputs)


def with_elements(found):
    """Convolutions, 2 for each element of a BatchNorm, 1 for each of a ReLU, the window for each of a pool."""
    each = {"batch_norm": 2, "relu": 1}
    pools = sum(op.elements * op.window for op in found if "pool2d" in op.name)
    return convolutions(found) + pools + sum(each.get(op.name, 0) * op.elements for op in found)


def thop_0_0_22(found):
    """What PyPI's thop 0.0.22 counts of SGCPNet's official code.

    A bias is multiplied by the input channels, so a 1x1 convolution with one counts double; 4 for each element of a BatchNorm; the side
    of the window, not its area, for each element of a max pool; every element that a global mean reads. A ReLU counts by its last call
    alone, and its block calls the same one after the 1x1 and after the depthwise convolution.
    """
    total = convolutions(found)
    for before, op in zip([None, None, *found], found):
        total += op.macs // op.kernel if op.outputs and op.bias else 0
        total += 4 * op.elements if op.name == "batch_norm" else 0
        total += math.isqrt(op.window) * op.elements if "pool2d" in op.name else 0
        total += op.window * op.elements if op.name == "mean" else 0
        total += op.elements if op.name == "relu" and before and before.outputs and before.macs == before.kernel * before.elements else 0
    return total


FLOPS = {
    "10^9 MACs": lambda found: convolutions(found) / 1e9,
    "2^30 MACs": lambda found: convolutions(found) / 2**30,
    "MACs and elements": lambda found: with_elements(found) / 1e9,
    "thop 0.0.22": lambda found: thop_0_0_22(found) / 1e9,
}
PARAMETERS = {"millions": lambda count: count / 1e6, "MiB of float32": lambda count: FLOAT * count / 2**20}
