"""The benchmark of peers: turns with a planted clock, what a contender that dies leaves, and one small network in earnest."""
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT

from rtseg_deploy import launch, turns
from rtseg_deploy.errors import RtsegError

sys.path.insert(0, str(ROOT / "benchmarks"))
import contenders  # noqa: E402
import peers  # noqa: E402
import processes  # noqa: E402
import shown  # noqa: E402
from contenders import TENSOR, normalisers  # noqa: E402

FAKE = f"""
import itertools, os, sys
sys.path.insert(0, {str(ROOT / 'benchmarks')!r})
import numpy as np
import contenders

class Fake:
    now, kept = 0.0, []
    def __init__(self, given):
        self.given, self.left = given, given.get("steps", 10**6)
    def opened(self, way):
        return lambda: self.step(self.given["seconds"][way])
    def step(self, seconds):
        if not self.left:
            print("it is on fire", file=sys.stderr)
            os._exit(3)
        print("what a library prints")
        Fake.now += seconds
        self.left -= 1
        Fake.kept += [np.ones(self.given.get("bytes", 0), np.uint8)]
    def labels(self):
        return np.array(self.given.get("found", [[0, 1]]))
    def facts(self):
        return {{"threads": 1}}

contenders.main(sys.argv[1], {{"Fake": Fake}}, lambda: Fake.now)
"""


@pytest.fixture
def fake(tmp_path):
    """A function that starts a process whose clock is planted: way -> seconds of a frame."""
    script, started = tmp_path / "fake.py", []
    script.write_text(FAKE)

    def start(name, seconds=None, **given):
        given = {"kind": "Fake", "way": "pixels", "seconds": seconds or {"pixels": 0.01}, **given}
        started.append(processes.Process(name, given, launch.Job({}), tmp_path / name, script))
        return started[-1]
    yield start
    for process in started:
        process.close()


def taken(started, plan, count=6, **options):
    return processes.rounds(started, plan, count, TENSOR, **options)


def test_the_ratio_of_equals_is_one_and_of_others_as_planted(fake):
    started = {"a": fake("a"), "b": fake("b"), "slow": fake("slow", {"pixels": 0.04})}
    found = taken(started, dict.fromkeys(started, {"pixels": 3}))
    a, b, slow = (list(found.ms(name, "pixels").values()) for name in started)
    assert turns.ratio(a, b)[0] == pytest.approx(1) and turns.ratio(a, slow)[0] == pytest.approx(0.25)
    assert not found.failed and a == pytest.approx([10] * 6)


def test_every_round_has_an_order_of_its_own(fake, monkeypatch):
    order, started = [], {name: fake(name) for name in "abc"}
    ask = processes.Process.ask
    monkeypatch.setattr(processes.Process, "ask", lambda self, **what: order.append(self.name) or ask(self, **what))
    taken(started, dict.fromkeys(started, {"pixels": 1}), 8)
    found = ["".join(order[n:n + 3]) for n in range(0, 24, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in found) and len(set(found)) > 2


def test_without_normalisation_in_every_second_round(fake):
    found = taken({"a": fake("a", {"pixels": 0.01, TENSOR: 0.005})}, {"a": {"pixels": 1, TENSOR: 1}}, 4)
    assert list(found.ms("a", "pixels")) == [0, 1, 2, 3] and found.ms("a", TENSOR) == pytest.approx({0: 5, 2: 5})


def test_one_that_dies_is_a_line_and_the_others_go_on(fake):
    started = {"a": fake("a"), "b": fake("b", steps=4)}
    found = taken(started, dict.fromkeys(started, {"pixels": 2}))
    assert found.failed == {"b": "b ended with status 3 and no result: it is on fire"}
    assert len(found.ms("a", "pixels")) == 6 and len(found.ms("b", "pixels")) == 1
    with pytest.raises(RtsegError, match="at once ended with status 3"):
        fake("at once", steps=0)


def test_page_faults_and_memory_are_read(fake):
    little, much = fake("little"), fake("much", bytes=1 << 25)
    faults = [one.ask(way="pixels", frames=3)["faults"] for one in (little, much)]
    assert faults[1] - faults[0] > 10       # a page has 2 MiB at most
    memory = [one.ask(labels=str(one.folder / "labels.npy"))["memory_bytes"] for one in (little, much)]
    assert memory[1] - memory[0] > 3 << 25 and memory[0] > 1 << 23
    assert little.start_seconds > 0 and np.load(little.folder / "labels.npy").tolist() == [[0, 1]]


def test_one_whose_threads_spin_is_stopped_while_another_works(tmp_path):
    given = {"kind": "Fake", "way": "pixels", "seconds": {"pixels": 0.01}}
    script = tmp_path / "busy.py"
    script.write_text("import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()\n" + FAKE)
    busy = processes.Process("busy", given, launch.Job({}), tmp_path / "busy", script)

    def computed():
        return time.clock_gettime(~busy.process.pid << 3 | 2)       # as clock_getcpuclockid(3) has it
    try:
        busy.ask(way="pixels", frames=1)
        time.sleep(0.05)        # a signal takes its time
        before = computed()
        time.sleep(0.2)
        assert computed() == before > 0.01
    finally:
        busy.close()


def test_nothing_stays_when_the_benchmark_is_killed(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    (tmp_path / "parent.py").write_text(f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT / 'benchmarks')!r})
import processes
from rtseg_deploy import launch
given = {{"kind": "Fake", "way": "pixels", "seconds": {{"pixels": 0.01}}}}
print(processes.Process("a", given, launch.Job({{}}), pathlib.Path({str(tmp_path)!r}, "a"), pathlib.Path({str(script)!r})).process.pid, flush=True)
time.sleep(60)
""")
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 10
    while alive(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(child)


def alive(pid):
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_quickest_way_is_found_without_its_first_turn(fake):
    process = fake("a", {"pixels": 0.02, "numpy": 0.01, "cv2.LUT": 0.03})
    way, ms = processes.quickest(process, ["pixels", "numpy", "cv2.LUT"])
    assert way == "numpy" and ms == pytest.approx({"pixels": 20, "numpy": 10, "cv2.LUT": 30})


def test_every_way_normalises_the_same():
    from rtseg_deploy import images

    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    expected = images.normalised(frame, given)
    ways = normalisers(frame, given, np.empty((1, 3, 24, 32), np.float32))
    assert "numpy" in ways
    for way, normalise in ways.items():
        np.testing.assert_allclose(normalise(), expected, atol=2e-6, err_msg=way)


def test_pytorch_compiles_once_for_every_way(tmp_path, monkeypatch):
    """What would be compiled anew would be another network's time."""
    from rtseg_deploy import images

    torch, config = pytest.importorskip("torch"), pytest.importorskip("torch._dynamo.config")
    monkeypatch.setattr(config, "error_on_recompile", True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "tensor": str(tmp_path / "tensor.npy")}
    np.save(given["tensor"], images.normalised(frame, given))

    class Session:
        name = "torch-compile"
        module = torch.compile(torch.nn.Conv2d(3, 4, 3), fullgraph=True, dynamic=False)

        def step(self):
            with torch.inference_mode():
                self.result = self.module(self.input)
    one = contenders.Torch.__new__(contenders.Torch)
    one.frame, one.given, one.session = frame, given, Session()
    one.session.torch = torch
    found = []
    for way in ("torch", TENSOR, "numpy"):
        one.opened(way)()
        found.append(one.session.result.numpy())
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def contender(name, side, ms, precision="fp32", memory=100, labels=1.0, tensor=None, failed=None):
    told = {"name": name, "side": side, "precision": precision, "way": "graph", "tried_ms": {"graph": ms}, "failed": failed}
    times = {str(n): ms * (1 + 0.01 * (n % 3)) for n in range(6)}
    return told if failed else {**told, "ms": ms, "middle_half_ms": (ms, ms), "rounds_ms": times, "start_seconds": 1.0, "memory_bytes": memory << 20,
                                "facts": {"threads": 2, "settings": {"A": 1}}, "labels_equal": labels, "faults": 0,
                                "tensor_rounds_ms": dict.fromkeys(("0", "2", "4"), tensor) if tensor else {}, **({"tensor_ms": tensor} if tensor else {})}


def result(ours=5.0, memory=40):
    told = [contender("ours, onnxruntime-cpu", "ours", ours, memory=memory), contender("ours, openvino", "ours", 9.0),
            contender("ONNX Runtime", "peer", 12.0, tensor=11.0), contender("OpenVINO f32", "peer", 10.0, labels=0.9, tensor=9.5),
            contender("PyTorch eager", "peer", 0, failed="PyTorch eager ended with status 1 and no result: no module")]
    case = {"network": "sgcpnet", "resolution": "1024x2048", "classes": 19, "weights": "random, seed 0", "threads": 2, "contenders": told,
            "ratios": list(peers.ratios(told))}
    return json.loads(json.dumps({"format": 1, "kind": "peers", "environment": {"cpu": "a CPU", "cpus": 2, "load": 0.1}, "seconds": 60, "rounds": 6,
                                  "image": "x", "missing": ["ours, openvino-bf16"], "cases": [case]}))


def test_ratios_are_of_our_quickest_and_the_best_peer_is_marked():
    found = {(one["peer"], one["of"]): one for one in result()["cases"][0]["ratios"]}
    assert found["ONNX Runtime", "pixels"]["ratio"] == pytest.approx(5 / 12) and found["OpenVINO f32", "pixels"]["ratio"] == pytest.approx(0.5)
    assert [key for key, one in found.items() if one["best"]] == [("OpenVINO f32", "pixels"), ("OpenVINO f32", TENSOR)]
    assert found["OpenVINO f32", TENSOR]["ratio"] == pytest.approx(5.1 / 9.5, rel=0.03)
    assert {one["ours"] for one in found.values()} == {"ours, onnxruntime-cpu"}


def test_bars_are_held_or_missed():
    bars = {bar["of"]: bar for bar in shown.held(result())}
    assert bars["time"] == {**bars["time"], "held": True, "at_most": 0.7, "value": pytest.approx(0.5)} and bars["memory"]["held"]
    bars = {bar["of"]: bar for bar in shown.held(result(ours=7.5, memory=60))}
    assert not bars["time"]["held"] and not bars["memory"]["held"]


def test_a_run_again_tells_what_changed():
    rows = shown.changes(result(ours=5.5), result())
    assert len(rows) == 4 and {round(row["change"], 3) for row in rows} == {0.1}
    again = [bar for bar in shown.held(result(ours=5.5), rows) if bar["of"] == "again"]
    assert len(again) == 2 and not any(bar["held"] for bar in again)
    assert all(bar["held"] for bar in shown.held(result(ours=5.1), shown.changes(result(ours=5.1), result())) if bar["of"] == "again")


def test_what_differs_dies_or_is_not_there_is_said():
    told = "\n".join([*shown.doubts(result()["cases"][0]), *shown.settings(result())])
    for words in ("OpenVINO f32 did other work: 90.000% of its labels are ours", "PyTorch eager is left out: PyTorch eager ended with status 1",
                  "ours, openvino-bf16: not here yet", "threads 2; settings A=1", "normalises by graph"):
        assert words in told


def command(*arguments, status=0):
    done = CliRunner().invoke(peers.peers, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    return done.stdout


def test_a_document_is_filled_and_the_gate_shuts(tmp_path):
    pytest.importorskip("matplotlib")
    kept, document = tmp_path / "kept.json", tmp_path / "peers.md"
    kept.write_text(json.dumps(result(ours=7.5)))
    document.write_text((ROOT / "docs/peers.md").read_text())
    out = command("--from", kept, "--document", document, "--again", kept, "--gate", status=1)
    assert "MISSED: time sgcpnet 1024x2048 fp32: 0.750, at most 0.7 (the project" in out and "held: again" in out
    text = document.read_text()
    assert "Not run yet" not in text and "| sgcpnet | 1024x2048 | fp32 | 7.50 ms, onnxruntime-cpu |" in text and text.count("<!--") == 2
    assert document.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    command("--from", kept, "--document", document)
    assert document.read_text() == text
    document.write_text("nothing")
    done = subprocess.run([sys.executable, ROOT / "benchmarks/peers.py", "--from", kept, "--document", document], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no place for the tables" in done.stderr


def test_one_small_network_in_earnest(tmp_path):
    kept = tmp_path / "kept.json"
    out = command("--network", "sgcpnet", "--resolution", "64x96", "--rounds", 2, "--turn", 0, "--only", "onnxruntime", "--only", "ONNX", "-o", kept, "--json")
    found = json.loads(out)
    case, = found["cases"]
    ours, theirs = case["contenders"]
    assert (ours["side"], theirs["side"], theirs["failed"]) == ("ours", "peer", None) and "bars" in found
    for one in (ours, theirs):
        assert one["ms"] > 0 and one["start_seconds"] > 0 and one["memory_bytes"] > 1 << 25 and len(one["rounds_ms"]) == 2 and one["facts"]["threads"]
        assert one["labels_equal"] > 0.999
    assert theirs["way"] in theirs["tried_ms"] and theirs["tensor_ms"] > 0 and [one["of"] for one in case["ratios"]] == ["pixels", TENSOR]
    out = command("--from", kept, "--markdown")
    assert "### sgcpnet 64x96, 19 classes, weights random, seed 0" in out and "| ONNX Runtime |" in out
