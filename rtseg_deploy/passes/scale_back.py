"""A scaling, or a shift, by a constant into the convolution before it.

    y = s (W * x + b) + t = (s W) * x + s b + t         s, t per output channel, or one number

A scaling also passes what is between when that commutes with it: Resize and AveragePool are linear in each channel, and
max(s x) = s max(x) where s >= 0. A shift passes nothing. Refused where a tensor on the way is also used elsewhere: that use
would see the scaled one.
"""
import onnx_graphsurgeon as gs

from . import affine
from .fold_back import not_from_conv, scale_result, used_elsewhere

OPS = affine.OPS
PASSED = ("AveragePool", "MaxPool", "Resize")


def why_not(node, graph):
    """Why this node cannot be folded back; empty where it can."""
    reason = affine.why_not(node)
    if reason:
        return reason
    *between, last = way(node)
    scale, shift = affine.scale_and_shift(node)
    for tensor in between:
        reason = f"{tensor.inputs[0].name} is used elsewhere too" if used_elsewhere(tensor, graph) else not_passed(tensor.inputs[0], scale, shift)
        if reason:
            return reason
    return not_from_conv(last, graph)


def way(node):
    """The tensors from this node's input back to the first that none of the operators that can be passed has made."""
    tensors = [affine.operands(node)[0]]
    while tensors[-1].inputs and tensors[-1].inputs[0].op in PASSED:
        tensors.append(tensors[-1].inputs[0].inputs[0])
    return tensors


def not_passed(node, scale, shift):
    """Why a scaling and shift does not commute with a node; empty where it does."""
    if shift.any():
        return f"a shift does not pass {node.name}"
    if node.op == "MaxPool" and ((scale < 0).any() or len(node.outputs) > 1):
        return f"{node.name} keeps the largest value, which a negative factor would make the smallest, or where it was"
    if node.op == "Resize" and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return f"{node.name} can fill with a value of its own"
    if node.op == "Resize" and len(scale) > 1 and not keeps(node, 1):
        return f"{node.name} may mix channels, and each has its own factor"
    return ""


def keeps(resize, axis):
    """Whether a Resize is seen to leave an axis as it is: by its axes, its scales or its sizes."""
    axes = [number % 4 for number in resize.attrs.get("axes", range(4))]
    if axis not in axes:
        return True
    given = next((tensor.values for tensor in resize.inputs[2:] if isinstance(tensor, gs.Constant) and tensor.values.size), None)
    if given is None or resize.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    return given[axes.index(axis)] == (1 if given.dtype.kind == "f" else resize.inputs[0].shape[axis])


def fold(node):
    scale, shift = affine.scale_and_shift(node)
    data, *rest = way(node)
    conv = [data, *rest][-1].inputs[0]
    for tensor in rest:  # scaled now: it no longer is what the traced graph calls by this name
        tensor.name += "/scaled"
    data.inputs[0].outputs = node.outputs
    node.outputs.clear()
    node.inputs.clear()
    scale_result(conv, scale, shift)
