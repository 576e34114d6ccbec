"""An ONNX file as it is asked about: who makes a tensor, its type and shape, its value where that is stored. What is not known is None."""
import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from . import limits
from .errors import RtsegError

DAMAGED = "is truncated or not an ONNX file", "a checkpoint is turned into one with rtseg-deploy export"


def load(source, sha256=""):
    """The model in a file, however it may be; what it keeps in other files is not read. Raises RtsegError where there is none, or it is too large.

    sha256: what its sidecar, which was read before, is of.
    """
    found = limits.data(source, limits.ONNX_BYTES)
    if sha256 not in ("", hashlib.sha256(found).hexdigest()):
        raise RtsegError(f"{source} was changed while it was used", "run it again")
    limits.refuse_heavy_messages(found, source, onnx.ModelProto.DESCRIPTOR, DAMAGED)
    try:
        model = onnx.load_from_string(found)
    except (DecodeError, UnicodeDecodeError):
        raise RtsegError(f"{source} {DAMAGED[0]}", DAMAGED[1]) from None
    for tensor in tensors(model.graph):
        refuse_unsound(tensor, source)
    return model


def whole(source, sha256=""):
    """The model in a file that needs no other file, and no operators but ONNX's own; as load. Raises RtsegError."""
    model = load(source, sha256)
    if model.functions:
        raise RtsegError(f"{source} defines functions of its own, such as {model.functions[0].name}, which cannot be seen into",
                         "inline them: onnx.save(onnx.inliner.inline_local_functions(onnx.load(F)), G)")
    for node in (node for graph in graphs(model.graph) for node in graph.node):
        if node.domain not in ("", "ai.onnx"):
            raise RtsegError(f"{called(node, source)} is an operator of {node.domain}, not of ONNX",
                             "export it again without custom operators or a runtime's optimisations")
    for tensor in (*tensors(model.graph), *sparse_tensors(model.graph)):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise RtsegError(f"{source} keeps the tensor {tensor.name} in another file", "put all in one: onnx.save(onnx.load(F), G)")
    return model


def called(node, source):
    """A node, in a few words."""
    return f"{source}: {node.name or next(iter(node.output), '')} ({node.op_type})"


def refuse_unsound(tensor, source):
    """Raise RtsegError where a tensor is not as large as it says; one that lies in another file is whoever reads that one's to refuse."""
    if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
        return
    try:
        sound = len(tensor.dims) <= limits.SIDES and numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        sound = False
    if not sound:
        raise RtsegError(f"{source}: the tensor {tensor.name} is not as large as it says", "export it again")


def type_name(kind):
    """Of a tensor's elements, as ONNX names it; a number that it does not know is one."""
    return TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else f"type {kind}"


def graphs(graph):
    """A graph and all graphs within it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs):
                yield from graphs(inner)


def refuse_vast(model, source):
    """Raise RtsegError where a graph says of a tensor that it is larger than any that a segmentation network makes of its input."""
    seen = view(model)
    numbers = {name: math.prod(side or 1 for side in sides) for name, sides in seen.shapes.items() if sides is not None}
    fed = max((numbers.get(value.name, 1) for value in seen.inputs), default=1)
    most = min(limits.CONSTANT_BYTES + limits.PER_NUMBER * fed, limits.TENSOR_BYTES)
    for name, number in numbers.items():
        if 4 * number > most:
            limits.refuse(source, f"makes a tensor {name} of {'x'.join(str(side or '?') for side in seen.shapes[name])}, more than {limits.amount(most)}",
                          "export it for a smaller size")


def tensors(graph):
    """Every tensor that a graph stores."""
    for inner in graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)


def sparse_tensors(graph):
    """The two tensors of each sparse one."""
    for inner in graphs(graph):
        found = [*inner.sparse_initializer]
        for attribute in (attribute for node in inner.node for attribute in node.attribute):
            found += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else attribute.sparse_tensors
        yield from (part for sparse in found for part in (sparse.values, sparse.indices))


def sides_of(value):
    """The sides of a tensor, None for those that are free; None where not even their number is known."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def macs(operator, read, made, attributes):
    """Multiply-accumulates of a convolution or a matrix product, by the shapes that it reads and makes; 0 of any other operator."""
    if operator == "Conv":
        return math.prod(made) * math.prod(read[1][1:])
    if operator in ("MatMul", "Gemm"):
        return math.prod(made) * read[0][-2 if attributes.get("transA") else -1]
    return 0


@dataclass(frozen=True)
class View:
    """Names are unique in all graphs of a model, so what is within an If is beside the rest."""
    model: onnx.ModelProto
    opset: int
    nodes: tuple
    makers: dict                    # tensor -> the node that makes it
    stored: dict                    # tensor -> TensorProto
    kinds: dict                     # tensor -> element type
    shapes: dict                    # tensor -> sides, each None where free

    @property
    def inputs(self):
        return [value for value in self.model.graph.input if value.name not in self.stored]

    def value(self, name):
        """The array that is stored for a tensor; None for one that is computed, or that lies in another file."""
        tensor = self.stored.get(name)
        return None if tensor is None or tensor.external_data else numpy_helper.to_array(tensor)

    def varies(self, name):
        """Whether a tensor depends on an input of the model; the Shape of one whose sides are all known does not."""
        inputs, seen, open_ = {value.name for value in self.inputs}, set(), [name]
        while open_:
            name = open_.pop()
            maker = self.makers.get(name)
            if name in seen or maker and maker.op_type in ("Shape", "Size") and None not in (self.shapes.get(maker.input[0]) or [None]):
                continue
            if name in inputs:
                return True
            seen.add(name)
            open_ += maker.input if maker else ()
        return False


def view(model):
    """A model as it can be asked about. Where ONNX cannot infer, only what the file itself says is known."""
    with suppress(onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    parts = list(graphs(model.graph))
    nodes = tuple(node for part in parts for node in part.node)
    stored = {tensor.name: tensor for part in parts for tensor in part.initializer}
    stored |= {node.output[0]: tensor for node in nodes if node.op_type == "Constant" and (tensor := constant_tensor(node)) is not None}
    values = [value for part in parts for value in (*part.value_info, *part.input, *part.output) if value.type.HasField("tensor_type")]
    return View(model, opset_of(model), nodes, {name: node for node in nodes for name in node.output if name}, stored,
                {value.name: value.type.tensor_type.elem_type for value in values} | {name: tensor.data_type for name, tensor in stored.items()},
                {value.name: sides_of(value) for value in values} | {name: list(tensor.dims) for name, tensor in stored.items()})


def opset_of(model):
    """The version of ONNX's own operators. Raises RtsegError where the model names none."""
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if version is None:
        raise RtsegError("the model names no opset of ONNX", "export it again")
    return version


def constant_tensor(node):
    """What a Constant holds, as a tensor; None where it is sparse or text."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), np.int64 if "int" in attribute.name else np.float32))
    return None


def attribute(node, name, default=None):
    """An attribute's value, text as text; the default where it is not given."""
    found = next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def given(node, index):
    """The name of an input, or "" where it is left out."""
    return node.input[index] if index < len(node.input) else ""
