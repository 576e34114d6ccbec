"""Two graphs that are to be the same, node beside node: the first whose operator, attributes or weights differ.

Nodes are paired by the tensor that they make where the same exporter named them, and otherwise by their order where all operators agree.
"""
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from . import graphs
from .graphs import View

SAME = 1e-5                         # of a weight's largest magnitude: folding in another order departs by less
PAIRED = 0.5                        # share of the nodes that have a namesake, from which names mean something
SILENT = ("Constant", "Identity")


@dataclass(frozen=True)
class Difference:
    node: str
    op: str
    what: str
    others: int = 0                 # nodes that differ besides

    @property
    def words(self):
        return self.what + (f"; {self.others} more nodes differ" if self.others else "")


def difference(wanted, found, same=SAME):
    """The first Difference of a model from another one; None where there is none, or where their nodes cannot be paired.

    same: what weights may differ by, of their largest magnitude.
    """
    one, other = graphs.view(wanted), graphs.view(found)
    differing = [(node, what) for before, node in pairs(one, other) if (what := of_nodes(before, node, one, other, same))]
    return Difference(named(differing[0][0]), differing[0][0].op_type, differing[0][1], len(differing) - 1) if differing else None


def named(node):
    return node.name or node.output[0]


def pairs(one, other):
    """[(node, its counterpart)]."""
    before, after = ([node for node in view.nodes if node.op_type not in SILENT] for view in (one, other))
    makers = {node.output[0]: node for node in before}
    namesakes = [(makers[node.output[0]], node) for node in after if node.output[0] in makers]
    if len(namesakes) >= PAIRED * max(len(before), len(after)):
        return namesakes
    return list(zip(before, after)) if [node.op_type for node in before] == [node.op_type for node in after] else []


def of_nodes(before, node, one: View, other: View, same):
    """In what a node differs from its counterpart, in words; empty where in nothing."""
    if before.op_type != node.op_type:
        return f"a {node.op_type} in place of a {before.op_type}"
    said, meant = attributes(node, other.opset), attributes(before, one.opset)
    for name in meant:
        if name in said and said[name] != meant[name]:
            return f"{name} is {said[name]}, not {meant[name]}"
    found = (of_weights(graphs.given(before, n), graphs.given(node, n), n, one, other, same) for n in range(max(len(before.input), len(node.input))))
    return next(filter(None, found), "")


def attributes(node, opset):
    """Name -> value of those that the operator's schema has, its defaults where nothing is said."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain) if onnx.defs.has(node.op_type, opset, node.domain) else None
    found = {name: onnx.helper.get_attribute_value(one.default_value) for name, one in (schema.attributes if schema else {}).items()
             if one.default_value.type}
    found.update({attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute})
    return {name: value.decode(errors="replace") if isinstance(value, bytes) else value for name, value in found.items() if comparable(value)}


def comparable(value):
    return not isinstance(value, (TensorProto, onnx.GraphProto, onnx.SparseTensorProto))


def of_weights(before, name, number, one, other, same):
    """In what a stored input differs, in words; empty where in nothing, or where it is computed."""
    wanted, found, kind = stored(one, before), stored(other, name), ("input", "weight", "bias")[number] if number < 3 else f"input {number}"
    if wanted is not None and not name:
        return f"its {kind} is gone"
    if wanted is None or found is None:
        return ""
    if wanted.shape != found.shape:
        return f"its {kind} is {'x'.join(map(str, found.shape))}, not {'x'.join(map(str, wanted.shape))}"
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    apart, scale = np.abs(wanted - found), max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
    if (apart <= same * scale).all():
        return ""
    if not found.any():
        return f"its {kind} is zero"
    if wanted.ndim > 1 and wanted.shape[1] > 1 and (np.abs(wanted[:, ::-1] - found) <= same * scale).all():
        return f"its {kind} has the channels that it reads in reverse order"
    return f"its {kind} differs by up to {np.nanmax(apart) / scale:.2g} of its largest value"


def stored(view, name):
    """The array of a tensor, also through the Identity that an exporter puts where two parameters are the same."""
    while (maker := view.makers.get(name)) is not None and maker.op_type == "Identity":
        name = maker.input[0]
    return view.value(name)


def epsilon(raw, node, weight):
    """The epsilon of the BatchNormalization after a convolution with which folding gives that weight; None where none does.

    weight = w gamma / sqrt(var + epsilon), so that epsilon = (w gamma / weight)^2 - var, the same of every channel.
    raw: the graph before folding, whose convolution has the same name. Returns (found, the network's).
    """
    view = graphs.view(raw)
    conv = next((one for one in view.nodes if one.op_type == "Conv" and one.name == node), None)
    norm = conv and next((one for one in view.nodes if one.op_type == "BatchNormalization" and one.input[0] == conv.output[0]), None)
    values = [stored(view, name) for name in (conv.input[1], norm.input[1], norm.input[4])] if norm else [None]
    if any(value is None for value in values) or values[0].shape != weight.shape:
        return None
    kernel, gamma, variance = (value.astype(np.float64) for value in values)
    across = tuple(range(1, kernel.ndim))
    scale = (kernel * weight).sum(across) / np.maximum((kernel * kernel).sum(across), 1e-300)
    live = np.abs(scale) > 1e-12
    found = (gamma[live] / scale[live]) ** 2 - variance[live]
    telling = found[variance[live] <= np.median(variance[live])] if live.any() else found   # a large variance hides the epsilon in its own rounding
    middle = float(np.median(telling)) if len(telling) else 0.0
    if not (middle > 0 and np.median(np.abs(telling - middle)) <= 0.05 * middle):
        return None
    return middle, graphs.attribute(norm, "epsilon", 1e-5)
