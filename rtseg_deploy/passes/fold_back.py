"""A BatchNormalization into the convolution before it.

    y = s (W * x + b - mean) + beta     with s = gamma / sqrt(var + eps), per output channel
      = (s W) * x + s (b - mean) + beta

Exact for any kernel, stride, padding and group count. Refused where the convolution's result is also used elsewhere (that use
would see the folded one), and where weights or statistics are not constants. Computed in float64, rounded once.
"""
import numpy as np
import onnx_graphsurgeon as gs


def why_not(bn, graph):
    """Why this BatchNormalization cannot be folded back; empty where it can."""
    producer = next(iter(bn.inputs[0].inputs), None)
    if producer is None or producer.op != "Conv":
        return f"its input comes from {producer.op if producer else 'the input of the graph'}, not from a Conv"
    if len(bn.inputs[0].outputs) > 1 or bn.inputs[0] in graph.outputs:
        return f"{producer.name} is used elsewhere too"
    if not all(isinstance(tensor, gs.Constant) for tensor in producer.inputs[1:]):
        return f"the weights of {producer.name} are not constants"
    return not_affine(bn)


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
    conv = bn.inputs[0].inputs[0]
    scale, shift = scale_and_shift(bn)
    weight = conv.inputs[1].values.astype(np.float64)
    bias = conv.inputs[2].values.astype(np.float64) if len(conv.inputs) > 2 else 0.0
    set_parameters(conv, weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift)
    conv.outputs = bn.outputs
    bn.outputs.clear()
    bn.inputs.clear()


def set_parameters(conv, weight, bias):
    """Give a convolution parameters of its own: others may share the old ones."""
    kind = conv.inputs[1].values.dtype
    conv.inputs = [conv.inputs[0], gs.Constant(f"{conv.name}.weight", weight.astype(kind)), gs.Constant(f"{conv.name}.bias", bias.astype(kind))]
