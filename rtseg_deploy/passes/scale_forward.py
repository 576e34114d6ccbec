"""A scaling, or a shift, by a constant into all the convolutions after it.

    y = W * (s x + t) + b = (W s) * x + b + sum over the kernel and its input channels of W t

A scaling is exact under any padding, for zero stays zero. A shift is not: an image's mean, subtracted in the graph, stays there
before a padded convolution, whose zeros at the border mean the mean colour; without the shift they would mean black.
"""
from . import affine
from .fold_forward import move, not_to_convs, padded

OPS = affine.OPS


def why_not(node, graph):
    """Why this node cannot be folded forward; empty where it can."""
    result = node.outputs[0]
    reason = affine.why_not(node) or not_to_convs(result, graph)
    if reason or node.op in affine.SCALES or not padded(result):
        return reason
    return f"{padded(result)}, and its zeros at the border mean the value after the shift (of an image, the mean colour)"


def fold(node):
    move(node, affine.operands(node)[0], *affine.scale_and_shift(node))
