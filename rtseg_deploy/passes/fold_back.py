"""A BatchNormalization into the convolution before it.

    y = s (W * x + b - mean) + beta     with s = gamma / sqrt(var + eps), per output channel
      = (s W) * x + s (b - mean) + beta

Exact for any kernel, stride, padding and group count. Refused where the convolution's result is also used elsewhere (that use
would see the folded one), and where weights or statistics are not constants. Computed in float64, rounded once.
"""
import numpy as np
import onnx_graphsurgeon as gs

OPS = ("BatchNormalization",)


def why_not(bn, graph):
    """Why this BatchNormalization cannot be folded back; empty where it can."""
    return not_from_conv(bn.inputs[0], graph) or not_affine(bn)


def not_from_conv(tensor, graph):
    """Why a tensor is not the result, used once, of a convolution with constant weights; empty where it is."""
    producer = next(iter(tensor.inputs), None)
    if producer is None or producer.op != "Conv":
        return f"its input comes from {producer.op if producer else 'the input of the graph'}, not from a Conv"
    if used_elsewhere(tensor, graph):
        return f"{producer.name} is used elsewhere too"
    if not all(isinstance(tensor, gs.Constant) for tensor in producer.inputs[1:]):
        return f"the weights of {producer.name} are not constants"
    return ""


def used_elsewhere(tensor, graph):
    """Whether anything but one node reads a tensor."""
    return len(tensor.outputs) > 1 or tensor in graph.outputs


def not_affine(bn):
    """Why a BatchNormalization is no fixed scale and shift; empty where it is one."""
    if not all(isinstance(tensor, gs.Constant) for tensor in bn.inputs[1:]):
        return "its statistics are not constants"
    if bn.attrs.get("training_mode") or len(bn.outputs) > 1:
        return "it computes its statistics from the batch"
    return ""


def scale_and_shift(bn):
    """(s, t) in float64 with BatchNormalization(x) = s x + t, per channel."""
    gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in bn.inputs[1:])
    scale = gamma / np.sqrt(variance + bn.attrs.get("epsilon", 1e-5))
    return scale, beta - mean * scale


def fold(bn):
    scale, shift = scale_and_shift(bn)
    conv = bn.inputs[0].inputs[0]
    conv.outputs = bn.outputs
    bn.outputs.clear()
    bn.inputs.clear()
    scale_result(conv, scale, shift)


def scale_result(conv, scale, shift):
    """Let a convolution give s y + t where it gave y; s and t per output channel, or of one entry."""
    weight, bias = parameters(conv)
    set_parameters(conv, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift)


def parameters(conv):
    """(weight, bias) of a convolution in float64; zeros where it has no bias."""
    weight, *bias = (tensor.values.astype(np.float64) for tensor in conv.inputs[1:])
    return weight, bias[0] if bias else np.zeros(len(weight))


def set_parameters(conv, weight, bias):
    """Give a convolution parameters of its own: others may share the old ones. They are named after its result, as nodes may have no names."""
    kind, name = conv.inputs[1].values.dtype, conv.outputs[0].name
    biased = len(conv.inputs) > 2 or bias.any()
    conv.inputs = [conv.inputs[0], gs.Constant(f"{name}.weight", weight.astype(kind)), *([gs.Constant(f"{name}.bias", bias.astype(kind))] if biased else [])]
