"""ONNX artifact -> TensorRT engine, with its sidecar, under <root>/<target>/."""
import tempfile
from dataclasses import replace
from pathlib import Path

from . import facts, files, launch
from .errors import RtsegError, need
from .records import read_artifact, write_artifact

SUSPICIOUS = 8                      # engine bytes per weight byte; networks without depthwise convolutions stay under 4


def build_engine(path, target_name, fp16=False, root="engines", tell=lambda step, done: None, keep_depthwise=False):
    """Build an engine; returns (its path, its Artifact). Raises RtsegError, with nothing written, where it would not be what was asked for.

    keep_depthwise: leave depthwise convolutions as they are even where the runtime expands them.
    """
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
        channels = None if keep_depthwise else facts.group_channels().get((target.parser, target.compute_capability, precision))
        graph, proven = prepared(Path(path).resolve(), artifact, precision, channels, Path(folder, "graph.onnx"), tell)
        # but for a few sizes of Resize all of it is float32
        weights_bytes = artifact.weights_bytes // (1 if precision == artifact.precision else 2)
        job = {"action": "build", "runtime": "tensorrt_rtx", "onnx": str(graph), "precision": precision, "compute_capability": target.compute_capability}

        def fill(temporary):
            with tempfile.TemporaryDirectory(prefix=".building-", dir=temporary.parent) as beside:  # whatever becomes of the worker, it is emptied
                plan = Path(beside, "engine").resolve()
                result, _ = launch.run({**job, "engine": str(plan)}, launch.RUNNER, tell=tell)
                plan.replace(temporary)
            built = {name: result[name] for name in ("layers", "bytes", "build_seconds", "messages")}
            built["built"] = built_with(result, target)
            return replace(
                artifact, kind="engine", precision=precision, weights_bytes=weights_bytes, target=target.name,
                parent={"file": str(path), "sha256": artifact.sha256},
                checks={**artifact.checks, **proven, **built, "run_on_device": False},
                versions={**artifact.versions, result["runtime"]: result["version"]},
                warnings=artifact.warnings + size_warning(precision, result["bytes"], weights_bytes, target, "grouped" in proven))

        return goal, write_artifact(goal, fill)


def prepared(path, artifact, precision, channels, goal, tell):
    """(the graph to build, what was proven of it against the artifact's): the artifact's own, or one with wider groups or in FP16, at `goal`.

    channels: what small groups of convolutions are widened to, see passes/dense_groups.py; None leaves them.
    """
    if not channels and precision == artifact.precision:
        return path, {}
    try:
        onnx = need("onnx_graphsurgeon", "polygraphy", "onnxruntime", "onnx")
    except RtsegError as error:
        raise RtsegError(error.what, error.fix if precision != artifact.precision else f"{error.fix}, or --keep-depthwise") from None
    from . import fp16, proof
    from .passes import checked, dense_groups

    original = onnx.load(path)
    model, widened = dense_groups.run(original, channels) if channels else (original, [])
    if not widened and precision == artifact.precision:
        return path, {}
    inputs = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)
    runner = proof.session(proof.with_outputs(original, [proof.logits_name(original)]))

    def reference(picture):
        return runner.run(None, {"input": picture.fed})[0].astype("float32")

    proven = {}
    if widened:
        tell("widening the groups of convolutions and proving it", None)
        model = checked(model)
        parity = proof.against(model, reference, inputs, artifact.precision)
        if not parity["ok"]:
            proof.refuse(parity, "the graph with wider groups is not the same")
        proven["grouped"] = {"convolutions": widened, "channels": channels, "parity": parity}
    if precision != artifact.precision:
        tell("converting to FP16 and proving it", None)
        proven["kept_fp32"] = fp16.beyond_range(model, inputs)
        model, proven["parity"] = fp16.convert(model, reference, inputs, proven["kept_fp32"])
    files.write(goal, model.SerializeToString())
    return goal, proven


def built_with(result, target):
    """What decides where the engine loads; of a machine with the device, also what was there."""
    gpu = result["environment"].get("gpu", {})
    return {"runtime": result["runtime"], "version": result["version"], "compute_capability": gpu.get("compute_capability", target.compute_capability),
            "flags": result.get("flags"), "gpu": gpu.get("name"), "driver": gpu.get("driver")}


def size_warning(precision, engine_bytes, weights_bytes, target, grouped):
    """Say it where an engine is many times its weights: it will be slow to load, and probably to run."""
    if engine_bytes < SUSPICIOUS * weights_bytes:
        return ()
    times = f"the {precision} engine is {engine_bytes / weights_bytes:.0f} times its weights"
    rather = f"prefer TensorRT 8.6 or 10.x built on the {target.device.name}"
    if grouped:
        return (f"{times}, even with its depthwise convolutions in wider groups; if it is slow there, {rather}",)
    return (f"{times}: {target.runtime} stores depthwise and grouped convolutions expanded to dense ones for compute capability "
            f"{target.compute_capability}; expect it to be slow there: build it without --keep-depthwise if that was given, or {rather}",)
