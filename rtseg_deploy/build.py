"""ONNX artifact -> TensorRT engine, with its sidecar, under <root>/<target>/."""
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from . import calibration_table, facts, files, launch, locks, ondevice
from .device import runner
from .errors import RtsegError, need
from .precision import offenders
from .records import read_artifact, write_artifact

CACHE = "timing-cache"
TABLE = "calibration-table"
STRONGLY_TYPED = 11                 # TensorRT's first version that is so always
ON_DEVICE = {"why": "found on the device"}
SUSPICIOUS = 8                      # engine bytes per weight byte; networks without depthwise convolutions stay under 4


BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
RUNTIMES = {"TensorRT-RTX": "tensorrt_rtx", "TensorRT": "tensorrt"}    # how facts name it -> its module


@dataclass(frozen=True)
class Plan:
    """What is to be built, and what was proven of its graph, before a device is asked."""
    runtime: str                    # tensorrt, tensorrt_rtx
    job: launch.Job
    proven: dict


def build_engine(path, target_name, fp16=False, root="engines", tell=launch.quiet, keep_depthwise=False, place=None, workspace_mib=None, images=(),
                 table=None):
    """Build an engine; returns (its path, its Artifact). Raises RtsegError, with nothing written, where it would not be what was asked for.

    keep_depthwise: leave depthwise convolutions as they are even where the runtime expands them. place: the device, see ssh.place; this
    machine if not given. What FP16 cannot hold stays in FP32: on the proof's pictures, and on `images`, paths. Where the device itself
    builds, its labels are compared with the ONNX file's; where FP16 breaks them nevertheless the layers that do are found and stay too.
    table: a calibration table, for INT8 of an FP32 graph where typing is weak.
    """
    artifact, target = read_artifact(path), facts.target(target_name)
    if artifact.kind != "onnx":
        raise RtsegError(f"{path} is an engine already", "engines are built from the ONNX file that rtseg-deploy export writes")
    precision = "fp16" if fp16 else "int8" if table else artifact.precision
    if precision == "int8" and not target.device.fast_int8:
        raise RtsegError(f"a {target.device.name} has no INT8 (no dp4a)", f"build it from the FP32 ONNX file{', with --fp16' * target.device.fast_fp16}")
    scales = read_table(table, artifact, fp16) if table else None
    runtime, version, gpu = builder(target, place, tell)
    refuse_unparsed(path, target, "" if runtime == "tensorrt_rtx" else version)
    goal = goal_of(path, target, precision, root)
    cache = goal.parent / (re.sub(r"[^\w.]+", "-", f"{gpu['name']}-{version}") + ".timing-cache") if gpu else None
    known = staying(path, artifact, precision, images, tell)

    with files.scratch() as folder:
        def attempt(kept, temporary):
            """(Artifact, whether its labels hold) of one build."""
            why = {name: known.get(name, ON_DEVICE) for name in kept}
            plan = planned(path, artifact, target, precision, runtime, Path(folder, "graph.onnx"), tell, version, keep_depthwise, workspace_mib, cache, why,
                           scales)
            with launch.ran(plan.job, place, tell) as (result, made):
                shutil.move(made / "engine", temporary)
                if cache and (made / CACHE).is_file():
                    with files.replacing(cache) as kept_cache:
                        shutil.copyfile(made / CACHE, kept_cache)
            engine = described(artifact, path, target, precision, plan.proven, result)
            return (engine, True) if gpu is None else ondevice.compared(engine, temporary, path, place, tell)

        def fill(temporary):
            last = []               # of what lies at `temporary`: what was kept, its Artifact, whether its labels hold; a build takes minutes

            def holds(kept):
                if last[:1] != [kept]:
                    last[:] = [kept, *attempt(kept, temporary)]
                return last[2]

            if not holds(list(known)) and precision == "fp16":
                kept = offenders(floating(path), holds, known)
                holds(kept)
                if not last[1].checks["layers"]["fp16"]:
                    raise RtsegError(f"with {', '.join(kept)} in FP32 no layer of the engine computes in FP16", "build it without --fp16")
            if not last[2]:
                report = last[1].checks["run_on_device"]
                raise RtsegError(f"the engine's labels on {target.device.name} are not those of {path}: {report.get('why') or report['inputs']}",
                                 "nothing was written; report it")
            return last[1]

        with locks.goal(goal, tell):
            return goal, write_artifact(goal, fill)


def refuse_unparsed(path, target, version):
    """Raise RtsegError for the first node that the parser of that TensorRT does not take, before a device is asked; see check.py."""
    need("onnx")
    from . import check, graphs

    parser = facts.parser_of(version, "rtx" if target.ahead_of_time and not version else target.parser)
    chip = "" if version and parser.name == "rtx" else target.compute_capability    # TensorRT 11 reads what RTX reads, and has kernels of its own
    check.refuse(check.findings(graphs.whole(path), parser, chip), f"{parser.serves} does not take {path} for {target.name}")


def read_table(table, artifact, fp16):
    """(a calibration table, names of nodes that stay in FP32). Raises RtsegError where it is not this graph's."""
    if fp16 or artifact.precision != "fp32":
        raise RtsegError("a calibration table makes INT8 of an FP32 graph", "give the FP32 ONNX file that it was made from, and no --fp16")
    return calibration_table.read(table, artifact.sha256)


def goal_of(path, target, precision, root):
    """Where the engine of an ONNX file goes."""
    return Path(root, target.name, f"{Path(path).stem.removesuffix(f'.{precision}')}.{precision}.engine")


def runtime_of(target):
    """The module that engines for a target are built with unless a device says otherwise."""
    return RUNTIMES[target.runtime.partition(" ")[0]]


def builder(target, place, tell):
    """(runtime, its version, the GPU's facts or None where there is no need of it) that build for a target at a place. Raises RtsegError.

    A device that is the target and has TensorRT builds for itself; otherwise TensorRT-RTX builds ahead of time, where it can.
    """
    if place is None and target.ahead_of_time:
        return "tensorrt_rtx", None, None
    probed = launch.probe(place, tell)
    itself = probed["gpu"].get("compute_capability") == target.compute_capability
    if target.ahead_of_time and not (itself and probed["tensorrt"]) and probed["tensorrt_rtx"]:
        return "tensorrt_rtx", probed["tensorrt_rtx"], None
    if place and not probed["tensorrt"]:
        launch.probe(place, tell, runtime="tensorrt")   # which says how to get it there
    return "tensorrt", probed["tensorrt"], ondevice.refuse_other_device(target, probed, place.name if place else "this machine")


def planned(path, artifact, target, precision, runtime, goal, tell=launch.quiet, version=None, keep_depthwise=False, workspace_mib=None, cache=None, kept=(),
            scales=None):
    """The Plan of an engine; a graph that has to be another than the artifact's own is written to `goal`. kept: see staying.

    Strongly typed runtimes (TensorRT 11, TensorRT-RTX) take precision from the graph; the others have a flag for FP16 and INT8 and one a layer for FP32.
    scales: (a calibration table, names of nodes that stay in FP32).
    """
    typed = runtime == "tensorrt_rtx" or version is not None and int(version.partition(".")[0]) >= STRONGLY_TYPED
    if scales and typed:
        raise RtsegError(f"{runtime} {version or ''} takes no calibration table: it wants INT8 in the graph",
                         "give it the INT8 ONNX file of rtseg-deploy calibrate, without --int8")
    channels = None if keep_depthwise or runtime != "tensorrt_rtx" else facts.group_channels().get((target.parser, target.compute_capability, precision))
    graph, proven = prepared(Path(path), artifact, precision if typed else artifact.precision, channels, goal, tell, kept if typed else ())
    brought = {name: Path(runner.__file__).with_name(name) for name in ("building.py", *("quantised.py",) * (precision == "int8"))}
    if scales:
        kept = {name: {"why": "costs too much accuracy in INT8"} for name in scales[1]}
    if kept:
        proven["kept_fp32"] = kept
    hashes = {"network.onnx": artifact.sha256} if graph == Path(path) else {}
    request = {"action": "build", "runtime": runtime, "onnx": "network.onnx", "engine": "engine", "precision": precision}
    if runtime == "tensorrt_rtx":
        return Plan(runtime, launch.Job({**request, "compute_capability": target.compute_capability}, {"network.onnx": graph, **brought}, ("engine",),
                                        hashes=hashes), proven)
    request.update(workspace_bytes=(workspace_mib or target.workspace_mib) << 20, timing_cache=CACHE, keep_fp32=[] if typed else list(kept),
                   tactics="both" if target.external_tactics else "default")
    if scales:
        brought[TABLE] = scales[0].encode()
        request["table"] = TABLE
    held = {CACHE: cache} if cache and cache.is_file() else {}
    return Plan(runtime, launch.Job(request, {"network.onnx": graph, **brought, **held}, ("engine", CACHE), hashes=hashes), proven)


def staying(path, artifact, precision, images=(), tell=launch.quiet):
    """{node of an ONNX file that has to stay in FP32: why}, see fp16.beyond_range; none where the precision stays as it is."""
    if precision != "fp16" or artifact.precision == "fp16":
        return {}
    need("onnx_graphsurgeon", "polygraphy", "onnxruntime", "onnx")
    from . import fp16, graphs, proof

    return fp16.beyond_range(graphs.whole(path, artifact.sha256), proof.pictures(artifact.resolution, artifact.normalisation, artifact.input, images), tell)


def floating(path):
    """Names of the nodes of an ONNX file that compute with floats, in their order."""
    need("onnx")
    import onnx

    from . import graphs

    model = graphs.whole(path)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    return [node.name for node in model.graph.node if kinds.get(node.output[0]) in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]


def described(artifact, path, target, precision, proven, result, parity=None):
    """The Artifact of an engine. parity: of its labels on the device, None where it was not run."""
    # but for a few sizes of Resize all of it is float32
    weights_bytes = artifact.weights_bytes // (1 if precision == artifact.precision else BYTES["fp32"] // BYTES[precision])
    built = {name: result[name] for name in ("layers", "bytes", "build_seconds", "messages")}
    built.update(built=built_with(result, target), run_on_device=parity or False)
    built.update({name: result[name] for name in ("tactics", "optimization_level", "timing_cache_sha256") if result.get(name) is not None})
    return replace(
        artifact, kind="engine", precision=precision, sha256="", weights_bytes=weights_bytes, target=target.name,
        parent={"file": str(path), "sha256": artifact.sha256},
        checks={**artifact.checks, **proven, **built}, versions={**artifact.versions, result["runtime"]: result["version"]},
        warnings=artifact.warnings + size_warning(precision, result["bytes"], weights_bytes, target, "grouped" in proven))


def prepared(path, artifact, precision, channels, goal, tell, kept=()):
    """(the graph to build, what was proven of it against the artifact's): the artifact's own, or one with wider groups or in FP16, at `goal`.

    kept: names of nodes that have to stay in FP32. channels: what small groups of convolutions are widened to, see passes/dense_groups.py; None leaves them.
    """
    if not channels and precision == artifact.precision:
        return path, {}
    try:
        need("onnx_graphsurgeon", "polygraphy", "onnxruntime", "onnx")
    except RtsegError as error:
        raise RtsegError(error.what, error.fix if precision != artifact.precision else f"{error.fix}, or --keep-depthwise") from None
    from . import fp16, graphs, proof
    from .passes import checked, dense_groups

    original = graphs.whole(path, artifact.sha256)
    model, widened = dense_groups.run(original, channels) if channels else (original, [])
    if not widened and precision == artifact.precision:
        return path, {}
    inputs = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)
    logits = proof.logits(original)

    def reference(picture):
        return logits(picture.fed)

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
        model, proven["parity"] = fp16.convert(model, reference, inputs, list(kept))
    files.write(goal, model.SerializeToString())
    return goal, proven


def built_with(result, target):
    """What decides where the engine loads; of a machine with the device, also what was there."""
    gpu = result.get("gpu", {}) if result["runtime"] == "tensorrt" else {}    # ahead of time the machine's own is beside the point
    return {"runtime": result["runtime"], "version": result["version"], "compute_capability": gpu.get("compute_capability", target.compute_capability),
            "flags": result.get("flags"), "gpu": gpu.get("name"), "driver": gpu.get("driver")}


def size_warning(precision, engine_bytes, weights_bytes, target, grouped):
    """Say it where an engine is many times its weights: it will be slow to load, and probably to run."""
    if engine_bytes < SUSPICIOUS * weights_bytes * (BYTES["fp32"] if precision == "int8" else 1):   # of INT8 all but the weights is as large as of FP32
        return ()
    times = f"the {precision} engine is {engine_bytes / weights_bytes:.0f} times its weights"
    rather = f"prefer TensorRT 8.6 or 10.x built on the {target.device.name}"
    if grouped:
        return (f"{times}, even with its depthwise convolutions in wider groups; if it is slow there, {rather}",)
    return (f"{times}: {target.runtime} stores depthwise and grouped convolutions expanded to dense ones for compute capability "
            f"{target.compute_capability}; expect it to be slow there: build it without --keep-depthwise if that was given, or {rather}",)
