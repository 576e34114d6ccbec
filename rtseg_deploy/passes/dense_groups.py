"""A depthwise convolution, or one in small groups, as one in groups of `channels` input channels.

    y_o = sum over i of W_oi * x_i      with W_oi = 0 for every channel i that the group of o did not read before

Each wider group holds the old ones as blocks on its diagonal. Exact for any kernel, stride, padding and number of outputs a group,
where x is finite: sums of the same products and of zeros. Refused where groups of that width do not come out even.

For runtimes that expand depthwise convolutions to dense ones (facts/groups.csv): the zeros cost far less than that.
"""
import numpy as np
import onnx_graphsurgeon as gs

OPS = ("Conv",)


def run(model, channels):
    """(a new model, the names of the convolutions that were rewritten)."""
    graph = gs.import_onnx(model)
    nodes = [node for node in graph.nodes if node.op in OPS and not why_not(node, channels)]
    for node in nodes:
        fold(node, channels)
    return gs.export_onnx(graph.cleanup(remove_unused_graph_inputs=False)), [node.name for node in nodes]


def why_not(node, channels):
    """Why this convolution stays as it is; empty where it can have groups of so many channels."""
    groups = node.attrs.get("group", 1)
    if groups == 1:
        return "it has one group"
    if not isinstance(node.inputs[1], gs.Constant):
        return "its weights are not constants"
    width = node.inputs[1].values.shape[1]
    if width >= channels:
        return f"its groups have {width} channels already"
    if channels % width:
        return f"its groups have {width} channels, and {channels} is no multiple of that"
    if groups % (channels // width):
        return f"its {groups} groups of {width} do not come out even in groups of {channels}"
    return ""


def fold(node, channels):
    groups, weight = node.attrs["group"], node.inputs[1].values
    outputs, width, blocks = len(weight) // groups, weight.shape[1], channels // weight.shape[1]
    wide = np.zeros((groups // blocks, blocks, outputs, blocks, *weight.shape[1:]), weight.dtype)
    for block in range(blocks):
        wide[:, block, :, block] = weight.reshape(groups // blocks, blocks, outputs, *weight.shape[1:])[:, block]
    node.inputs[1] = gs.Constant(f"{node.outputs[0].name}.grouped", wide.reshape(len(weight), blocks * width, *weight.shape[2:]))
    node.attrs["group"] = groups // blocks
