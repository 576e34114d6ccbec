"""An engine where it runs: is that the device it is for, and does it label as the ONNX file that it was made from."""
from dataclasses import replace
from functools import lru_cache

import numpy as np

from . import backends, launch
from .device import runner
from .errors import RtsegError, need
from .records import read_artifact

TIED = -1                           # in place of a label that the ONNX file itself hardly prefers


def refuse_other_device(target, probed, where):
    """Raise RtsegError where a probe contradicts the target: another chip, or a TensorRT that does not serve it. Returns the GPU's facts."""
    gpu, where = probed["gpu"], where or "this machine"
    if "error" in gpu:
        raise RtsegError(f"engines for {target.device.name} are built on the device itself, and {where} has no GPU that answers: {gpu['error']}",
                         f"name the device: --on ssh://user@host; or pack it for one without network: rtseg-deploy bundle --target {target.name}")
    if gpu["compute_capability"] != target.compute_capability:
        raise RtsegError(f"{where} has a {gpu['name']}, compute capability {gpu['compute_capability']}; {target.name} has {target.compute_capability}",
                         "name the target that it is: rtseg-deploy targets")
    version = probed["tensorrt"]
    if version and not target.served_by(version):
        raise RtsegError(f"{where} has TensorRT {version}; {target.device.name} is served by {', '.join(target.tensorrt)}", "install one of those there")
    return gpu


def pictures(artifact):
    """Name -> the proof's input as the artifact takes it; of INT8 the street alone.

    Ranges are of real images, and noise does not fit in them: ONNX Runtime with and without its optimisations, which round at other places, gives
    SGCPNet's INT8 graph 99.7 % equal labels on the street, 96 % on noise and 94 % on extreme pixels.
    """
    need("onnx", "onnxruntime")
    from . import proof

    found = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)
    return {name: picture.fed for name, picture in found.items() if artifact.precision != "int8" or name == "street"}


@lru_cache(1)
def expected_of(path, sha256):
    """The same of the proof's pictures, once for all the engines that are tried."""
    return expected(path, pictures(read_artifact(path)))


def expected(path, arrays):
    """Name -> int16 labels of an ONNX file for each array, by ONNX Runtime here; TIED where it hardly prefers one (proof.TIE)."""
    need("onnx", "onnxruntime")
    from . import graphs, proof

    logits = proof.logits(graphs.whole(path))
    return {name: preferred(logits(array), proof.TIE) for name, array in arrays.items()}


def preferred(logits, tie):
    best = np.partition(logits[0], -2, axis=0)[-2:] if logits.shape[1] > 1 else np.stack([logits[0, 0] - np.inf, logits[0, 0]])
    labels = logits[0].argmax(0).astype(np.int16)
    labels[best[1] - best[0] <= tie * float(logits.std())] = TIED
    return labels


def agreement(wanted, labels, precision):
    """The parity report of an engine's labels: {"ok", "bar", "inputs": {name: {"labels_equal", "ties"}}}; ties are left out of the count."""
    need("onnx")
    from . import proof

    rows = {}
    for name, expect in wanted.items():
        sure = expect != TIED
        equal = float((labels[name] == expect)[sure].mean()) if labels[name].shape == expect.shape and sure.any() else 0.0
        rows[name] = {"labels_equal": equal, "ties": float(1 - sure.mean())}
    least = proof.BARS[precision][1]
    return {"ok": all(row["labels_equal"] >= least for row in rows.values()), "bar": least, "inputs": rows}


def compared(engine, engine_path, path, place, tell=launch.quiet):
    """(Artifact with what its labels on the device are worth, whether they are those of the ONNX file at `path`)."""
    arrays = pictures(engine)
    tell("comparing its labels", None)
    try:
        wanted = expected_of(path, engine.parent["sha256"])
        report = agreement({name: wanted[name] for name in arrays}, labelled(engine_path, engine, arrays, place, tell), engine.precision)
    except RtsegError as error:
        if error.what != runner.NOT_FINITE[0]:     # that is a verdict on the engine, as FP16 that overflows gives it
            raise
        report = {"ok": False, "inputs": {}, "why": error.what}
    return replace(engine, checks={**engine.checks, "run_on_device": report}), report["ok"]


def labelled(path, engine, arrays, place, tell=launch.quiet):
    """Name -> labels of an engine for each array, on the device."""
    job = launch.on_backend("infer", path, engine, *backends.chosen(engine), list(arrays.values()))
    with launch.ran(job, place, tell) as (_, folder):
        return dict(zip(arrays, launch.labels_in(folder, job)))
