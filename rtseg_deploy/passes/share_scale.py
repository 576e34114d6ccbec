"""A scaling by a constant into the convolution before it that others read too, where each of these scales by a constant as well.

    y1 = s1 c, y2 = s2 c  with  c = W * x + b        become        c' = s1 c,  y1 = c',  y2 = (s2 / s1) c'

Of the scalings that follow a convolution the largest goes; it passes what scale_back passes. Refused where anything else uses a tensor
on the way, where a factor is zero, or negative before a MaxPool, and where a quotient leaves the range in which FP32 is precise.
"""
import onnx_graphsurgeon as gs

from . import affine, cost
from .chains import fits
from .fold_back import scale_result
from .scale_back import PASSED, not_passed, way

OPS = affine.SCALES


def why_not(node, graph):
    """Why this scaling does not go into a convolution that others read too; empty where it does."""
    reason = affine.why_not(node)
    if reason:
        return reason
    first = way(node)[-1]
    conv = next(iter(first.inputs), None)
    if conv is None or conv.op != "Conv" or not all(isinstance(tensor, gs.Constant) for tensor in conv.inputs[1:]):
        return "it does not come from a Conv with constant weights"
    passed, others = tree(first)
    for tensor in (first, *(between.outputs[0] for between in passed)):
        if tensor in graph.outputs:
            return f"{tensor.name} is an output of the graph"
    return not_scaled(node, others) or not_divided(node, passed, others)


def tree(tensor):
    """(what a scaling passes, the nodes that end it) of all that reads a tensor."""
    passed, ends = [], []
    for reader in tensor.outputs:
        if reader.op in PASSED and reader.inputs[0] is tensor:
            inner, last = tree(reader.outputs[0])
            passed += [reader, *inner]
            ends += last
        else:
            ends.append(reader)
    return passed, ends


def not_scaled(node, ends):
    """Why not every reader is a scaling, or which of them goes rather than this one; empty where it is this one."""
    for end in ends:
        if end.op not in affine.SCALES or affine.why_not(end):
            return f"{end.op} uses it unscaled"
    largest = max(ends, key=lambda end: cost.elements(end.outputs[0]))
    return "" if largest is node else f"{largest.name} goes instead, whose tensor is as large or larger"


def not_divided(node, passed, ends):
    """Why what the others scale by cannot be divided by this one's factor; empty where it can."""
    scale, shift = affine.scale_and_shift(node)
    if not scale.all():
        return "it scales by zero"
    quotients = [affine.scale_and_shift(end)[0] / scale for end in ends]
    if not all(fits(quotient, affine.operands(node)[1].dtype) for quotient in quotients):
        return "the quotient of two factors is out of range"
    return next(filter(None, (not_passed(between, scale, shift) for between in passed)), "")


def fold(node):
    scale, shift = affine.scale_and_shift(node)
    data, first = affine.operands(node)[0], way(node)[-1]
    passed, ends = tree(first)
    for end in ends:
        if end is not node:
            divide(end, scale)
    for tensor in (first, *(between.outputs[0] for between in passed)):  # scaled now: it no longer is what the traced graph calls by this name
        tensor.name += "/scaled"
    conv = first.inputs[0]
    node.op, node.inputs = "Identity", [data]
    scale_result(conv, scale, shift)


def divide(node, scale):
    data, constant = affine.operands(node)
    quotient = (affine.scale_and_shift(node)[0] / scale).astype(constant.dtype)
    shape = (-1, *[1] * (len(data.shape) - 2)) if quotient.size > 1 else ()
    node.op, node.inputs = "Mul", [data, gs.Constant(f"{node.outputs[0].name}.constant", quotient.reshape(shape))]
