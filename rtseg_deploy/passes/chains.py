"""Scalings that follow one another become one, so do shifts, and those that do nothing go.

    (x s) s' = x (s s')         (x + t) + t' = x + (t + t')         1 x = x + 0 = x

A Div counts as the Mul by its reciprocal, and becomes it only here, where it merges. Refused where the first result is also used
elsewhere, and where the product of two factors would leave the range in which FP32 is precise. Computed in float64, rounded once.
"""
import numpy as np
import onnx_graphsurgeon as gs

from . import affine
from .fold_back import used_elsewhere

OPS = affine.OPS


def why_not(node, graph):
    """Why this node neither goes nor merges into the one after it; empty where it does."""
    reason = affine.why_not(node)
    if reason or does_nothing(node):
        return reason
    result = node.outputs[0]
    if used_elsewhere(result, graph) or not result.outputs:
        return "its result is used elsewhere too"
    after = result.outputs[0]
    if affine.operands(after) is None or (after.op in affine.SCALES) != (node.op in affine.SCALES):
        return f"its result goes to {after.op}, not to another of its kind"
    return affine.why_not(after) or ("" if precise(merged(node, after), node, after) else "the product of the two factors is out of range")


def does_nothing(node):
    scale, shift = affine.scale_and_shift(node)
    return (scale == 1).all() and not shift.any()


def merged(node, after):
    """The constant of both, in float64."""
    (scale, shift), (scale_after, shift_after) = affine.scale_and_shift(node), affine.scale_and_shift(after)
    return scale * scale_after if node.op in affine.SCALES else shift + shift_after


def precise(value, node, after):
    """Whether a merged constant can be rounded."""
    return node.op in affine.SHIFTS or fits(value, affine.operands(after)[1].dtype)


def fits(value, kind):
    """Whether factors can be rounded to a type of number without becoming infinite, subnormal or zero by it."""
    limits = np.finfo(kind)
    return ((value == 0) | (np.abs(value) >= limits.tiny) & (np.abs(value) <= limits.max)).all()


def fold(node):
    data, constant = affine.operands(node)
    if does_nothing(node):
        node.op, node.inputs = "Identity", [data]  # which is bypassed wherever it can be
        return
    after = node.outputs[0].outputs[0]
    value = merged(node, after).astype(constant.dtype)
    shape = (-1, *[1] * (len(data.shape) - 2)) if value.size > 1 else ()
    after.op = "Mul" if node.op in affine.SCALES else "Add"
    after.inputs = [data, gs.Constant(f"{after.outputs[0].name}.constant", value.reshape(shape))]
    node.outputs.clear()
    node.inputs.clear()
