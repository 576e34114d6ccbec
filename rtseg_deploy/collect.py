"""Results of a bundle, brought back: every byte is checked before any of it is believed, and nothing in it says where it is written."""
import contextlib
import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import bench, build, facts, files, ondevice
from .errors import RtsegError
from .records import FORMAT, from_json, write_artifact

NAME = r"\w[\w-]*(\.\w[\w-]*)*"
MEMBER = re.compile(rf"{NAME}(/{NAME})?")
MOST_MEMBERS, MOST_BYTES = 10_000, 1 << 35
AGAIN = "run the bundle again and take its results.tar.gz"


def collect(archive, engines="engines", results="results", tell=lambda step, done: None):
    """File what came back: engines with their sidecars, figures; returns a Filed for each job.

    Raises RtsegError, with nothing written, where a byte is not as it was packed there.
    """
    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        tell("unpacking and checking", None)
        unpack(archive, Path(folder))
        check(Path(folder))
        manifest = files.read_json(Path(folder, "bundle.json"))
        if manifest.get("kind") != "bundle" or manifest.get("format") != FORMAT:
            raise RtsegError(f"{archive} holds no results of a bundle of this version", AGAIN)
        jobs = {job["name"]: {**job, "result": files.read_json(Path(folder, job["name"], "result.json")), "folder": Path(folder, job["name"])}
                for job in manifest["jobs"]}
        return [filed(job, jobs, engines, results) for job in jobs.values()]


def unpack(archive, folder):
    """Plain files with plain names, not too many and not too large, into a folder. Raises RtsegError for anything else."""
    seen, total = set(), 0
    try:
        with tarfile.open(archive, "r:gz") as packed:
            for member in packed:
                total += member.size
                if not member.isreg() or not MEMBER.fullmatch(member.name) or member.name in seen or len(seen) >= MOST_MEMBERS or total > MOST_BYTES:
                    raise RtsegError(f"{archive}: {member.name!r} has no place in results, and nothing of it was taken", AGAIN)
                seen.add(member.name)
                goal = folder / member.name
                goal.parent.mkdir(exist_ok=True)
                with packed.extractfile(member) as source, open(goal, "xb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotADirectoryError) as error:
        raise RtsegError(f"{archive} is damaged or no archive: {error}", AGAIN) from None


def check(folder):
    """Raise RtsegError where a file is not what the list of sums says, or is not in it."""
    with contextlib.suppress(FileNotFoundError):
        lines = (line.partition("  ") for line in (folder / "SHA256SUMS").read_text(errors="replace").splitlines())
        sums = {name: digest for digest, _, name in lines}
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"SHA256SUMS"}
        for name in sorted(there | set(sums)):
            if name not in there or name not in sums or files.sha256(folder / name) != sums[name]:
                raise RtsegError(f"{name} is not as it was packed on the device", AGAIN)
        if "bundle.json" in there:
            return
    raise RtsegError("these are no results of a bundle: the list of what is in it is missing", AGAIN)


@dataclass(frozen=True)
class Filed:
    job: str
    ok: bool
    what: str                       # where its result is now, or why there is none


def filed(job, jobs, engines, results):
    """What became of one job."""
    result = job["result"]
    if result.get("ok") is not True:
        return Filed(job["name"], False, f"failed there: {result.get('error')}; {result.get('fix')}")
    if job["action"] == "build":
        return engine(job, jobs, engines)
    if job["action"] == "infer":
        return Filed(job["name"], True, "compared")
    path = bench.write(bench.figure(from_json(job["artifact"], job["name"]), job["file"], job["backend"], job["input"], result, "a bundle"), results)
    return Filed(job["name"], True, str(path))


def engine(job, jobs, engines):
    """File an engine, with what its labels on the device were worth; not one that labels wrongly."""
    artifact, target = from_json(job["artifact"], job["name"]), facts.target(job["target"])
    made = f"jobs/{job['name']}/engine"
    labels = next((other for other in jobs.values() if made in other["files"].values() and other["action"] == "infer" and other["result"].get("ok")), None)
    parity = compared(labels, job["precision"]) if labels else None
    if parity and not parity["ok"]:
        return Filed(job["name"], False, f"its labels are not those of {job['file']}: {parity['inputs']}; --on finds the layers that must stay in FP32")
    described = build.described(artifact, job["file"], target, job["precision"], job["proven"], job["result"], parity)

    def fill(temporary):
        shutil.copyfile(job["folder"] / "engine", temporary)
        return described

    goal = build.goal_of(job["file"], target, job["precision"], engines)
    write_artifact(goal, fill)
    return Filed(job["name"], True, str(goal))


def compared(job, precision):
    """The parity report of the labels that came back."""
    loaded = [{name: np.load(job["folder"] / f"{kind}-{number}.npy", allow_pickle=False) for number, name in enumerate(job["pictures"])}
              for kind in ("expected", "labels")]
    return ondevice.agreement(*loaded, precision)
