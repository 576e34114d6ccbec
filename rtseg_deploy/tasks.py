"""A piece of work that any machine can do: job.json and files in a folder -> result.json and the files that it made.

`bench PLAN`, `build-engine PLAN` and `eval` are made of these. Here they are done one after another in this process; a worker of a fleet (remote.py)
does each in a process of its own, `python -m rtseg_deploy.tasks job.json result.json`, with the same function.
"""
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from . import __version__, bench, build, datasets, evaluate, facts, files, launch, results, ssh, tune
from .device import runner
from .errors import RtsegError, need
from .measure import named
from .records import read_artifact, sidecar

NETWORK, ENGINE, CHECKPOINT, ROWS = "network.onnx", "network.engine", "checkpoint", "rows.jsonl"
PART, PARTS = 32, 4                 # pictures of a task at most; tasks for each that can be done at once
AWAY = ("place", "own", "results", "names")         # of bench.Ask: what is not the same on every machine


@dataclass(frozen=True)
class Task:
    """then(result, folder with the files that it made) gets what came of it, and returns Tasks that follow; it raises RtsegError for what is no such result.

    A result whose "ok" is not true has "error" and "fix", and no folder.
    """
    title: str
    request: dict                   # job.json; names in it are of files
    reads: dict                     # name -> path here
    makes: tuple                    # names of files that may come of it
    then: Callable = field(compare=False)
    device: str = ""                # name of the target whose device it needs
    alone: bool = False             # nothing goes on beside it: it is timed


def perform(folder, tell=launch.quiet, place=None):
    """Do the job in a folder; returns what result.json there says."""
    request = files.read_json(folder / "job.json")
    try:
        if request["version"] != __version__:
            raise RtsegError(f"this worker has rtseg-deploy {__version__}, and the job is of {request['version']}", "install the same version on both")
        result = {"ok": True, **ACTIONS[request["action"]](request, folder, tell, place)}
    except RtsegError as error:
        result = {"ok": False, "error": error.what, "fix": error.fix}
    result = {**result, "of": request.get("of"), "made": {name: files.sha256(folder / name) for name in result.pop("files", ())}}
    files.write_json(folder / "result.json", result)
    return result


def lay_out(task, folder):
    """What a task reads, and its job.json, into a folder."""
    for name, source in task.reads.items():
        (folder / name).symlink_to(Path(source).resolve())
    files.write_json(folder / "job.json", {**task.request, "version": __version__})


# ---- a network -> an ONNX artifact


def exporting(title, subject, resolution, options, then, classes=None):
    """Export a checkpoint, or a network of the registry with random weights; options: of export.export."""
    file = Path(subject).is_file()
    request = {"action": "export", "subject": str(subject), "resolution": list(resolution), "options": options, "classes": classes, "file": file}
    return Task(title, request, {CHECKPOINT: subject} if file else {}, (NETWORK, sidecar(NETWORK).name), then)


def export(request, folder, tell, place):
    need("torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    tell("loading PyTorch", None)
    from . import checkpoints
    from .export import export as make

    network = named(folder / CHECKPOINT if request["file"] else request["subject"], None, request["classes"], checkpoints)
    if request["file"]:
        network = replace(network, parent={**network.parent, "file": request["subject"]})
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in request["options"].items()}
    make(network, folder / NETWORK, tuple(request["resolution"]), **options, tell=tell)
    return {"files": [NETWORK, sidecar(NETWORK).name]}


# ---- an artifact -> its figures, one for each backend


def timing(title, path, ask, then, device=""):
    """Time an artifact; the result has "figures", backend -> name of its file, and "failed", backend -> why."""
    artifact = read_artifact(path)
    name = ENGINE if artifact.kind == "engine" else NETWORK
    reads = {name: path, sidecar(name).name: sidecar(path)}
    if artifact.parent.get("file") and any(backend.startswith("torch") for backend in ask.backends):
        reads[CHECKPOINT] = Path(artifact.parent["file"])
    image = f"image{Path(ask.image).suffix}" if ask.image else None
    if image:
        reads[image] = Path(ask.image)
    how = {one.name: getattr(ask, one.name) for one in fields(ask) if one.name not in AWAY}
    request = {"action": "bench", "artifact": name, "ask": {**how, "image": image}}
    return Task(title, request, reads, tuple(f"{number}.json" for number in range(len(ask.backends))), then, device, alone=True)


def time(request, folder, tell, place):
    how = {**request["ask"], "backends": tuple(request["ask"]["backends"])}
    path = folder / request["artifact"]
    if (folder / CHECKPOINT).exists():
        described = files.read_json(sidecar(path))
        sidecar(path).unlink()      # it is a link to the one at home
        files.write_json(sidecar(path), {**described, "parent": {**described["parent"], "file": str(folder / CHECKPOINT)}})
    names = {backend: f"{number}.json" for number, backend in enumerate(how["backends"])}
    image = str(folder / how["image"]) if how["image"] else None
    ask = bench.Ask(**{**how, "image": image}, results=str(folder), names=names, place=place)
    figures, failed = {}, {}
    each(path, ask, tell, figures, failed)
    if not figures:
        raise RtsegError("; ".join(f"{backend}: {why}" if len(failed) > 1 else why for backend, why in failed.items()))
    return {"figures": figures, "failed": failed, "files": list(figures.values())}


def each(path, ask, tell, figures, failed):
    """What fails on one backend is tried without that one."""
    try:
        done = bench.bench(path, ask, tell)
        figures.update({figure.backend: goal.name for goal, figure in done})
    except RtsegError as error:
        if len(ask.backends) == 1:
            failed[ask.backends[0]] = error.line
            return
        for one in ask.backends:
            each(path, replace(ask, backends=(one,)), tell, figures, failed)


def figures(result, folder, path, ask):
    """Backend -> value of its result file, as a task of timing left them. Raises RtsegError for what is none of this artifact."""
    artifact, found = read_artifact(path), {}
    if not launch.has(result, {"figures": dict, "failed": dict}) or not all(
            isinstance(one, str) for part in ("figures", "failed") for one in result[part].values()):
        raise RtsegError(f"what came back of {path} is no timing of it")
    for backend, name in result["figures"].items():
        value = results.read_one(folder / Path(name).name).value
        if value["backend"] != backend or backend not in ask.backends:
            raise RtsegError(f"what came back of {backend} is no figure of it")
        if value["artifact"].get("sha256") != artifact.sha256:
            raise RtsegError(f"what came back of {backend} is of another file than {path}")
        fed = {"input": f"{ask.image} sha256 {files.sha256(ask.image)}"} if ask.image else {}
        found[backend] = {**value, "artifact": artifact.to_json(), "file": str(path), **fed}
    return found


# ---- an artifact -> its engine


def building(title, path, target, fp16, then, device="", **how):
    """Build the engine of an ONNX artifact; how: further arguments of build.build_engine. device: the target where the device itself builds."""
    request = {"action": "build", "target": target, "fp16": fp16, "how": how}
    return Task(title, request, {NETWORK: path, sidecar(NETWORK).name: sidecar(path)}, (ENGINE, sidecar(ENGINE).name), then, device)


def built(request, folder, tell, place):
    path, _ = build.build_engine(folder / NETWORK, request["target"], request["fp16"], folder / "engines", tell, place=place, **request["how"])
    for source, goal in ((path, folder / ENGINE), (sidecar(path), sidecar(folder / ENGINE))):
        os.replace(source, goal)
    return {"files": [ENGINE, sidecar(ENGINE).name]}


# ---- pictures and their truth -> counts


def labelling(title, path, artifact, choice, pairs, data, then):
    """Label some pictures of a data set; of it come evaluate's rows."""
    name = ENGINE if artifact.kind == "engine" else NETWORK
    reads, listed = {name: path, sidecar(name).name: sidecar(path)}, []
    for number, pair in enumerate(pairs):
        image, labels = f"{number:06d}{pair.image.suffix}", f"{number:06d}.labels{pair.labels.suffix}"
        reads.update({image: pair.image, labels: pair.labels})
        listed.append([pair.name, image, labels])
    about = {"name": data.name, "classes": data.classes.names, "coding": data.coding, "coloured": data.coloured}
    request = {"action": "label", "artifact": name, "backend": choice.backend, "data": about, "pairs": listed}
    return Task(title, request, reads, (ROWS,), then)


def labelled(request, folder, tell, place):
    path, about = folder / request["artifact"], request["data"]
    pairs = tuple(datasets.Pair(name, folder / image, folder / labels) for name, image, labels in request["pairs"])
    classes = facts.ClassSet(about["name"], tuple(about["classes"]), ())
    data = datasets.DataSet(about["name"], folder, classes, pairs, tuple(map(tuple, about["coding"])), about["coloured"])
    with open(folder / ROWS, "w") as rows:
        workers = evaluate.label(path, read_artifact(path), tune.Choice(request["backend"], {}), pairs, evaluate.Ask(data, place=place), "",
                                 lambda row: rows.write(json.dumps(row, separators=(",", ":")) + "\n"), lambda step, done: tell("labelling", None))
    return {"files": [ROWS], "memory_bytes": max(one["memory_bytes"] for one in workers), "environment": workers[-1]["environment"]}


def label_by(crew):
    """evaluate.label by a crew: parts of the pictures, each on whichever worker is free; the rows are the same, so are their sums."""
    def label(path, artifact, choice, pairs, ask, key, add, tell):
        workers, count = [], 0

        def taken(part):
            def then(result, folder):
                nonlocal count
                if not result["ok"]:
                    raise RtsegError(result["error"], result["fix"])
                rows = list(evaluate.rows_in(folder / ROWS))
                if not launch.has(result, {"memory_bytes": int, "environment": dict}) or not all(countable(row, artifact.classes) for row in rows):
                    raise RtsegError("what came back of some pictures counts none")
                if sorted(row["name"] for row in rows) != sorted(pair.name for pair in part):
                    raise RtsegError("what came back of some pictures is of other ones")
                for row in rows:
                    add(row)
                count += len(part)
                tell(None, count)
                workers.append({"memory_bytes": result["memory_bytes"], "environment": result["environment"]})
            return then

        crew.run([labelling(f"{ask.data.name}, {len(part)} pictures", path, artifact, choice, part, ask.data, taken(part))
                  for part in parts(pairs, crew.slots())])
        return workers
    return label


def countable(row, classes):
    """Whether the counts in a row can be of its picture, and its times of a clock."""
    pixels = math.prod(row["size"]) if len(row["size"]) == 2 and all(type(side) is int and side > 0 for side in row["size"]) else 0
    cells = [*row["confusion"], *row["boundary"]]
    return (len(row["boundary"]) == classes and all(isinstance(cell, list) and all(type(one) is int and 0 <= one <= pixels for one in cell) for cell in cells)
            and all(len(cell) == 3 and max(cell[:2]) < classes for cell in row["confusion"]) and sum(cell[2] for cell in row["confusion"]) <= pixels
            and all(results.number(one) and one >= 0 for one in (*row["seconds"].values(), row["decode"], row["waited"])))


def parts(pairs, slots):
    """Lists of pairs: small enough that no worker has much more than another, large enough that opening the network does not count."""
    size = max(1, min(PART, -(-len(pairs) // (PARTS * max(1, slots)))))
    return [pairs[begin:begin + size] for begin in range(0, len(pairs), size)]


ACTIONS = {"export": export, "bench": time, "build": built, "label": labelled}


def main(argv):
    """Exit status 0: result.json is there, whatever it says."""
    folder = Path(argv[1]).resolve().parent
    request = files.read_json(argv[0])
    runner.leashed(request)
    place = ssh.place(request.get("on"))
    perform(folder, lambda step, done: runner.report(request, stage=step, done=done), place)


if __name__ == "__main__":
    main(sys.argv[1:])
