"""Whether an engine loads on a machine: told from its sidecar and a probe, before anything of it is read. An engine runs native code."""
from pathlib import Path

from . import launch
from .errors import RtsegError
from .records import read_artifact


def verify(path, trust=False, place=None, tell=launch.quiet):
    """What is known of the engine, of a machine (this one if no place is given), and the reasons why it does not load there; none where it does.

    trust: load it whatever they say, with or without a sidecar; the runtime's verdict then is the only one.
    Raises RtsegError for an engine without a sidecar of ours, or that was changed since.
    """
    engine = None if trust else read_artifact(path)
    if engine and engine.kind != "engine":
        raise RtsegError(f"{path} is no engine: an ONNX file loads wherever there is a runtime for it", "build one with rtseg-deploy build-engine")
    tell("probing", None)
    probed = launch.probe(place, tell)
    if trust:
        tell("loading it", None)
        return {"file": str(path), "trusted": True, "probe": probed, "reasons": tried(path, probed, place)}
    return {"file": str(path), "trusted": False, "target": engine.target, "built": engine.checks.get("built"), "probe": probed,
            "reasons": why_not(engine, probed)}


def why_not(engine, probed):
    """Why an engine (its Artifact) does not load on a machine that was probed: a list, empty where it does.

    TensorRT loads what the same version built for the same compute capability; TensorRT-RTX what the same minor version did, for any of its
    capabilities. (Version and hardware compatibility, which widen that for TensorRT, are not asked for by any build here.)
    """
    built, gpu = engine.checks.get("built"), probed["gpu"]
    if not built or "bytes" not in engine.checks:
        return ["its sidecar does not say what it was built with: build it again"]
    reasons = [why_not_version(built, probed.get(built["runtime"]))]
    if "error" in gpu:
        return [*filter(None, reasons), f"no GPU is to be seen there: {gpu['error']}"]
    if gpu["compute_capability"] not in built["compute_capability"].split():
        reasons.append(f"it is for compute capability {built['compute_capability']}, and the {gpu['name']} there has {gpu['compute_capability']}")
    if engine.checks["bytes"] > gpu["memory_bytes"]:
        reasons.append(f"it has {engine.checks['bytes']:,} bytes, and the {gpu['name']} there {gpu['memory_bytes']:,} bytes of memory")
    return [*filter(None, reasons)]


def why_not_version(built, version):
    """Why that version of the engine's runtime, None for none, does not load it; empty where it does."""
    name = built["runtime"]
    if version is None:
        return f"there is no {name} there; it was built with {built['version']}"
    parts = 2 if name == "tensorrt_rtx" else None   # each minor version of TensorRT-RTX breaks with the one before (its notes for 1.5)
    same = version.split(".")[:parts] == built["version"].split(".")[:parts]
    return "" if same else f"it was built with {name} {built['version']}, and there is {version}"


def tried(path, probed, place):
    """Load a file with each runtime that is there until one takes it: what each said that did not, or nothing."""
    runtimes = [name for name in ("tensorrt", "tensorrt_rtx") if probed.get(name)]
    reasons = [] if runtimes else ["there is neither tensorrt nor tensorrt_rtx there"]
    for name in runtimes:
        try:
            with launch.ran(launch.Job({"action": "load", "backend": name, "artifact": "engine"}, {"engine": Path(path).resolve()}), place):
                return []
        except RtsegError as error:
            reasons.append(f"{name} {probed[name]}: {error.what}")
    return reasons
