"""From a network's logits to labels: how many differ from PyTorch's, over a data set, and how long it takes beside PyTorch and ONNX Runtime.

    python benchmarks/labels.py CHECKPOINT --data FOLDER [--count 6] [--resolution 512x1024 ...] [--classes 19 ...] [--rounds 50] [--json]

The logits are the network's own, of each picture; for another number of classes than its own they are random mixtures of those, the same each time.
What is timed takes turns, each call by itself, on the last picture; PyTorch is spared glibc's page faults (backends/torch_eager.py). The exit status is 1
where a label differs. Needs the extras export and cpu.
"""
import argparse
import json
import os
import sys
import time
from statistics import median

import numpy as np
import torch
from onnx import TensorProto, helper
from onnxruntime import InferenceSession, OrtValue, SessionOptions

from rtseg_deploy import checkpoints, datasets, images
from rtseg_deploy.backends import torch_eager
from rtseg_deploy.deployed import deployed
from rtseg_deploy.device import kernels
from rtseg_deploy.evaluate import some
from rtseg_deploy.layers import resize
from rtseg_deploy.records import size
from rtseg_deploy.report import markdown_table
from rtseg_deploy.terminal import Size

RESOLUTIONS = (360, 480), (512, 1024), (1024, 2048), (375, 1242), (481, 643)
CLASSES = 11, 19, 171


def logits_of(trained, paths, resolution):
    """The native logits of each picture."""
    net = deployed(trained, "native", 17)
    normalisation = {"mean": trained.normalisation.mean, "std": trained.normalisation.std}
    for path in paths:
        with torch.inference_mode():
            yield net(torch.from_numpy(images.normalised(images.resized(images.read(path), resolution), normalisation)))


def mixed(logits, classes):
    """Logits of so many classes, as smooth and about as large."""
    have = logits.shape[1]
    if classes == have:
        return logits
    weights = torch.randn(classes, have, generator=torch.Generator().manual_seed(classes)) / have ** 0.5
    return torch.einsum("kc,nchw->nkhw", weights, logits).contiguous()


def by_torch(logits, resolution, enlarge):
    with torch.inference_mode():
        return resize(logits, resolution, enlarge).argmax(1).to(torch.uint8)


def by_onnxruntime(logits, resolution, enlarge, threads):
    """A function that runs Resize and ArgMax, input and output bound."""
    how = {"bilinear": {"mode": "linear"}, "corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
           "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}}[enlarge]
    shape = [*logits.shape[:2], *resolution]
    graph = helper.make_graph(
        [helper.make_node("Resize", ["x", "", "", "sizes"], ["large"], **how), helper.make_node("ArgMax", ["large"], ["found"], axis=1, keepdims=0),
         helper.make_node("Cast", ["found"], ["labels"], to=TensorProto.UINT8)], "labels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, logits.shape)], [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *resolution])],
        [helper.make_tensor("sizes", TensorProto.INT64, [4], shape)])
    options = SessionOptions()
    options.intra_op_num_threads = threads
    session = InferenceSession(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString(), options,
                               providers=["CPUExecutionProvider"])
    binding, kept = session.io_binding(), [OrtValue.ortvalue_from_numpy(array) for array in (logits.numpy(), np.empty((1, *resolution), np.uint8))]
    binding.bind_ortvalue_input("x", kept[0])
    binding.bind_ortvalue_output("labels", kept[1])
    return lambda: kept and session.run_with_iobinding(binding)


def timed(logits, resolution, enlarge, threads, rounds):
    """Name -> (least, median) milliseconds."""
    room, given = np.empty((1, *resolution), np.uint8), logits.numpy()
    ways = {"kernels": lambda: kernels.labels(given, resolution, enlarge, threads, room), "torch": lambda: by_torch(logits, resolution, enlarge),
            "onnxruntime": by_onnxruntime(logits, resolution, enlarge, threads)}
    samples = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            samples[name] += [1e3 * (time.perf_counter() - begin)] if number >= 2 else []
    return {name: (min(found), median(found)) for name, found in samples.items()}


def rows(ask, trained, paths):
    for resolution in ask.resolution or RESOLUTIONS:
        classes = {count: [0, 0] for count in ask.classes or CLASSES}
        for native in logits_of(trained, paths, resolution):
            for count, found in classes.items():
                logits = mixed(native, count)
                theirs = by_torch(logits, resolution, trained.dialect.enlarge).numpy()
                found[0] += int((kernels.labels(logits.numpy(), resolution, trained.dialect.enlarge, ask.threads) != theirs).sum())
                found[1] += theirs.size
        for count, (different, labels) in classes.items():
            took = timed(mixed(native, count), resolution, trained.dialect.enlarge, ask.threads, ask.rounds)
            yield {"size": size(resolution), "logits at": size(native.shape[2:]), "classes": count, "pictures": len(paths), "labels": labels,
                   "different": different,
                   **{f"{name} {which} ms": round(ms, 3) for name, both in took.items() for which, ms in zip(("least", "median"), both)}}


def asked():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int)
    parser.add_argument("--resolution", type=lambda text: Size().convert(text, None, None), action="append")
    parser.add_argument("--classes", type=int, action="append")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main():
    ask = asked()
    if not torch_eager.ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **torch_eager.ENVIRONMENT})
    torch.set_num_threads(ask.threads)
    paths = [pair.image for pair in some(datasets.dataset(ask.data), ask.count).pairs]
    found = []
    for row in rows(ask, checkpoints.load(ask.checkpoint), paths):
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ", file=sys.stderr)
        found.append(row)
    print(json.dumps(found, indent=1) if ask.json else markdown_table(found))
    print(f"labels by {kernels.facts(ask.threads)}; PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", file=sys.stderr)
    sys.exit(any(row["different"] for row in found))


if __name__ == "__main__":
    main()
