"""What comes after an enlarging Resize, before it, where there are fewer pixels.

    W R(x) + b = R(W x + b)         a convolution 1x1: R weighs pixels of one channel, W channels of one pixel; R b = b, for the weights add up to 1
    s R(x) + t = R(s x + t)         s, t per channel or one number
      f(R(x)) = R(f(x))             any f of single elements, where R is nearest: it only repeats them

Refused where it would cost more: a Resize counts 4 multiply-accumulates for each element that it makes (nearest: 1), and stays as it is
beside the new one where something else reads it. Refused for cubic Resizes, which are rare, and tf_crop_and_resize, which can fill with a
value of its own. The reverse is never done.
"""
import onnx_graphsurgeon as gs

from . import affine, cost
from .merge_convolutions import not_pointwise
from .scale_back import keeps

UNARY = ("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh")
OPS = ("Conv", *affine.OPS, *UNARY)
TAPS = {"nearest": 1, "linear": 4}


def why_not(node, graph):
    """Why this node stays where it is; empty where it goes before a Resize."""
    resize = resize_of(node)
    if resize is None:
        return "its input does not come from a Resize"
    return not_mixing(resize) or not_passed(node, resize) or ("" if cheaper(node, resize, graph) else "before it it would cost as much or more")


def not_mixing(resize):
    """Why a Resize does more than to mix pixels of one channel by weights that add up to 1; empty where it does just that."""
    if resize.attrs.get("mode", "nearest") not in TAPS or resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return f"the weights of {resize.name} may not add up to 1"
    return "" if keeps(resize, 0) and keeps(resize, 1) else f"{resize.name} may mix channels"


def data_of(node):
    """The one computed input of a node that is a fixed function of it."""
    return affine.operands(node)[0] if affine.operands(node) else node.inputs[0]


def resize_of(node):
    maker = next(iter(data_of(node).inputs), None)
    return maker if maker is not None and maker.op == "Resize" else None


def not_passed(node, resize):
    """Why a node does not commute with a Resize; empty where it does."""
    if node.op == "Conv":
        return not_pointwise(node)
    if node.op in affine.OPS:
        return affine.why_not(node)
    if not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return "its parameters are not constants"
    return "" if resize.attrs.get("mode", "nearest") == "nearest" else f"{resize.name} mixes pixels, and {node.op} of a mix is no mix of {node.op}"


def cheaper(node, resize, graph):
    data, made = data_of(node), node.outputs[0]
    low, high = cost.elements(resize.inputs[0]), cost.elements(data)
    work = cost.macs(node) or high
    taps = TAPS[resize.attrs.get("mode", "nearest")]
    stays = len(data.outputs) > 1 or data in graph.outputs
    return bool(cost.elements(made) and high) and work * low / high + taps * (cost.elements(made) + stays * high) < work + taps * high


def fold(node):
    resize, result, data = resize_of(node), node.outputs[0], data_of(node)
    source = resize.inputs[0]
    before = gs.Variable(f"{result.name}/before_resize", result.dtype, [*result.shape[:2], *source.shape[2:]])
    node.inputs = [source if tensor is data else tensor for tensor in node.inputs]
    node.outputs = [before]
    inputs = [before, *(sized(tensor, resize, result) for tensor in resize.inputs[1:])]
    return [gs.Node("Resize", f"{node.name}/resize", dict(resize.attrs), inputs, [result])]


def sized(tensor, resize, result):
    """What a Resize to a size is given, for another number of channels."""
    axes = resize.attrs.get("axes", [0, 1, 2, 3])
    if tensor.is_empty() or not isinstance(tensor, gs.Constant) or tensor.values.dtype.kind != "i" or 1 not in axes:
        return tensor
    sides = tensor.values.copy()
    sides[axes.index(1)] = result.shape[1]
    return gs.Constant(f"{result.name}.sizes", sides)
