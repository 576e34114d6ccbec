"""How large a network is, counted on its structure: nothing is computed and no memory is taken.

Every operation that PyTorch dispatches is seen, so a count needs no list of layers and holds for a network of one's own.
"""
import math
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
    window: int                     # elements that a pool reads for each that it gives; 1 for the rest


def operations(module, resolution):
    """Every Operation of a module on one image of (height, width), in order."""
    torch = need("torch")
    from torch.utils._python_dispatch import TorchDispatchMode

    found = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            first = result[0] if isinstance(result, (tuple, list)) else result
            if isinstance(first, torch.Tensor) and function.namespace == "aten":
                found.append(operation(function.__name__.partition(".")[0], arguments, first))
            return result

    with torch.inference_mode(), Recorder():
        module(torch.empty(1, 3, *resolution, device="meta"))
    return [row for row in found if row.name not in VIEWS]


VIEWS = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "slice", "select", "expand", "detach", "alias", "t", "unbind",
         "empty", "empty_like", "_to_copy", "as_strided", "pixel_shuffle", "lift_fresh"}


def operation(name, arguments, result):
    if name == "conv2d":
        weight = arguments[1]
        return Operation(name, result.numel() * weight[0].numel(), result.numel(), weight.shape[0], len(arguments) > 2 and arguments[2] is not None, 1)
    if name in ("mm", "bmm", "matmul"):
        return Operation(name, result.numel() * arguments[0].shape[-1], result.numel(), 0, False, 1)
    window = 1
    if "pool2d" in name and "adaptive" not in name:
        window = math.prod(arguments[1])
    if name in ("mean", "sum"):
        window = arguments[0].numel() // result.numel()
    return Operation(name, result.numel() * (4 if "bilinear" in name else window), result.numel(), 0, False, window)


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


# ---- the papers' own ways of counting, where "FLOPs" or "parameters" mean something else


def gigamacs(module, resolution):
    """10^9 multiply-accumulates of convolutions (DDRNet, BiSeNet V1's Table 1)."""
    return sum(op.macs for op in operations(module, resolution) if op.outputs) / 1e9


def gibimacs(module, resolution):
    """The same in units of 2^30 (BiSeNet V1's Table 4)."""
    return gigamacs(module, resolution) * 1e9 / 2**30


def elementwise(module, resolution):
    """Convolutions, 2 for each element of a BatchNorm, 1 for each of a ReLU, the window for each of a pool (BiSeNet V2)."""
    found = operations(module, resolution)
    other = sum({"batch_norm": 2, "relu": 1}.get(op.name, 0) * op.elements for op in found)
    pools = sum(op.elements * op.window for op in found if "pool2d" in op.name)
    return gigamacs(module, resolution) + (other + pools) / 1e9


def classifier(module, resolution):
    """Convolutions, the classifier, and 2 for each element of a BatchNorm (DDRNet on ImageNet)."""
    found = operations(module, resolution)
    return (sum(op.macs for op in found if op.outputs) + 2 * sum(op.elements for op in found if op.name == "batch_norm")) / 1e9
