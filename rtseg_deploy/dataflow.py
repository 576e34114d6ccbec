"""What a network does, layer by layer: multiply-accumulates, and which tensors each layer reads and makes. From PyTorch, or from an ONNX graph."""
import math
from dataclasses import dataclass

from .complexity import FLOAT, VIEWS, calls, operation, titles
from .errors import RtsegError, need

HALF = 2                            # bytes
CONVOLUTIONS = {"conv2d", "Conv"}
PRODUCTS = {*CONVOLUTIONS, "mm", "bmm", "matmul", "MatMul", "Gemm"}
RENAMES = {"Constant", "DepthToSpace", "Expand", "Flatten", "Identity", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True)
class Layer:
    """One operation. What only renames, cuts or turns a tensor is none: its readers read the tensor itself."""
    name: str
    operation: str                  # aten's name, or ONNX's
    macs: int                       # of a convolution or a matrix product; no other layer is ever bound by its arithmetic
    reads: tuple                    # of (tensor, bytes)
    makes: object                   # a tensor: whatever names it
    made: int                       # bytes
    weights: int                    # bytes
    winograd: bool                  # a convolution 3x3 with stride 1, which Winograd's algorithm can do
    unrolled: int                   # bytes of its input with every window written out, where a convolution is done as one matrix product


def layer(name, kind, macs, reads, makes, made, weights, convolution, float_bytes):
    """A Layer; convolution: (weight's shape, strides, dilations, groups), or None."""
    winograd, unrolled = False, 0
    if convolution:
        shape, strides, dilations, groups = convolution
        winograd = tuple(shape[2:]) == (3, 3) and {*strides, *dilations} == {1}
        unrolled = float_bytes * macs // shape[0] if groups == 1 and math.prod(shape[2:]) > 1 else 0
    return Layer(name, kind, macs if kind in PRODUCTS else 0, tuple(dict(reads).items()), makes, made, weights, winograd, unrolled)


# ---- PyTorch


def of_module(module, resolution, float_bytes=FLOAT):
    """Every Layer of a module on one image of (height, width), in order; nothing is computed."""
    torch = need("torch")
    image, found = calls(module, resolution)
    held = {storage(value) for value in (*module.parameters(), *module.buffers())}
    now = {storage(image): "input"}  # storage -> the tensor in it: a call in place makes another one
    layers = []
    for number, (call, title) in enumerate(zip(found, titles(found))):
        tensors = [value for value in flat(call.arguments) if isinstance(value, torch.Tensor)]
        reads = [(now[storage(value)], in_bytes(value, float_bytes)) for value in tensors if storage(value) in now]
        if call.name in VIEWS:
            if reads:
                now.setdefault(storage(call.result), reads[0][0])
            continue
        now[storage(call.result)] = number
        macs = operation(call.name, call.arguments, call.result).macs
        weights = sum(in_bytes(value, float_bytes) for value in tensors if storage(value) in held)
        layers.append(layer(title, call.name, macs, reads, number, in_bytes(call.result, float_bytes), weights,
                            convolution(call.arguments) if call.name in CONVOLUTIONS else None, float_bytes))
    return layers


def storage(tensor):
    return tensor.untyped_storage()._cdata


def flat(values):
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def in_bytes(tensor, float_bytes):
    """What it takes in memory, its floats being so long; what is repeated by expand is there once."""
    elements = min(tensor.numel(), tensor.untyped_storage().nbytes() // tensor.element_size())
    return elements * (float_bytes if tensor.is_floating_point() else tensor.element_size())


def convolution(arguments):
    """(weight's shape, strides, dilations, groups) of a call of conv2d: what has its default at the end is left out."""
    arguments = (*arguments, *(None, None, None, [1, 1], 0, [1, 1], 1)[len(arguments):])
    return arguments[1].shape, arguments[3], arguments[5], arguments[6]


# ---- ONNX


def of_onnx(path, resolution=None, float_bytes=FLOAT):
    """((height, width), every Layer) of an ONNX file in order. Raises RtsegError; resolution: for a file whose sizes are free."""
    need("onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    import onnx

    from .original import interface, read
    from .passes.clean import constants

    original = interface(read(path), path, resolution)
    graph = original.model.graph
    given = next(value for value in graph.input if value.name == original.input)
    given.CopyFrom(onnx.helper.make_tensor_value_info(given.name, given.type.tensor_type.elem_type, original.sides))
    del graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(constants(original.model), data_prop=True).graph
    return original.resolution, of_graph(graph, float_bytes, path)


def of_graph(graph, float_bytes, path):
    from onnx import helper, numpy_helper

    from .graphs import macs

    values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)}
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    held.update({node.output[0]: numpy_helper.to_array(node.attribute[0].t).shape for node in graph.node if node.op_type == "Constant"})
    root, layers = {}, []

    def shape(name):
        if name in held:
            return held[name]
        sides = [side.dim_value for side in values[name].shape.dim] if name in values and values[name].HasField("shape") else [0]
        if not all(sides):
            raise RtsegError(f"{path}: the size of {name} depends on more than the image's", "adopt the file first, which fixes every size: rtseg-deploy adopt")
        return sides

    def size(name):
        kind = helper.tensor_dtype_to_np_dtype(values[name].elem_type) if name in values else None
        return math.prod(shape(name)) * (float_bytes if kind is None or kind.kind == "f" else kind.itemsize)

    for node in graph.node:
        inputs = [name for name in node.input if name]
        reads = [(root.get(name, name), min(size(name), size(root.get(name, name)))) for name in inputs if name not in held]
        if node.op_type in RENAMES:
            root.update((name, reads[0][0]) for name in node.output if reads)
            continue
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        multiplied = macs(node.op_type, [shape(name) for name in inputs], shape(node.output[0]), attributes)
        layers.append(layer(node.name or node.output[0], node.op_type, multiplied, reads, node.output[0], size(node.output[0]),
                            sum(size(name) for name in inputs if name in held), turned(node, attributes, shape), float_bytes))
    return layers


def turned(node, attributes, shape):
    """As convolution(), of a node."""
    if node.op_type not in CONVOLUTIONS:
        return None
    return shape(node.input[1]), attributes.get("strides", [1]), attributes.get("dilations", [1]), attributes.get("group", 1)


# ---- memory


def peak(layers):
    """Bytes of the tensors that are alive at once at the most: each from where it is made to where it is last read, none overwritten."""
    last = {tensor: number for number, layer in enumerate(layers) for tensor, _ in layer.reads}
    sizes = {tensor: size for layer in layers for tensor, size in layer.reads}
    sizes.update((layer.makes, layer.made) for layer in layers)
    alive = {tensor for tensor in last if tensor not in {layer.makes for layer in layers}}  # the image
    most = 0
    for number, layer in enumerate(layers):
        alive.add(layer.makes)
        most = max(most, sum(sizes[tensor] for tensor in alive))
        alive = {tensor for tensor in alive if last.get(tensor, -1) > number}
    return most
