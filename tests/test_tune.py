"""Tuning: planted speeds are found, no difference is none, other labels are never chosen; what is kept, and what uses it."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run

from rtseg_deploy import backends, bench, compare, files, images, launch, locks, stream, tune, tuned, turns
from rtseg_deploy.device import runner
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts.settings import settings as known
from rtseg_deploy.records import read_artifact

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed: pip install 'rtseg-deploy[openvino]'")
LABELS = np.arange(1000).reshape(1, 25, 40) % 11


class Machine:
    """Workers whose speeds are planted, on a machine that has two speeds and changes between them: time is what their turns take."""

    def __init__(self, speed, step=0.02, labels=lambda backend, settings: LABELS, seed=0):
        self.speed, self.step, self.labels, self.rng, self.now, self.open = speed, step, labels, np.random.default_rng(seed), 0.0, set()

    def clock(self):
        return self.now

    def start(self, backend, settings):
        if self.speed(backend, settings) is None:
            raise RtsegError(f"{backend} cannot run", "")
        self.now += 0.5
        worker = Worker(self, self.speed(backend, settings), self.labels(backend, settings))
        self.open.add(worker)
        return worker


class Worker:
    def __init__(self, machine, speed, labels):
        self.machine, self.speed, self.labels = machine, speed, labels

    def turn(self, steps):
        assert self in self.machine.open
        hour = 2.0 if int(self.machine.now / 7) % 2 else 1.0
        seconds = [self.machine.step * self.speed * hour * (1 + 0.03 * self.machine.rng.standard_normal()) for _ in range(steps)]
        self.machine.now += sum(seconds) * (steps + 1) / steps
        return seconds

    def close(self):
        self.machine.open.discard(self)


def searched(machine, names=("onnxruntime-cpu", "openvino"), seconds=60.0, precision="fp32", threads=4):
    """(an entry as `tune` keeps it, what the search used)."""
    search = tune.Search(precision, threads, seconds, machine.start, launch.quiet, machine.clock)
    finals = search.all(list(names))
    entry = {"artifact": "a", "file": "net.onnx", "threads": threads, "machine": {"cpus": 4}, "when": "now", "seconds": machine.now, "load": 0.0,
             "finals": [{**row, "when": "now"} for row in finals], "trials": search.trials, "refused": search.refused}
    return json.loads(json.dumps(entry)), search


def planted(faster):
    """A speed of 1, times what settings are planted with."""
    def speed(backend, settings):
        return float(np.prod([faster.get((name, value), 1.0) for name, value in settings.items()]))
    return speed


# ---- the search


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_best_is_found_though_the_machine_has_two_speeds(seed):
    best = {"session.intra_op.allow_spinning": 0, "intra_op_num_threads": 2, "enable_mem_pattern": 1}
    speed = planted({**dict.fromkeys(best.items(), 0.9), ("session.force_spinning_stop", 1): 0.95, ("session.dynamic_block_base", 4): 1.2})
    entry, _ = searched(Machine(speed, seed=seed), seconds=120)
    row = tuned.best(entry, "onnxruntime-cpu")
    assert row["settings"] == best and turns.ratio(row["ms"], entry["finals"][0]["ms"])[0] == pytest.approx(0.9**3, rel=0.03)
    assert tuned.best(entry, "openvino")["settings"] == {}
    verdicts = {tune.written(one["settings"]): one["verdict"] for one in entry["trials"] if one["backend"] == "onnxruntime-cpu"}
    assert verdicts["session.intra_op.allow_spinning=0"] == "the best so far" and verdicts["session.dynamic_block_base=4"] == "slower"
    assert verdicts["session.force_spinning_stop=1"] == "another is faster"


def test_no_difference_is_none():
    """Over 200 races of settings that do nothing."""
    adopted, trials = 0, 0
    for seed in range(20):
        entry, _ = searched(Machine(planted({}), seed=seed), ("onnxruntime-cpu",))
        adopted += bool(tuned.best(entry, "onnxruntime-cpu")["settings"])
        trials += len(entry["trials"])
    assert trials >= 200 and adopted == 0


def test_what_wins_a_race_by_luck_does_not_win_the_last_one():
    entry, _ = searched(Machine(planted({})), ("onnxruntime-cpu",))
    default = entry["finals"][0]
    lucky = {**default, "settings": {"enable_mem_pattern": 1}, "ms": [ms * (0.9 if number % 2 else 1.1) for number, ms in enumerate(default["ms"])]}
    assert not tuned.faster(lucky, default)
    less_than_worth = {**default, "ms": [ms * 0.985 for ms in default["ms"]]}
    assert not tuned.faster(less_than_worth, default) and tuned.faster({**default, "ms": [ms * 0.95 for ms in default["ms"]]}, default)


def test_other_labels_are_never_chosen():
    def labels(backend, settings):
        return np.where(np.random.default_rng(0).random(LABELS.shape) < 0.005, 0, LABELS) if settings.get("graph_optimization_level") == 2 else LABELS

    speed = planted({("graph_optimization_level", 2): 0.3, ("enable_mem_pattern", 1): 0.8})
    entry, _ = searched(Machine(speed, labels=labels), ("onnxruntime-cpu",))
    assert tuned.best(entry, "onnxruntime-cpu")["settings"] == {"enable_mem_pattern": 1}
    assert "other labels: 99." in next(one["verdict"] for one in entry["trials"] if "graph_optimization_level" in one["settings"])


def coarse(share):
    def labels(backend, settings):
        wrong = np.zeros(LABELS.size, bool)
        wrong[:round(share * LABELS.size)] = backend == "openvino-bf16"
        return np.where(wrong.reshape(LABELS.shape), (LABELS + 1) % 11, LABELS)
    return labels


def test_a_reduced_precision_has_a_looser_bar_and_keeps_to_it():
    def speed(backend, settings):
        return 0.5 if backend == "openvino-bf16" else 1.0
    entry, _ = searched(Machine(speed, labels=coarse(0.02)), tune_names := ("onnxruntime-cpu", "openvino", "openvino-bf16"))
    assert tuned.fastest(entry, tune_names)["backend"] == "openvino-bf16"
    assert tuned.fastest(entry, tune_names[:2])["backend"] == "onnxruntime-cpu"
    entry, _ = searched(Machine(speed, labels=coarse(0.04)), tune_names)
    assert "other labels: 96.00% are equal, and at least 97.0%" in entry["refused"]["openvino-bf16"]
    assert tuned.fastest(entry, tune_names)["backend"] == "onnxruntime-cpu" and tuned.covers(entry, tune_names)


def test_what_cannot_run_is_told_and_the_others_are_searched():
    def speed(backend, settings):
        return None if backend == "openvino" or "enable_mem_pattern" in settings else 0.8 if "enable_cpu_mem_arena" in settings else 1.0
    machine = Machine(speed)
    entry, _ = searched(machine)
    assert entry["refused"] == {"openvino": "openvino cannot run"} and not machine.open
    assert tuned.best(entry, "onnxruntime-cpu")["settings"] == {"enable_cpu_mem_arena": 0}
    assert [one["verdict"] for one in entry["trials"] if "enable_mem_pattern" in one["settings"]] == ["refused: onnxruntime-cpu cannot run"]
    with pytest.raises(RtsegError, match="no backend labels it here: openvino: openvino cannot run"):
        searched(machine, ("openvino",))


@pytest.mark.parametrize("step, seconds", [(0.002, 20), (0.02, 60), (0.5, 60), (0.02, 1)])
def test_it_ends_in_time(step, seconds):
    """At least the last race is run, whatever it takes."""
    machine = Machine(planted({}), step=step)
    entry, _ = searched(machine, ("onnxruntime-cpu", "openvino", "openvino-bf16"), seconds)
    least = 3 * (0.5 + tune.FEWEST * 2.5 * 2 * max(step, tune.TURN_SECONDS))
    assert machine.now < max(1.3 * seconds, least) and len(entry["finals"][0]["ms"]) >= tune.FEWEST
    assert (step, seconds) == (0.02, 60) or step < 0.01 or any("not tried" in one["verdict"] for one in entry["trials"])


def test_an_interval_of_few_rounds_covers():
    """Of the median of rounds, whatever their distribution; fewer than six are their range."""
    from rtseg_deploy import statistics
    rng = np.random.default_rng(0)
    for count in (6, 7, 10, 15, 40):
        ends = np.array([statistics.sign_interval(rng.exponential(size=count)) for _ in range(2000)])
        assert ((ends[:, 0] <= np.log(2)) & (np.log(2) <= ends[:, 1])).mean() > 0.94
    assert statistics.sign_interval([3, 1, 2]) == (1, 3) and statistics.sign_interval(np.arange(10)) == (1, 8)


# ---- the table of settings


def test_every_setting_says_why_and_who_says_so():
    assert all(one.why and one.source and one.needs in ("", "smt", "hybrid") for one in known())
    assert {one.backend for one in known()} == {"onnxruntime-cpu", "openvino", "openvino-bf16"}
    assert tune.value_of("threads/2", 4) == 2 and tune.value_of("threads/4", 2) is None and tune.value_of("NO", 2) == "NO" and tune.value_of("4", 2) == 4


def job_of(artifact, backend, settings):
    described = read_artifact(artifact)
    return {**launch.on_backend("infer", artifact, described, backend, [], 2, settings=settings).request, "artifact": str(artifact)}


def opened(artifact, backend, settings):
    job = job_of(artifact, backend, settings)
    session = runner.own_session(job) if backend in runner.SESSIONS else backends.open_session(job)
    session.feed(bench.picture(read_artifact(artifact), None)[0])
    session.step()
    return session


def test_onnxruntime_takes_every_setting_and_says_so(artifact):
    for group in tune.groups("onnxruntime-cpu", 2):
        for one in group:
            session = opened(artifact, "onnxruntime-cpu", one)
            assert session.facts()["settings"] == one
            options = session.options()
            for name, value in one.items():
                assert options.get_session_config_entry(name) == str(value) if "." in name else int(getattr(options, name)) == value
    assert session.facts()["threads"] == 2 and opened(artifact, "onnxruntime-cpu", {"intra_op_num_threads": 1}).facts()["threads"] == 1
    with pytest.raises(runner.JobError, match="has no setting called intra_op_nun_threads"):
        opened(artifact, "onnxruntime-cpu", {"intra_op_nun_threads": 1})


@needs_openvino
def test_openvino_takes_every_setting_and_says_so(artifact):
    everything = {name: value for group in tune.groups("openvino", 2) for one in group for name, value in one.items()}
    facts = opened(artifact, "openvino", everything).facts()
    assert facts["threads"] == 1 and {**everything, "ENABLE_CPU_PINNING": "False"}.items() <= facts["settings"].items()


# ---- what is kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/rtseg-deploy"


def entry_of(path, finals, **changes):
    rows = [{"backend": backend, "settings": given, "precision": backends.computes("fp32", backend), "labels": 1.0, "ms": [ms] * 10, "when": "now"}
            for backend, given, ms in finals]
    return {"artifact": read_artifact(path).sha256, "file": "net.onnx", "threads": launch.cpus(), "machine": tuned.machine(), "when": "now", "seconds": 1.0,
            "load": 0.0, "finals": rows, "trials": [], "refused": {}, **changes}


SPIN = {"session.intra_op.allow_spinning": 0}
SPUN = [("onnxruntime-cpu", {}, 10.0), ("onnxruntime-cpu", SPIN, 8.0)]


def test_what_was_found_is_good_for_that_machine_and_file_alone(artifact, cache):
    described = read_artifact(artifact)
    assert tuned.found(described) is None
    tuned.keep(entry_of(artifact, SPUN))
    assert tune.of(tuned.found(described), "onnxruntime-cpu") == SPIN and tune.of(tuned.found(described), "openvino") == {}
    assert tuned.found(described, launch.cpus() + 1) is None
    for change in ({"machine": {**tuned.machine(), "cpu": "another"}}, {"artifact": "b" * 64},
                   {"machine": {**tuned.machine(), "versions": {**tuned.machine()["versions"], "onnxruntime": "0.1"}}}):
        files.write_json(tuned.path(), {"format": tuned.FORMAT, "entries": [entry_of(artifact, SPUN, **change)]})
        assert tuned.found(described) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "entries": [1, {"artifact": 3}]}', '{"format": 9, "entries": []}'])
def test_a_broken_file_is_an_empty_one(artifact, cache, text):
    cache.mkdir(parents=True)
    (cache / "tuned.json").write_text(text)
    assert tuned.found(read_artifact(artifact)) is None
    tuned.keep(entry_of(artifact, SPUN))
    assert tuned.found(read_artifact(artifact))


def test_an_entry_with_a_row_that_is_none_is_left_out(artifact, cache):
    bad = entry_of(artifact, SPUN)
    for row in ({"backend": "x"}, {**bad["finals"][0], "ms": []}, {**bad["finals"][0], "ms": ["1"]}, {**bad["finals"][0], "settings": None}):
        files.write_json(tuned.path(), {"format": tuned.FORMAT, "entries": [{**bad, "finals": [row]}]})
        assert tuned.entries() == []


def test_one_backend_tuned_again_leaves_the_others(artifact, cache):
    tuned.keep(entry_of(artifact, [*SPUN, ("openvino", {}, 9.0)]))
    tuned.keep(entry_of(artifact, [("onnxruntime-cpu", {}, 10.0)], when="later"))
    entry = tuned.found(read_artifact(artifact))
    assert tune.of(entry, "onnxruntime-cpu") == {} and tuned.best(entry, "openvino")["ms"][0] == 9
    assert not tuned.covers({**entry, "finals": [{**row, "when": "later" if row["backend"] != "openvino" else "now"} for row in entry["finals"]]},
                            ["onnxruntime-cpu", "openvino"])


def test_two_at_once_wait_for_each_other(artifact, cache):
    told, order = [], []

    def second():
        with locks.machine(True, lambda step, done: told.append(step)):
            order.append("second")
            tuned.keep(entry_of(artifact, SPUN, threads=99))

    with locks.machine(True):
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            assert thread.is_alive()
            time.sleep(0.01)
        order.append("first")
        tuned.keep(entry_of(artifact, SPUN))
    thread.join()
    assert order == ["first", "second"] and told[0] == "waiting until nothing else is timed or computed here"
    assert {one["threads"] for one in tuned.entries()} == {99, launch.cpus()}


def test_a_folder_that_cannot_be_written_is_one_line(artifact, tmp_path):
    (tmp_path / "file").write_text("")
    _, err = run("tune", artifact, "--seconds", 1, status=1, environment={"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert "name another folder: XDG_CACHE_HOME=DIR" in err.splitlines()[-1]


# ---- real workers


def stopped(pid):
    """Whether a process comes to be."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def test_a_worker_labels_as_the_artifact_does_and_stands_still_between_its_turns(artifact):
    described = read_artifact(artifact)
    pixels = images.resized(images.read(images.STREET), described.resolution)
    with turns.kept() as keep:
        worker = keep(turns.Worker(artifact, described, "onnxruntime-cpu", {"intra_op_num_threads": 1}, pixels, 2))
        taken = {}
        stream.pictures(artifact, described, "onnxruntime-cpu", [images.STREET], lambda one: taken.update(labels=one.labels))
        assert worker.labels.shape == described.resolution and len(np.unique(worker.labels)) > 3
        assert len(worker.turn(3)) == 3
        assert sys.platform != "linux" or stopped(worker.process.pid)
        assert min(worker.turn(5)) > 0
        process = worker.process
    assert process.poll() is not None
    with pytest.raises(RtsegError, match="has no setting called no_such"):
        turns.Worker(artifact, described, "onnxruntime-cpu", {"no_such": 1}, pixels, 2)


def test_a_worker_that_dies_is_one_line(artifact):
    described = read_artifact(artifact)
    pixels = images.resized(images.read(images.STREET), described.resolution)
    with turns.kept() as keep:
        worker = keep(turns.Worker(artifact, described, "onnxruntime-cpu", {}, pixels, 1))
        worker.process.kill()
        with pytest.raises(RtsegError, match="the worker of onnxruntime-cpu was killed by SIGKILL"):
            worker.turn(1)


def alive(word):
    """Processes whose environment has that word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] if word.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_in_the_middle_it_leaves_no_file_and_no_worker(artifact, cache):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", "rtseg_deploy", "tune", str(artifact), "--backend", "onnxruntime-cpu"], env=environment,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if "round 1 of" in line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    process.stdout.close()
    assert line and not (cache / "tuned.json").exists() and not list(cache.glob("*.part"))
    until = time.monotonic() + 20
    while alive(str(cache.parent)) != [] and time.monotonic() < until:
        time.sleep(0.05)
    left = alive(str(cache.parent))     # not this process, whose environment is as it was started
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert left == []


def test_the_command_finds_keeps_and_tells(artifact, cache):
    out, _ = run("tune", artifact, "--backend", "onnxruntime-cpu", "--seconds", 3, "--json")
    entry = json.loads(out)
    assert entry["finals"][0]["settings"] == {} and entry["finals"][0]["labels"] == 1 and len(entry["finals"][0]["ms"]) >= tune.FEWEST
    assert tuned.found(read_artifact(artifact))["when"] == entry["when"] and entry["result"] == str(tuned.path())
    rows = tune.rows(entry)
    assert rows[-1]["backend"] == "onnxruntime-cpu" and {"used"} <= {row["verdict"] for row in rows}


# ---- what uses it


def bench_json(artifact, tmp_path, *words):
    out, _ = run("bench", artifact, "-n", 5, "--warmup", 0.1, "--json", "-o", tmp_path / "results", *words, status=None)
    (value,) = json.loads(out)
    return value


def test_bench_uses_what_was_found_and_says_so(artifact, cache, tmp_path):
    tuned.keep(entry_of(artifact, SPUN))
    tuned_one, plain = bench_json(artifact, tmp_path), bench_json(artifact, tmp_path, "--untuned")
    assert tuned_one["runs"][0]["environment"]["settings"] == SPIN and plain["runs"][0]["environment"]["settings"] == {}
    assert "settings that tune found: session.intra_op.allow_spinning=0" in tuned_one["notes"] and not any("tune" in note for note in plain["notes"])
    with pytest.raises(RtsegError, match="the conditions differ: settings: .*allow_spinning"):
        compare.compare(tuned_one["result"], plain["result"])
    assert compare.differing(compare.read(tuned_one["result"]), compare.read(plain["result"]), ("settings",))


def test_auto_takes_the_fastest_that_is_exact_enough_and_says_why(artifact, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "is_here", lambda name: True)
    finals = [*SPUN, ("openvino", {}, 6.0), ("openvino-bf16", {}, 4.0)]
    described = read_artifact(artifact)
    tuned.keep(entry_of(artifact, finals))
    (choice,) = tune.chosen(artifact, described, ["auto"])
    assert (choice.backend, choice.why) == ("openvino", "openvino: 0.75 of onnxruntime-cpu's time (0.75 to 0.75)")
    (choice,) = tune.chosen(artifact, described, ["auto"], precision="bf16")
    assert choice.backend == "openvino-bf16" and choice.why.endswith("0.67 of openvino's time (0.67 to 0.67)")
    assert [one.backend for one in tune.chosen(artifact, described, ["onnxruntime-cpu", "auto"])] == ["onnxruntime-cpu", "openvino"]
    tuned.keep(entry_of(artifact, [*SPUN, ("openvino", {}, 7.9), ("openvino-bf16", {}, 9.0)]))
    (choice,) = tune.chosen(artifact, described, ["auto"], precision="any")
    assert (choice.backend, choice.settings) == ("onnxruntime-cpu", SPIN)       # by less than the noise nothing is faster


def test_auto_tunes_what_was_not_tuned(artifact, cache, monkeypatch):
    asked = []

    def tune_now(path, ask, tell):
        asked.append(ask.backends)
        entry = entry_of(artifact, [(name, {}, 5.0) for name in ask.backends])
        tuned.keep(entry)
        return entry
    monkeypatch.setattr(tune, "tune", tune_now)
    monkeypatch.setattr(tune, "is_here", lambda name: True)
    described = read_artifact(artifact)
    tune.chosen(artifact, described, ["auto"])
    tune.chosen(artifact, described, ["auto"])
    tune.chosen(artifact, described, ["auto"], precision="bf16")
    assert asked == [("onnxruntime-cpu", "openvino"), ("onnxruntime-cpu", "openvino", "openvino-bf16")]


def test_auto_where_it_means_nothing_is_one_line(artifact, cache, tmp_path):
    described = read_artifact(artifact)
    with pytest.raises(RtsegError, match="--precision says what --backend auto"):
        tune.chosen(artifact, described, ["onnxruntime-cpu"], precision="bf16")
    with pytest.raises(RtsegError, match="on this machine"):
        tune.chosen(artifact, described, ["auto"], untuned=True)
    with pytest.raises(RtsegError, match="on this machine"):
        tune.chosen(artifact, described, ["auto"], place=object())
    with pytest.raises(RtsegError, match="never computed in fp32"):
        tune.candidates(described.__class__(**{**described.__dict__, "precision": "int8"}), "fp32")
    plan = next((ROOT / "engines").glob("*.toml"))
    assert "auto chooses one" in run("bench", plan, "--backend", "auto", status=2)[1]


def test_predict_and_eval_take_it_too(artifact, cache, tmp_path, monkeypatch):
    """The worker is asked for those settings; it refuses what it does not know."""
    tuned.keep(entry_of(artifact, [("onnxruntime-cpu", {}, 10.0), ("onnxruntime-cpu", {"no_such": 1}, 8.0)]))
    _, err = run("predict", artifact, images.STREET, "-o", tmp_path / "out", status=1)
    assert "has no setting called no_such" in err
    run("predict", artifact, images.STREET, "-o", tmp_path / "out", "--untuned")
    from test_cli import draw_camvid
    draw_camvid(tmp_path / "camvid", {"test": 1})
    _, err = run("eval", artifact, "--data", tmp_path / "camvid", "-o", tmp_path / "accuracy", status=1)
    assert "has no setting called no_such" in err
    run("eval", artifact, "--data", tmp_path / "camvid", "-o", tmp_path / "accuracy", "--untuned")
