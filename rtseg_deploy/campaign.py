"""A plan -> its figures, a file each; interrupted, it goes on where it was."""
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import __version__, backends, crew, facts, files, launch, locks, measure, plans, results, tasks
from .errors import RtsegError
from .records import FORMAT, read_artifact, sidecar, size


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


def run(path, ask, anywhere=False, again=False, tell=launch.quiet, by=None):
    """Time every row of a plan that can run here; returns the Outcomes in the plan's order.

    anywhere: a row of a GPU is timed on whatever backend is asked for. again: what has a result is timed once more. by: a crew, this process if not given.
    """
    plan = plans.read(path)
    with locks.goal(Path(ask.results, plan.name, crew.TIMELINE), tell):  # a second run waits, and finds what the first has made
        return outcomes(plan, ask, anywhere, again, tell, by or crew.Serial(ask.place))


def outcomes(plan, ask, anywhere, again, tell, by):
    """As run."""
    why_not = unfit_for(by, ask, tell)
    folder, found, asked = Path(ask.results, plan.name), {}, {}
    for number, row in enumerate(plan.rows, 1):
        for backend in ask.backends or [usual(row)]:
            goal = folder / named(row, backend, ask)
            known = None if again else result_in(goal)
            why = "" if known or anywhere and not backends.on_gpu(backend) else why_not(row, backend, anywhere)
            found[number, backend] = Outcome(row, backend, goal, known, why)
            if not (known or why):
                asked.setdefault(number, []).append(backend)
    with files.scratch() as scratch:
        groups = {}                 # rows that are timed on the same export
        for number, names in asked.items():
            row = plan.rows[number - 1]
            groups.setdefault(None if row.artifact else json.dumps(export_of(row)), []).append((number, row, names))
        by.run([task for key, members in groups.items() for task in first(key, members, plan, ask, found, Path(scratch))], tell, folder / crew.TIMELINE)
    return list(found.values())


def unfit_for(by, ask, tell):
    """A function of a row, a backend and anywhere: why it cannot be timed by a crew; "" where it can."""
    if isinstance(by, crew.Serial):
        machine = launch.probe(ask.place, tell)
        return lambda row, backend, anywhere: "" if anywhere else unfit(row, backend, machine)

    def why(row, backend, anywhere):
        target = target_of(row.device)
        if not backends.on_gpu(backend):
            why = "" if anywhere or not of_gpu(row) else f"a figure of the {row.device}: --backend onnxruntime-cuda times it there, --anywhere on {backend}"
            return why or ("" if by.has() else "no worker has a processor for it")
        if not target:
            return f"no target has a {row.device}" if row.device else "which device times it? add device = to the row"
        return "" if by.has(target) else f"no worker has a {row.device}: rtseg-deploy worker --target {target}"
    return why


def target_of(device):
    """The name of the target that a device of the facts is; None where it is none."""
    return next((name for name, target in facts.targets().items() if target.device.name == device), None)


def export_of(row):
    """What a row exports: the arguments of tasks.exporting."""
    protocol = facts.protocol(row.protocol)
    how = {"precision": row.precision, "output": row.output, "network_input": row.reduced}
    options = {**measure.options_of(protocol), **{name: value for name, value in how.items() if value is not None}}
    return {"subject": row.subject, "resolution": row.exported, "options": options, "classes": row.classes}


def first(key, members, plan, ask, found, scratch):
    """The Tasks that a group of rows begins with."""
    if key is None:
        return [timing(member, member[1].artifact, plan, ask, found) for member in members]
    path, left = scratch / f"{members[0][0]}.onnx", [len(members)]

    def exported(result, folder):
        if not result["ok"]:
            for number, _, names in members:
                for backend in names:
                    failed(found, (number, backend), result)
            return []
        read_artifact(folder / tasks.NETWORK)
        for name, goal in ((tasks.NETWORK, path), (sidecar(tasks.NETWORK).name, sidecar(path))):
            shutil.move(folder / name, goal)
        return [timing(member, path, plan, ask, found, over) for member in members]

    def over():                     # a plan's exports need not all be there at once
        left[0] -= 1
        if not left[0]:
            path.unlink()
    number, row, _ = members[0]
    return [tasks.exporting(title(number, plan, row), then=exported, **export_of(row))]


def timing(member, path, plan, ask, found, over=lambda: None):
    """The Task that times a row on its backends."""
    number, row, names = member
    ask = replace(ask, backends=tuple(names), protocol=row.protocol, iterations=ask.iterations or row.iterations, figure=row.figure, bn=row.bn or "",
                  portrait=True)

    def timed(result, folder):
        figures = tasks.figures(result, folder, path, ask) if result["ok"] else {}
        for backend in names:
            outcome = found[number, backend]
            if backend in figures:
                files.write_json(outcome.path, {**figures[backend], "file": row.artifact or row.subject})
                found[number, backend] = replace(outcome, result=result_in(outcome.path))
            else:
                failed(found, (number, backend), {"error": result["failed"].get(backend, "it left no figure")} if result["ok"] else result)
        over()

    device = target_of(row.device) if any(map(backends.on_gpu, names)) else ""
    return tasks.timing(title(number, plan, row), path, ask, timed, device or "")


def title(number, plan, row):
    return " ".join(filter(None, [f"{number} of {len(plan.rows)}:", Path(row.subject).name, row.resolution and size(row.resolution)]))


def failed(found, key, result):
    found[key] = replace(found[key], failed=crew.why(result))


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


def named(row, backend, ask):
    """The name of a row's result, by all that decides what is timed, but not by when."""
    subject = Path(row.subject)
    what = {**asdict(row), "backend": backend, "format": FORMAT, "version": __version__, "iterations": ask.iterations or row.iterations,
            "processes": ask.processes, "threads": ask.threads, "image": ask.image and files.sha256(ask.image), "graph": ask.cuda_graph,
            "decode": ask.decode, "place": ask.place and ask.place.name, "file": None if row.network else files.sha256(subject)}
    key = files.key(what)[:10]
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
    return results.short(value)
