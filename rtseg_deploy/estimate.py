"""How long a network can be expected to take on a device that is not here: a bracket, never a figure of speed; and the memory that it needs.

A layer has M multiply-accumulates and moves Q bytes; a device has P operations and B bytes a second, and a cache of L bytes.

Optimistic, to which no runtime comes that runs one kernel for each convolution at the stated clock:
    t = sum over kernels of max(2 M / (w P), (max(0, R - L) + max(0, W - L)) / B)
A kernel is a convolution or a matrix product with all that can be computed on the way: what only changes elements, pools or averages joins
the kernel that makes its largest input, and what enlarges or joins tensors is done by who reads them. R is what a kernel reads from others,
weights included, W what others read of it: of each, as much as the cache holds may never see the memory. w is 4 where Winograd's F(4x4, 3x3)
applies and 1 elsewhere: (6 x 6) multiplications for (4 x 4) results instead of (4 x 4) x (3 x 3) (Lavin and Gray, arXiv 1509.09308).
What the output does not depend on is left out. Launches cost nothing: a CUDA graph hides them from the host, and what is left of them on
the device nobody states. FP32 means FP32: with TF32 allowed, an RTX 4090, an H200 or an Orin can be faster.

Pessimistic, as an eager framework does it, one operation after the other and none fused:
    t = sum over layers of 2 M / P + (reads + weights + result) / B + tau
P is that of FP32, because the tensor cores may not take the layer; tau, the time that a launch takes the host, is in facts/overheads.csv,
and left out where that has none. It is no bound: a layer can be slower than its arithmetic and its traffic, and in the papers many are.
"""
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import dataflow, facts, models
from .complexity import FLOAT
from .errors import RtsegError, need
from .records import size

ESTIMATE = "an estimate from data sheets, not a measurement: nothing was run, and a network can be slower than its bracket"
WINOGRAD = (4 * 3) ** 2 / (4 + 3 - 1) ** 2
BYTES = {"fp32": FLOAT, "fp16": dataflow.HALF}
INSIDE, SLOWER, BEATEN = "inside", "slower", "BEATS the optimistic end"


@dataclass(frozen=True)
class Part:
    """A layer, or a kernel, and what it takes of a device, in seconds."""
    name: str
    macs: int
    moved: float                    # bytes to and from memory
    compute: float
    memory: float
    launch: float
    overlapped: bool                # computes while it moves

    @property
    def seconds(self):
        return (max if self.overlapped else sum)((self.compute, self.memory)) + self.launch

    @property
    def bound(self):
        return max(("compute", self.compute), ("memory", self.memory), ("launches", self.launch), key=lambda pair: pair[1])[0]


# ---- the model


def optimistic(layers, device, precision):
    """The Parts of the optimistic end: a kernel each."""
    peak = 1e12 * (device.fp16_tflops if precision == "fp16" else device.fp32_tflops)
    cache = device.l2_mib * 2**20
    joined = kernels(needed(layers))
    wanted = {tensor for kernel in joined for tensor in kernel.reads} | {layers[-1].makes}
    parts = []
    for kernel in joined:
        read = sum(kernel.reads.values()) + sum(layer.weights for layer in kernel.layers)
        written = sum(layer.made for layer in kernel.layers if layer.makes in wanted)
        moved = max(0, read - cache) + max(0, written - cache)
        multiplied = sum(layer.macs / (WINOGRAD if layer.winograd else 1) for layer in kernel.layers)
        parts.append(Part(kernel.layers[0].name, sum(layer.macs for layer in kernel.layers), moved, 2 * multiplied / peak, moved / device.bandwidth_gbs / 1e9,
                          0.0, True))
    return parts


def needed(layers):
    """The layers that the output depends on."""
    wanted, found = {layers[-1].makes}, []
    for layer in reversed(layers):
        if layer.makes in wanted:
            found.append(layer)
            wanted.update(tensor for tensor, _ in layer.reads)
    return found[::-1]


@dataclass(frozen=True)
class Kernel:
    layers: list
    reads: dict                     # tensor of another kernel, or the image -> bytes


def kernels(layers):
    """The layers joined as the optimistic end has it; see above."""
    made_by, instead, found = {}, {}, []  # tensor -> its kernel; tensor that is nowhere stored -> {tensor: bytes} that is read instead
    for layer in layers:
        sources = {}
        for tensor, count in layer.reads:
            sources.update(instead.get(tensor, {tensor: count}))
        latest = max((made_by.get(tensor, -1) for tensor in sources), default=-1)
        main = max((count for tensor, count in sources.items() if made_by.get(tensor, -1) == latest), default=0)
        is_output = layer is layers[-1]
        if layer.operation in dataflow.PRODUCTS or is_output and latest < 0:
            latest = len(found)
            found.append(Kernel([], {}))
        elif not is_output and (latest < 0 or main < layer.made):
            # who computes it again reads no more than the result itself would be
            share = min(1, layer.made / max(1, sum(sources.values())))
            instead[layer.makes] = {tensor: count * share for tensor, count in sources.items()}
            continue
        made_by[layer.makes] = latest
        found[latest].layers.append(layer)
        found[latest].reads.update((tensor, count) for tensor, count in sources.items() if made_by.get(tensor) != latest)
    return found


def pessimistic(layers, device, launch_us):
    """The Parts of the pessimistic end: a layer each. launch_us: None leaves it out."""
    parts = []
    for layer in layers:
        moved = sum(count for _, count in layer.reads) + layer.weights + layer.made
        parts.append(Part(layer.name, layer.macs, moved, 2 * layer.macs / device.fp32_tflops / 1e12, moved / device.bandwidth_gbs / 1e9,
                          (launch_us or 0) / 1e6, False))
    return parts


def milliseconds(parts):
    return 1e3 * sum(part.seconds for part in parts)


def bound(parts):
    """What most of the time goes to, and its share, as words."""
    whole = dict.fromkeys(("compute", "memory", "launches"), 0.0)
    for part in parts:
        if part.overlapped:
            whole[part.bound] += part.seconds
        else:
            for name, seconds in (("compute", part.compute), ("memory", part.memory), ("launches", part.launch)):
                whole[name] += seconds
    name = max(whole, key=whole.get)
    return f"{name} {whole[name] / sum(whole.values()):.0%}"


def memory(layers, libraries_mib):
    """Bytes by what needs them: weights, activations (see dataflow.peak), workspace (the largest convolution as one matrix product), libraries."""
    return {"weights": sum(layer.weights for layer in layers), "activations": dataflow.peak(layers),
            "workspace": max(layer.unrolled for layer in layers), "libraries": int(2**20 * (libraries_mib or 0))}


# ---- what is asked


def estimate(subject, resolution=None, targets=(), fp16=False, tell=lambda step, done: None):
    """A row of plain values for each target and precision; subject: a network's name, or an ONNX file. Raises RtsegError."""
    chosen = [facts.target(name) for name in targets] or list(facts.targets().values())
    rows = []
    for precision in ("fp32", "fp16") if fp16 else ("fp32",):
        tell(f"counting {subject} in {precision}", None)
        resolution, layers = layers_of(subject, resolution, precision)
        rows += [row(subject, resolution, layers, target, precision) for target in chosen]
    return sorted(rows, key=lambda found: [target.name for target in chosen].index(found["target"]))


def row(subject, resolution, layers, target, precision):
    device, overhead = target.device, facts.overheads()[target.device.name]
    best, worst = optimistic(layers, device, precision), pessimistic(layers, device, overhead.launch_us)
    needed = memory(layers, overhead.libraries_mib)
    notes = [f"FP16 not accelerated on {device.name}"] if precision == "fp16" and not device.fast_fp16 else []
    notes += [f"TF32 is left out, with which {device.name} can be faster"] if precision == "fp32" and float(device.compute_capability) >= 8 else []
    notes += [f"launches on {device.name} are not known and left out"] if overhead.launch_us is None else []
    return {"network": f"{Path(subject).name} {size(resolution)}", "target": target.name, "precision": precision,
            "optimistic ms": three(milliseconds(best)), "bound by": bound(best), "pessimistic ms": three(milliseconds(worst)), "most of it": bound(worst),
            "MiB needed": round(sum(needed.values()) / 2**20), "MiB there": round(1024 * device.memory_gib),
            "memory": "fits" if sum(needed.values()) <= device.memory_gib * 2**30 else "does not fit", "notes": notes}


def three(value):
    """To three digits."""
    return float(f"{value:.3g}")


def per_layer(subject, resolution, target, precision="fp32", tell=lambda step, done: None):
    """A row for each layer: what it takes when nothing is fused, as the pessimistic end has it."""
    tell(f"counting {subject}", None)
    resolution, layers = layers_of(subject, resolution, precision)
    device = facts.target(target).device
    parts = pessimistic(layers, device, facts.overheads()[device.name].launch_us)
    whole = sum(part.seconds for part in parts)
    return [{"layer": part.name, "MACs": part.macs, "bytes": int(part.moved), "bound by": part.bound, "ms": three(1e3 * part.seconds),
             "share": f"{part.seconds / whole:.1%}"} for part in parts]


def layers_of(subject, resolution, precision):
    """((height, width), layers) of a network that gives logits at the image's size, or of an ONNX file as it is."""
    if Path(subject).suffix == ".onnx":
        resolution, layers = dataflow.of_onnx(subject, resolution, BYTES[precision])
        if not any(layer.macs for layer in layers):
            raise RtsegError(f"{subject} multiplies nothing, so there is nothing to estimate", "export a network")
        return resolution, layers
    if not resolution:
        raise RtsegError(f"{subject} has no size of its own", "add --resolution HxW")
    return resolution, of_network(subject, resolution, "logits", precision)


def of_network(name, resolution, output, precision="fp32", classes=19, reduced=None):
    """Layers of a network of the registry; reduced: the (height, width) that the image is resized to first."""
    torch = need("torch")
    from .deployed import Deployed, Reduced

    network = models.find(name)
    if not network.takes(reduced or resolution, network.reading):
        raise RtsegError(f"{name} takes heights and widths that are multiples of {network.grid(network.reading)}, not {size(resolution)}",
                         "choose another --resolution")
    with torch.device("meta"):
        module = network.module(classes).eval()
    module = Reduced(module, reduced) if reduced else module
    return dataflow.of_module(Deployed(module, "bilinear" if output == "logits" else None), resolution, BYTES[precision])


def noted(rows):
    """(the rows with a letter for each of their notes, the notes by their letters)."""
    every = list(dict.fromkeys(note for found in rows for note in found["notes"]))
    letters = dict(zip(every, string.ascii_letters))
    return ([{**found, "notes": " ".join(letters[note] for note in found["notes"])} for found in rows],
            [f"{letters[note]}: {note}" for note in every])


# ---- the papers' figures


def papers(tell=lambda step, done: None):
    """A row for each time or FPS that a paper prints of its own network: measured, and the bracket."""
    return [paper_row(figure, tell) for figure in facts.papers() if figure.fps or figure.ms]


def paper_row(figure, tell):
    how = facts.timed(figure.paper, figure.table)
    tell(f"counting {figure.network} at {size(figure.input)}", None)
    layers = layers_of_figure(figure)
    device = facts.devices()[figure.device]
    best = milliseconds(optimistic(layers, device, "fp32"))
    worst = milliseconds(pessimistic(layers, device, facts.overheads()[device.name].launch_us))
    measured = 1000 / figure.fps if figure.fps else figure.ms
    verdict = BEATEN if measured < best else INSIDE if measured <= worst else SLOWER
    return {"figure": f"{figure.paper} {figure.table.removeprefix('Table ')}", "network": f"{figure.network} {size(figure.input)}", "device": figure.device,
            "software": how["software"], "measured ms": three(measured), "optimistic ms": three(best), "pessimistic ms": three(worst), "verdict": verdict,
            "notes": list(reasons(figure, verdict))}


def layers_of_figure(figure):
    """Layers of what a paper timed."""
    how = facts.timed(figure.paper, figure.table)
    resized = how["output"] == "logits" and figure.resolution != figure.input
    return of_figure(figure.network, figure.resolution if resized else figure.input, how["output"], int(how["classes"]), figure.input if resized else None)


@cache
def of_figure(name, resolution, output, classes, reduced):
    return of_network(name, resolution, output, classes=classes, reduced=reduced)


def reasons(figure, verdict):
    """Why it lies where it does, and whether the network is the paper's."""
    for fact in facts.outside():
        if all(fact[name] in ("", value) for name, value in (("paper", figure.paper), ("network", figure.network), ("table", figure.table),
                                                               ("device", figure.device), ("verdict", verdict))):
            yield fact["reason"]
    different = facts.differences().get((figure.network, "gflops"))
    note = models.find(figure.network).note
    if different or note:
        yield f"ours: {different or note}"


def counted(rows):
    """How many of the papers' figures lie where, in words."""
    inside, slower, beaten = (sum(found["verdict"] == verdict for found in rows) for verdict in (INSIDE, SLOWER, BEATEN))
    return f"{len(rows)} figures: {inside} inside the bracket, {slower} slower than its pessimistic end, {beaten} faster than its optimistic end"
