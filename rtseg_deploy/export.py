"""Trained network -> ONNX artifact: traced, folded, proven, and only then given its name."""
import io
import warnings
from dataclasses import asdict

import onnx
import torch

from . import check, facts, fp16, graphs, locks, passes, proof, repairs
from .deployed import deployed
from .errors import RtsegError, first_line
from .records import Artifact, size, write_model
from .remarks import OPSETS, bindings, portrait_warning, versions, weights_bytes

DEFAULT_OPSET = 17                  # TensorRT 8.6 and everything newer; 13 for TensorRT 8.2


@locks.writes
def export(trained, path, resolution, opset=None, precision="fp32", output="logits", input="normalised", class_set="",
           tell=lambda step, done: None, target="", network_input=None, images=()):
    """Write the artifact and its sidecar; returns the Artifact.

    resolution: (height, width); network_input: another one, that the graph is to resize the image to first. output, input: see
    records.Artifact. tell(step, fraction done) is called as it goes. images: paths, on which FP16 is to hold too.
    target: by name; the graph is written so that its parser takes it. opset: the target's if not given, or DEFAULT_OPSET.
    Raises RtsegError, with nothing written, for a size that the network cannot take, a graph that is not the network, or one that the
    target's parser does not take.
    """
    names = facts.class_set(class_set, trained.classes)
    network_input = tuple(network_input or resolution)
    refuse_size(trained, network_input)
    device = facts.target(target) if target else None
    refuse_input(device, input)
    kept = () if opset is None else ("lower",)
    opset = opset or (device.opset if device else DEFAULT_OPSET)
    if opset not in OPSETS:
        raise RtsegError(f"opset {opset} cannot be written", f"choose one from {OPSETS.start} to {OPSETS.stop - 1}")
    net = deployed(trained, output, opset, input, network_input if network_input != tuple(resolution) else None)
    normalisation = asdict(trained.normalisation)

    tell("tracing the network", 0.0)
    inputs = proof.pictures(resolution, normalisation, input)
    raw = trace(net, torch.from_numpy(inputs["street"].fed), opset)
    tell("folding BatchNorm", 0.15)
    model, fold = passes.optimise(raw)
    rewritten, stays = [], {}
    if device:
        kept += ("as_convolution",) if precision == "fp16" else ()  # only in FP32 is it needed
        model, rewritten = repairs.repaired(model, check.parser_for(device), device.compute_capability, kept)
    tell("proving it against PyTorch", 0.3)
    parity = prove(net, raw, model, inputs)
    if precision == "fp16":
        tell("converting to FP16 and proving it", 0.7)
        inputs = proof.pictures(resolution, normalisation, input, images)
        stays = fp16.beyond_range(model, inputs, tell)
        model, parity = fp16.convert(model, reference(net), inputs, list(stays))
    warned = parser_warnings(model, device)

    artifact = Artifact(
        kind="onnx", model=trained.network.name, dialect=trained.dialect.name, classes=trained.classes, class_set=names.name,
        resolution=tuple(resolution), network_input=network_input, enlarge=trained.dialect.enlarge, precision=precision, input=input, output=output,
        normalisation=normalisation,
        opset=graphs.opset_of(model), weights_bytes=weights_bytes(model), parent=trained.parent,
        checks={"fold": fold, "parity": parity, "tensors": bindings(model), **({"kept_fp32": stays} if stays else {}),
                **({"repairs": {"target": target, "rows": rewritten}} if device else {})},
        versions=versions(torch=torch.__version__),
        warnings=seed_warning(trained) + otherwise_warning(trained) + batch_warning(fold) + portrait_warning(resolution) + warned)
    tell("writing", 0.95)
    return write_model(path, model, artifact)


def refuse_size(trained, resolution):
    """Raise RtsegError for a size that the network, or the implementation that trained it, cannot take."""
    network, dialect = trained.network, trained.dialect
    if not network.takes(resolution, dialect):
        grid = network.grid(dialect)
        near = tuple(max(1, round(side / grid)) * grid for side in resolution)
        raise RtsegError(f"{network.name} ({dialect.name}) takes heights and widths that are multiples of {grid}, not {size(resolution)}",
                         f"the nearest: --resolution {size(near)}")


def refuse_input(device, kind):
    """Raise RtsegError for an input of a type that the target's parser does not know."""
    if device and kind != "normalised" and "UINT8" not in check.parser_for(device).types:
        raise RtsegError(f"{check.parser_for(device).serves}, which {device.name} has, takes no uint8 input", "export it with --input normalised")


def parser_warnings(model, device):
    """What the target's parser does with the graph besides taking it; without a target, what older ones do. Raises RtsegError where it does not take it."""
    if device is None:
        return check.old_parser_warnings(model)
    verdict, = check.check(model, [device.name])
    check.refuse(verdict.findings, f"{check.parser_for(device).serves} will not take this graph for {device.name}")
    return tuple(f"{device.name}: {where}: {one.reason}" for one, where in verdict.lines() if one.severity == "warning")


def seed_warning(trained):
    return ("random weights: good for speed and size, its labels mean nothing",) if "seed" in trained.parent else ()


def otherwise_warning(trained):
    names = " or ".join(f"--dialect {name}" for name in trained.otherwise)
    return (f"taken as {trained.dialect.name}; the same keys were also trained with another arithmetic: {names}",) if names else ()


def batch_warning(fold):
    live = [row["node"] for row in fold["kept"] if "from the batch" in row["back"] + row["forward"]]
    return (f"{live[0]} and {len(live) - 1} more normalise by the image's own statistics: the network stays in training mode",) if live else ()


def trace(net, x, opset):
    """The raw graph, every BatchNorm still in it. Raises RtsegError where the network fails on that input.

    torch's tracing exporter: the other one writes opset 18 whatever it is asked for, whose ReduceMean old parsers misread.
    PRESERVE keeps the exporter from folding BatchNorm itself, unreported.
    """
    buffer = io.BytesIO()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net, (x,), buffer, dynamo=False, opset_version=opset, training=torch.onnx.TrainingMode.PRESERVE,
                              input_names=["input"], output_names=["output"])
    except (RuntimeError, ValueError, TypeError) as error:
        raise RtsegError(f"the network cannot take {'x'.join(map(str, x.shape))}: {first_line(error)}") from None
    model = onnx.load_from_string(buffer.getvalue())
    if model.opset_import[0].version != opset:
        raise RtsegError(f"torch wrote opset {model.opset_import[0].version} for {opset}", "report this with the version of torch")
    return model


def reference(net):
    """Picture -> PyTorch's logits, at the size of the output that was asked for, from the normalised image."""
    def logits(picture):
        with torch.inference_mode():
            return net.logits(torch.from_numpy(picture.normalised)).numpy()
    return logits


def prove(net, raw, model, inputs):
    """The parity report of the folded graph. Raises RtsegError naming the first tensor that departs."""
    parity = proof.against(model, reference(net), inputs, "fp32")
    if not parity["ok"]:
        x = inputs[parity["worst"]].fed
        bar = proof.BARS["fp32"][0]
        where = proof.first_departure(raw, model, x, bar) or proof.first_departure_from_torch(net, raw, x, bar)
        proof.refuse(parity, f"the folded graph is not the network that was trained; the first tensor that departs is {where or 'the output'}")
    return parity
