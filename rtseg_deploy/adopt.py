"""An ONNX file from elsewhere -> ONNX artifact: checked, folded, and proven to give what ONNX Runtime makes of the original.

Nothing of PyTorch is needed. What the file cannot say of itself, the normalisation, is asked for.
"""
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, version_converter

from . import facts, files, limits, locks, own, passes, proof
from .check import old_parser_warnings
from .errors import RtsegError, first_line
from .graphs import graphs, sides_of, tensors, type_name
from .original import HALF, MOST_CLASSES, RUNTIME_ERRORS, decided, interface, observed, read
from .records import Artifact, write_model
from .remarks import OPSETS, bindings, portrait_warning, versions, weights_bytes


@locks.writes
def adopt(source, path, normalisation, resolution=None, class_set="", tell=lambda step, done: None):
    """Write the artifact and its sidecar; returns the Artifact.

    normalisation: a name in own.NORMALISATIONS. resolution: (height, width), for a graph whose sizes are free.
    Raises RtsegError, with nothing written, for a file that is not such a network, or a folded graph that is not the same.
    """
    if normalisation not in own.NORMALISATIONS:
        raise RtsegError(f"no normalisation is called {normalisation!r}", f"the known ones: {', '.join(own.NORMALISATIONS)}")
    normalisation = asdict(own.NORMALISATIONS[normalisation])
    tell("reading the file", 0.0)
    original = interface(read(source), source, resolution)
    inputs = proof.pictures(original.resolution, normalisation, original.kind)
    tell("running the original", 0.1)
    result = observed(original, inputs["street"])
    raw, renames = fixed(original, result)
    plain = without_branches(raw, source)
    result = decided(result, original, plain, renames) if result.output == "labels" else result
    classes, names = class_names(class_set, result.classes, source)
    tell("folding BatchNorm", 0.25)
    model, fold = passes.optimise(at_known_opset(plain, source))
    model = with_labels(without_empty(model), result, original.resolution, classes)
    refuse_free_shapes(model, source)
    tell("proving it against the original", 0.4)
    parity = prove(original, result, raw, model, inputs, classes)

    artifact = Artifact(
        kind="onnx", model=safe_name(source), dialect="adopted", classes=classes, class_set=names, resolution=original.resolution,
        network_input=original.resolution, enlarge="", precision="fp32", input=original.kind, output=result.output,
        normalisation=normalisation, opset=model.opset_import[0].version, weights_bytes=weights_bytes(model),
        parent={"file": str(source), "sha256": files.sha256(source)}, checks={"fold": fold, "parity": parity, "tensors": bindings(model)}, versions=versions(),
        warnings=warnings_of(raw, model, result) + portrait_warning(original.resolution) + old_parser_warnings(model))
    if not artifact.weights_bytes:
        raise RtsegError(f"{source} holds no weights", "export the network with its weights in the file")
    tell("writing", 0.95)
    return write_model(path, model, artifact)


def safe_name(source):
    """The file's stem as Artifact.model may be."""
    return re.sub(r"[^\w.-]+", "-", Path(source).stem).lstrip(".")[:limits.NAME] or "adopted"


def class_names(claimed, found, source):
    """(number of classes, name of their set): `claimed` is a set, a number or "". Raises RtsegError where it is not what was found, or nothing is known."""
    known = facts.class_sets().get(claimed)
    number = int(claimed) if claimed.isdecimal() else len(known.names) if known else None
    if found is None and not claimed:
        raise RtsegError(f"{source} gives labels, and nothing in it says of how many classes", f"say it: --classes {' or --classes '.join(facts.class_sets())}")
    if claimed.isdecimal() and (found not in (None, number) or not 1 < number <= MOST_CLASSES):
        raise RtsegError(f"--classes {claimed}, but {source} has {found or f'2 to {MOST_CLASSES}'}", "leave --classes out, or name the right number")
    classes = found or number or 0
    return classes, facts.class_set("" if claimed.isdecimal() else claimed, classes).name


# ---- the graph


def fixed(original, result):
    """(the graph with every size fixed, from `input` to `output`, with all that shape inference finds; tensor -> its name in the original)."""
    model = onnx.ModelProto()
    model.CopyFrom(original.model)
    graph, opset = model.graph, next(entry.version for entry in model.opset_import if not entry.domain)
    element = next(value for value in graph.input if value.name == original.input).type.tensor_type.elem_type
    del model.opset_import[:], model.metadata_props[:], model.training_info[:], graph.value_info[:], graph.input[:], graph.output[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True))
    graph.input.append(helper.make_tensor_value_info(original.input, element, original.sides))
    graph.output.append(helper.make_tensor_value_info(original.output, result.kind, result.shape))
    names = renamed(graph, {original.input: "input", original.output: "output"})
    return onnx.shape_inference.infer_shapes(model, data_prop=True), {new: old for old, new in names.items()}


def renamed(graph, names):
    """Give tensors other names, in place; a tensor that has one of the new names already gets a free one. Returns old name -> new."""
    nodes = [node for inner in graphs(graph) for node in inner.node]
    values = [value for inner in graphs(graph) for value in (*inner.input, *inner.output, *inner.value_info, *inner.initializer)]
    used = {value.name for value in values} | {name for node in nodes for name in (*node.input, *node.output)}
    names = dict(names)
    for name in sorted((set(names.values()) - set(names)) & used):
        free = f"{name}_"
        while free in used:
            free += "_"
        names[name] = free
        used.add(free)
    for node in nodes:
        for ends in (node.input, node.output):
            ends[:] = [names.get(name, name) for name in ends]
    for value in values:
        value.name = names.get(value.name, value.name)
    return names


def without_branches(model, source):
    """The model without expressions of constants, which are what exporters let an If depend on. Raises RtsegError where one is left, or FP16."""
    plain = passes.clean.constants(model)
    branch = next((node for node in plain.graph.node if node.op_type == "If"), None)
    if branch is not None:
        raise RtsegError(f"{source}: an If {branch.name} holds graphs within the graph, and the image decides which is run", "export it without branches")
    refuse_other_precision(plain, source)
    return plain


def refuse_other_precision(model, source):
    """Raise RtsegError naming a tensor of floats that are neither FP32 nor FP64."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info} | {t.name: t.data_type for t in tensors(model.graph)}
    for name, kind in kinds.items():
        label = type_name(kind)
        if "FLOAT" in label and kind != TensorProto.FLOAT:
            raise RtsegError(f"{source}: {name} is {label.lower()}", HALF)


def at_known_opset(model, source):
    """The model at an opset of OPSETS: an older one is converted to the oldest, which every TensorRT reads. Raises RtsegError."""
    opset = model.opset_import[0].version
    if opset in OPSETS:
        return model
    fix = f"export it again with an opset from {OPSETS.start} to {OPSETS.stop - 1}"
    if opset >= OPSETS.stop:
        raise RtsegError(f"{source} is of opset {opset}, and {OPSETS.stop - 1} is the newest that is read", fix)
    try:
        converted = version_converter.convert_version(passes.clean.constants(model), OPSETS.start)
        converted.ir_version = max(converted.ir_version, helper.find_min_ir_version_for(list(converted.opset_import)))
        if opset < 11:
            keep_old_resize(converted.graph)
        onnx.checker.check_model(converted)
    except (version_converter.ConvertError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise RtsegError(f"{source} is of opset {opset}, which cannot be converted: {first_line(error)}", fix) from None
    return converted


def keep_old_resize(graph):
    """Say of every Resize what before opset 11 was meant, and the converter leaves out: where the grids meet, and which neighbour is taken."""
    for node in graph.node:
        if node.op_type == "Resize":
            said = {attribute.name for attribute in node.attribute}
            meant = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(helper.make_attribute(name, value) for name, value in meant.items() if name not in said)


def without_empty(model):
    """The model with every empty tensor that stands for an input of Resize that is not given left out: converters to FP16 take it for one that is."""
    empty = {tensor.name for tensor in model.graph.initializer if 0 in tensor.dims}
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[:] = ["" if name in empty else name for name in node.input]
    return model


def with_labels(model, result, resolution, classes):
    """The model with labels 1 x H x W as export writes them (see deployed.deployed); left alone where it gives such, or logits."""
    small = classes <= 255 and model.opset_import[0].version >= 14
    kind = TensorProto.UINT8 if small else TensorProto.INT32
    if result.output != "labels" or result.shape == (1, *resolution) and result.kind in (kind, TensorProto.INT32):
        return model
    graph = model.graph
    last = renamed(graph, {"output": "output/found"})["output"]
    while (cast := only_cast(graph, last)) is not None:  # TensorRT takes uint8 nowhere but at the very end
        last = cast.input[0]
        graph.node.remove(cast)
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, *resolution], np.int64), "output/sides"))
    graph.node.extend([helper.make_node("Reshape", [last, "output/sides"], ["output/shaped"], "output/shape"),
                       helper.make_node("Cast", ["output/shaped"], ["output"], "output/cast", to=kind)])
    del graph.value_info[:]
    graph.output[0].CopyFrom(helper.make_tensor_value_info("output", kind, (1, *resolution)))
    return passes.checked(model)


def only_cast(graph, name):
    """The Cast of labels that makes a tensor that nothing else reads; None where that is made otherwise."""
    if any(name in node.input for node in graph.node):
        return None
    maker = next((node for node in graph.node if name in node.output), None)
    integers = {value.name for value in graph.value_info if value.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)}
    return maker if maker is not None and maker.op_type == "Cast" and maker.input[0] in integers else None


def refuse_free_shapes(model, source):
    """Raise RtsegError naming a tensor whose shape is not known before the network runs."""
    shapes = {value.name: sides_of(value) for value in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        for name in filter(None, node.output):
            if shapes.get(name) is None or None in shapes[name]:
                raise RtsegError(f"{source}: the shape of {name} ({node.op_type}) is not known before the network runs", "export it again at a fixed size")


# ---- the proof


def prove(original, result, raw, model, inputs, classes):
    """The parity report against the original. Raises RtsegError naming the first tensor that departs."""
    try:
        if result.logits:
            run = original.runner([result.logits])
            parity = proof.against(model, lambda picture: run(picture)[0], inputs, "fp32")
        else:
            parity = labels_against(original, model, inputs, classes)
    except RUNTIME_ERRORS as error:
        raise RtsegError(f"{original.file} runs as it is, but not as adopted: {first_line(error)}", "please report it, with the file") from None
    if not parity["ok"]:
        where = proof.first_departure(raw, model, inputs[parity["worst"]].fed, parity["bar"][0]) or "the output"
        what = f"the adopted graph is not the network in {original.file}; the first tensor that departs is {where}"
        if result.logits:
            proof.refuse(parity, what)
        share = parity["inputs"][parity["worst"]]["labels_equal"]
        raise RtsegError(f"{what} (on the {parity['worst']} input: {share:.4%} of labels equal, at least {parity['bar'][1]:.2%})", "nothing was written")
    return parity


def labels_against(original, model, inputs, classes):
    """Like proof.against, where no logits can be compared. Raises RtsegError for labels that are no classes, or prove nothing."""
    theirs, ours, rows, seen = original.runner([original.output]), proof.session(model), {}, set()
    for name, picture in inputs.items():
        wanted, found = theirs(picture)[0].ravel(), ours.run(None, {"input": picture.fed})[0].ravel()
        seen |= set(np.unique(wanted).tolist())
        rows[name] = {"max_abs": None, "relative": None, "labels_equal": float((wanted == found).mean())}
    if min(seen) < 0 or max(seen) >= classes:
        raise RtsegError(f"{original.file} gives labels from {min(seen)} to {max(seen)}, and {classes} classes have 0 to {classes - 1}",
                         "name the right --classes")
    if len(seen) == 1:
        raise RtsegError(f"{original.file} gives the label {min(seen)} to every pixel of every picture, which proves nothing",
                         "check that it is a trained network")
    bar = proof.BARS["fp32"]
    worst = min(rows, key=lambda name: rows[name]["labels_equal"])
    return {"ok": rows[worst]["labels_equal"] >= bar[1], "bar": bar, "inputs": rows, "worst": worst}


def warnings_of(raw, model, result):
    """What a figure or a label of the adopted graph means besides."""
    before, after = raw.opset_import[0].version, model.opset_import[0].version
    last = next(node for node in model.graph.node if "output" in node.output)
    found = [f"written for opset {before}, converted to {after}"] if before != after else []
    if result.output != "labels" and last.op_type in ("Softmax", "LogSoftmax"):
        found.append(f"it ends in a {last.op_type}: labels are the same without, and its time is part of every figure")
    if not result.logits:
        found.append("its labels do not come straight from an ArgMax over classes, so they alone were compared, and build-engine --fp16 will refuse it")
    return tuple(found)
