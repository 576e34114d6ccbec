"""What would be computed twice, once.

    f(x) and f(x)           two nodes of equal operator, attributes and inputs: both results are the first one's
    max(max(x, 0), 0)       a Relu of what is not negative is the thing itself

Refused for results that are outputs of the graph, whose names have to stay, for nodes with a graph or a tensor of their own and for random
numbers; and for nodes with weights: equal ones are those of a network that nobody has trained, which is timed for one that somebody has.
"""
import numpy as np
import onnx_graphsurgeon as gs

NOT_NEGATIVE = ("HardSigmoid", "Relu", "Sigmoid")
RANDOM = ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


class Any:
    """Every operator."""
    def __contains__(self, operator):
        return True


OPS = Any()


def why_not(node, graph):
    """Why this node is computed; empty where its result is there already."""
    if node.op in RANDOM or not all(isinstance(value, (int, float, str, list)) for value in node.attrs.values()):
        return "it may not give the same twice"
    if any(tensor in graph.outputs for tensor in node.outputs):
        return "its result is an output of the graph"
    return "" if first(node) else "nothing before it gives the same"


def first(node):
    """The tensors that hold what a node gives, of a node before it; None where there are none."""
    source = node.inputs[0] if node.inputs else None
    if source is None or isinstance(source, gs.Constant):
        return None
    maker = next(iter(source.inputs), None)
    if node.op == "Relu" and maker is not None and maker.op in NOT_NEGATIVE:
        return [source]
    others = source.outputs[:next(number for number, reader in enumerate(source.outputs) if reader is node)]
    return next((other.outputs for other in others if same(other, node)), None)


def same(one, other):
    return (one.op, one.domain, len(one.inputs), len(one.outputs)) == (other.op, other.domain, len(other.inputs), len(other.outputs)) \
        and repr(one.attrs) == repr(other.attrs) and all(map(alike, one.inputs, other.inputs))


def alike(one, other):
    """Whether two inputs are one: a tensor that is computed, the same numbers of a size or an axis, or nothing."""
    if isinstance(one, gs.Constant) and isinstance(other, gs.Constant):
        return one.values.dtype.kind == "i" and np.array_equal(one.values, other.values)
    return one is other or one.is_empty() and other.is_empty()


def fold(node):
    for tensor, instead in zip(node.outputs, first(node)):
        for reader in list(tensor.outputs):
            reader.inputs = [instead if read is tensor else read for read in reader.inputs]
    node.outputs.clear()
    node.inputs.clear()
