"""Nodes that scale or shift by a constant, read as y = s x + t with one number, or one per channel (axis 1), for s and t.

FP32 and FP64 only: FP16 graphs are made from graphs that are folded already.
"""
import numpy as np
import onnx_graphsurgeon as gs

SCALES, SHIFTS = ("Mul", "Div"), ("Add", "Sub")
OPS = SCALES + SHIFTS


def operands(node):
    """(computed input, constant) of a node that scales or shifts by a constant; None for any other, c / x and c - x among them."""
    if node.op not in OPS:
        return None
    data, constant = node.inputs
    if isinstance(data, gs.Constant) and node.op in ("Mul", "Add"):
        data, constant = constant, data
    if isinstance(data, gs.Constant) or not isinstance(constant, gs.Constant) or constant.values.dtype not in (np.float32, np.float64):
        return None
    return data, constant.values


def why_not(node):
    """Why it is no fixed s x + t that leaves the shape of x; empty where it is one."""
    if operands(node) is None:
        return "neither of its inputs is a constant"
    data, constant = operands(node)
    if data.shape is None:
        return "the shape of its input is not known"
    sides = (1,) * (len(data.shape) - constant.ndim) + constant.shape
    if len(sides) > len(data.shape) or any(side not in (1, own) for side, own in zip(sides, data.shape)):
        return "its constant can change the shape"
    if any(side != 1 for axis, side in enumerate(sides) if axis != 1):
        return "its constant is not one number or one per channel"
    if not np.isfinite(scale_and_shift(node)).all():
        return "its constant is not finite, or divides by zero"
    return ""


def scale_and_shift(node):
    """(s, t) in float64 with node(x) = s x + t: two arrays of one length, 1 or the number of channels."""
    value = operands(node)[1].astype(np.float64).ravel()
    if node.op in SHIFTS:
        return np.ones_like(value), value if node.op == "Add" else -value
    with np.errstate(divide="ignore"):
        return value if node.op == "Mul" else 1 / value, np.zeros_like(value)
