"""What `bench` is asked to time -> artifacts -> figures."""
import os
from dataclasses import replace
from pathlib import Path

from . import bench, facts, files, own
from .errors import RtsegError, need
from .records import read_artifact, size


def asked(protocol, paper, iterations, **how):
    """The bench.Ask of a protocol by its name, or of a paper, with its iterations. Raises RtsegError."""
    if protocol and paper:
        raise RtsegError(f"--paper {paper} has its own protocol", "give one of --protocol and --paper")
    if paper:
        timed = facts.timed_by(paper)
        protocol, iterations = timed["protocol"], iterations or int(timed["iterations"])
    return bench.Ask(protocol=facts.protocol(protocol or "network").name, iterations=iterations, **how)


def measure(subject, resolutions, ask, dialect=None, how=None, tell=lambda step, done: None, work=bench.bench):
    """Time an artifact, a checkpoint, or a network by name, at each resolution; returns what work(path, ask, tell) does: [(result file, Benchmark)].

    An artifact has one resolution: for any other its checkpoint is exported again, the same way. how: options of export.export for
    what is exported here, and classes, instead of the protocol's.
    """
    how = how or {}
    if Path(subject).suffix not in (".onnx", ".engine"):
        if not resolutions:
            raise RtsegError(f"{subject} has no size of its own", "add --resolution HxW")
        protocol = facts.protocol(ask.protocol)
        options = options_of(protocol)
        classes = how.get("classes")
        options.update({name: value for name, value in how.items() if name != "classes"})
        return exported(lambda checkpoints: named(subject, dialect, classes, checkpoints), resolutions, options, ask, tell, work)
    artifact = read_artifact(subject)
    done = []
    for resolution in resolutions or [artifact.resolution]:
        if tuple(resolution) == artifact.resolution:
            done += work(subject, ask, tell)
        else:
            options = {name: getattr(artifact, name) for name in ("opset", "precision", "output", "input", "class_set")}
            done += exported(lambda checkpoints: checkpoints.origin(artifact), [resolution], options, ask, tell, work)
    return done


def options_of(protocol):
    """The options of export.export that a protocol fixes."""
    return {name: getattr(protocol, name) for name in ("input", "output", "precision") if getattr(protocol, name)}


def named(subject, dialect, classes, checkpoints):
    """The trained network in a checkpoint file, that a factory makes, or of the registry with random weights."""
    if Path(subject).is_file():
        return checkpoints.load(subject, dialect=dialect)
    return own.load(subject) if own.is_own(subject) else checkpoints.seeded(subject, **({"classes": classes} if classes else {}))


def exported(trained, resolutions, options, ask, tell, work):
    """Export trained(checkpoints module) at each resolution into a folder that goes away, and do the work there."""
    need("torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    tell("loading PyTorch", None)
    from . import checkpoints
    from .export import export

    network, done = trained(checkpoints), []
    if "factory" in network.parent:
        ask = replace(ask, own={"spec": network.parent["factory"], "folder": os.getcwd()})
    with files.scratch() as folder:
        for resolution in resolutions:
            path = Path(folder, f"{network.network.name}-{size(resolution)}.onnx")
            export(network, path, resolution, **options, tell=lambda step, share, title=path.stem: tell(f"{title}: {step}", share))
            done += work(path, ask, tell)
    return done
