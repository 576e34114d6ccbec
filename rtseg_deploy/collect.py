"""Results of a bundle, brought back: every byte is checked before any of it is believed, and nothing in it says where it is written."""
import contextlib
import gzip
import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from . import bench, build, facts, files, launch, limits, locks, ondevice, signatures
from .device import runner
from .errors import RtsegError, first_line
from .records import FORMAT, from_json, write_artifact

NAME = r"(?a:\w[\w-]*(\.\w[\w-]*)*)"
MEMBER = re.compile(rf"{NAME}(/{NAME})?")
LONGEST = 200                       # of a member's name
AGAIN = "run the bundle again and take its results.tar.gz"

# of a row of bundle.json, and what more it has for each action
ROW = {"name": str, "action": str, "files": dict, "results": list}
ROWS = {"build": {"file": str, "artifact": dict, "target": str, "precision": str, "proven": dict}, "infer": {"pictures": list},
        "time": {"file": str, "artifact": dict, "backend": str, "input": str, "protocol": str, "figure": str}}


def collect(archive, engines="engines", results="results", tell=lambda step, done: None, signers=None):
    """File what came back: engines with their sidecars, figures; returns a Filed for each job.

    signers: a file of those who may have signed it, see signatures.check. Raises RtsegError, with nothing written, where a byte is not as it was packed
    there, or not as a signer signed it.
    """
    if signers:
        signatures.check(archive, signers)
    with files.scratch() as folder:
        tell("unpacking and checking", None)
        unpack(archive, Path(folder))
        check(Path(folder))
        jobs = read(Path(folder))
        return [filed(job, jobs, engines, results) for job in jobs.values()]


class Plain(tarfile.TarInfo):
    """A header of a plain file. Any other is refused before what follows it is read: extended headers are read whole, and may be of any size."""

    @classmethod
    def frombuf(cls, *arguments):
        found = super().frombuf(*arguments)
        if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            refuse(found.name)
        return found


def refuse(name):
    raise RtsegError(f"{name[:LONGEST]!r} has no place in results, and nothing of them was taken", AGAIN)


def unpack(archive, folder):
    """Plain files with plain names, not too many and not too large, into a folder. Raises RtsegError for anything else."""
    seen, total = set(), 0
    try:
        with tarfile.open(archive, "r:gz", tarinfo=Plain) as packed:
            for member in packed:
                total += member.size
                most = limits.LABEL_BYTES if member.name.endswith(".npy") else limits.ARCHIVE_BYTES if member.name.endswith("/engine") else limits.ARCHIVE_TEXT
                if (len(member.name) > LONGEST or not MEMBER.fullmatch(member.name) or member.name in seen or len(seen) >= limits.ARCHIVE_MEMBERS
                        or not 0 <= member.size <= most or total > limits.ARCHIVE_BYTES):
                    refuse(member.name)
                if member.size > shutil.disk_usage(folder).free:
                    raise RtsegError(f"{archive} unpacks to more than is free on {folder}", "free some space, or name another folder: TMPDIR=DIR")
                seen.add(member.name)
                goal = folder / member.name
                goal.parent.mkdir(exist_ok=True)
                with packed.extractfile(member) as source, open(goal, "xb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, FileExistsError) as error:
        raise RtsegError(f"{archive} is damaged or no archive: {error}", AGAIN) from None


def check(folder):
    """Raise RtsegError where a file is not what the list of sums says, or is not in it."""
    with contextlib.suppress(FileNotFoundError):
        lines = (line.partition("  ") for line in (folder / "SHA256SUMS").read_text(errors="replace").splitlines())
        sums = {name: digest for digest, _, name in lines}
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"SHA256SUMS"}
        for name in sorted(there | set(sums)):
            if name not in there or name not in sums or files.sha256(folder / name) != sums[name]:
                raise RtsegError(f"{name[:LONGEST]!r} is not as it was packed on the device", AGAIN)
        if "bundle.json" in there:
            return
    raise RtsegError("these are no results of a bundle: the list of what is in it is missing", AGAIN)


def read(folder):
    """Name -> row of bundle.json with its result, its folder and its Artifact. Raises RtsegError where one could not be filed as it is."""
    manifest = files.read_json(folder / "bundle.json")
    rows = manifest.get("jobs")
    if manifest.get("kind") != "bundle" or manifest.get("format") != FORMAT or not isinstance(rows, list):
        raise RtsegError("these are no results of a bundle of this version", AGAIN)
    jobs = {}
    for row in rows:
        known = launch.has(row, ROW) and row["action"] in ROWS and launch.has(row, ROWS[row["action"]])
        if not known or not plain(row["name"]) or row["name"] in jobs:
            raise RtsegError("bundle.json lists a job that no bundle has", AGAIN)
        job = {**row, "folder": folder / row["name"], "result": files.read_json(folder / row["name"] / "result.json")}
        if not fit(job):
            raise RtsegError(f"{row['name']} is no job of a bundle, or its result is none", AGAIN)
        if "target" in ROWS[row["action"]]:
            facts.target(row["target"])
        if "protocol" in ROWS[row["action"]]:
            facts.protocol(row["protocol"])
        jobs[row["name"]] = {**job, "artifact": from_json(row["artifact"], row["name"])} if "artifact" in ROWS[row["action"]] else job
    return jobs


def plain(name):
    """Whether it is a name that leads nowhere; of a long one re would take much memory."""
    return len(name) <= LONGEST and re.fullmatch(NAME, name)


def fit(job):
    """Whether what decides where a job's result is filed is one of the names it can be, and what it made came along."""
    names = [*job["results"], *job.get("pictures", [])]
    if not all(isinstance(name, str) and len(name) <= LONGEST for name in names) or not Path(job.get("file", "")).stem.isprintable():
        return False
    if job.get("precision", "fp32") not in ("fp32", "fp16") or job.get("backend", "tensorrt") not in runner.SESSIONS:
        return False
    made = [*job["results"], *(["engine"] if job["action"] == "build" else [])]
    return job["result"].get("ok") is not True or \
        launch.sound(job["action"], job["result"]) and all(plain(name) and (job["folder"] / name).is_file() for name in made)


@dataclass(frozen=True)
class Filed:
    job: str
    ok: bool
    what: str                       # where its result is now, or why there is none


def filed(job, jobs, engines, results):
    """What became of one job."""
    result = job["result"]
    if result.get("ok") is not True:
        return Filed(job["name"], False, first_line(f"failed there: {result.get('error')}; {result.get('fix')}"))
    if job["action"] == "build":
        return engine(job, jobs, engines)
    if job["action"] == "infer":
        return Filed(job["name"], True, "compared")
    figure = bench.figure(job["artifact"], job["file"], job["backend"], job["input"], [bench.run_of(result, job["folder"])], "a bundle",
                          job["protocol"], of=job["figure"])
    path = bench.write(figure, results)
    return Filed(job["name"], True, str(path))


def engine(job, jobs, engines):
    """File an engine, with what its labels on the device were worth; not one that labels wrongly."""
    target = facts.target(job["target"])
    made = f"jobs/{job['name']}/engine"
    labels = next((other for other in jobs.values() if made in other["files"].values() and other["action"] == "infer"), {"result": {}})
    parity = compared(labels, job["precision"]) if labels["result"].get("ok") else None
    wrong = labels["result"].get("error") if labels["result"].get("error") == runner.NOT_FINITE[0] else parity and not parity["ok"] and parity["inputs"]
    if wrong:
        return Filed(job["name"], False, f"its labels are not those of {job['file']}: {wrong}; --on finds the layers that must stay in FP32")
    described = build.described(job["artifact"], job["file"], target, job["precision"], job["proven"], job["result"], parity)

    def fill(temporary):
        shutil.copyfile(job["folder"] / "engine", temporary)
        return described

    goal = build.goal_of(job["file"], target, job["precision"], engines)
    with locks.goal(goal):
        write_artifact(goal, fill)
    return Filed(job["name"], True, str(goal))


def compared(job, precision):
    """The parity report of the labels that came back."""
    loaded = [{name: launch.labels(job["folder"] / f"{kind}-{number}.npy") for number, name in enumerate(job["pictures"])}
              for kind in ("expected", "labels")]
    return ondevice.agreement(*loaded, precision)
