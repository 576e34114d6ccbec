"""kill -9 of a run and all that it started, at random moments: no half-written goal is left, and the next run succeeds.

    python tests/kills.py --rounds 200                 # all of the runs by turns
    python tests/kills.py --rounds 50 --only build --real --seed 7

A run is a forked copy of this process, in which everything is imported, so that a round takes a second or two. Engines are built by the fake of
TensorRT-RTX, or with --real by what is installed. `copy` is a file there and back through ssh.py, with a shell in place of ssh.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rtseg_deploy import bench, build, bundle, checkpoints, clean, datasets, demo, evaluate, files, images, launch, ssh
from rtseg_deploy import export as exporting
from rtseg_deploy.records import read_artifact

SIZE, PICTURES, ITERATIONS = (64, 128), 8, 40
TARGET, ENGINE = "rtx-2080ti", "engines/rtx-2080ti/net.fp32.engine"
FAKES = Path(__file__).resolve().parent / "fakes"
SSH = """#!/bin/sh
case "$*" in *"-O exit"*) exit 0;; esac
for last; do :; done
HOME="{home}" XDG_CACHE_HOME="{home}" exec sh -c "$last"
"""
WORKER = """#!/bin/sh
cat big > engine
echo '{"ok": true}' > result.json
"""


@dataclass(frozen=True)
class Run:
    """do(folder) makes the goals, whole(folder) raises where one of those that are there is not whole."""
    do: object
    whole: object
    goals: tuple                    # patterns


# ---- the runs


def export(folder, name="made.onnx"):
    exporting.export(checkpoints.load(demo.CHECKPOINT), folder / name, SIZE)


def compiled(folder):
    build.build_engine(folder / "net.onnx", TARGET, False, folder / "engines", keep_depthwise=True)


def packed(folder):
    bundle.bundle([folder / "net.onnx"], folder / "net.tar.gz", names=["onnxruntime-cpu"], iterations=10)


def copied(folder):
    job = launch.Job({"action": "build"}, {"big": folder / "big"}, ("engine",))
    with files.scratch() as here:
        ssh.place(f"ssh://there{folder}/worker").run(job, Path(here), launch.quiet)
        files.write(folder / "back", Path(here, "engine").read_bytes())


def timed(folder):
    ask = bench.Ask(("null", "onnxruntime-cpu"), iterations=ITERATIONS, warmup_limit=0.05, threads=1, results=str(folder / "results"))
    bench.bench(folder / "net.onnx", ask)


def evaluated(folder):
    evaluate.evaluate(folder / "net.onnx", evaluate.Ask(datasets.dataset(folder / "camvid"), results=str(folder / "accuracy")))


# ---- what is whole


def artifacts(*names):
    def whole(folder):
        for name in names:
            if (folder / name).exists():
                read_artifact(folder / name)
            else:
                assert not Path(f"{folder / name}.json").exists(), f"the sidecar of {name} without it"
    return whole


def archive(folder):
    if (folder / "net.tar.gz").exists():
        with tarfile.open(folder / "net.tar.gz") as packed:
            named = {member.name.partition("/")[2]: packed.extractfile(member).read() for member in packed}
        for line in named["SHA256SUMS"].decode().splitlines():
            digest, _, name = line.partition("  ")
            assert launch.digest(named[name]) == digest, name


def back(folder):
    if (folder / "back").exists():
        assert files.sha256(folder / "back") == files.sha256(folder / "big")


def results(folder):
    for path in folder.glob("results/*.json"):
        assert len(json.loads(path.read_text())["runs"][0]["seconds"]) == ITERATIONS, path


def counted(folder):
    """Also: the figure is that of a run which nobody killed."""
    artifacts("net.onnx")(folder)
    for path in folder.glob("accuracy/*.json"):
        found = json.loads(path.read_text())["scores"]
        expected = folder / "expected.json"
        if not expected.exists():
            expected.write_text(json.dumps(found))
        assert found == json.loads(expected.read_text()), path


RUNS = {"export": Run(export, artifacts("made.onnx"), ("made.onnx*",)), "build": Run(compiled, artifacts(ENGINE, "net.onnx"), (ENGINE + "*",)),
        "bundle": Run(packed, archive, ("net.tar.gz",)), "copy": Run(copied, back, ("back",)), "bench": Run(timed, results, ("results/*.json",)),
        "eval": Run(evaluated, counted, ("accuracy/*",))}


# ---- rounds


def prepared(folder, artifact=None):
    """What the runs read; of an artifact that is there, or a new one."""
    if artifact:
        for name in ("", ".json"):
            shutil.copy(f"{artifact}{name}", folder / f"net.onnx{name}")
    else:
        export(folder, "net.onnx")
    (folder / "big").write_bytes(np.random.default_rng(0).bytes(20_000_000))
    for name, text in (("worker", WORKER), ("bin/ssh", SSH.format(home=folder / "device"))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    street, rng = images.resized(images.read(images.STREET), SIZE), np.random.default_rng(0)
    for kind in ("test", "testannot"):
        (folder / "camvid" / kind).mkdir(parents=True)
    for number in range(PICTURES):
        Image.fromarray(np.roll(street, 9 * number, 1)).save(folder / f"camvid/test/{number}.png")
        Image.fromarray(rng.integers(0, 12, SIZE, np.uint8)).save(folder / f"camvid/testannot/{number}.png")


def surroundings(folder, real=False):
    """The environment of the runs: a cache and a folder of temporary files of their own, ssh that is a shell, and the fakes."""
    (folder / "tmp").mkdir()
    os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), TMPDIR=str(folder / "tmp"), PATH=f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
    if not real:
        graph = {"layers": [["layer", "FLOAT"]], "tensors": [["input", True, "FLOAT", [1, 3, *SIZE]], ["output", False, "FLOAT", [1, 11, *SIZE]]]}
        os.environ.update(FAKE_TENSORRT="rtx", FAKE_GRAPH=json.dumps(graph))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(FAKES), os.environ.get("PYTHONPATH", "")]))
    tempfile.tempdir = None


def forked(do, folder):
    """The process that does something, in a group of its own; its exit status is 0 where that ended well."""
    pid = os.fork()
    with contextlib.suppress(OSError):      # by whichever comes first
        os.setpgid(pid, pid)
    if pid:
        return pid
    status = 1
    try:
        do(folder)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


def ended(pid):
    """Its exit status; what it started is ended too."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def killed(pid, seconds):
    """Kill it and what it started after so many seconds; whether it still ran."""
    time.sleep(seconds)
    os.killpg(pid, signal.SIGKILL) if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None else None
    return ended(pid) == -signal.SIGKILL


def undisturbed(run, folder):
    """Seconds that it takes, when it takes them for the second time."""
    for _ in range(2):
        begin = time.monotonic()
        assert ended(forked(run.do, folder)) == 0, "it fails by itself"
    return time.monotonic() - begin


def cleared(run, folder):
    for pattern in run.goals:
        for path in folder.glob(pattern):
            path.unlink()


def one_round(name, folder, chance, seconds):
    """Whether it was killed before its end. Raises AssertionError with what is wrong afterwards."""
    run = RUNS[name]
    if name in ("bench", "eval") or chance.random() < 0.5:      # else over what is there already
        cleared(run, folder)
    stopped = killed(forked(run.do, folder), chance.uniform(0, 1.1 * seconds))
    run.whole(folder)
    assert ended(forked(run.do, folder)) == 0, "the next run fails"
    run.whole(folder)
    assert all(list(folder.glob(pattern)) for pattern in run.goals), "the next run made nothing"
    return stopped


def rounds(count, names, folder, seed, say):
    """name -> [how often it was killed, rounds]; afterwards `clean` finds all that is left."""
    chance, seconds, done = random.Random(seed), {}, {}
    for number in range(count):
        name = names[number % len(names)]
        seconds[name] = seconds.get(name) or undisturbed(RUNS[name], folder)
        try:
            stopped = one_round(name, folder, chance, seconds[name])
        except Exception as error:
            raise AssertionError(f"round {number}, {name}, seed {seed}: {error}") from error
        before = done.get(name, [0, 0])
        done[name] = [before[0] + stopped, before[1] + 1]
        say(f"{number + 1} of {count}: {name} {'killed' if stopped else 'ended before'}")
    assert clean.clean(clean.found([folder])) == []
    left = [str(path) for path in folder.rglob("*") if path.name.endswith((".part", ".lock")) and folder / "cache" not in path.parents
            and folder / "device" not in path.parents] + list(map(str, (folder / "tmp").glob("rtseg-deploy-*-*")))
    assert not left, f"clean does not find {left}"
    return done


def given_rounds(about, count, names, prepare, run):
    """The rounds that a script is asked for on the command line; returns what they gave."""
    asked = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=count)
    asked.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    asked.add_argument("--only", action="append", choices=names)
    asked.add_argument("--real", action="store_true", help="build with the TensorRT-RTX that is installed")
    given = asked.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        surroundings(Path(folder), given.real)
        assert ended(forked(prepare, Path(folder))) == 0
        return run(given.rounds, given.only or names, Path(folder), given.seed, lambda line: print(line, flush=True))


def main():
    done = given_rounds(__doc__, 200, list(RUNS), prepared, rounds)
    print("\n".join(f"{name}: killed {stopped} times in {whole} rounds, nothing half-written, the next run good" for name, (stopped, whole) in done.items()))


if __name__ == "__main__":
    main()
