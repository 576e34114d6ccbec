"""Small valid files of each kind, made here."""
import io
import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
from PIL import Image

from rtseg_deploy import bench, launch, records

RESOLUTION = 16, 32
GRAPH = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,3,16,32] input) => (float[1,4,16,32] output) <float[4,3,3,3] w, float[4] b, int64[4] s> {{
    x = Conv <pads = [1,1,1,1]> (input, w, b)
    y = Relu (x)
    {more}
}}"""
ENVIRONMENT = {"cpu": "a processor", "gpu": {"error": "none"}, "boundary": "network", "threads": 1, "python": "3.11", "load": [0.1, 0.1, 0.1]}


def onnx_files():
    import onnx
    from onnx import numpy_helper, parser

    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32), "b": np.ones(4, np.float32), "s": np.array([1, 4, 16, 32])}
    bodies = {"logits": "output = Reshape (y, s)",
              "pooled": "p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (y) output = Resize <mode = \"linear\"> (p, , , s)",
              "constant": "k = Constant <value = float[1] {2.0}> () z = Mul (y, k) output = Identity (z)",
              "branch": "k = Constant <value = bool {1}> () output = If (k) <then_branch = g () => (float[1,4,16,32] o) { o = Identity (y) }, "
                        "else_branch = h () => (float[1,4,16,32] q) { q = Neg (y) }>",
              "vast": "k = ConstantOfShape (s) z = Shape (k) t = Expand (y, z) output = Identity (t)"}
    for more in bodies.values():
        model = parser.parse_model(GRAPH.format(more=more))
        names = {name for node in model.graph.node for name in node.input} | {"w", "b"}
        del model.graph.initializer[:]
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items() if name in names or name == "s")
        yield onnx.shape_inference.infer_shapes(model).SerializeToString()


def sidecar(kind="onnx", **changes):
    """An artifact's description, of the bytes b"artifact"."""
    proven = {"parity": {"ok": True, "bar": [1e-4, 0.9999], "worst": "noise", "inputs": {"noise": {"relative": 1e-6, "labels_equal": 1.0}}},
              "tensors": {side: {"name": side, "type": "FLOAT", "shape": [1, channels, *RESOLUTION]} for side, channels in (("input", 3), ("output", 11))}}
    built = {"layers": {"fp16": 0, "fp32": 9, "fp32_names": []}, "bytes": 1000, "build_seconds": 1.5, "messages": [], "run_on_device": False,
             "built": {"runtime": "tensorrt", "version": "8.2.1", "compute_capability": "6.2", "target": "jetson-tx2"}}
    artifact = records.Artifact(kind=kind, model="sgcpnet", dialect="official", classes=11, class_set="camvid", resolution=RESOLUTION, network_input=RESOLUTION,
                                enlarge="bilinear", precision="fp32", input="normalised", output="logits", opset=17,
                                normalisation={"mean": [.5, .5, .5], "std": [.2, .2, .2]}, weights_bytes=1000, parent={"seed": 0},
                                sha256=sha256(b"artifact").hexdigest(),
                                target="jetson-tx2" if kind == "engine" else "", checks={**proven, **(built if kind == "engine" else {})},
                                versions={"tensorrt": "8.2.1"})
    return replace(artifact, **changes)


def timed():
    """The answer of a job that timed."""
    return {"ok": True, "seconds": [0.005, 0.0051, 0.0049] * 5, "warmup_seconds": [0.01] * 3, "warmup_converged": True, "minor_faults": 0,
            "empty_seconds": 1e-7, "began": 1.0, "ended": 2.0, "environment": ENVIRONMENT, "back_to_back_seconds": 0.075, "stages": {"network": [0.005] * 15}}


ANSWERS = (timed(), {"ok": True, "environment": ENVIRONMENT}, {"ok": False, "error": "no", "fix": "yes"},
           {"ok": True, "layers": {"fp16": 0, "fp32": 9, "fp32_names": ["a"]}, "bytes": 6, "build_seconds": 1.5, "messages": ["said"], "runtime": "tensorrt",
            "version": "8.2.1", "environment": ENVIRONMENT, "gpu": {"name": "TX2", "compute_capability": "6.2", "memory_bytes": 8 << 30}},
           {"ok": True, "probe": {"gpu": {"name": "TX2", "compute_capability": "6.2", "memory_bytes": 8 << 30, "bus": "01:00.0"}, "tensorrt": "8.2.1",
                                  "said": {"nvpmodel -q": "NV Power Mode: MAXN\n0"}, "files": {"/sys/devfreq/cur_freq": "1300500000"}}})


def results():
    run = bench.run_of(timed())
    rows = ({"t": 1.1, "cpu_mhz": 3000.0, "load": 0.5, "throttled_by": ["power cap"]}, {"t": 1.6, "cpu_mhz": 3100.0, "load": 0.6, "temperature_c": 50.0})
    figure = bench.figure(sidecar(), "net.onnx", "onnxruntime-cpu", "noise, seed 0", [replace(run, telemetry=rows)] * 2, "")
    accuracy = {"format": records.FORMAT, "kind": "accuracy", "on": "", "memory_bytes": 1, "environment": ENVIRONMENT}
    tuned = {"format": 1, "entries": [{"artifact": "a" * 64, "threads": 2, "machine": {"cpus": 2}, "when": "x", "load": 0.1, "trials": [], "refused": {},
                                       "finals": [{"backend": "onnxruntime-cpu", "settings": {}, "precision": "fp32", "when": "x", "ms": [5.0, 5.1]}]}]}
    return [as_json(one) for one in (figure.to_json(), *ANSWERS, accuracy, tuned)]


def as_json(value):
    return json.dumps(value).encode()


def jobs():
    artifact = sidecar().to_json()
    infer = {"action": "infer", "backend": "onnxruntime-cpu", "artifact": "net.onnx", "described": artifact, "threads": 1, "own": None, "inputs": ["0.npy"],
             "labels": ["labels-0.npy"], "settings": None}
    return [as_json(one) for one in (infer, {**infer, "action": "time", "iterations": 3, "cuda_graph": False, "warmup_limit": 0.05, "stages": None,
                                             "streaming": False, "bn": "", "sampled": None}, {**infer, "action": "load"})]


def plans():
    texts = ('title = "t"\ndevice = "GTX 1080 Ti"\nrow = [{ network = "sgcpnet", resolution = "1024x2048", iterations = 5 }]\n',
             '[[row]]\nnetwork = "ddrnet-23-slim"\nresolution = "512x1024"\ninput = "512x1024"\nprecision = "fp16"\nbn = "kept"\n'
             '[[row]]\nartifact = "net.onnx"\n')
    return [text.encode() for text in texts]


def archives():
    from .mutations import archive

    labels = launch.saved(np.zeros(RESOLUTION, np.int16))
    described = sidecar().to_json()
    rows = [{"name": "000-build", "action": "build", "files": {}, "results": [], "file": "net.onnx", "artifact": described, "target": "jetson-tx2",
             "precision": "fp32", "proven": {}},
            {"name": "001-labels", "action": "infer", "files": {"network.engine": "jobs/000-build/engine"}, "results": ["labels-0.npy", "expected-0.npy"],
             "pictures": ["noise"]},
            {"name": "002-time", "action": "time", "files": {}, "results": [], "file": "net.onnx", "artifact": described, "backend": "onnxruntime-cpu",
             "input": "noise, seed 0", "protocol": "network", "figure": ""}]
    parts = {"bundle.json": as_json({"format": records.FORMAT, "kind": "bundle", "made": "x", "jobs": rows}), "000-build/engine": b"engine",
             "000-build/result.json": as_json(ANSWERS[3]), "001-labels/result.json": as_json(ANSWERS[1]), "001-labels/labels-0.npy": labels,
             "001-labels/expected-0.npy": labels, "002-time/result.json": as_json(timed()), "002-time/telemetry.jsonl": b'{"t": 1.0}\n'}
    return [archive(parts)]


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    grey = Image.fromarray(pixels[..., 0])
    return [stored(Image.fromarray(pixels), kind, **how) for kind, how in
            (("PNG", {}), ("JPEG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("GIF", {}))] + [stored(grey, "PNG")]


def label_files():
    ids = np.arange(72, dtype=np.uint8).reshape(8, 9) % 3
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return [stored(Image.fromarray(ids), "PNG"), stored(palette, "PNG"), stored(Image.fromarray(ids.astype(np.uint16)), "PNG")]


def stored(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def texts():
    return [b"name,sha256\n1.png,\n10.png,\n", b"1.png\n10.png\n", b"id,name,r,g,b\n0,road,1,2,3\n1,sky,4,5,6\n255,ignored,0,0,0\n", b"0,road\n7,sky\n",
            b"TRT-8601-EntropyCalibration2\ninput: 3ca9e1c4\nx: 3c010a14\n",
            b'{"sampler": 1, "files": ["/a/temp"], "described": {"/a/temp": "gpu"}, "pid": 1}\n{"t": 1.0, "files": ["40000"], "load": "0.1 x", '
            b'"cpu": "cpu 1 2 3 4 5 6 7 8", "timed": ["1"], "own_s": 0.1}\n',
            b'{"name": "a", "size": [8, 9], "confusion": [[0, 1, 5]], "boundary": [[1, 2, 3, 4]], "seconds": {"network": 0.1}, "decode": 0.1, "waited": 0.0}\n']


def checkpoints():
    import argparse

    import torch
    from safetensors.torch import save

    state = {"module.l1.0.weight": torch.ones(4, 3, 3, 3), "module.l1.1.running_var": torch.ones(4),
             "module.classifier.weight": torch.ones(11, 4, 1, 1).half(), "module.l1.1.num_batches_tracked": torch.tensor(3)}
    beside = {"epoch": np.int64(3), "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1), "log": np.arange(3.0),
              "optimizer": {"param_groups": [{"lr": 1}]}}
    for value, how in ((state, {}), ({"state_dict": state, **beside}, {}), ({"model": {"net": state}}, {"_use_new_zipfile_serialization": False})):
        buffer = io.BytesIO()
        torch.save(value, buffer, **how)
        yield buffer.getvalue()
    yield save({key.removeprefix("module."): tensor for key, tensor in state.items()})
