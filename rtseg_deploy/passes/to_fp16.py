"""An FP32 graph to FP16 throughout, with FP32 at its input and output: what strongly typed runtimes need.

onnxruntime's converter does the rewriting. It would clip what FP16 cannot hold and leave what has no FP16 form; here both are
refused by name, because the engine would silently be another network or silently FP32. Nodes that are to stay in FP32 are named, and get casts
around them; between two of them the converter would cast down and up again, and the value in between would be lost.
"""
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..errors import RtsegError, need
from . import clean

LARGEST = 65504.0                   # of a finite FP16 number
SMALLEST = 2.0 ** -24               # of an FP16 number above zero (subnormal)


def run(model, keep=()):
    """A new model in FP16, but for the nodes named in `keep`. Raises RtsegError naming the node that cannot be."""
    refuse_unconvertible(model, keep)
    converter = need("onnxruntime.transformers.float16")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own_weights(copy, keep)
    half = converter.convert_float_to_float16(copy, keep_io_types=True, op_block_list=[], node_block_list=list(keep),
                                              min_positive_val=SMALLEST, max_finite_val=LARGEST)
    made = {node.output[0]: node for node in reversed(half.graph.node)}  # two readers in FP32 get the same cast twice
    del half.graph.node[:]
    half.graph.node.extend(reversed(made.values()))
    graph = gs.import_onnx(half)
    for node in graph.nodes:
        if lost_between(node):
            node.inputs = node.inputs[0].inputs[0].inputs
            clean.bypass(node, graph)
    return gs.export_onnx(graph.cleanup(remove_unused_graph_inputs=False).toposort())  # the converter appends its casts at the end


def own_weights(model, keep):
    """Give the nodes that stay copies of their weights: one that is shared with an FP16 node would be rounded for both."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        own = {name: f"{name}/in_fp32_{number}" for name in node.input if node.name in keep and name in weights}   # it may read one twice
        node.input[:] = [own.get(name, name) for name in node.input]
        for name, copied in own.items():
            model.graph.initializer.add().CopyFrom(weights[name])
            model.graph.initializer[-1].name = copied


def lost_between(node):
    """Whether this casts up to FP32 what was cast down from FP32."""
    before = node.inputs[0].inputs if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT else []
    return bool(before) and before[0].op == "Cast" and before[0].attrs["to"] == onnx.TensorProto.FLOAT16 and before[0].inputs[0].dtype == np.float32


def refuse_unconvertible(model, keep=()):
    """Raise RtsegError for the first node, but for those in `keep`, without an FP16 form, or with a weight that FP16 cannot hold."""
    opset = {entry.domain: entry.version for entry in model.opset_import}
    for node in model.graph.node:
        if node.name in keep:
            continue
        if not accepts_half(node, opset.get(node.domain, 0)):
            raise RtsegError(f"{node.name} ({node.op_type}) has no FP16 form, so the engine could not be FP16", "build it without --fp16")
        loud = loud_weight(node, model)
        if loud:
            raise RtsegError(f"{node.name}: its weight {loud[0]} reaches {loud[1]:.3g}, FP16 ends at {LARGEST:.0f}",
                             "build it without --fp16, or retrain with weight decay")


def loud_weight(node, model):
    """(name, largest magnitude) of the first weight of a node that FP16 cannot hold; None where it holds all."""
    for tensor in model.graph.initializer:
        if tensor.name in node.input and tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            if not largest <= LARGEST:
                return tensor.name, largest
    return None


def accepts_half(node, opset):
    """Whether the operator, by its ONNX schema, takes float16 wherever it takes float32."""
    if not onnx.defs.has(node.op_type, opset, node.domain):
        return False
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    fixed = [value for value in (*schema.inputs, *schema.outputs) if value.type_str == "tensor(float)"]
    if fixed and node.op_type != "Resize":  # Resize's scales stay float32 beside data of any type
        return False
    allowed = [set(constraint.allowed_type_strs) for constraint in schema.type_constraints]
    return all("tensor(float16)" in types for types in allowed if "tensor(float)" in types)
