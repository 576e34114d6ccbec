"""What else an engine needs to be served by Triton or DeepStream: their configuration, from its sidecar. The engine itself stays as it is."""
import re
from pathlib import Path

from . import facts, files
from .errors import RtsegError
from .records import read_artifact

# ONNX's names -> Triton's (model_config.proto)
TRITON_TYPES = {"FLOAT": "TYPE_FP32", "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32"}
# nvinfer's numbers: 0 FP32, 2 FP16 (Gst-nvinfer, network-mode)
NETWORK_MODES = {"fp32": 0, "fp16": 2, "int8": 1}


def deploy_config(path, server, folder):
    """Write what `server`, triton or deepstream, needs into `folder`, the engine last but for its configuration; returns {"files", "notes"}.

    Raises RtsegError, with nothing written, where it would not label as it was proven to.
    """
    engine = read_artifact(path)
    refuse_not_served(path, engine)
    texts, plan, notes = {"triton": triton, "deepstream": deepstream}[server](engine, Path(path).name)
    put(path, Path(folder, plan), engine)
    for name, text in texts.items():
        files.write(Path(folder, name), text)
    return {"files": [str(Path(folder, name)) for name in (plan, *texts)], "notes": notes}


def refuse_not_served(path, engine):
    """Raise RtsegError for what neither of them loads."""
    if engine.kind != "engine":
        raise RtsegError(f"{path} is no engine", "build one with rtseg-deploy build-engine, and name that")
    if not {"built", "tensors"} <= set(engine.checks):
        raise RtsegError(f"the sidecar of {path} says neither what built it nor what it takes and gives", "export and build it again with this version")
    if engine.checks["built"]["runtime"] != "tensorrt":
        raise RtsegError(f"{path} is an engine of TensorRT-RTX, and Triton and DeepStream load TensorRT's alone",
                         "build it with TensorRT on the device that serves it")
    if not all(map(plain, written(path, engine))):
        raise RtsegError(f"the sidecar of {path}, or its name, holds what would be more than a value in a configuration", "build it again, under a plain name")


def written(path, engine):
    """The texts, and the sides of tensors, that go into a configuration as they are: a line more there may name a library that is loaded."""
    built, tensors = engine.checks["built"], [engine.checks["tensors"][side] for side in ("input", "output")]
    return [Path(path).name, built["version"], built["compute_capability"], *(tensor["name"] for tensor in tensors),
            *(side for tensor in tensors for side in tensor["shape"])]


def plain(value):
    return type(value) is int or isinstance(value, str) and re.fullmatch(r"[\w.:/@+ -]+", value) is not None


def put(source, goal, engine):
    with files.replacing(goal) as temporary:
        files.same(source, temporary)
        if files.sha256(temporary) != engine.sha256:
            raise RtsegError(f"{source} was changed while it was used", "run it again")


def heading(engine):
    """What a reader of the file should know, as comments."""
    built, seen = engine.checks["built"], engine.normalisation
    fed = f"RGB / 255, minus {seen['mean']}, over {seen['std']}" if engine.input == "normalised" else "RGB pixels as they are"
    return (f"# {engine.model}, {engine.precision}, sha256 {engine.sha256}\n"
            f"# loads with TensorRT {built['version']} on compute capability {built['compute_capability']} alone; fed {fed}\n")


def triton(engine, name):
    """({file: text}, where the engine goes, notes): a model repository. The batch is fixed, so to Triton there is none, and dims are whole."""
    lines = [f'name: "{engine.model}"', 'platform: "tensorrt_plan"', "max_batch_size: 0"]
    for side in ("input", "output"):
        tensor = engine.checks["tensors"][side]
        if tensor["type"] not in TRITON_TYPES:
            raise RtsegError(f"the engine's {side} is {tensor['type']}, and exports have {', '.join(TRITON_TYPES)}", "export and build it again")
        lines.append(f'{side} [ {{ name: "{tensor["name"]}" data_type: {TRITON_TYPES[tensor["type"]]} dims: {tensor["shape"]} }} ]')
    return {f"{engine.model}/config.pbtxt": heading(engine) + "\n".join(lines) + "\n"}, f"{engine.model}/1/model.plan", []


def deepstream(engine, name):
    """({file: text}, where the engine goes, notes): for Gst-nvinfer, with the labels.

    It feeds planar float32, scale (x - offset) with one scale for all channels, and takes the largest value of each pixel, if it is above
    the threshold, which may not be negative (Gst-nvinfer's manual; its output and configuration parsers).
    """
    mean, std = engine.normalisation["mean"], engine.normalisation["std"]
    uint8 = "export with --input rgb8-nchw, and take --for triton: DeepStream's Gst-nvinferserver feeds uint8 to it"
    if engine.input != "normalised":
        raise RtsegError(f"Gst-nvinfer feeds float32, and the engine takes {engine.input}", uint8.partition(", and ")[2] if "nchw" in engine.input else uint8)
    if len(set(std)) > 1:
        raise RtsegError(f"Gst-nvinfer scales R, G and B by one number, and the network was trained with std {std}", uint8)
    if engine.output == "labels":
        raise RtsegError("Gst-nvinfer looks for the labels in logits itself, and the engine gives labels", "export with --output logits or native")
    height, width = engine.resolution
    entries = {
        "model-engine-file": name, "labelfile-path": "labels.txt", "gie-unique-id": 1, "process-mode": 1, "network-type": 2,
        "network-mode": NETWORK_MODES[engine.precision], "batch-size": 1, "infer-dims": f"3;{height};{width}", "model-color-format": 0,
        "net-scale-factor": repr(1 / (255 * std[0])), "offsets": ";".join(repr(255 * value) for value in mean), "maintain-aspect-ratio": 0,
        "scaling-filter": 1, "num-detected-classes": engine.classes, "segmentation-output-order": 0, "segmentation-threshold": 0.0,
        "output-blob-names": engine.checks["tensors"]["output"]["name"]}
    text = heading(engine) + "[property]\n" + "".join(f"{key}={value}\n" for key, value in entries.items())
    labels = "\n".join(facts.class_set(engine.class_set, engine.classes).names) + "\n"
    return {"labels.txt": labels, "nvinfer.txt": text}, name, [
        "Gst-nvinfer gives no class (-1) to a pixel whose largest logit is not above 0; the logits of an image of yours tell how many there are"]
