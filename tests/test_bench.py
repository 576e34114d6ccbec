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
    samples = steady()
    samples[500:] *= 1.07
    return samples


def figure(seconds=None, **changes):
    values = dict(artifact={"parent": {"file": "x"}}, file="net.onnx", backend="torch-eager", resolution=(96, 128), input="noise", minor_faults=0,
                  seconds=tuple(steady() if seconds is None else seconds), warmup_seconds=(), environment={}, same_labels={})
    return bench.Benchmark(**{**values, **changes})


def test_other_work_is_a_warning():
    assert figure(same_labels={"onnxruntime-cpu": 0.99}).warnings[0].startswith("does not do the same work as onnxruntime-cpu: 99.00%")
    assert not figure(same_labels={"onnxruntime-cpu": 0.9999}).warnings


def test_notes_are_not_doubts():
    few = figure(steady(100), artifact={"parent": {"seed": 0}}, minor_faults=50_000)
    assert not few.warnings
    assert [note.split(":")[0] for note in few.notes] == [
        "N = 100 is outside the papers' 500 to 5000", "random weights", "500 minor page faults an iteration"]
    assert figure(steady(500)).notes == figure(steady(5000)).notes == []


@pytest.fixture(scope="module")
def figures(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return bench.bench(artifact, ["onnxruntime-cpu", "torch-eager", "null"], 60, results=folder)


def test_a_result_file_holds_samples_conditions_and_statistics(figures, artifact):
    for (path, figure), backend in zip(figures, ("onnxruntime-cpu", "torch-eager", "null")):
        result = json.loads(path.read_text())
        assert result["kind"] == "benchmark" and result["backend"] == backend
        assert len(result["seconds"]) == result["iterations"] == 60 and len(result["warmup_seconds"]) >= 50
        assert result["statistics"] == bench.statistics(result["seconds"])
        assert result["artifact"]["sha256"] and result["input"] == "noise, seed 0"
        assert {"cpu", "cpus", "load", "python", "boundary", "time"} <= result["environment"].keys()
        assert re.fullmatch(rf"sgcpnet-96x128-fp32-{backend}-\d+T\d+Z\.json", path.name)
        assert result["status"] == ("unstable" if figure.warnings else "stable")


def test_backends_do_the_same_work_and_it_is_checked(figures):
    assert figures[1][1].same_labels["onnxruntime-cpu"] > 0.9999
    assert figures[0][1].same_labels == figures[2][1].same_labels == {}


def test_the_loop_itself_costs_next_to_nothing(figures):
    assert np.median(figures[2][1].seconds) < 20e-6


def test_two_results_of_one_second_have_two_names(figures, tmp_path):
    paths = {bench.write(figures[0][1], tmp_path) for _ in range(3)}
    assert len(paths) == len(list(tmp_path.iterdir())) == 3


def test_the_input_is_never_flat(artifact):
    from rtseg_deploy.records import read_artifact
    described = read_artifact(artifact)
    noise, _ = bench.picture(described, None)
    street, name = bench.picture(described, demo.images.STREET)
    assert noise.std() > 0.9 and street.std() > 0.5 and "sha256" in name
    assert noise.shape == street.shape == (1, 3, 96, 128) and noise.dtype == street.dtype == np.float32


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
    (lambda path: change_sidecar(path, sha256="0" * 64), "was changed after it was made"),
    (lambda path: path.unlink(), "no such file"),
])
def test_an_artifact_that_is_not_what_was_proven_is_not_timed(artifact, copy_of, damage, words):
    path = copy_of(artifact)
    damage(path)
    with pytest.raises(RtsegError, match=words):
        bench.bench(path, ["null"], 10)


def test_a_failed_proof_is_not_timed(artifact, copy_of):
    with pytest.raises(RtsegError, match="parity was not proven"):
        bench.bench(copy_of(artifact, checks={"parity": {"ok": False}}), ["null"], 10)


def test_an_artifact_at_other_sizes_is_exported_again_the_same_way(trained, tmp_path):
    from rtseg_deploy.export import export
    export(trained, tmp_path / "net.onnx", (64, 96), opset=13, output="labels")
    done = measure(tmp_path / "net.onnx", [(64, 96), (96, 64)], ["onnxruntime-cpu"], 5, results=tmp_path / "results")
    assert [figure.resolution for _, figure in done] == [(64, 96), (96, 64)]
    assert all((figure.artifact["opset"], figure.artifact["output"]) == (13, "labels") for _, figure in done)
    assert len({figure.artifact["parent"]["sha256"] for _, figure in done}) == 1


def test_another_size_without_the_checkpoint_is_refused(artifact, copy_of, tmp_path):
    path = copy_of(artifact, parent={"file": str(tmp_path / "gone.pth"), "sha256": "0" * 64})
    with pytest.raises(RtsegError, match="gone.pth: No such file"):
        measure(path, [(64, 64)], ["null"], 10)


def test_a_network_by_name_at_several_sizes(tmp_path):
    done = measure("sgcpnet", [(64, 64), (64, 96)], ["null"], 5, results=tmp_path)
    assert [figure.resolution for _, figure in done] == [(64, 64), (64, 96)]
    assert all("random weights: for speed only" in figure.notes for _, figure in done)


def test_another_checkpoint_is_not_timed_as_the_artifacts(artifact, copy_of, tmp_path):
    path = copy_of(artifact, parent={"file": str(demo.CHECKPOINT), "sha256": "0" * 64})
    with pytest.raises(RtsegError, match="is not the checkpoint that the artifact was made from"):
        bench.bench(path, ["torch-eager"], 10, results=tmp_path / "results")


def test_unstable_is_exit_status_3(artifact, tmp_path, monkeypatch):
    """A worker's answer with a planted drift, through the whole command."""
    planted = {"ok": True, "seconds": list(drifting()), "warmup_seconds": [0.01], "minor_faults": 0, "environment": {}}
    monkeypatch.setattr(launch.Here, "run", lambda self, job, folder, tell: (folder / "result.json").write_text(json.dumps(planted)))
    monkeypatch.setattr(backends, "names", lambda: ["drifting"])
    from click.testing import CliRunner

    from rtseg_deploy.cli import cli
    result = CliRunner().invoke(cli, ["bench", str(artifact), "--backend", "drifting", "-o", str(tmp_path)])
    assert result.exit_code == 3 and "drift" in result.output


def test_the_command_prints_json_without_samples(artifact, tmp_path):
    out, _ = run("bench", artifact, "--backend", "null", "-n", 20, "--json", "-o", tmp_path)
    (row,) = json.loads(out)
    assert row["iterations"] == 20 and "seconds" not in row and json.loads(Path(row["result"]).read_text())["seconds"]
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
