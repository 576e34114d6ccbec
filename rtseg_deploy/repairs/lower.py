"""A model at an older opset, where no node changes its meaning. onnx.version_converter knows no way down for Split, BatchNormalization and Relu.

An operator whose schema is the same in both opsets stays as it is. An attribute that is newer goes where it has its default, which means
what the older opset does. LOWER has what is to be written otherwise; anything else is refused, and so is what only looks the same.
"""
import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from ..errors import RtsegError
from ..graphs import attribute, given, graphs, view
from ..passes import checked

REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")
NOTHING = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")  # of one element these give the element itself
OTHER_MEANING = ("RoiAlign",)       # its grid is shifted by half a pixel from opset 16 on


class Refused(Exception):
    """Why a node cannot be written for an older opset."""


def lower(model, parser):
    """(model at the lowest opset from the parser's on that can be written, [what was done, what was not and why])."""
    seen, why, known = view(model), "", defs.onnx_opset_version()
    if parser.opset < seen.opset > known:   # the schemas are not of it
        return model, [{"nodes": [], "refused": f"opset {seen.opset} cannot be written as another: the onnx package here knows them up to {known}"}]
    for goal in range(parser.opset, seen.opset):
        try:
            result, nodes = at_opset(seen, goal)
            done = [{"nodes": nodes, "done": f"opset {seen.opset} written as {goal}"}]
            return result, done + ([{"nodes": [], "refused": why}] if why else [])
        except Refused as refusal:
            why = why or f"opset {goal} cannot be written: {refusal}"
    return model, [{"nodes": [], "refused": why}] if why else []


def at_opset(seen, goal):
    """(model, names of the nodes that were rewritten). Raises Refused."""
    model, changed = onnx.ModelProto(), []
    model.CopyFrom(seen.model)
    for graph in graphs(model.graph):
        nodes = []
        for node in graph.node:
            before = node.SerializeToString()
            new = lowered(node, graph, seen, goal)
            changed += [node.name or node.output[0]] * (len(new) > 1 or new[0].SerializeToString() != before)
            nodes += new
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
    next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")).version = goal
    try:
        return checked(model), changed
    except RtsegError as error:
        raise Refused(error.what) from None


def lowered(node, graph, seen, goal):
    """The nodes that stand for one at the older opset. Raises Refused."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    if node.domain not in ("", "ai.onnx"):
        return [copy]
    below, rewrite = LOWER.get(node.op_type, (0, None))
    nodes = rewrite(copy, graph, seen) if goal < below <= seen.opset else [copy]
    for one in nodes:
        fit(one, seen.opset, goal, f"{node.name or node.output[0]} ({node.op_type})")
    return nodes


def fit(node, opset, goal, name):
    """Drop what is newer than `goal` and has no effect. Raises Refused for what has."""
    newer = defs.get_schema(node.op_type, opset)
    try:
        older = defs.get_schema(node.op_type, goal)
    except defs.SchemaError:
        raise Refused(f"{name} came with opset {newer.since_version}") from None
    if older.since_version == newer.since_version:
        return
    if node.op_type in OTHER_MEANING:
        raise Refused(f"{name} means something else there")
    for entry in list(node.attribute):
        if entry.name not in older.attributes:
            default = newer.attributes[entry.name].default_value
            if not default.name or helper.get_attribute_value(entry) != helper.get_attribute_value(default):
                raise Refused(f"{name} has {entry.name}, which is newer")
            node.attribute.remove(entry)
    while node.input and not node.input[-1]:
        node.input.pop()
    if len(node.input) > older.max_input or len(node.output) > older.max_output:
        raise Refused(f"{name} has inputs or outputs that are newer")


# ---- what is written otherwise: rewrite(copy of the node, its graph, view) -> nodes


def axes_as_attribute(node, graph, seen):
    """ReduceX(x, axes) = ReduceX<axes>(x); with no axes it reduces all, or none where noop_with_empty_axes says so."""
    axes = seen.value(given(node, 1))
    if given(node, 1) and axes is None:
        raise Refused(f"the axes of {node.name or node.output[0]} are not stored")
    empty, noop = axes is None or not axes.size, attribute(node, "noop_with_empty_axes", 0)
    del node.input[1:]
    drop(node, "noop_with_empty_axes")
    if empty and noop:
        return without_effect(node)
    if not empty:
        node.attribute.append(helper.make_attribute("axes", axes.tolist()))
    return [node]


def without_effect(node):
    """An Identity in place of a reduction over no axes. Raises Refused where the operator does more than reduce."""
    if node.op_type not in NOTHING:
        raise Refused(f"{node.name or node.output[0]} ({node.op_type}) reduces nothing, and computes something")
    return [helper.make_node("Identity", [node.input[0]], list(node.output), node.name)]


def sizes_of_parts(node, graph, seen):
    """Split<num_outputs=n> into parts of ceil(side / n), the last one smaller, is a Split with those sizes."""
    parts, shape = attribute(node, "num_outputs"), seen.shapes.get(node.input[0])
    if parts is None:
        return [node]
    side = shape[attribute(node, "axis", 0)] if shape else None
    if side is None:
        raise Refused(f"the side that {node.name or node.output[0]} splits is not known")
    drop(node, "num_outputs")
    part = -(-side // parts)
    sizes = [part] * (parts - 1) + [side - part * (parts - 1)]
    node.input[:] = [node.input[0], store(graph, np.array(sizes, np.int64), f"{node.output[0]}/sizes")]
    return [node]


def sides_of_every_axis(node, graph, seen):
    """Resize<axes> scales or sizes some axes; the others have scale 1, or keep their size."""
    axes, shape = attribute(node, "axes"), seen.shapes.get(node.input[0])
    if axes is None:
        return [node]
    for index, plain in ((2, None if shape is None else np.ones(len(shape), np.float32)), (3, shape)):
        if not given(node, index):
            continue
        value = seen.value(given(node, index))
        if value is None or plain is None or None in list(plain) or given(node, 1) and seen.value(node.input[1]) is None:
            raise Refused(f"what {node.name or node.output[0]} resizes to is not stored, or the shape of its input is not known")
        whole = np.array(plain, value.dtype)
        whole[axes] = value
        node.input[index] = store(graph, whole, f"{node.output[0]}/{'scales' if index == 2 else 'sizes'}")
    if given(node, 1):
        node.input[1] = ""          # a region is read with tf_crop_and_resize alone, which no parser takes
    drop(node, "axes")
    return [node]


def pads_of_every_axis(node, graph, seen):
    """Pad(x, pads, value, axes): the other axes get 0."""
    if not given(node, 3):
        return [node]
    pads, axes, shape = seen.value(node.input[1]), seen.value(node.input[3]), seen.shapes.get(node.input[0])
    if pads is None or axes is None or shape is None:
        raise Refused(f"the pads or axes of {node.name or node.output[0]} are not stored, or the shape of its input is not known")
    whole = np.zeros((2, len(shape)), np.int64)
    whole[:, axes] = pads.reshape(2, -1)
    node.input[1] = store(graph, whole.ravel(), f"{node.output[0]}/pads")
    del node.input[3:]
    return [node]


def hard_swish(node, graph, seen):
    """HardSwish(x) = x max(0, min(1, x / 6 + 1/2)), the definition of both."""
    gate = f"{node.output[0]}/gate"
    return [helper.make_node("HardSigmoid", [node.input[0]], [gate], f"{node.name}/gate", alpha=1 / 6, beta=0.5),
            helper.make_node("Mul", [node.input[0], gate], list(node.output), node.name)]


def without_dilation(node, graph, seen):
    """Dilations of 1 are none."""
    if set(attribute(node, "dilations", [1])) == {1}:
        drop(node, "dilations")
    return [node]


def older_name_of_mode(node, graph, seen):
    """GridSample's linear and cubic were called bilinear and bicubic."""
    mode = attribute(node, "mode", "linear")
    drop(node, "mode")
    node.attribute.append(helper.make_attribute("mode", {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)))
    return [node]


# operator -> (the opset that changed it, rewrite)
LOWER = {**dict.fromkeys(REDUCTIONS, (18, axes_as_attribute)), "Split": (18, sizes_of_parts), "Resize": (18, sides_of_every_axis),
         "Pad": (18, pads_of_every_axis), "HardSwish": (14, hard_swish), "AveragePool": (19, without_dilation), "GridSample": (20, older_name_of_mode)}


def drop(node, name):
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def store(graph, array, name):
    """Add an initialiser; returns its name."""
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name
