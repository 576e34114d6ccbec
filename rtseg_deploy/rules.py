"""The predicates of facts/rules.csv: each says of a node whether a parser meets there what the rule is about.

predicate(node, view, parser, *arguments): node is None for the model itself, parser a facts.Parser. What is not known, a type or a
shape, is never held against a node.
"""
import math
import re

from . import facts
from .graphs import attribute, given, type_name

PLAIN = ("", "ai.onnx")


def meets(rule, node, view, parser):
    """Whether every predicate of a rule's condition holds of a node (None: of the model)."""
    return all(globals()[name](node, view, parser, *arguments) for name, arguments in rule.condition)


# ---- operators and types


def unlisted(node, view, parser):
    return node.domain not in PLAIN or parser.name not in facts.operators().get(node.op_type, ((), ""))[0]


def untaken_type(node, view, parser, *others):
    """A type that the parser does not list, nor others do."""
    return bool(names(kinds_at(node, view)) - {*parser.types, *others})


def of_type(node, view, parser, *types):
    return bool(names(kinds_at(node, view)) & set(types))


def kinds_at(node, view):
    """Of what a node gives, or a model is given."""
    return [view.kinds.get(name) for name in (node.output if node else [value.name for value in view.inputs])]


def names(kinds):
    return {type_name(kind) for kind in kinds if kind}


def reads(node, view, parser, index, *types):
    return bool(names([view.kinds.get(given(node, int(index)))]) & set(types))


def inside(node, view, parser, *types):
    """It gives such a type, and not as an output of the model."""
    outputs = {value.name for value in view.model.graph.output}
    return bool(names(view.kinds.get(name) for name in node.output if name not in outputs) & set(types))


def rank_other(node, view, parser, index, *ranks):
    shape = view.shapes.get(given(node, int(index)))
    return shape is not None and str(len(shape)) not in ranks


# ---- inputs, by index


def is_given(node, view, parser, index):
    return bool(given(node, int(index)))


def absent(node, view, parser, index):
    """It is left out, or stored and empty."""
    value = view.value(given(node, int(index)))
    return not given(node, int(index)) or value is not None and not value.size


def computed(node, view, parser, *indices):
    """A node other than Constant makes one of them."""
    made = [view.makers.get(given(node, int(index))) for index in indices if given(node, int(index))]
    return any(maker is not None and maker.op_type != "Constant" for maker in made)


def computed_but(node, view, parser, operator, *indices):
    """A node other than Constant and such an operator makes one of them."""
    made = [given(node, int(index)) for index in indices]
    return any(computed(node, view, parser, index) and view.makers[name].op_type != operator for index, name in zip(indices, made))


def varying(node, view, parser, *indices):
    """One of them depends on an input of the model."""
    return any(view.varies(given(node, int(index))) for index in indices if given(node, int(index)))


def nonzero(node, view, parser, index):
    value = view.value(given(node, int(index)))
    return value is not None and bool(value.any())


def larger(node, view, parser, index, limit):
    value = view.value(given(node, int(index)))
    return value is not None and value.size > 0 and value.max() > int(limit)


def extra_outputs(node, view, parser):
    return any(node.output[1:])


# ---- attributes


def present(node, view, parser, *attributes):
    return any(attribute(node, name) is not None for name in attributes)


def texts(node, name):
    """An attribute's value or values as text; none where it is not given."""
    value = attribute(node, name)
    return {str(item) for item in (value if isinstance(value, (list, tuple)) else [value])} if value is not None else set()


def has(node, view, parser, name, *values):
    return bool(texts(node, name) & set(values))


def has_other(node, view, parser, name, *values):
    return bool(texts(node, name) - set(values))


# ---- operators that need a predicate of their own


def window(node, view, parser, limit):
    return math.prod(attribute(node, "kernel_shape", ())) >= int(limit)


def lopsided(node, view, parser):
    pads = attribute(node, "pads", ())
    half = len(pads) // 2
    return any(end - begin not in (0, 1) for begin, end in zip(pads[:half], pads[half:]))


def grouped(node, view, parser):
    return attribute(node, "group", 1) > 1


def partial_axes(node, view, parser):
    """Axes are named, and are not all of them in their order."""
    axes, shape = attribute(node, "axes"), view.shapes.get(given(node, 0))
    return axes is not None and shape is not None and [axis % len(shape) for axis in axes] != list(range(len(shape)))


def scaled_before(node, view, parser, last):
    """Stored scales change an axis before the last so many."""
    scales = view.value(given(node, 2))
    return scales is not None and attribute(node, "axes") is None and bool((scales[:-int(last)] != 1).any())


def uneven(node, view, parser):
    """A Split into parts that cannot all have the same size, and no sizes are given."""
    shape = view.shapes.get(given(node, 0))
    side = shape[attribute(node, "axis", 0)] if shape else None
    return side is not None and not given(node, 1) and attribute(node, "split") is None and side % len(node.output) != 0


def operands(node):
    """The indices of each operand of an Einsum."""
    return attribute(node, "equation", "").replace(" ", "").partition("->")[0].split(",")


def ellipsis(node, view, parser):
    return any("..." in operand for operand in operands(node))


def diagonal(node, view, parser):
    return any(re.search(r"([A-Za-z]).*\1", operand) for operand in operands(node))


def broadcast(node, view, parser):
    sides = {}
    for operand, name in zip(operands(node), node.input):
        shape = view.shapes.get(name)
        for letter, side in zip(operand, shape if shape and len(shape) == len(operand) else ()):
            sides.setdefault(letter, set()).add(side)
    return any(1 in found and len(found - {None}) > 1 for found in sides.values())


# ---- the model


def newer_opset(node, view, parser):
    return view.opset > parser.opset


def older_opset(node, view, parser, oldest):
    return view.opset < int(oldest)


def free_sides(node, view, parser):
    return any(None in (view.shapes.get(value.name) or [None]) for value in view.inputs if view.shapes.get(value.name) != [])


def input_of(node, view, parser, *types):
    return of_type(None, view, parser, *types)


def output_of(node, view, parser, *types):
    return bool(names(view.kinds.get(value.name) for value in view.model.graph.output) & set(types))
