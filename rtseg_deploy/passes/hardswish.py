"""x clip(x + 3, 0, 6) / 6 as one HardSwish, which ONNX defines as just this, from opset 14 on.

Exporters write the product in three orders: (x clip) / 6, x (clip / 6) and (x / 6) clip, with a Div by 6 or a Mul by 1/6. Refused
where anything else uses a tensor between. torch writes HardSwish itself, and x HardSigmoid(x) for opset 13: TensorRT 8.2's parser,
which reads that opset, has no HardSwish.
"""
import numpy as np
import onnx_graphsurgeon as gs

from . import affine
from .fold_back import used_elsewhere

OPS = affine.SCALES


def why_not(node, graph):
    """Why this node does not end a HardSwish; empty where it does."""
    if graph.opset < 14:
        return f"opset {graph.opset} has no HardSwish"
    number, factors = product(node, graph.outputs)
    if len(factors) != 2 or not np.isclose(number, 1 / 6, rtol=1e-6, atol=0):
        return "it is not the product of 1/6 and two tensors"
    if not any(gates(gate, x, graph) for x, gate in (factors, factors[::-1])):
        return "neither of its factors is clip(x + 3, 0, 6) of the other, used nowhere else"
    return ""


def product(node, outputs=()):
    """(c, tensors): this Mul or Div is c times the product of the tensors, through those before it that nothing else uses."""
    number, inputs, factors = 1.0, list(node.inputs), []
    if not affine.why_not(node) and affine.operands(node)[1].size == 1:
        number, inputs = affine.scale_and_shift(node)[0].item(), [affine.operands(node)[0]]
    elif node.op == "Div":
        return number, list(node.outputs)
    for tensor in inputs:
        before = next(iter(tensor.inputs), None)
        if before is not None and before.op in OPS and len(tensor.outputs) == 1 and tensor not in outputs:
            inner, tensors = product(before, outputs)
            number *= inner
            factors += tensors
        else:
            factors.append(tensor)
    return number, factors


def gates(gate, x, graph):
    """Whether a tensor is clip(x + 3, 0, 6), and neither it nor the sum is used elsewhere."""
    clip = next(iter(gate.inputs), None)
    if clip is None or clip.op != "Clip" or used_elsewhere(gate, graph) or not are(clip.inputs[1:], 0, 6):
        return False
    total = clip.inputs[0]
    add = next(iter(total.inputs), None)
    if add is None or add.op != "Add" or used_elsewhere(total, graph) or affine.why_not(add):
        return False
    data, three = affine.operands(add)
    return data is x and (three == 3).all()


def are(tensors, *values):
    return len(tensors) == len(values) and all(isinstance(tensor, gs.Constant) and tensor.values == value for tensor, value in zip(tensors, values))


def fold(node):
    _, factors = product(node)
    node.op, node.inputs = "HardSwish", [max(factors, key=lambda tensor: len(tensor.outputs))]  # x has two readers, its clip one
