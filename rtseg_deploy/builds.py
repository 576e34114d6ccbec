"""A plan -> the engines of its networks, a file each; interrupted, it goes on where it was."""
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from . import __version__, build, crew, facts, files, launch, locks, plans, tasks
from .campaign import export_of, target_of, title
from .errors import RtsegError
from .records import FORMAT, Artifact, read_artifact, size, write_artifact


@dataclass(frozen=True)
class Outcome:
    """What became of one row."""
    row: plans.Row
    target: str
    path: Path | None = None        # of its engine
    engine: Artifact | None = None
    skipped: str = ""
    failed: str = ""

    def to_json(self):
        told = {"file": str(self.path), **self.engine.to_json()} if self.engine else {"skipped": self.skipped} if self.skipped else {"failed": self.failed}
        return {"subject": self.row.subject, "precision": self.row.precision, "target": self.target, **told}


def run(path, target=None, root="engines", tell=launch.quiet, by=None, again=False, **how):
    """Export and build every row of a plan for a target, or for the target that is the row's device; returns the Outcomes in the plan's order.

    how: further arguments of build.build_engine. Rows that differ only in how they are timed have one engine.
    """
    plan, by, found, given = plans.read(path), by or crew.Serial(), {}, {}
    for number, row in enumerate(plan.rows, 1):
        name = target or target_of(row.device)
        found[number] = Outcome(row, name or "", skipped="" if name else f"no target has a {row.device or 'device: name one with --target'}")
        if name:
            given.setdefault((name, onnx_of(row, name, root), row.precision), []).append(number)
    exports = {}
    for (name, onnx, precision), numbers in given.items():
        exports.setdefault((onnx, name), []).append((precision, numbers))
    by.run([task for (onnx, name), members in exports.items() for task in first(onnx, facts.target(name), members, plan, found, root, by, again, how)], tell,
           Path(root, crew.TIMELINE))
    return [found[number] for number in sorted(found)]


def onnx_of(row, target, root):
    """Where the ONNX file of a row is: the artifact itself, or a file beside the engines, named by all that decides what is exported."""
    if row.artifact:
        return Path(row.artifact)
    wanted = {**export_fp32(row), "format": FORMAT, "version": __version__, "file": None if row.network else files.sha256(row.subject)}
    key = files.key(wanted)[:8]
    return Path(root, target, f"{row.network or Path(row.subject).stem}-{size(row.exported)}-{key}.onnx")


def export_fp32(row):
    """FP32: the engine's precision is made of it, by a flag or by conversion."""
    found = export_of(row)
    return {**found, "options": {**found["options"], "precision": "fp32"}}


def first(onnx, target, members, plan, found, root, by, again, how):
    """The Tasks that the engines of one ONNX file begin with."""
    number = members[0][1][0]
    name = title(number, plan, found[number].row)

    def engines():
        return [task for precision, numbers in members for task in engine(onnx, target, precision, numbers, name, found, root, by, again, how)]

    def exported(result, folder):
        if not result["ok"]:
            note(found, [number for _, numbers in members for number in numbers], failed=crew.why(result))
            return []
        kept(folder / tasks.NETWORK, onnx)
        return engines()

    if sound(onnx):
        return engines()
    row = found[number].row
    return [tasks.exporting(name, then=exported, **export_fp32(row))]


def engine(onnx, target, precision, numbers, name, found, root, by, again, how):
    """The Task that builds one engine; none where it is there."""
    goal = build.goal_of(onnx, target, precision or read_artifact(onnx).precision, root)
    if not again and sound(goal, files.sha256(onnx)):
        note(found, numbers, path=goal, engine=read_artifact(goal))
        return []
    device = "" if target.ahead_of_time and not by.has(target.name) else target.name

    def then(result, folder):
        if not result["ok"]:
            note(found, numbers, failed=crew.why(result))
            return
        made = kept(folder / tasks.ENGINE, goal, {"file": str(onnx), "sha256": files.sha256(onnx)})
        note(found, numbers, path=goal, engine=made)

    return [tasks.building(name, onnx, target.name, precision == "fp16", then, device, **how)]


def sound(path, parent=None):
    """Whether an artifact is there, whole, and made of that file."""
    try:
        return parent in (None, read_artifact(path).parent.get("sha256"))
    except RtsegError:
        return False


def kept(source, goal, parent=None):
    """Put what a task made where it belongs; returns its Artifact. Raises RtsegError where it is not whole, or of something else."""
    artifact = read_artifact(source)
    if parent and artifact.parent.get("sha256") != parent["sha256"]:
        raise RtsegError(f"{source.name} was made of another file than {parent['file']}")

    def fill(temporary):
        shutil.move(source, temporary)
        return replace(artifact, parent=parent or artifact.parent)

    with locks.goal(goal):
        return write_artifact(goal, fill)


def note(found, numbers, **what):
    for number in numbers:
        found[number] = replace(found[number], **what)


def rows(outcomes):
    """Rows of plain values for a table."""
    return [{"network": one.row.subject, "resolution": size(one.row.resolution) if one.row.resolution else "", "precision": one.row.precision or "",
             "target": one.target, "engine": str(one.path or ""), "MiB": f"{one.engine.checks['bytes'] / 2**20:.1f}" if one.engine else "",
             "status": one.skipped or ("failed" if one.failed else "there")} for one in outcomes]
