"""An FP32 graph to FP16 throughout, with FP32 at its input and output: what strongly typed runtimes need.

onnxruntime's converter does the rewriting. It would clip what FP16 cannot hold and leave what has no FP16 form; here both are
refused by name, because the engine would silently be another network or silently FP32.
"""
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from ..errors import RtsegError, need

LARGEST = 65504.0                   # of a finite FP16 number
SMALLEST = 2.0 ** -24               # of an FP16 number above zero (subnormal)


def run(model):
    """A new model in FP16. Raises RtsegError naming the node that cannot be."""
    refuse_unconvertible(model)
    converter = need("onnxruntime.transformers.float16")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = converter.convert_float_to_float16(copy, keep_io_types=True, op_block_list=[], min_positive_val=SMALLEST, max_finite_val=LARGEST)
    return gs.export_onnx(gs.import_onnx(half).toposort())  # the converter appends its casts at the end


def refuse_unconvertible(model):
    """Raise RtsegError for the first node without an FP16 form, or with a weight that FP16 cannot hold."""
    opset = {entry.domain: entry.version for entry in model.opset_import}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if not accepts_half(node, opset.get(node.domain, 0)):
            raise RtsegError(f"{node.name} ({node.op_type}) has no FP16 form, so the engine could not be FP16", "build it without --fp16")
        for name in node.input:
            if name in weights and weights[name].data_type == onnx.TensorProto.FLOAT:
                largest = float(np.abs(onnx.numpy_helper.to_array(weights[name])).max(initial=0.0))
                if not largest <= LARGEST:
                    raise RtsegError(f"{node.name}: its weight {name} reaches {largest:.3g}, FP16 ends at {LARGEST:.0f}",
                                     "build it without --fp16, or retrain with weight decay")


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
