"""ONNX artifact -> TensorRT engine, with its sidecar, under <root>/<target>/."""
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from . import facts, files, launch
from .errors import RtsegError, need
from .records import read_artifact, write_artifact

SUSPICIOUS = 8                      # engine bytes per weight byte; networks without depthwise convolutions stay under 4


def build_engine(path, target_name, fp16=False, root="engines", tell=lambda step, done: None):
    """Build an engine; returns (its path, its Artifact). Raises RtsegError, with nothing written, where it would not be what was asked for."""
    artifact = read_artifact(path)
    target = facts.target(target_name)
    if artifact.kind != "onnx":
        raise RtsegError(f"{path} is an engine already", "engines are built from the ONNX file that rtseg-deploy export writes")
    if not target.ahead_of_time:
        raise RtsegError(f"engines for {target.device.name} need {target.runtime} on the device itself, and building there is not built yet",
                         f"what can be built here: {', '.join(t.name for t in facts.targets().values() if t.ahead_of_time)}")
    precision = "fp16" if fp16 else artifact.precision
    goal = Path(root, target.name, f"{Path(path).stem}.{precision}.engine")
    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        graph, parity, weights_bytes = Path(path).resolve(), artifact.checks["parity"], artifact.weights_bytes
        if precision != artifact.precision:
            tell("converting to FP16 and proving it", None)
            graph, parity = in_fp16(graph, artifact, Path(folder, "fp16.onnx"))
            weights_bytes //= 2     # but for a few sizes of Resize all of it is float32
        request = {"action": "build", "runtime": "tensorrt_rtx", "onnx": "network.onnx", "engine": "engine", "precision": precision,
                   "compute_capability": target.compute_capability}
        job = launch.Job(request, {"network.onnx": graph}, ("engine",))

        def fill(temporary):
            with launch.ran(job, tell=tell) as (result, made):
                shutil.move(made / "engine", temporary)
            built = {name: result[name] for name in ("layers", "bytes", "build_seconds", "messages")}
            return replace(
                artifact, kind="engine", precision=precision, weights_bytes=weights_bytes, target=target.name,
                parent={"file": str(path), "sha256": artifact.sha256},
                checks={**artifact.checks, "parity": parity, **built, "run_on_device": False},
                versions={**artifact.versions, result["runtime"]: result["version"]},
                warnings=artifact.warnings + size_warning(precision, result["bytes"], weights_bytes, target))

        return goal, write_artifact(goal, fill)


def in_fp16(graph, artifact, goal):
    """Write the FP16 form of an FP32 artifact to `goal`; returns (goal, parity report against the FP32 artifact)."""
    onnx = need("onnx_graphsurgeon", "polygraphy", "onnxruntime", "onnx")
    from . import fp16, proof

    model = onnx.load(graph)
    runner = proof.session(proof.with_outputs(model, [proof.logits_name(model)]))
    inputs = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)
    half, parity = fp16.convert(model, lambda picture: runner.run(None, {"input": picture.fed})[0], inputs)
    files.write(goal, half.SerializeToString())
    return goal, parity


def size_warning(precision, engine_bytes, weights_bytes, target):
    """Say it where an engine is many times its weights: it will be slow to load, and probably to run."""
    if engine_bytes < SUSPICIOUS * weights_bytes:
        return ()
    return (f"the {precision} engine is {engine_bytes / weights_bytes:.0f} times its weights: {target.runtime} stores depthwise and grouped convolutions "
            f"expanded to dense ones for compute capability {target.compute_capability}; expect it to be slow there, "
            f"and prefer TensorRT 8.6 or 10.x built on the {target.device.name}",)
