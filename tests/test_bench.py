"""Figures: what is in one, and real ones."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run

from rtseg_deploy import backends, bench, demo, launch
from rtseg_deploy.device import runner
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.measure import measure


def steady(count=1000, noise=0.01, seed=0):
    return 0.010 * (1 + noise * np.random.default_rng(seed).standard_normal(count))


def drifting():
    return steady() * np.linspace(1, 1.06, 1000)


def ran(seconds=None, **changes):
    seconds = tuple(steady() if seconds is None else seconds)
    values = dict(seconds=seconds, warmup_seconds=(0.01,) * 50, warmup_converged=True, minor_faults=0, empty_seconds=1e-7, began=1.0,
                  ended=1.0 + sum(seconds), environment={}, back_to_back_seconds=sum(seconds))
    return bench.Run(**{**values, **changes})


def figure(*runs, **changes):
    runs = runs or (ran(),)
    values = dict(artifact={"parent": {"file": "x"}, "input": "normalised", "precision": "fp32"}, file="net.onnx", backend="torch-eager", resolution=(96, 128),
                  input="noise", protocol="network", iterations=len(runs[0].seconds), runs=runs, same_labels={})
    return bench.Benchmark(**{**values, **changes})


def flags(figure):
    return [warning.flag for warning in figure.warnings]


def test_other_work_is_a_warning():
    assert flags(figure(same_labels={"onnxruntime-cpu": 0.99})) == ["other-work"]
    assert not flags(figure(same_labels={"onnxruntime-cpu": 0.9999}))


def test_doubts_of_a_figure_are_those_of_its_runs():
    assert flags(figure(ran(drifting()))) == ["drift"]
    assert flags(figure(ran(), ran(1.1 * steady(seed=1)))) == ["processes-disagree"]
    assert not figure(ran(drifting()), backend="null").warnings


def test_notes_are_not_doubts():
    few = figure(ran(steady(100), minor_faults=50_000), artifact={"parent": {"seed": 0}, "input": "normalised", "precision": "fp32"})
    assert not few.warnings
    assert [note.split(":")[0] for note in few.notes] == ["N = 100 is outside the papers' 500 to 5000", "random weights", "page-faults"]
    assert figure(ran(steady(500))).notes == figure(ran(steady(5000))).notes == []


def test_a_bracket_around_all_steps_is_the_figure_where_the_protocol_says_so():
    queued = ran(steady(500), back_to_back_seconds=4.0)
    told = figure(queued, protocol="paper-amortised").statistics
    assert told["fps"] == pytest.approx(125) and told["fps_low"] is None and told["median_ms"] == pytest.approx(10, rel=0.01)
    each = figure(queued, protocol="paper-synced").statistics
    assert each["fps"] == pytest.approx(100, rel=0.01) and "back_to_back_ms" not in each
    both = figure(queued, protocol="paper-unstated").statistics
    assert both["fps"] == each["fps"] and both["back_to_back_ms"] == pytest.approx(8)


def test_brackets_of_several_processes_have_an_interval():
    told = figure(*(ran(steady(500), back_to_back_seconds=4.0 + 0.01 * n) for n in range(5)), protocol="paper-amortised").statistics
    assert told["fps_low"] < 1e3 / 8.04 < told["fps_high"] and told["mean_ms"] == pytest.approx(8.04)


def test_what_a_paper_timed_otherwise_is_noted():
    notes = figure(protocol="paper-synced", artifact={"parent": {}, "input": "normalised", "precision": "fp16"}).notes
    assert "fp16; paper-synced is fp32" in notes and "BatchNorm folded; kept in paper-synced" in notes
    assert any("not stated" in note for note in figure(protocol="paper-unstated").notes)


def test_energy_is_of_the_timed_part_and_of_what_computes():
    rows = tuple({"t": t, "power_w": 50.0, "cpu_energy_j": 10.0 * t} for t in np.arange(0, 12, 0.1))
    assert figure(ran(telemetry=rows), backend="onnxruntime-cuda").statistics["energy_j"] == pytest.approx(0.5, rel=0.02)
    assert figure(ran(telemetry=rows)).statistics["energy_j"] == pytest.approx(0.1, rel=0.02)
    assert "energy_j" not in figure().statistics


@pytest.fixture(scope="module")
def figures(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return bench.bench(artifact, bench.Ask(("onnxruntime-cpu", "torch-eager", "null"), iterations=60, threads=1, results=folder))


def test_a_result_file_holds_samples_conditions_and_statistics(figures, artifact):
    for (path, figure), backend in zip(figures, ("onnxruntime-cpu", "torch-eager", "null")):
        result = json.loads(path.read_text())
        assert result["kind"] == "benchmark" and result["backend"] == backend and result["iterations"] == 60
        (run,) = result["runs"]
        assert len(run["seconds"]) == 60 and len(run["warmup_seconds"]) >= 50 and run["ended"] - run["began"] >= 0.99 * sum(run["seconds"])
        assert result["statistics"] == bench.statistics.summary([run["seconds"]])
        assert result["artifact"]["sha256"] and result["input"] == "noise, seed 0"
        assert {"cpu", "cpus", "load", "python", "boundary", "time"} <= run["environment"].keys()
        assert result["boundary"].startswith("network alone: ") and result["protocol"] == "network"
        assert re.fullmatch(rf"sgcpnet-96x128-fp32-{backend}-\d+T\d+Z\.json", path.name)
        assert result["status"] == ("unstable" if figure.warnings else "stable")


def test_where_a_step_is_waited_for_one_bracket_says_the_same(figures):
    run = figures[0][1].runs[0]
    assert run.back_to_back_seconds == pytest.approx(sum(run.seconds), rel=0.05) and run.back_to_back_seconds >= sum(run.seconds)


def test_the_machine_is_watched_while_it_times(figures):
    """Of a short run on a busy machine there may be two rows of one moment, for who watches stands back: then one of the others has the load."""
    runs = [figure.runs[0] for _, figure in figures]
    assert {"t", "cpu_load_percent"} <= {name for run in runs for row in run.telemetry for name in row}
    assert all(run.telemetry[-1]["t"] >= run.began for run in runs)


def test_backends_do_the_same_work_and_it_is_checked(figures):
    assert figures[1][1].same_labels["onnxruntime-cpu"] > 0.9999
    assert figures[0][1].same_labels == figures[2][1].same_labels == {}


def test_the_loop_itself_costs_next_to_nothing(figures):
    assert np.median(figures[2][1].runs[0].seconds) < 20e-6


def test_processes_take_turns(artifact, tmp_path):
    told = []
    done = bench.bench(artifact, bench.Ask(("null", "onnxruntime-cpu"), iterations=20, processes=3, warmup_limit=0.2, results=tmp_path),
                       lambda step, share: told.append(step.partition(":")[0]))
    assert [len(figure.runs) for _, figure in done] == [3, 3] and len({run.began for _, figure in done for run in figure.runs}) == 6
    order = list(dict.fromkeys(told))
    assert len(order) == 6 and sorted(order, key=lambda title: title.split()[2]) != order
    assert len(done[0][1].statistics["process_means_ms"]) == 3


def test_two_results_of_one_second_have_two_names(figures, tmp_path):
    paths = {bench.write(figures[0][1], tmp_path) for _ in range(3)}
    assert len(paths) == len(list(tmp_path.iterdir())) == 3


def test_the_input_is_never_flat(artifact, tmp_path):
    from PIL import Image

    from rtseg_deploy.records import read_artifact
    described = read_artifact(artifact)
    noise, _ = bench.picture(described)
    street, name = bench.picture(described, demo.images.STREET)
    assert noise.std() > 0.9 and street.std() > 0.5 and "sha256" in name
    assert noise.shape == street.shape == (1, 3, 96, 128) and noise.dtype == street.dtype == np.float32
    Image.new("RGB", (128, 96), "black").save(tmp_path / "black.png")
    with pytest.raises(RtsegError, match="one value everywhere"):
        bench.picture(described, tmp_path / "black.png")


def test_swapped_height_and_width_are_refused_unless_they_are_meant(trained, tmp_path):
    from rtseg_deploy.export import export
    export(trained, tmp_path / "net.onnx", (96, 64))
    with pytest.raises(RtsegError, match="96x64, height first: higher than wide"):
        bench.bench(tmp_path / "net.onnx", bench.Ask(("null",), iterations=5))
    ask = bench.Ask(("null",), iterations=5, portrait=True, results=tmp_path / "results")
    assert bench.bench(tmp_path / "net.onnx", ask)


def change_sidecar(path, **changes):
    sidecar = path.with_name("net.onnx.json")
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **changes}))


@pytest.mark.parametrize("damage, words", [
    (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "was changed after it was made"),
    (lambda path: (path.parent / "net.onnx.json").unlink(), "has no sidecar"),
    (lambda path: (path.parent / "net.onnx.json").write_text("{"), "is not JSON"),
    (lambda path: (path.parent / "net.onnx.json").write_text("{}"), "is not a sidecar"),
    (lambda path: change_sidecar(path, resolution="96x128"), "is damaged"),
    (lambda path: change_sidecar(path, resolution=[96, -128]), "is damaged"),
    (lambda path: change_sidecar(path, classes="11"), "is damaged"),
    (lambda path: change_sidecar(path, checks=None), "is damaged"),
    (lambda path: change_sidecar(path, model="../../evil"), "is damaged"),
    (lambda path: change_sidecar(path, precision="fp8"), "is damaged"),
    (lambda path: change_sidecar(path, normalisation={}), "is damaged"),
    (lambda path: change_sidecar(path, weights_bytes=0), "is damaged"),
    (lambda path: change_sidecar(path, checks={"parity": {"ok": True, "inputs": {"noise": {"relative": float("nan")}}}}), "is damaged"),
    (lambda path: change_sidecar(path, sha256="0" * 64), "was changed after it was made"),
    (lambda path: path.unlink(), "no such file"),
])
def test_an_artifact_that_is_not_what_was_proven_is_not_timed(artifact, copy_of, damage, words):
    path = copy_of(artifact)
    damage(path)
    with pytest.raises(RtsegError, match=words):
        bench.bench(path, bench.Ask(("null",), iterations=10))


def test_a_failed_proof_is_not_timed(artifact, copy_of):
    with pytest.raises(RtsegError, match="parity was not proven"):
        bench.bench(copy_of(artifact, checks={"parity": {"ok": False}}), bench.Ask(("null",)))


def test_an_artifact_at_other_sizes_is_exported_again_the_same_way(trained, tmp_path):
    from rtseg_deploy.export import export
    export(trained, tmp_path / "net.onnx", (64, 96), opset=13, output="labels")
    done = measure(tmp_path / "net.onnx", [(64, 96), (64, 128)], bench.Ask(("onnxruntime-cpu",), iterations=5, warmup_limit=0.2, results=tmp_path / "results"))
    assert [figure.resolution for _, figure in done] == [(64, 96), (64, 128)]
    assert all((figure.artifact["opset"], figure.artifact["output"]) == (13, "labels") for _, figure in done)
    assert len({figure.artifact["parent"]["sha256"] for _, figure in done}) == 1


def test_another_size_without_the_checkpoint_is_refused(artifact, copy_of, tmp_path):
    path = copy_of(artifact, parent={"file": str(tmp_path / "gone.pth"), "sha256": "0" * 64})
    with pytest.raises(RtsegError, match="gone.pth: no such file"):
        measure(path, [(64, 64)], bench.Ask(("null",)))


def test_a_network_by_name_at_several_sizes(tmp_path):
    done = measure("sgcpnet", [(64, 64), (64, 96)], bench.Ask(("null",), iterations=5, results=tmp_path))
    assert [figure.resolution for _, figure in done] == [(64, 64), (64, 96)]
    assert all("random weights: for speed only" in figure.notes for _, figure in done)


def test_another_checkpoint_is_not_timed_as_the_artifacts(artifact, copy_of, tmp_path):
    path = copy_of(artifact, parent={"file": str(demo.CHECKPOINT), "sha256": "0" * 64})
    with pytest.raises(RtsegError, match="is not the checkpoint that the artifact was made from"):
        bench.bench(path, bench.Ask(("torch-eager",), results=tmp_path / "results"))


def test_unstable_is_exit_status_3(artifact, tmp_path, monkeypatch):
    """A worker's answer with a planted drift, through the whole command."""
    planted = {"ok": True, "seconds": list(drifting()), "warmup_seconds": [0.01], "warmup_converged": True, "minor_faults": 0, "empty_seconds": 1e-7,
               "began": 1.0, "ended": 11.0, "environment": {}}
    monkeypatch.setattr(launch.Here, "run", lambda self, job, folder, tell: (folder / "result.json").write_text(json.dumps(planted)))
    monkeypatch.setattr(backends, "names", lambda: ["drifting"])
    from click.testing import CliRunner

    from rtseg_deploy.cli import cli
    result = CliRunner().invoke(cli, ["bench", str(artifact), "--backend", "drifting", "-o", str(tmp_path)])
    assert result.exit_code == 3 and "drift" in result.output


def test_the_command_prints_json_without_samples(artifact, tmp_path):
    out, _ = run("bench", artifact, "--backend", "null", "-n", 20, "--json", "-o", tmp_path)
    (row,) = json.loads(out)
    assert row["iterations"] == 20 and "seconds" not in row["runs"][0] and json.loads(Path(row["result"]).read_text())["runs"][0]["seconds"]
    assert row["notes"] == ["N = 20 is outside the papers' 500 to 5000"]


def test_an_unknown_backend_lists_the_known(artifact):
    _, err = run("bench", artifact, "--backend", "tpu", status=1)
    assert "onnxruntime-cpu" in err


def test_every_backend_that_is_a_file_says_whether_it_runs_here():
    for name in set(backends.names()) - set(runner.SESSIONS):
        reason = backends.find(name).unavailable()
        assert reason is None or len(reason) == 2


@pytest.mark.parametrize("moment", ["warming up", "timing"])
def test_interrupted_it_leaves_no_result_and_no_worker(artifact, tmp_path, moment):
    command = [sys.executable, "-m", "rtseg_deploy", "bench", str(artifact), "-n", "100000", "-o", str(tmp_path / "results")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
    next(line for line in process.stderr if moment in line)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(30) == 1 and "interrupted" in rest and "Traceback" not in rest
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    workers = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not workers.strip()
