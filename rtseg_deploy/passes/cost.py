"""What nodes of a graph cost, by the shapes of what they read and make: 0 where a shape is not known."""
import math

from ..graphs import macs as of_shapes


def macs(node):
    """Multiply-accumulates of a convolution or a matrix product."""
    return of_shapes(node.op, [known(tensor) for tensor in node.inputs], known(node.outputs[0]), node.attrs)


def total(graph):
    return sum(macs(node) for node in graph.nodes if node.outputs)


def known(tensor):
    """The sides of a tensor, 0 for each that is free; one side of 0 where not even their number is known."""
    return [side if isinstance(side, int) else 0 for side in tensor.shape] if tensor.shape is not None else [0]


def elements(tensor):
    return math.prod(known(tensor))
