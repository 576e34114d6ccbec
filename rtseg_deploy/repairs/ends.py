"""Inputs and outputs of a type that a parser does not take, given and taken in another."""
import onnx
from onnx import TensorProto, helper

from ..graphs import attribute


def float_input(model):
    """(model that takes float32 pixels, [what was done]): the Cast that reads uint8 pixels moves to the caller, values and layout stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done = []
    for value in copy.graph.input:
        readers = [node for node in copy.graph.node if value.name in node.input]
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.UINT8 or not all(node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT for node in readers):
            continue
        kind.elem_type = TensorProto.FLOAT
        for node in readers:
            node.op_type = "Identity"
            del node.attribute[:]
        done.append({"nodes": [node.name or node.output[0] for node in readers],
                     "done": f"the input {value.name} takes the same pixels, 0 to 255, as float32: the caller casts them"})
    del copy.graph.value_info[:]
    return copy, done


def int32_output(model, parser):
    """(model that gives INT32 for every output of INT64, and of UINT8 where the parser has none, [what was done])."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    done, kinds = [], (TensorProto.INT64, *([] if "UINT8" in parser.types else [TensorProto.UINT8]))
    for value in copy.graph.output:
        if value.type.tensor_type.elem_type in kinds:
            value.type.tensor_type.elem_type = TensorProto.INT32
            done.append({"nodes": [narrowed(copy.graph, value.name)], "done": f"the output {value.name} is given as int32"})
    del copy.graph.value_info[:]
    return copy, done


def narrowed(graph, name):
    """Let a Cast to INT32 give a tensor, in place; returns the Cast's name. A Cast that gives it alone is that Cast."""
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is not None and maker.op_type == "Cast" and not any(name in node.input for node in graph.node):
        del maker.attribute[:]
        maker.attribute.append(helper.make_attribute("to", TensorProto.INT32))
        return maker.name or name
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [f"{name}/before" if end == name else end for end in ends]
    graph.node.append(helper.make_node("Cast", [f"{name}/before"], [name], f"{name}/int32", to=TensorProto.INT32))
    return f"{name}/int32"
