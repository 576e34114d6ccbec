"""The links of a chain: PyTorch, the same folded, graphs by ONNX Runtime, engines where they run. Each takes pixels and gives labels."""
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from . import adopt, backends, fp16, graphs, images, launch, ondevice, original, own, passes, proof, repairs, verify
from .check import parser_for
from .deployed import deployed
from .device import runner
from .errors import RtsegError, first_line
from .export import DEFAULT_OPSET, trace
from .facts import target as target_called
from .files import read_json, sha256
from .layers import resize
from .records import from_json, read_artifact, sidecar, size
from .remarks import OPSETS


@dataclass(frozen=True)
class Answer:
    """What a link gives of one picture."""
    logits: np.ndarray | None       # 1 x classes x H x W float32; None where labels alone are given
    labels: np.ndarray              # 1 x H x W


@dataclass(frozen=True)
class Reading:
    """How a file is fed and what it gives, as its sidecar says it: the fields of records.Artifact that decide it."""
    resolution: tuple
    network_input: tuple
    normalisation: dict
    classes: int
    enlarge: str
    input: str = "normalised"
    output: str = "logits"
    opset: int = DEFAULT_OPSET
    target: str = ""                # that the graph was written for


@dataclass(frozen=True)
class Link:
    """One step of a chain. answers(pictures): an Answer for each H x W x 3 uint8 RGB; it raises RtsegError where there is none."""
    step: str                       # pytorch, folded, onnx, fp16, int8, engine
    made: str                       # a file's name, or how it was made
    precision: str
    reading: Reading
    answers: Callable
    model: onnx.ModelProto | None = None    # of a graph: as the file has it
    run: onnx.ModelProto | None = None      # and what is computed for it: of FP16 its simulation
    net: object = None                      # the module, in PyTorch
    notes: tuple = ()


def reading_of(trained, resolution, network_input=None):
    """How the network of a checkpoint is fed."""
    return Reading(tuple(resolution), tuple(network_input or resolution), asdict(trained.normalisation), trained.classes, trained.dialect.enlarge)


def module_of(trained, reading):
    """The module that a reading asks for."""
    return deployed(trained, reading.output, reading.opset, reading.input, reading.network_input if reading.network_input != reading.resolution else None)


def in_pytorch(step, made, trained, reading):
    net = module_of(trained, replace(reading, output="logits", input="normalised"))

    def answers(pictures):
        for pixels in pictures:
            with torch.inference_mode():
                logits = net.logits(torch.from_numpy(images.normalised(pixels, reading.normalisation))).numpy()
            yield Answer(logits, logits.argmax(1))

    return Link(step, made, "fp32", reading, answers, net=net)


def folded(trained, reading):
    """PyTorch with its BatchNorm folded where PyTorch itself can."""
    from .backends.torch_eager import folded as fold

    return in_pytorch("folded", "folded in PyTorch", replace(trained, module=fold(trained.module, reading.network_input)), reading)


def traced(trained, reading):
    """(the raw graph, the same folded) that export makes for a reading, unproven."""
    street = images.resized(images.read(images.STREET), reading.resolution)
    x = torch.from_numpy(images.fed(street, reading.input, reading.normalisation))
    raw = trace(module_of(trained, reading), x, reading.opset)
    model, _ = passes.optimise(raw)
    if reading.target:
        device = target_called(reading.target)
        model, _ = repairs.repaired(model, parser_for(device), device.compute_capability, ("lower",))
    return raw, model


def of_graph(step, made, model, precision, reading, notes=()):
    """A graph from `input` to `output`, by ONNX Runtime. Raises RtsegError where that cannot run it."""
    run = fp16.simulated(model) if precision == "fp16" else model   # ONNX Runtime's CPU would compute it in FP32
    names = list(dict.fromkeys([logits_name(run), run.graph.output[0].name]))
    what = f"ONNX Runtime cannot run {made}"
    with told(what):
        session = proof.session(proof.with_outputs(run, names))

    def answers(pictures):
        for pixels in pictures:
            with told(what):
                logits, *labels = session.run(None, {"input": images.fed(pixels, reading.input, reading.normalisation)})
            yield answer_of(logits, labels[0] if labels else None, reading)

    return Link(step, made, precision, reading, answers, model, run, notes=notes)


@contextmanager
def told(what):
    """A block in which what ONNX Runtime raises becomes one line."""
    try:
        yield
    except original.RUNTIME_ERRORS as error:
        raise RtsegError(f"{what}: {first_line(error)}", "see the node that it names") from None


def logits_name(model):
    """As proof.logits_name, also where labels are resized after the ArgMax, which is a fault that is looked for."""
    last = proof.argmax(model, original.KEEPS_CLASSES)
    return last.input[0] if last else model.graph.output[0].name


def answer_of(logits, labels, reading):
    """What a graph gave, at the picture's size; labels None: they are the logits' best."""
    if np.issubdtype(logits.dtype, np.integer):
        return Answer(None, logits)
    logits = logits.astype(np.float32, copy=False)
    if logits.ndim != 4 or logits.shape[1] != reading.classes:
        raise RtsegError(f"its logits are {'x'.join(map(str, logits.shape))}, and the checkpoint has {reading.classes} classes",
                         "check that it is the right file")
    if logits.shape[2:] != reading.resolution:
        logits = resize(torch.from_numpy(logits), reading.resolution, reading.enlarge).numpy()
    return Answer(logits, logits.argmax(1) if labels is None else labels)


# ---- files


def step_of(precision):
    """The step that a graph of that precision is."""
    return "onnx" if precision == "fp32" else precision


def of_file(path, trained, resolution, normalisation=None, place=None, tell=launch.quiet):
    """The Link of an artifact, an engine, or an ONNX file without a sidecar. Raises RtsegError."""
    if not sidecar(path).is_file() and Path(path).suffix == ".onnx":
        return of_stranger(path, trained, resolution, normalisation or "imagenet", not normalisation)
    artifact = from_json(read_json(sidecar(path)), sidecar(path)) if sidecar(path).is_file() else read_artifact(path)
    refuse_other(path, artifact, trained, resolution)
    reading = Reading(artifact.resolution, artifact.network_input, artifact.normalisation, artifact.classes, artifact.enlarge or trained.dialect.enlarge,
                      artifact.input, artifact.output, artifact.opset, artifact.checks.get("repairs", {}).get("target", ""))
    if artifact.kind == "engine":
        return of_engine(path, read_artifact(path), reading, place, tell)
    notes = () if sha256(path) == artifact.sha256 else (f"{path} was changed after {sidecar(path).name} was written",)
    return of_graph(step_of(artifact.precision), str(path), graphs.whole(path), artifact.precision, reading, notes)


def refuse_other(path, artifact, trained, resolution):
    """Raise RtsegError where an artifact cannot be of that checkpoint, or is of another size."""
    if artifact.classes != trained.classes:
        raise RtsegError(f"{path} has {artifact.classes} classes, the checkpoint {trained.classes}", "check that it is the right file")
    if artifact.resolution != tuple(resolution):
        raise RtsegError(f"{path} is for {size(artifact.resolution)}, not {size(resolution)}", f"--resolution {size(artifact.resolution)}")


def of_stranger(path, trained, resolution, normalisation, assumed):
    """An ONNX file without a sidecar: what it does not say of itself is taken to be as the checkpoint has it."""
    model = graphs.whole(path)
    found = original.interface(model, path, resolution)
    seen = original.observed(found, proof.pictures(resolution, asdict(own.NORMALISATIONS[normalisation]), found.kind)["street"])
    graph, _ = adopt.fixed(found, seen)
    opset = graphs.opset_of(graph)
    precision = precision_of(graph)
    notes = (f"{path} has no sidecar: fed as {found.kind}" + (f", normalised by {normalisation}" if found.kind == "normalised" else ""),)
    notes += ("say it if that is another: --normalisation",) if assumed and found.kind == "normalised" else ()
    reading = Reading(found.resolution, found.resolution, asdict(own.NORMALISATIONS[normalisation]), trained.classes, trained.dialect.enlarge,
                      found.kind, seen.output, opset if opset in OPSETS else DEFAULT_OPSET)
    return of_graph(step_of(precision), str(path), graph, precision, reading, notes)


def precision_of(model):
    """What a graph says of its own precision."""
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    return "fp16" if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer) else "fp32"


def by_backend(path, name):
    """The Link of an artifact as a backend runs it on this machine. Raises RtsegError where it cannot."""
    artifact = read_artifact(path)
    backends.chosen(artifact, [name])
    job = launch.on_backend("infer", path, artifact, name, [], launch.cpus()).request
    session = opened({**job, "artifact": str(path)})
    reading = Reading(artifact.resolution, artifact.network_input, artifact.normalisation, artifact.classes, artifact.enlarge, artifact.input, artifact.output)

    def answers(pictures):
        for pixels in pictures:
            session.feed(images.fed(pixels, artifact.input, artifact.normalisation))
            session.step()
            yield answer_of(np.array(session.output()), None, reading)

    return Link("backend", f"{Path(path).name} by {name}", backends.computes(artifact.precision, name), reading, answers)


def opened(job):
    """A session in this process. Raises RtsegError."""
    try:
        return runner.own_session(job) if job["backend"] in runner.SESSIONS else backends.open_session(job)
    except runner.JobError as error:
        raise RtsegError(error.answer["error"], error.answer["fix"]) from None


def of_engine(path, artifact, reading, place, tell):
    """An engine, on the device or here. Raises RtsegError where it does not load there."""
    if artifact.output == "native":
        raise RtsegError(f"{path} gives labels at the network's own size, which cannot be held against the picture's", "export it with --output labels")
    reasons = verify.why_not(artifact, launch.probe(place, tell))
    if reasons:
        raise RtsegError(f"{path} does not load on {place.name if place else 'this machine'}: {reasons[0]}", "name the device: --on ssh://user@host")

    def answers(pictures):
        arrays = {str(number): images.fed(pixels, reading.input, reading.normalisation) for number, pixels in enumerate(pictures)}
        found = ondevice.labelled(path, artifact, arrays, place, tell)
        yield from (Answer(None, labels[None]) for labels in found.values())

    return Link("engine", f"{path} by {backends.chosen(artifact)[0]}", artifact.precision, reading, answers)
