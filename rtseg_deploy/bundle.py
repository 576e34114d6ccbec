"""Jobs for a machine without network: packed here, run there by sh and Python 3.6 (device/steps.py), brought back by collect.py.

A bundle has run.sh, steps.py, runner.py, the files that the jobs read by their hashes, bundle.json, and SHA256SUMS of all of it.
"""
import io
import json
import re
import shutil
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from . import backends, bench, build, facts, files, launch, locks, measure, ondevice, plans
from .device import runner, steps
from .errors import RtsegError
from .records import FORMAT, read_artifact, sidecar, size

RUN = '#!/bin/sh\n# Runs every job here, and packs the results: sh run.sh, or PYTHON=/path/of/python3 sh run.sh\n' \
      'exec "${PYTHON:-python3}" "$(dirname "$0")/steps.py"\n'


@dataclass(frozen=True)
class Step:
    """A job of a bundle. A file of it that is a text is the engine that the step of that title makes."""
    title: str
    job: launch.Job
    about: dict                     # what is to be known when its result comes back


@dataclass(frozen=True)
class Subject:
    """An ONNX artifact, and how it is to be timed."""
    path: Path
    ask: bench.Ask
    file: str                       # what it is called where its results are filed
    precision: str = ""             # of its engine; "" the artifact's own


def bundle(paths, goal, target_name=None, fp16=False, names=(), iterations=None, tell=launch.quiet):
    """Pack the jobs of some ONNX artifacts and plans: an engine for the target, its labels and its speed; and the speed on each backend named.

    iterations: a plan's own, or 1000, if not given. Returns the names of the jobs. Raises RtsegError.
    """
    if not (target_name or names):
        raise RtsegError("a bundle without --target and --backend has nothing to do", "name the device: --target jetson-tx2")
    target = facts.target(target_name) if target_name else None
    with files.scratch() as folder:
        subjects = [subject for path in map(Path, paths)
                    for subject in (of_plan(path, target, iterations, Path(folder), tell) if path.suffix == ".toml" else
                                    [Subject(path, bench.Ask(iterations=iterations or 1000), str(path))])]
        refuse_same_names([subject.path for subject in subjects], Path(goal))
        found = []
        for subject in subjects:
            artifact = read_artifact(subject.path)
            if artifact.kind != "onnx":
                raise RtsegError(f"{subject.path} is an engine, which is good for one device alone", "pack the ONNX file that it was made from")
            if target:
                for precision in dict.fromkeys([subject.precision or artifact.precision, "fp16" if fp16 else subject.precision or artifact.precision]):
                    found += engine_steps(subject, artifact, target, precision, Path(folder), tell)
            for backend in backends.chosen(artifact, names) if names else []:
                if backend not in runner.SESSIONS:
                    raise RtsegError(f"backend {backend} cannot go into a bundle", f"those that can: {', '.join(runner.SESSIONS)}")
                found.append(timed(subject, artifact, backend))
        return pack(found, goal, tell)


def of_plan(path, target, iterations, folder, tell):
    """A Subject for each row of a plan that is not of a processor alone: exported for the target, as the row says."""
    found = []
    for number, row in enumerate(plans.read(path).rows, 1):
        device = facts.devices().get(row.device)
        if target and device and not device.compute_capability:
            continue
        ask = bench.Ask(protocol=row.protocol, iterations=iterations or row.iterations, figure=row.figure)
        if row.artifact:
            found.append(Subject(Path(row.artifact), ask, row.artifact))
            continue
        goal = folder / f"{number:02}-{Path(row.subject).stem}-{size(row.exported)}-{row.precision}.onnx"
        how = {"output": row.output, "classes": row.classes, "network_input": row.reduced, "target": target and target.name}

        def keep(made, ask, tell, goal=goal):
            shutil.copyfile(made, goal)
            shutil.copyfile(sidecar(made), sidecar(goal))
            return []

        measure.measure(row.subject, [row.exported], ask, how={name: value for name, value in how.items() if value}, tell=tell, work=keep)
        found.append(Subject(goal, ask, goal.name, row.precision))
    if not found:
        raise RtsegError(f"{path} has only rows of processors", "time them there: --backend onnxruntime-cpu without --target")
    return found


def refuse_same_names(paths, goal):
    """An engine is named by its ONNX file: two of a name would be one engine."""
    for path in paths:
        if path.resolve() == goal.resolve():
            raise RtsegError(f"{goal} is one of the files to be packed", "choose another name for the bundle")
        other = next(other for other in paths if other.stem == path.stem)
        if other is not path:
            raise RtsegError(f"the engines of {other} and {path} would have the same name", "rename one, and its sidecar, or make two bundles")


def engine_steps(subject, artifact, target, precision, folder, tell):
    """An engine is built, asked for the labels of the proof's pictures, and timed."""
    path = subject.path
    kept = build.staying(path, artifact, precision, tell=tell)
    plan = build.planned(path, artifact, target, precision, build.runtime_of(target), folder / f"{path.stem}.{precision}.onnx", tell, kept=kept)
    stem = f"{path.stem}-{precision}"
    built = Step(f"{stem}-build", plan.job, {"file": subject.file, "artifact": artifact.to_json(), "target": target.name, "precision": precision,
                                             "proven": plan.proven})
    engine = replace(artifact, kind="engine", precision=precision, target=target.name, versions={**artifact.versions, plan.runtime: ""})
    arrays = ondevice.pictures(artifact)
    expected = {f"expected-{number}.npy": launch.saved(labels) for number, labels in enumerate(ondevice.expected(path, arrays).values())}
    labels = launch.on_backend("infer", path, engine, plan.runtime, list(arrays.values()))
    labels = replace(labels, files={**labels.files, **expected, "network.engine": built.title}, results=(*labels.results, *expected))
    speed = timed(subject, engine, plan.runtime)
    return [built, Step(f"{stem}-labels", labels, {"pictures": list(arrays)}),
            replace(speed, job=replace(speed.job, files={**speed.job.files, "network.engine": built.title}))]


def timed(subject, artifact, backend):
    path, ask = subject.path, subject.ask
    array, fed = bench.picture(artifact, frame=facts.protocol(ask.protocol).frame)
    job = bench.timing(path, artifact, backend, array, ask.iterations, ask)
    return Step(f"{path.stem}-{artifact.precision}-{backend}", job, {"file": subject.file, "artifact": artifact.to_json(), "backend": backend, "input": fed,
                                                                     "protocol": ask.protocol, "figure": ask.figure})


def pack(found, goal, tell):
    """Write the archive; returns the names of its jobs."""
    names = [f"{number:03}-{re.sub(r'[^a-zA-Z0-9_-]', '-', step.title)[:60]}" for number, step in enumerate(found)]
    by_title, rows = dict(zip((step.title for step in found), names)), []
    contents = {"runner.py": Path(runner.__file__), "steps.py": Path(steps.__file__), "run.sh": RUN.encode()}
    for name, step in zip(names, found):
        contents[f"jobs/{name}/job.json"] = json.dumps({**step.job.request, "progress": True, "leash": True}, indent=1).encode()
        places = {}
        for inner, source in step.job.files.items():
            if isinstance(source, str):
                places[inner] = f"jobs/{by_title[source]}/engine"
                continue
            digest = launch.digest(source)
            launch.refuse_other(step.job, inner, digest)
            places[inner] = f"files/{digest}"
            contents[places[inner]] = source
        rows.append({"name": name, "action": step.job.request["action"], "files": places, "results": list(step.job.results), **step.about})
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    contents["bundle.json"] = json.dumps({"format": FORMAT, "kind": "bundle", "made": made, "jobs": rows}, indent=1).encode()
    contents["SHA256SUMS"] = "".join(f"{launch.digest(source)}  {name}\n" for name, source in sorted(contents.items())).encode()
    top = Path(goal).name.partition(".")[0]
    with locks.goal(goal, tell), files.replacing(goal) as temporary, tarfile.open(temporary, "w:gz", compresslevel=6) as archive:
        for number, (name, source) in enumerate(sorted(contents.items())):
            tell(f"packing {name}", number / len(contents))
            add(archive, f"{top}/{name}", source)
    return names


def add(archive, name, source):
    """One file, as anyone's and of now."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as data:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime, entry.mode = data.seek(0, io.SEEK_END), int(time.time()), 0o755 if name.endswith(".sh") else 0o644
        data.seek(0)
        archive.addfile(entry, data)
