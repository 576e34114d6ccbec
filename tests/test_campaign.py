"""A plan run: every row, on each backend that fits it, a file each; whatever is killed goes on where it was."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run

from rtseg_deploy import bench, campaign, plans
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts import tables

NO_GPU = {"gpu": {"error": "no CUDA driver"}}
A_GPU = {"gpu": {"name": "NVIDIA H200"}}


@pytest.fixture
def plan(artifact, tmp_path):
    """Three rows of one artifact, the second of a GPU."""
    for name in (artifact.name, f"{artifact.name}.json"):
        (tmp_path / name).write_bytes((artifact.parent / name).read_bytes())
    (tmp_path / "mine.toml").write_text('''
row = [
    { artifact = "net.onnx", iterations = 20 },
    { artifact = "net.onnx", iterations = 21, device = "GTX 1080 Ti" },
    { artifact = "net.onnx", iterations = 22 },
]
''')
    return tmp_path / "mine.toml"


def ask(tmp_path, **how):
    return bench.Ask(**{"backends": ("null",), "results": str(tmp_path / "results"), "warmup_limit": 0.1, **how})


def test_rows_that_cannot_run_here_say_why(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign.launch, "probe", lambda place, tell: NO_GPU)
    first, gpu, last = campaign.run(plan, ask(tmp_path))
    assert first.result["iterations"] == 20 and last.result["iterations"] == 22
    assert gpu.skipped == "needs a GTX 1080 Ti: this machine has no GPU" and gpu.to_json()["skipped"] == gpu.skipped
    assert {path.name for path in (tmp_path / "results/mine").glob("*.json")} == {first.path.name, last.path.name}


def test_a_gpus_row_is_not_timed_on_a_processor_unless_it_is_asked_for(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign.launch, "probe", lambda place, tell: A_GPU)
    _, gpu, _ = campaign.run(plan, ask(tmp_path))
    assert gpu.skipped.startswith("a figure of the GTX 1080 Ti: --backend onnxruntime-cuda times it on this GPU")
    _, gpu, _ = campaign.run(plan, ask(tmp_path), anywhere=True)
    assert gpu.result["iterations"] == 21


def test_what_is_done_is_not_done_again(plan, tmp_path):
    before = campaign.run(plan, ask(tmp_path))
    times = {one.path: one.path.stat().st_mtime_ns for one in before if one.result}
    told = []
    after = campaign.run(plan, ask(tmp_path), tell=lambda step, done: told.append(step))
    assert {path: path.stat().st_mtime_ns for path in times} == times and not any("null" in step for step in told)
    assert json.loads(json.dumps([one.to_json() for one in after])) == json.loads(json.dumps([one.to_json() for one in before]))
    campaign.run(plan, ask(tmp_path), again=True)
    assert all(path.stat().st_mtime_ns > old for path, old in times.items())


@pytest.mark.parametrize("change", [{"iterations": 30}, {"processes": 2}, {"threads": 1}])
def test_another_way_of_timing_is_another_result(plan, tmp_path, change):
    names = {one.path for one in campaign.run(plan, ask(tmp_path)) if one.result}
    assert not names & {one.path for one in campaign.run(plan, ask(tmp_path, **change)) if one.result}


def test_a_damaged_result_is_timed_again(plan, tmp_path):
    (done, *_) = campaign.run(plan, ask(tmp_path))
    done.path.write_text(done.path.read_text()[:-100])
    (again, *_) = campaign.run(plan, ask(tmp_path))
    assert again.result and json.loads(done.path.read_text())["status"]


def test_what_fails_is_said_and_the_rest_goes_on(plan, tmp_path):
    outcomes = campaign.run(plan, ask(tmp_path, backends=("null", "openvino-tpu")))
    assert [bool(one.result) for one in outcomes if one.row.device == "" and one.backend == "null"] == [True, True]
    assert all("openvino-tpu" in one.failed for one in outcomes if one.row.device == "" and one.backend != "null")


def test_a_papers_row_is_timed_as_its_plan_says(tmp_path):
    plan = tmp_path / "small.toml"
    plan.write_text("""
protocol = "paper-bisenetv2"
row = [{ network = "bisenetv2", resolution = "64x128", input = "32x64", classes = 7 }]
""")
    (done,) = campaign.run(plan, ask(tmp_path, iterations=10))
    assert done.result["artifact"]["network_input"] == [32, 64] and done.result["artifact"]["classes"] == 7 and done.result["protocol"] == "paper-bisenetv2"


def test_every_plan_here_can_be_asked_for():
    """Names of results, and why not, of each row: nothing is run."""
    wanted = set()
    for path in sorted(ROOT.glob("engines/*.toml")):
        for row in plans.read(path).rows:
            wanted.add((path.stem, campaign.named(row, campaign.usual(row), bench.Ask())))
            assert bool(campaign.unfit(row, campaign.usual(row), NO_GPU)) == campaign.of_gpu(row)
    assert len(wanted) >= 78 and tables.tables()


def test_the_command_tells_rows_reasons_and_the_next_step(plan, tmp_path):
    out, err = run("bench", plan, "--backend", "null", "-o", tmp_path / "results", "--warmup", 0.1)
    assert "needs a GTX 1080 Ti" in " ".join(out.split()) and "rtseg-deploy report" in out
    out, _ = run("bench", plan, "--backend", "null", "-o", tmp_path / "results", "--json")
    assert [("result" in row, "skipped" in row) for row in json.loads(out)] == [(True, False), (False, True), (True, False)]
    _, err = run("bench", plan, "--resolution", "64x64", status=2)
    assert "a plan says itself what is timed" in err


def test_an_unreadable_plan_is_one_line(tmp_path):
    (tmp_path / "bad.toml").write_text("row = 3")
    with pytest.raises(RtsegError, match="has no rows"):
        campaign.run(tmp_path / "bad.toml", bench.Ask())


def whole(folder):
    """The results that are there; each must be whole."""
    found = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert all(json.loads(path.read_text())["statistics"] for path in found)
    return found


def test_killed_at_any_moment_nothing_is_lost_and_it_goes_on(artifact, tmp_path):
    """12 times kill -9, at random moments of a plan of 24 rows; kills.py does it hundreds of times."""
    for name in (artifact.name, f"{artifact.name}.json"):
        (tmp_path / name).write_bytes((artifact.parent / name).read_bytes())
    rows = ",\n".join(f'{{ artifact = "net.onnx", iterations = {20 + n} }}' for n in range(24))
    (tmp_path / "many.toml").write_text(f"row = [{rows}]")
    results, chance, lengths = tmp_path / "results", random.Random(0), []
    code = f"import sys; sys.argv[1:] = {['bench', str(tmp_path / 'many.toml'), '--backend', 'null', '--warmup', '0.01', '-o', str(results)]!r}\n" \
           "from rtseg_deploy import campaign, cli; campaign.launch.probe = lambda *_: {'gpu': {'error': ''}}; cli.main()"
    for _ in range(12):
        before = whole(results / "many") if results.exists() else {}
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)})
        limit = time.monotonic() + 10
        while time.monotonic() < limit and len(list(results.glob("many/*.json"))) == len(before):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))          # anywhere in the next row
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = whole(results / "many") if results.exists() else {}
        assert before.items() <= after.items()      # what was there is as it was
        lengths.append(len(after))
    assert lengths == sorted(lengths)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 3) and len(whole(results / "many")) == 24
    assert not [path for path in Path(results, "many").glob(".*") if not path.name.endswith(".part")]
