"""Where a step's time goes, layer by layer: a runtime's own profiler (device/layers.py, backends/), beside what the graph says of each layer.

A runtime fuses layers and names what it makes of them in its own way. A row is joined to the graph's layers by their names, or by the tensor
that it makes; where neither is in the graph, or two rows claim a layer, the row has a time and no multiply-accumulates: nothing is guessed.
"""
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from . import bench, dataflow, estimate, facts, files, launch, tune
from .complexity import numbered
from .errors import RtsegError
from .estimate import three
from .records import read_artifact

STEPS = 50
LAUNCHES_ONLY = ("onnxruntime-cuda", "onnxruntime-tensorrt")
BETWEEN_NAMES = r" \+ | \|\| |, |[(){}\[\]]|^fused "        # TensorRT's ways to list what it joined, and ONNX Runtime's word for it


@dataclass(frozen=True)
class Profile:
    """rows: plain values, the slowest layer first. milliseconds of all layers together, and of a step without a profiler."""
    backend: str
    device: str                     # whose limit is in the rows; "" where it is not known
    layers_ms: float
    step_ms: float
    rows: tuple

    def to_json(self):
        return asdict(self)


def profile(path, artifact, backend, array, threads=None, place=None, tell=launch.quiet, own=None, steps=STEPS, settings=None):
    """The Profile of an artifact on a backend; own and settings as in launch.on_backend. Raises RtsegError."""
    if backend in LAUNCHES_ONLY:
        raise RtsegError(f"ONNX Runtime's profiler sees what it launches on a GPU, not what that takes there, so there is no profile of {backend}",
                         "profile the engine, or torch-cuda")
    job = launch.on_backend("profile", path, artifact, backend, [array], threads, own, steps=steps, settings=settings)
    with launch.ran(job, place, tell) as (result, _):
        device = device_of(artifact, result.get("environment", {}))
        graph = graph_of(path, artifact, backend, own, tell)
        seconds = sorted(result["seconds"])
        return Profile(backend, device.name if device else "", three(1e3 * sum(row["seconds"] for row in result["layers"])),
                       three(1e3 * seconds[len(seconds) // 2]), tuple(rows(result["layers"], graph, device, artifact.precision)))


def profiled(path, ask, tell=launch.quiet):
    """[(path, Profile)] of an artifact on each backend that is asked for; ask: bench.Ask."""
    artifact = read_artifact(path)
    array, _ = bench.picture(artifact, ask.image)
    choices = tune.chosen(path, artifact, ask.backends, tell, ask.threads, ask.precision, ask.untuned, ask.place)
    return [(path, profile(path, artifact, one.backend, array, ask.threads, ask.place, lambda step, done, name=one.backend: tell(f"{name}: {step}", done),
                           ask.own, settings=one.settings)) for one in choices]


def device_of(artifact, environment):
    """The facts.Device that the worker ran on, by the target of an engine or by the names that the machine has; None where no facts are of it."""
    if artifact.target:
        return facts.target(artifact.target).device
    gpu = environment.get("gpu")
    return facts.device_called(gpu.get("name") if isinstance(gpu, dict) else None, environment.get("cpu"))


def graph_of(path, artifact, backend, own, tell):
    """The dataflow.Layers of what ran, under the names that the backend has for them; none where the ONNX file of an engine is not here."""
    if artifact.precision not in estimate.BYTES:    # nothing is known of any device's rate in INT8
        return []
    tell("counting the graph", None)
    count = estimate.BYTES[artifact.precision]
    if backend.startswith("torch"):
        from .backends import torch_eager

        if artifact.input != "normalised":
            return []
        module = torch_eager.network({"own": own}, artifact, "kept").to("meta")
        return dataflow.of_module(module, artifact.resolution, count)
    source = Path(path)
    if artifact.kind == "engine":
        source = Path(artifact.parent.get("file", ""))
        if not source.is_file() or files.sha256(source) != artifact.parent["sha256"]:
            return []
    return dataflow.of_onnx(source, None, count)[1]


def rows(measured, graph, device, precision):
    """A row of plain values for each layer that was measured, the slowest first."""
    names = dict(zip(numbered([layer.name for layer in graph]), graph))
    limits = {part.name: part.seconds for part in estimate.optimistic(graph, device, precision)} if device and graph else {}
    joined = [joined_to(row, names) for row in measured]
    claims = Counter(layer.makes for layers in joined for layer in layers)
    whole, found = sum(row["seconds"] for row in measured), []
    for row, layers in sorted(zip(measured, joined), key=lambda pair: -pair[0]["seconds"]):
        alone = [layer for layer in layers if claims[layer.makes] == 1]
        found.append(plain(row, alone, whole, [limits[layer.name] for layer in alone if layer.name in limits], bool(limits)))
    return found


def joined_to(row, names):
    """The graph's layers that a row computes, by what it is called."""
    pieces = {*(row.get("layers") or [row["name"], *re.split(BETWEEN_NAMES, row["name"])])}
    found = [layer for name, layer in names.items() if name in pieces]
    return found or of_tensor(row, {layer.makes: layer for layer in names.values()})


def of_tensor(row, makers):
    """ONNX Runtime calls what it computes in blocks of channels by the tensor that it makes: a product, or one activation after it."""
    last = makers.get(row["name"].removesuffix("_nchwc"))
    if last is None or row["kind"] not in dataflow.PRODUCTS or last.operation == row["kind"]:
        return [last] if last else []
    before = [makers[tensor] for tensor, _ in last.reads if tensor in makers]
    return [before[0], last] if len(before) == 1 and before[0].operation == row["kind"] else []


def plain(row, layers, whole, limits, known):
    seconds, macs = row["seconds"], sum(layer.macs for layer in layers)
    moved = row.get("bytes") or outside(layers)
    found = {"layer": row["name"], "kind": row["kind"], "ms": three(1e3 * seconds), "share": f"{seconds / whole:.1%}" if whole else "",
             "MACs": macs or "", "bytes": moved or "", "GMAC/s": rate(macs, seconds), "GB/s": rate(moved, seconds)}
    if known:
        limit = sum(limits)
        found.update({"limit ms": three(1e3 * limit) if limit else "", "of the limit": f"{limit / seconds:.0%}" if limit and seconds else ""})
    return found


def outside(layers):
    """Bytes that layers computed as one read from others, weights included, and write for others: of the last one, what it makes."""
    made = {layer.makes for layer in layers}
    reads = {tensor: size for layer in layers for tensor, size in layer.reads if tensor not in made}
    return sum(reads.values()) + sum(layer.weights for layer in layers) + (layers[-1].made if layers else 0)


def rate(count, seconds):
    """In 10^9 a second."""
    return three(count / seconds / 1e9) if count and seconds else ""


def remarks(profile):
    """Lines under the table."""
    products = sum(bool(row["MACs"]) for row in profile.rows)
    yield f"{len(profile.rows)} layers, {products} of them convolutions or products, take {profile.layers_ms} ms"
    yield f"a step without the profiler takes {profile.step_ms} ms: it costs time of its own"
    yield (f"limit: the optimistic end of `rtseg-deploy estimate` for {profile.device}" if profile.device
           else "no data sheet of this device is at hand, so there is no limit: rates are what was reached")
