"""A BatchNormalization into the convolutions after it.

    y = W * (s x + t) + b               s, t per input channel
      = (W s) * x + b + sum over the kernel and its input channels of W t

Exact only without padding: at a padded border the zeros would become t. Refused also where anything but a convolution uses the
result (a ReLU between does not commute with a shift), and where weights or statistics are not constants.
"""
import numpy as np
import onnx_graphsurgeon as gs

from .fold_back import not_affine, scale_and_shift, set_parameters


def why_not(bn, graph):
    """Why this BatchNormalization cannot be folded forward; empty where it can."""
    result = bn.outputs[0]
    if result in graph.outputs or not result.outputs:
        return "its result is an output of the graph"
    for consumer in result.outputs:
        if consumer.op != "Conv":
            return f"its result goes to {consumer.op}, not to a Conv"
        if any(consumer.attrs.get("pads", [])) or consumer.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"{consumer.name} pads its input"
        if consumer.inputs[0] is not result or not all(isinstance(tensor, gs.Constant) for tensor in consumer.inputs[1:]):
            return f"the weights of {consumer.name} are not constants"
    return not_affine(bn)


def fold(bn):
    scale, shift = scale_and_shift(bn)
    source = bn.inputs[0]
    for conv in list(bn.outputs[0].outputs):
        weight = conv.inputs[1].values.astype(np.float64)
        bias = conv.inputs[2].values.astype(np.float64) if len(conv.inputs) > 2 else np.zeros(len(weight))
        groups = conv.attrs.get("group", 1)
        # output channel o of group g reads input channels g * width to (g + 1) * width
        width = weight.shape[1]
        group = np.arange(len(weight)) // (len(weight) // groups)
        channels = group[:, None] * width + np.arange(width)
        axes = tuple(range(2, weight.ndim))
        bias = bias + (weight.sum(axes) * shift[channels]).sum(1)
        set_parameters(conv, weight * np.expand_dims(scale[channels], axes), bias)
        conv.inputs[0] = source
    bn.outputs.clear()
    bn.inputs.clear()
