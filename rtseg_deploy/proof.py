"""Proof that an ONNX graph is the network that was trained: ONNX Runtime against PyTorch, on three inputs.

The bars were set by planting faults in the trained SGCPNet (tests/test_proof.py). In fractions of the logits' scale: correct FP32 graphs
depart by 2e-6 to 2e-5; one convolution's bias dropped by 7e-3 or more; an epsilon of 1e-3 for 1e-5, or the reverse, in one of the 71
BatchNorms by 1e-4 to 2e-1, except in nine whose variance is so large that it hardly matters. FP16 graphs, every result rounded, depart by
up to 2.1e-2 on these inputs and on CamVid's 233 test images; with a convolution's weights lost to FP16 by 6e-2 or more (tests/test_fp16.py).
INT8 graphs are held to real pictures, for noise does not fit in ranges that were measured on streets: correct ones depart by 0.2 to 0.6 and change
0.5 % of labels at 360x480, 3 % at 96x128; ranges of one black image by 1.1, of a white, grey or noisy one by 0.8 to 5; a scale that is 4 times too
small by 0.9 or more (tests/test_int8.py). What a layer costs in mIoU is calibrate.py's to judge.
"""
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from . import images
from .errors import RtsegError, need

# precision -> (largest |difference| as a fraction of the logits' standard deviation, least share of equal labels)
BARS = {"fp32": [1e-4, 0.9999], "fp16": [5e-2, 0.99], "int8": [0.8, 0.96]}
KEEPS_LABELS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # after an ArgMax: every label stays what and where it is
TIE = 1e-3                          # of the logits' scale


@dataclass(frozen=True)
class Picture:
    """One input of the proof: as the graph takes it, and normalised as the network was trained to see it."""
    fed: np.ndarray
    normalised: np.ndarray


class Photographs(Mapping):
    """Name -> Picture of those given, and of image files, each read when it is asked for: none is kept."""
    def __init__(self, given, paths, picture):
        self.given, self.picture = given, picture
        short = {Path(path).name: path for path in paths}
        self.paths = short if len(short) == len(paths) else {str(path): path for path in paths}

    def __getitem__(self, name):
        return self.given[name] if name in self.given else self.picture(images.read(self.paths[name]))

    def __iter__(self):
        return iter({**self.given, **self.paths})

    def __len__(self):
        return len({**self.given, **self.paths})


def pictures(resolution, normalisation, kind="normalised", paths=()):
    """Name -> Picture: seeded noise, a street, and pixels that are only black or white in each channel; and image files, which are not kept in memory.

    kind: records.Artifact.input.
    """
    def picture(pixels):
        pixels = images.resized(pixels, resolution)
        return Picture(images.fed(pixels, kind, normalisation), images.normalised(pixels, normalisation))

    height, width = resolution
    rng = np.random.default_rng(2026)
    noise = rng.standard_normal((1, 3, height, width), np.float32)
    street = images.read(images.STREET)
    blocks = rng.integers(0, 2, (-(-height // 4), -(-width // 4), 3), np.uint8) * 255
    extremes = blocks.repeat(4, 0).repeat(4, 1)[:height, :width]
    pixels = {"street": street, "extremes": extremes}
    if kind != "normalised":
        pixels["noise"] = np.clip(127.5 + 64 * noise[0].transpose(1, 2, 0), 0, 255).astype(np.uint8)
    found = {"noise": Picture(noise, noise), **{name: picture(given) for name, given in pixels.items()}}
    return Photographs(found, paths, picture) if paths else found


def session(model, threads=0):
    """An ONNX Runtime session on the CPU for a model in memory. threads: all of the machine's if not given."""
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and told in one line
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # large maps are given back at once: half the peak memory
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def argmax(model, passed=KEEPS_LABELS):
    """The ArgMax whose labels the model gives, looked for through the operators in `passed`; None where it gives something else."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(model.graph.output[0].name)
    while node is not None and node.op_type in passed:
        node = makers.get(node.input[0])
    return node if node is not None and node.op_type == "ArgMax" else None


def logits_name(model):
    """The tensor that holds the logits: the output itself, or what the ArgMax reads whose labels the output is."""
    last = argmax(model)
    return last.input[0] if last else model.graph.output[0].name


def logits(model):
    """f(an input) -> float32 logits of a model, by ONNX Runtime."""
    runner = session(with_outputs(model, [logits_name(model)]))
    return lambda fed: runner.run(None, {"input": fed})[0].astype(np.float32, copy=False)


def with_outputs(model, names):
    """A copy of the model whose outputs are those tensors; their shapes and types are left to the runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    copy.graph.output.extend(known[name] if name in known else helper.make_empty_tensor_value_info(name) for name in names)
    return copy


def agreement(reference, found, labels):
    """How logits (1 x classes x H x W) and labels (1 x H x W) differ from reference logits.

    The largest difference, the same as a fraction of the reference's standard deviation, the share of equal labels, and the share of
    those that differ where the reference itself hardly prefers one (see TIE): a network with random weights has many.
    """
    wanted = reference.argmax(1)
    flat = not reference.std() > 0  # a network that says the same of every pixel proves nothing
    if flat or found.shape != reference.shape or labels.shape != wanted.shape or not np.isfinite(found).all():
        return {"max_abs": float("inf"), "relative": float("inf"), "labels_equal": 0.0, "ties": 0.0}
    largest, scale = float(np.abs(reference - found).max()), max(float(reference.std()), 1e-12)
    return {"max_abs": largest, "relative": largest / scale, "labels_equal": float((wanted == labels).mean()),
            "ties": float(tied(reference, labels, TIE * scale)[wanted != labels].sum() / wanted.size)}


def tied(reference, labels, margin):
    """Where the reference's logit of a label comes within `margin` of its best."""
    known = (labels >= 0) & (labels < reference.shape[1])
    chosen = np.take_along_axis(reference, np.where(known, labels, 0)[:, None].astype(np.int64), 1)[:, 0]
    return known & (reference.max(1) - chosen <= margin)


def good(row, precision):
    most, least = BARS[precision]
    return row["relative"] <= most and row["labels_equal"] + row["ties"] >= least


def against(model, reference: Callable, inputs, precision):
    """Compare a model's logits, and its labels where it ends in labels, with `reference(Picture)` on every one of `inputs` (see pictures).

    Returns {"ok", "bar", "inputs": {picture: agreement}, "worst": picture}.
    """
    runner = session(with_outputs(model, list(dict.fromkeys([logits_name(model), model.graph.output[0].name]))))
    rows = {}
    for name, picture in inputs.items():
        logits, *labels = runner.run(None, {"input": picture.fed})
        rows[name] = agreement(reference(picture), logits.astype(np.float32, copy=False), labels[0] if labels else logits.argmax(1))
    return {"ok": all(good(row, precision) for row in rows.values()), "bar": BARS[precision], "inputs": rows,
            "worst": max(rows, key=lambda name: (not good(rows[name], precision), rows[name]["relative"]))}


def refuse(parity, what):
    """Raise RtsegError with the row of a failed parity report that is worst."""
    row, (most, least) = parity["inputs"][parity["worst"]], parity["bar"]
    raise RtsegError(f"{what} (on the {parity['worst']} input: {row['relative']:.2g} of the logits' scale, at most {most:g}; "
                     f"{row['labels_equal']:.4%} of labels equal, at least {least:.2%})", "nothing was written")


def first_departure(reference, found, x, bar):
    """The first tensor of `found`, in its order, that departs from the tensor of the same name in `reference`; None where none does."""
    inferred = onnx.shape_inference.infer_shapes(reference)
    floats = {value.name for value in (*inferred.graph.value_info, *reference.graph.output)
              if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    names = [name for node in found.graph.node for name in node.output if name in floats]
    before = session(with_outputs(inferred, names)).run(None, {"input": x})
    after = session(with_outputs(onnx.shape_inference.infer_shapes(found), names)).run(None, {"input": x})
    for name, one, other in zip(names, before, after):
        if one.shape != other.shape or not np.abs(one - other).max() <= bar * max(float(one.std()), 1e-12):
            return name
    return None


def first_departure_from_torch(module, found, x, bar):
    """The first leaf module whose result departs from the tensor that the exporter named after it; None where none does."""
    results = results_of(module, x)
    produced = {name.rpartition("/")[0]: name for node in found.graph.node for name in node.output}
    pairs = [(path, produced[scope]) for path in results if (scope := onnx_scope(module, path)) in produced]
    tensors = session(with_outputs(found, [name for _, name in pairs])).run(None, {"input": x})
    for (path, _), tensor in zip(pairs, tensors):
        if not np.abs(results[path] - tensor).max() <= bar * max(float(results[path].std()), 1e-12):
            return path
    return None


def results_of(module, x):
    """Path -> result of each leaf module that is called for an input, in the order of the calls."""
    torch = need("torch")
    results = {}

    def keep(path):
        def hook(layer, inputs, result):
            results[path] = result.numpy()
        return hook

    hooks = [leaf.register_forward_hook(keep(path)) for path, leaf in module.named_modules() if not list(leaf.children())]
    with torch.inference_mode():
        module(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    return results


def onnx_scope(module, path):
    """The scope that torch's exporter gives a module: each module on the way that is called, numbered ones with their parents' name."""
    scope, parts = "", path.split(".")
    for depth in range(1, len(parts) + 1):
        prefix = ".".join(parts[:depth])
        if type(module.get_submodule(prefix)).__name__ != "ModuleList":
            scope += "/" + re.search(r"[^.]*[^.\d][^.]*(\.\d+)*$", prefix)[0]
    return scope
