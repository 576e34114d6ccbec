"""What meets on one machine: two builds of one engine, a file made anew while it is timed, `clean` during a run. Right every time.

    python tests/races.py --rounds 100

The worker that times is one that tells the sha256 of the file that it was given, so that a figure of one file with the sidecar of another is seen.
"""
import os
import random
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import kills
import onnx
from kills import ended, forked

from rtseg_deploy import build, clean, files, launch, locks
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact, write_model

TELLS = '''
import hashlib, json, time
with open("network.onnx", "rb") as file:
    time.sleep(0.05)
    ran = hashlib.sha256(file.read()).hexdigest()
told = {"seconds": [0.001] * 20, "warmup_seconds": [0.001], "warmup_converged": True, "minor_faults": 0, "empty_seconds": 0.0, "began": 0.0, "ended": 0.02,
        "environment": {"ran": ran, "cpu": "", "load": 0.0}, "ok": True}
with open("result.json", "w") as file:
    json.dump(told, file)
'''
REPLACED = "was changed while it was used"


def two_builds(folder, chance):
    """Both end well, one waits for the other, and what is there is whole."""
    if chance.random() < 0.5:
        kills.cleared(kills.RUNS["build"], folder)
    first = forked(kills.compiled, folder)
    time.sleep(chance.uniform(0, 0.5))
    second = forked(kills.compiled, folder)
    assert [ended(first), ended(second)] == [0, 0], "a build failed"
    engine = read_artifact(folder / kills.ENGINE)
    assert engine.parent["sha256"] == read_artifact(folder / "net.onnx").sha256


def made_anew(folder, until):
    """Put one and the other artifact in place, as an export does, until it is told to end."""
    number = 0
    while not until.exists():
        source = folder / ("net.onnx", "other.onnx")[number % 2]
        with locks.goal(folder / "timed.onnx"):
            build.write_artifact(folder / "timed.onnx", partial(copied, source))
        number += 1
        time.sleep(0.02)


def copied(source, temporary):
    shutil.copyfile(source, temporary)
    return read_artifact(source)


def timed(folder, count):
    """Figures of a file that is being made anew: each is of what its sidecar says, or there is none, and why is said."""
    (folder / "tells.py").write_text(TELLS)
    for _ in range(count):
        try:
            artifact = read_artifact(folder / "timed.onnx")
            job = launch.on_backend("time", folder / "timed.onnx", artifact, "onnxruntime-cpu", [])
            with launch.ran(replace(job, worker=(str(folder / "tells.py"),))) as (result, _):
                assert result["environment"]["ran"] == artifact.sha256, "a figure of one file with the sidecar of another"
        except RtsegError as error:
            assert REPLACED in error.what, error.what


def timed_while_made(folder, chance):
    until = folder / "enough"
    until.unlink(missing_ok=True)
    copy = partial(copied, folder / "net.onnx")
    build.write_artifact(folder / "timed.onnx", copy)
    maker = forked(partial(made_anew, until=until), folder)
    try:
        assert ended(forked(partial(timed, count=3), folder)) == 0, "timing failed"
    finally:
        until.touch()
        assert ended(maker) == 0, "making it anew failed"


def cleaning(folder, until):
    """`clean` of all that is old, with everything made old first."""
    while not until.exists():
        for path in [*below(files.cache()), *(path for path in below(folder) if path.suffix == ".timing-cache")]:
            aged(path)
        clean.clean(clean.found([folder]))
        time.sleep(0.02)


def below(folder):
    """All paths in a folder and those below it; what goes meanwhile, as runs' folders do, is no error, as it is of Path.rglob."""
    return [Path(root, name) for root, folders, names in os.walk(folder) for name in folders + names]


def aged(path):
    try:
        os.utime(path, (time.time() - 2 * 86400,) * 2, follow_symlinks=False)
    except FileNotFoundError:
        return


def cleaned_during_a_run(folder, chance):
    """Each kind of run ends as well as without, and nothing of what it made is gone."""
    until, name = folder / "enough", chance.choice(list(kills.RUNS))
    until.unlink(missing_ok=True)
    kills.cleared(kills.RUNS[name], folder)
    cleaner = forked(partial(cleaning, until=until), folder)
    try:
        assert ended(forked(kills.RUNS[name].do, folder)) == 0, f"{name} failed beside clean"
        kills.RUNS[name].whole(folder)
        assert all(list(folder.glob(pattern)) for pattern in kills.RUNS[name].goals), f"clean took what {name} made"
    finally:
        until.touch()
        assert ended(cleaner) == 0, "clean failed"


RACES = {"two builds of one engine": two_builds, "timed while it is made anew": timed_while_made, "clean during a run": cleaned_during_a_run}


def prepared(folder, artifact=None):
    """As for kills.py, and the same network in other bytes."""
    kills.prepared(folder, artifact)
    model = onnx.load(folder / "net.onnx")
    model.doc_string = "other"
    write_model(folder / "other.onnx", model, read_artifact(folder / "net.onnx"))


def rounds(count, names, folder, seed, say):
    for name in names:
        chance = random.Random(seed)
        for number in range(count):
            try:
                RACES[name](folder, chance)
            except Exception as error:
                raise AssertionError(f"{name}, round {number}, seed {seed}: {error}") from error
            say(f"{name}: {number + 1} of {count}")


def main():
    kills.given_rounds(__doc__, 100, list(RACES), prepared, rounds)
    print("right in every round")


if __name__ == "__main__":
    main()
