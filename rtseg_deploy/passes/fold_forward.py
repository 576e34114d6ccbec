"""A BatchNormalization into the convolutions after it.

    y = W * (s x + t) + b               s, t per input channel
      = (W s) * x + b + sum over the kernel and its input channels of W t

Exact only without padding: at a padded border the zeros would become t. Refused also where anything but a convolution uses the
result (a ReLU between does not commute with a shift), and where weights or statistics are not constants.
"""
import numpy as np
import onnx_graphsurgeon as gs

from .fold_back import not_affine, parameters, scale_and_shift, set_parameters

OPS = ("BatchNormalization",)


def why_not(bn, graph):
    """Why this BatchNormalization cannot be folded forward; empty where it can."""
    return not_to_convs(bn.outputs[0], graph) or padded(bn.outputs[0]) or not_affine(bn)


def not_to_convs(tensor, graph):
    """Why a tensor is not read only by convolutions with constant weights; empty where it is."""
    if tensor in graph.outputs or not tensor.outputs:
        return "its result is an output of the graph"
    for consumer in tensor.outputs:
        if consumer.op != "Conv":
            return f"its result goes to {consumer.op}, not to a Conv"
        if consumer.inputs[0] is not tensor or not all(isinstance(tensor, gs.Constant) for tensor in consumer.inputs[1:]):
            return f"the weights of {consumer.name} are not constants"
    return ""


def padded(tensor):
    """Which of the convolutions that read a tensor pads it, as a reason; empty where none does."""
    for consumer in tensor.outputs:
        if any(consumer.attrs.get("pads", [])) or consumer.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"{consumer.name} pads its input"
    return ""


def fold(bn):
    move(bn, bn.inputs[0], *scale_and_shift(bn))


def move(node, source, scale, shift):
    """Let the convolutions after a node read its input instead, and compute with s x + t; s and t per channel, or of one entry."""
    for conv in list(node.outputs[0].outputs):
        scale_input(conv, scale, shift)
        conv.inputs[0] = source
    node.outputs.clear()
    node.inputs.clear()


def scale_input(conv, scale, shift):
    weight, bias = parameters(conv)
    groups, width = conv.attrs.get("group", 1), weight.shape[1]
    scale, shift = np.broadcast_to(scale, groups * width), np.broadcast_to(shift, groups * width)
    # output channel o of group g reads input channels g * width to (g + 1) * width
    group = np.arange(len(weight)) // (len(weight) // groups)
    channels = group[:, None] * width + np.arange(width)
    axes = tuple(range(2, weight.ndim))
    bias = bias + (weight.sum(axes) * shift[channels]).sum(1)
    set_parameters(conv, weight * np.expand_dims(scale[channels], axes), bias)
