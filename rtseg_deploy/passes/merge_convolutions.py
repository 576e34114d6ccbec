"""A convolution 1x1 into the convolutions that read it, where nothing lies between and the sum costs fewer multiply-accumulates.

    y = W2 * (W1 x + b1) + b2 = (W2 W1) * x + b2 + sum over the kernel and its input channels of W2 b1

Exact for readers of any kernel, stride, padding and group count, except that at a padded border a zero would have to become b1: refused
where a reader pads its input and b1 is not zero. What read the channels of one group reads all channels of x afterwards. Refused where
anything but a convolution reads the result, for then both would be computed. Computed in float64, rounded once.
"""
import math

import numpy as np
import onnx_graphsurgeon as gs

from . import cost
from .fold_back import parameters, set_parameters
from .fold_forward import not_to_convs, padded

OPS = ("Conv",)


def why_not(conv, graph):
    """Why this convolution does not go into those that read it; empty where it does."""
    result = conv.outputs[0]
    reason = not_pointwise(conv) or not_to_convs(result, graph)
    if reason:
        return reason
    if conv.attrs.get("group", 1) != 1:
        return "it has groups"
    if parameters(conv)[1].any() and padded(result):
        return f"{padded(result)}, and its zeros at the border would become the bias"
    return "" if cheaper(conv, result.outputs) else "merged they would cost as much or more"


def not_pointwise(conv):
    """Why a convolution is none with constant weights that computes each pixel from the same pixel alone; empty where it is."""
    if not_exact(conv):
        return not_exact(conv)
    if any(side != 1 for side in conv.inputs[1].shape[2:]):
        return "its kernel is larger than 1"
    if any(step != 1 for step in conv.attrs.get("strides", [])):
        return "it has a stride"
    return "it pads its input" if any(conv.attrs.get("pads", [])) else ""


def not_exact(conv):
    """Why a convolution's weights cannot be computed with; empty where they can."""
    if not all(isinstance(tensor, gs.Constant) for tensor in conv.inputs[1:]):
        return "its weights are not constants"
    return "" if conv.inputs[1].values.dtype in (np.float32, np.float64) else "its weights are in half precision: sums of them may not be"


def cheaper(conv, readers):
    if not all(cost.elements(reader.outputs[0]) for reader in readers):  # of a size that is not known
        return False
    inputs = conv.inputs[1].shape[1]
    merged = sum(cost.elements(reader.outputs[0]) * inputs * math.prod(reader.inputs[1].shape[2:]) for reader in readers)
    return merged < sum(map(cost.macs, (conv, *readers)))


def fold(conv):
    first, bias = parameters(conv)
    for reader in list(conv.outputs[0].outputs):
        weight, own = parameters(reader)
        groups = reader.attrs.get("group", 1)
        channels = first.reshape(groups, -1, first.shape[1])                                        # group, of its channels, inputs
        outputs = weight.reshape(groups, len(weight) // groups, weight.shape[1], *weight.shape[2:])   # group, of its results, of its channels, kernel
        merged = np.einsum("goc...,gci->goi...", outputs, channels).reshape(len(weight), first.shape[1], *weight.shape[2:])
        shift = np.einsum("goc,gc->go", outputs.sum(tuple(range(3, outputs.ndim))), bias.reshape(groups, -1)).ravel()
        set_parameters(reader, merged, own + shift)
        reader.attrs["group"] = 1
        reader.inputs[0] = conv.inputs[0]
    conv.outputs.clear()
    conv.inputs.clear()
