"""x + x g as one product, where g is smaller than x: the gate of a fusion has one number per channel, x a whole map.

    x + x g = x (1 + g)

Refused where anything else uses x g, and where g has as many elements as x: nothing would be gained. Rounded once more than before in g.
"""
import numpy as np
import onnx_graphsurgeon as gs

from . import cost
from .fold_back import used_elsewhere

OPS = ("Add",)


def why_not(add, graph):
    """Why this Add is not x + x g; empty where it is, and pays."""
    found = parts(add)
    if found is None:
        return "it is not x + x g"
    product, x, gate = found
    if used_elsewhere(product.outputs[0], graph):
        return f"{product.name} is used elsewhere too"
    if gate.dtype not in (np.float32, np.float64) or product.outputs[0].shape != x.shape:
        return "its product is of another type or shape than x"
    return "" if 0 < cost.elements(gate) < cost.elements(x) else f"{gate.name} is as large as {x.name}"


def parts(add):
    """(the Mul, x, g) of x + x g; None of any other sum."""
    for x, tensor in (add.inputs, add.inputs[::-1]):
        product = next(iter(tensor.inputs), None)
        if product is not None and product.op == "Mul" and x in product.inputs and product.inputs[0] is not product.inputs[1]:
            return product, x, next(factor for factor in product.inputs if factor is not x)
    return None


def fold(add):
    product, x, gate = parts(add)
    name = f"{add.outputs[0].name}/gate"
    one = gs.Constant(f"{name}.one", np.ones((), gate.dtype))
    more = gs.Variable(name, gate.dtype, gate.shape)
    product.outputs.clear()
    product.inputs.clear()
    add.op, add.inputs = "Mul", [x, more]
    return [gs.Node("Add", f"{add.name}/gate", {}, [gate, one], [more])]
