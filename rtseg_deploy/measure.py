"""What `bench` is asked to time -> artifacts -> figures."""
import tempfile
from pathlib import Path

from .bench import bench
from .errors import RtsegError, need
from .records import read_artifact, size


def measure(subject, resolutions, backends, iterations, image=None, threads=None, results="results", tell=lambda step, done: None):
    """Time an artifact, a checkpoint, or a network by name, at each resolution; returns [(result file, Benchmark)]."""
    if Path(subject).suffix in (".onnx", ".engine"):
        refuse_other_sizes(subject, read_artifact(subject), resolutions)
        return bench(subject, backends, iterations, image, threads, results, tell)
    if not resolutions:
        raise RtsegError(f"{subject} has no size of its own", "add --resolution HxW")
    need("torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    tell("loading PyTorch", None)
    from . import checkpoints
    from .export import export

    trained = checkpoints.load(subject) if Path(subject).exists() else checkpoints.seeded(subject)
    done = []
    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        for resolution in resolutions:
            path = Path(folder, f"{trained.network.name}-{size(resolution)}.onnx")
            export(trained, path, resolution, tell=lambda step, share: tell(f"{path.stem}: {step}", share))
            done += bench(path, backends, iterations, image, threads, results, tell)
    return done


def refuse_other_sizes(path, artifact, resolutions):
    for resolution in resolutions:
        if tuple(resolution) != artifact.resolution:
            raise RtsegError(f"{path} was exported for {size(artifact.resolution)}, not {size(resolution)}",
                             f"rtseg-deploy export {artifact.parent.get('file', 'CHECKPOINT')} -o OTHER.onnx --resolution {size(resolution)}")
