"""What every ONNX artifact says of itself, whatever it was made from. No PyTorch here: adopting a file needs none."""
import platform

import onnx

from . import __version__
from .records import size

OPSETS = range(13, 24)              # what the tracing exporter of torch 2.13 writes and this reads back


def portrait_warning(resolution):
    height, width = resolution
    if height <= width:
        return ()
    return (f"{size(resolution)} is taller than wide, and street images are wide: sizes are HEIGHTxWIDTH; did you mean {width}x{height}?",)


def bindings(model):
    """Name, type and shape of the graph's input and output."""
    return {side: {"name": value.name, "type": onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                   "shape": [d.dim_value for d in value.type.tensor_type.shape.dim]}
            for side, value in (("input", model.graph.input[0]), ("output", model.graph.output[0]))}


def weights_bytes(model):
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def versions(**others):
    import onnxruntime
    import polygraphy

    return {"rtseg-deploy": __version__, "python": platform.python_version(), **others, "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__, "polygraphy": polygraphy.__version__}
