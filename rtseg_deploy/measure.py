"""What `bench` is asked to time -> artifacts -> figures."""
import os
import tempfile
from pathlib import Path

from . import own
from .bench import bench
from .errors import RtsegError, need
from .records import read_artifact, size


def measure(subject, resolutions, backends, iterations, image=None, threads=None, results="results", dialect=None, place=None,
            cuda_graph=False, tell=lambda step, done: None):
    """Time an artifact, a checkpoint, or a network by name, at each resolution; returns [(result file, Benchmark)].

    An artifact has one resolution: for any other its checkpoint is exported again, the same way.
    """
    rest = {"asked": backends, "iterations": iterations, "image": image, "threads": threads, "results": results, "place": place, "cuda_graph": cuda_graph,
            "tell": tell}
    if Path(subject).suffix not in (".onnx", ".engine"):
        if not resolutions:
            raise RtsegError(f"{subject} has no size of its own", "add --resolution HxW")
        return exported_and_timed(lambda checkpoints: named(subject, dialect, checkpoints), resolutions, {}, rest)
    artifact = read_artifact(subject)
    done = []
    for resolution in resolutions or [artifact.resolution]:
        if tuple(resolution) == artifact.resolution:
            done += bench(subject, **rest)
        else:
            options = {name: getattr(artifact, name) for name in ("opset", "precision", "output", "input", "class_set")}
            done += exported_and_timed(lambda checkpoints: checkpoints.origin(artifact), [resolution], options, rest)
    return done


def named(subject, dialect, checkpoints):
    """The trained network in a checkpoint file, that a factory makes, or of the registry with random weights."""
    if Path(subject).is_file():
        return checkpoints.load(subject, dialect=dialect)
    return own.load(subject) if own.is_own(subject) else checkpoints.seeded(subject)


def exported_and_timed(trained, resolutions, options, rest):
    """Export trained(checkpoints module) at each resolution into a folder that goes away, and time it there."""
    need("torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    tell = rest["tell"]
    tell("loading PyTorch", None)
    from . import checkpoints
    from .export import export

    network, done = trained(checkpoints), []
    if "factory" in network.parent:
        rest = {**rest, "own": {"spec": network.parent["factory"], "folder": os.getcwd()}}
    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        for resolution in resolutions:
            path = Path(folder, f"{network.network.name}-{size(resolution)}.onnx")
            export(network, path, resolution, **options, tell=lambda step, share, title=path.stem: tell(f"{title}: {step}", share))
            done += bench(path, **rest)
    return done
