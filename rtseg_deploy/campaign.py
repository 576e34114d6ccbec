"""A plan -> its figures, a file each; interrupted, it goes on where it was."""
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import __version__, backends, bench, facts, files, launch, plans
from .errors import RtsegError
from .measure import measure
from .records import FORMAT, read_artifact, size


@dataclass(frozen=True)
class Outcome:
    """What became of one row of a plan on one backend."""
    row: plans.Row
    backend: str
    path: Path                      # of its result
    result: dict | None = None      # as in that file, without samples
    skipped: str = ""               # why it cannot run here
    failed: str = ""                # why it did not

    def to_json(self):
        row = {name: value for name, value in asdict(self.row).items() if value not in (None, "")}
        told = {"result": str(self.path), **self.result} if self.result else {"skipped": self.skipped} if self.skipped else {"failed": self.failed}
        return {"row": row, "backend": self.backend, **told}


def run(path, ask, anywhere=False, again=False, tell=launch.quiet):
    """Time every row of a plan that can run here; returns the Outcomes in the plan's order.

    anywhere: a row of a GPU is timed on whatever backend is asked for. again: what has a result is timed once more.
    """
    plan = plans.read(path)
    machine = launch.probe(ask.place, tell)
    folder = Path(ask.results, plan.name)
    found = {}
    for number, row in enumerate(plan.rows, 1):
        names = ask.backends or [usual(row)]
        for backend in names:
            goal = folder / named(row, backend, ask)
            known = None if again else result_in(goal)
            why = "" if known or anywhere else unfit(row, backend, machine)
            found[number, backend] = Outcome(row, backend, goal, known, why)
        asked = [name for name in names if not (found[number, name].result or found[number, name].skipped)]
        title = f"{number} of {len(plan.rows)}"
        for name, outcome in timed(row, asked, ask, folder, lambda step, done, title=title: tell(f"{title}: {step}", done)).items():
            found[number, name] = replace(found[number, name], **outcome)
    return list(found.values())


def usual(row):
    """The backend of a row where none is asked for."""
    return "onnxruntime-cuda" if of_gpu(row) else "onnxruntime-cpu"


def of_gpu(row):
    device = facts.devices().get(row.device)
    return bool(device and device.compute_capability)


def unfit(row, backend, machine):
    """Why a row cannot be timed here on a backend; "" where it can."""
    if of_gpu(row) and not backends.on_gpu(backend):
        why = plans.feasible(row, machine)
        return why or f"a figure of the {row.device}: --backend onnxruntime-cuda times it on this GPU, --anywhere on {backend}"
    return plans.feasible(row, machine)


def timed(row, names, ask, folder, tell):
    """Backend -> what is new in its Outcome. What fails on one backend is tried without that one."""
    if not names:
        return {}
    try:
        done = once(row, replace(ask, backends=tuple(names), results=str(folder), names={name: named(row, name, ask) for name in names}), tell)
    except RtsegError as error:
        if len(names) == 1:
            return {names[0]: {"failed": f"{error.what}; {error.fix}" if error.fix else error.what}}
        return {name: outcome for one in names for name, outcome in (timed(row, [one], ask, folder, tell) if not result_in(folder / named(row, one, ask))
                                                                     else {one: {"result": result_in(folder / named(row, one, ask))}}).items()}
    return {figure.backend: {"result": result_in(path)} for path, figure in done}


def once(row, ask, tell):
    """[(result file, Benchmark)] of a row."""
    ask = replace(ask, protocol=row.protocol, iterations=ask.iterations or row.iterations, figure=row.figure, bn=row.bn or "", portrait=True)
    if row.artifact:
        return bench.bench(row.artifact, ask, tell)
    how = {"precision": row.precision, "output": row.output, "classes": row.classes, "network_input": row.reduced}
    return measure(row.subject, [row.exported], ask, how={name: value for name, value in how.items() if value is not None}, tell=tell)


def named(row, backend, ask):
    """The name of a row's result, by all that decides what is timed, but not by when."""
    subject = Path(row.subject)
    what = {**asdict(row), "backend": backend, "format": FORMAT, "version": __version__, "iterations": ask.iterations or row.iterations,
            "processes": ask.processes, "threads": ask.threads, "image": ask.image and files.sha256(ask.image), "graph": ask.cuda_graph,
            "decode": ask.decode, "place": ask.place and ask.place.name, "file": None if row.network else files.sha256(subject)}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]
    resolution = row.exported or read_artifact(subject).resolution
    return f"{subject.stem if row.artifact or row.checkpoint else row.network}-{size(resolution)}-{row.protocol}-{backend}-{key}.json"


def result_in(path):
    """What a result file says, without its samples; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        value = files.read_json(path)
    except RtsegError:
        return None
    if value.get("kind") != "benchmark" or value.get("format") != FORMAT:
        return None
    return {**value, "runs": [{name: run[name] for name in run if name not in bench.SAMPLES} for run in value["runs"]]}
