"""Trained network -> ONNX artifact: traced, folded, proven, and only then given its name."""
import io
import platform
import warnings
from dataclasses import asdict

import onnx
import torch

from . import __version__, facts, fp16, passes, proof
from .deployed import deployed
from .errors import RtsegError
from .records import Artifact, size, write_artifact

OPSETS = range(13, 24)              # what the tracing exporter of torch 2.13 writes and this reads back
DEFAULT_OPSET = 17                  # TensorRT 8.6 and everything newer; 13 for TensorRT 8.2


def export(trained, path, resolution, opset=DEFAULT_OPSET, precision="fp32", output="logits", class_set="", tell=lambda step, done: None):
    """Write the artifact and its sidecar; returns the Artifact.

    resolution: (height, width). tell(step, fraction done) is called as it goes.
    Raises RtsegError, with nothing written, for a size that the network cannot take or a graph that is not the network.
    """
    names = facts.class_set(class_set, trained.classes)
    refuse_size(trained.network, resolution)
    if opset not in OPSETS:
        raise RtsegError(f"opset {opset} cannot be written", f"choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    net = deployed(trained, output, opset)
    normalisation = asdict(trained.normalisation)

    tell("tracing the network", 0.0)
    raw = trace(net, resolution, opset)
    tell("folding BatchNorm", 0.15)
    model, fold = passes.optimise(raw)
    tell("proving it against PyTorch", 0.3)
    parity = prove(net, raw, model, resolution, normalisation)
    if precision == "fp16":
        tell("converting to FP16 and proving it", 0.7)
        model, parity = fp16.convert(model, reference(net), resolution, normalisation)

    artifact = Artifact(
        kind="onnx", model=trained.network.name, dialect=trained.dialect, classes=trained.classes, class_set=names.name,
        resolution=tuple(resolution), precision=precision, output=output, normalisation=normalisation, opset=opset,
        weights_bytes=weights_bytes(model), parent=trained.parent, checks={"fold": fold, "parity": parity}, versions=versions(),
        warnings=portrait_warning(resolution) + old_parser_warning(model))
    tell("writing", 0.95)
    return write_artifact(path, lambda temporary: (temporary.write_bytes(model.SerializeToString()), artifact)[1])


def refuse_size(network, resolution):
    """Raise RtsegError for a size that the network cannot take."""
    if not network.takes(resolution):
        near = tuple(max(1, round(side / network.multiple)) * network.multiple for side in resolution)
        raise RtsegError(f"{network.name} takes heights and widths that are multiples of {network.multiple}, not {size(resolution)}",
                         f"the nearest: --resolution {size(near)}")


def portrait_warning(resolution):
    height, width = resolution
    if height <= width:
        return ()
    return (f"{size(resolution)} is taller than wide, and street images are wide: sizes are HEIGHTxWIDTH; did you mean {width}x{height}?",)


def old_parser_warning(model):
    """From opset 18 on, ReduceMean's axes are an input, which TensorRT 8 ignores without a word: it reduces every axis."""
    if not any(node.op_type == "ReduceMean" and len(node.input) > 1 for node in model.graph.node):
        return ()
    return ("opset 18 and newer give ReduceMean its axes as an input, which TensorRT 8 ignores: for a GTX 1080 Ti use --opset 17, for a Jetson TX2 13",)


def trace(net, resolution, opset):
    """The raw graph, every BatchNorm still in it. Raises RtsegError where the network fails at that size.

    torch's tracing exporter: the other one writes opset 18 whatever it is asked for, whose ReduceMean old parsers misread.
    PRESERVE keeps the exporter from folding BatchNorm itself, unreported.
    """
    buffer = io.BytesIO()
    x = torch.zeros(1, 3, *resolution)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (x,), buffer, dynamo=False, opset_version=opset, training=torch.onnx.TrainingMode.PRESERVE,
                              input_names=["input"], output_names=["output"])
    except (RuntimeError, ValueError) as error:
        raise RtsegError(f"the network cannot take {size(resolution)}: {str(error).splitlines()[0]}") from None
    model = onnx.load_from_string(buffer.getvalue())
    if model.opset_import[0].version != opset:
        raise RtsegError(f"torch wrote opset {model.opset_import[0].version} for {opset}", "report this with the version of torch")
    return model


def reference(net):
    """input array -> PyTorch's logits at the input's size."""
    def logits(x):
        with torch.inference_mode():
            return net.logits(torch.from_numpy(x)).numpy()
    return logits


def prove(net, raw, model, resolution, normalisation):
    """The parity report of the folded graph. Raises RtsegError naming the first tensor that departs."""
    parity = proof.against(model, reference(net), resolution, normalisation, "fp32")
    if not parity["ok"]:
        x = proof.pictures(resolution, normalisation)[parity["worst"]]
        bar = proof.BARS["fp32"][0]
        where = proof.first_departure(raw, model, x, bar) or proof.first_departure_from_torch(net, raw, x, bar)
        proof.refuse(parity, f"the folded graph is not the network that was trained; the first tensor that departs is {where or 'the output'}")
    return parity


def weights_bytes(model):
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


def versions():
    import onnxruntime
    import polygraphy

    return {"rtseg-deploy": __version__, "python": platform.python_version(), "torch": torch.__version__, "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__, "polygraphy": polygraphy.__version__}
