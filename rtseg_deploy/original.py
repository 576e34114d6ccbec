"""An ONNX file from elsewhere: read without trusting it, and seen to be a segmentation network of one input and one output."""
import math
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from . import limits, proof
from .errors import RtsegError, first_line
from .graphs import called, graphs, refuse_vast, sides_of, whole
from .records import size

LONGEST_SIDE = 16384                # pixels
MOST_CLASSES = limits.CLASSES
RUNTIME_ERRORS = (UnicodeDecodeError, *(kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception)))
# element type, Artifact.input, sides; None is the height, then the width
INPUTS = [(TensorProto.FLOAT, "normalised", (1, 3, None, None)),
          (TensorProto.UINT8, "rgb8", (None, None, 3)), (TensorProto.UINT8, "rgb8-nchw", (1, 3, None, None))]
TAKEN = "one image, RGB: float32 1x3xHxW, uint8 HxWx3 or uint8 1x3xHxW"
GIVEN = "float32 logits 1 x classes x h x w, or integer labels 1xHxW"
HALF = "adopt the FP32 file; build-engine --fp16 makes FP16 of it, proven"
KEEPS_CLASSES = (*proof.KEEPS_LABELS, "Gather", "Resize", "Slice", "Transpose", "Upsample")  # after an ArgMax: no label means another class


@dataclass(frozen=True)
class Original:
    """A file as it came, and how it is fed."""
    file: str
    model: onnx.ModelProto
    input: str                      # its name
    kind: str                       # records.Artifact.input
    sides: tuple                    # of the input, all of them
    resolution: tuple

    @property
    def output(self):
        return self.model.graph.output[0].name

    def runner(self, names):
        """Picture -> those of its tensors, by ONNX Runtime. Raises RtsegError where that cannot run it."""
        def failed(error):
            return RtsegError(f"ONNX Runtime cannot run {self.file} at {size(self.resolution)}: {first_line(error)}",
                              "if it was made for another size, name that with --resolution; if it needs a newer ONNX Runtime: pip install -U onnxruntime")
        try:
            session = proof.session(proof.with_outputs(self.model, names))
        except RUNTIME_ERRORS as error:
            raise failed(error) from None
        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4  # what goes wrong is told in one line, by us

        def run(picture):
            try:
                with limits.memory(self.file, limits.MEMORY + limits.PER_PIXEL * math.prod(self.resolution)):   # a shape can depend on the picture
                    return session.run(None, {self.input: picture.fed}, quiet)
            except RUNTIME_ERRORS as error:
                raise failed(error) from None
        return run


@dataclass(frozen=True)
class Result:
    """What the original gives, as it was seen to."""
    output: str                     # records.Artifact.output
    kind: int                       # element type
    shape: tuple
    classes: int | None
    logits: str                     # the tensor that decides: the output, or what its ArgMax reads; "" where labels alone can be compared


# ---- reading


def read(source):
    """The model in a file, whole and in plain ONNX. Raises RtsegError."""
    model = whole(source)
    for graph in graphs(model.graph):
        for node in graph.node:
            refuse_node(node, source)
    for entry in (*model.opset_import, *(node for graph in graphs(model.graph) for node in graph.node)):
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain  # two names of one; the checker knows one
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError) as error:
        raise RtsegError(f"{source} is not valid ONNX: {first_line(error)}", "export it again") from None
    return model


def refuse_node(node, source):
    """Raise RtsegError for a node that the passes cannot see into."""
    name = called(node, source)
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute) and node.op_type != "If":
        raise RtsegError(f"{name} holds a graph within the graph", "export it again without loops")
    if any(attribute.HasField("sparse_tensor") or attribute.sparse_tensors for attribute in node.attribute):
        raise RtsegError(f"{name} holds a sparse tensor", "export it with dense ones")
    if "Linear" in str(node.op_type) or str(node.op_type).endswith("Integer"):  # a name that is no text is bytes; the checker refuses it later
        raise RtsegError(f"{name}: the network is quantised", "take the FP32 file that it was made from")


# ---- what goes in


def interface(model, source, resolution):
    """How a model is fed. Raises RtsegError where that is not with one image, or it does not give one result."""
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in stored]
    for what, values, wanted in (("inputs", given, TAKEN), ("outputs", model.graph.output, GIVEN)):
        if len(values) != 1:
            raise RtsegError(f"{source} has {len(values)} {what}: {', '.join(value.name for value in values) or 'none'}",
                             f"export it again with one, {wanted}, or cut it: onnx.utils.extract_model(F, G, [INPUT], [OUTPUT])")
    for value in (given[0], model.graph.output[0]):
        if not value.type.HasField("tensor_type"):
            raise RtsegError(f"{source}: {value.name} is no tensor", f"export it again to take {TAKEN}, and to give {GIVEN}")
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            raise RtsegError(f"{source}: {value.name} is float16", HALF)
    if given[0].name == model.graph.output[0].name:
        raise RtsegError(f"{source} gives back {given[0].name} as it is", "export the network")
    kind, found = layout(given[0], source)
    height, width = agreed([side for side, known in found if known is None], resolution, given[0].name, source)
    sides = iter((height, width))
    original = Original(str(source), model, given[0].name, kind, tuple(next(sides) if known is None else known for _, known in found), (height, width))
    refuse_vast(at_size(original), source)
    return original


def at_size(original):
    """The model with the sides of its input said, and no others."""
    model = onnx.ModelProto()
    model.CopyFrom(original.model)
    del model.graph.value_info[:], model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    dims = next(value for value in model.graph.input if value.name == original.input).type.tensor_type.shape.dim
    for dim, side in zip(dims, original.sides):
        dim.dim_value = side
    return model


def layout(value, source):
    """(Artifact.input, [(side of the value, or None, side that it must have, or None)])."""
    sides = sides_of(value)
    for element, kind, wanted in INPUTS:
        pairs = list(zip(sides or (), wanted))
        if value.type.tensor_type.elem_type == element and len(sides or ()) == len(wanted) and all(None in pair or pair[0] == pair[1] for pair in pairs):
            return kind, pairs
    raise RtsegError(f"{source}: the input {value.name} is {described(value.type.tensor_type.elem_type, sides)}", f"export it again to take {TAKEN}")


def described(element, sides):
    """As in: float32 1x3x?x?."""
    name = helper.tensor_dtype_to_np_dtype(element).name if element in TensorProto.DataType.values()[1:] else "of no known type,"
    return f"{name} {'of unknown shape' if sides is None else 'x'.join(str(side or '?') for side in sides) or 'scalar'}"


def agreed(found, resolution, name, source):
    """The (height, width) that the file has or the caller names. Raises RtsegError where it is both, and they differ, or neither."""
    if resolution is None:
        if None in found:
            raise RtsegError(f"{source}: the height or width of {name} is free", "say what it is to be: --resolution HxW")
        resolution = found
    elif any(side not in (None, asked) for side, asked in zip(found, resolution)):
        raise RtsegError(f"{source} takes {'x'.join(str(side or '?') for side in found)}, not {size(resolution)}",
                         f"give it a --resolution that fits, or export it again for {size(resolution)}")
    if max(resolution) > LONGEST_SIDE:
        raise RtsegError(f"{source} takes {size(resolution)}, and more than {LONGEST_SIDE} pixels a side are too many", "export it again for a smaller size")
    return tuple(resolution)


# ---- what comes out


def observed(original, picture):
    """The Result of an original, seen by running it: what a file says of its output can be unknown or wrong. Raises RtsegError."""
    output, = original.runner([original.output])(picture)
    kind, shape = helper.np_dtype_to_tensor_dtype(output.dtype), output.shape
    if np.issubdtype(output.dtype, np.integer) and without_ones(shape) == without_ones(original.resolution):
        return Result("labels", kind, shape, None, "")
    refuse_result(original, kind, shape)
    return Result("logits" if shape[2:] == original.resolution else "native", kind, shape, shape[1], original.output)


def decided(result, original, plain, names):
    """The Result, of labels, with what the ArgMax says that they come from.

    plain: the graph without expressions of constants. names: of its tensors, in the original, where they are others.
    """
    argmax = proof.argmax(plain, KEEPS_CLASSES)
    inferred = onnx.shape_inference.infer_shapes(plain, data_prop=True)
    shape = argmax and next((sides_of(value) for value in inferred.graph.value_info if value.name == argmax.input[0]), None)
    if not shape:
        return result
    axis = next((attribute.i for attribute in argmax.attribute if attribute.name == "axis"), 0) % len(shape)
    logits = names.get(argmax.input[0], argmax.input[0])
    direct = proof.argmax(plain) and axis == 1 and len(shape) == 4 and (shape[0], *shape[2:]) == (1, *original.resolution)
    there = any(logits in node.output for node in original.model.graph.node)
    return replace(result, classes=shape[axis], logits=logits if direct and there else "")


def without_ones(sides):
    return [side for side in sides if side != 1]


def refuse_result(original, kind, shape):
    """Raise RtsegError for anything but logits."""
    height, width = original.resolution
    found, wanted = f"{original.file}: the output {original.output} is {described(kind, shape)}", f"export it again to give {GIVEN}"
    if kind != TensorProto.FLOAT or len(shape) != 4 or shape[0] != 1:
        raise RtsegError(f"{found} for an image of {size(original.resolution)}", wanted)
    if shape[1:3] == (height, width) != shape[2:] or shape[2] > height or shape[3] > width:
        raise RtsegError(f"{found}: no classes x height x width for an image of {size(original.resolution)}", wanted)
    if not 1 < shape[1] <= MOST_CLASSES:
        raise RtsegError(f"{found}: {shape[1]} channels, and a label is the largest of 2 to {MOST_CLASSES}", wanted)
