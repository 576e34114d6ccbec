"""Which device builds for a target, what it is refused for, what its answers are worth, and which layers stay in FP32: with answers that are written here."""
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from rtseg_deploy import build, facts, files, launch, ondevice, records, ssh
from rtseg_deploy.errors import RtsegError

TX2 = {"name": "NVIDIA Tegra X2", "compute_capability": "6.2", "memory_bytes": 8 << 30}
PASCAL = {"name": "NVIDIA GeForce GTX 1080 Ti", "compute_capability": "6.1", "memory_bytes": 11 << 30}
TURING = {"name": "NVIDIA GeForce RTX 2080 Ti", "compute_capability": "7.5", "memory_bytes": 11 << 30}
LAYERS = {"fp16": 1, "fp32": 0, "fp32_names": []}
NO_GPU = {"error": "no CUDA-capable device is detected"}


def probed(gpu, tensorrt=None, rtx=None):
    return {"gpu": gpu, "tensorrt": tensorrt, "tensorrt_rtx": rtx}


# ---- is it the device


def test_the_device_itself_is_taken():
    assert ondevice.refuse_other_device(facts.target("jetson-tx2"), probed(TX2, "8.2.1.9"), "tx2") == TX2


@pytest.mark.parametrize("target, found, words, fix", [
    ("jetson-tx2", probed(NO_GPU, "8.2.1.9"), ["Jetson TX2", "tx2 has no GPU that answers", "no CUDA-capable device"], "bundle --target jetson-tx2"),
    ("gtx-1080ti", probed(TX2, "8.6.1"), ["tx2 has a NVIDIA Tegra X2, compute capability 6.2", "gtx-1080ti has 6.1"], "rtseg-deploy targets"),
    ("jetson-tx2", probed(TX2, "8.6.1.6"), ["TensorRT 8.6.1.6", "served by 8.2"], "install one of those"),
    ("jetson-tx2", probed(TX2, "8.20.1"), ["TensorRT 8.20.1"], "install one of those"),
])
def test_a_device_that_is_not_the_target_is_refused_with_both_values(target, found, words, fix):
    with pytest.raises(RtsegError) as error:
        ondevice.refuse_other_device(facts.target(target), found, "tx2")
    assert all(word in error.value.what for word in words) and fix in error.value.fix


def test_this_machine_is_called_so():
    with pytest.raises(RtsegError, match="this machine has no GPU"):
        ondevice.refuse_other_device(facts.target("jetson-tx2"), probed(NO_GPU), "")


# ---- who builds


@pytest.fixture
def builder(monkeypatch):
    """builder(target, what a probe there finds): what it answers, and what was asked of the probes."""
    asked = []

    def made(target, found, place="ssh://tx2"):
        def probe(place, tell, **needed):
            asked.append(needed)
            if needed and not found[needed["runtime"]]:
                raise RtsegError("no tensorrt", "apt")
            return found
        monkeypatch.setattr(launch, "probe", probe)
        return build.builder(facts.target(target), ssh.place(place), launch.quiet)
    made.asked = asked
    return made


@pytest.mark.parametrize("target, found, expected", [
    ("jetson-tx2", probed(TX2, "8.2.1.9"), ("tensorrt", "8.2.1.9", TX2)),
    ("rtx-2080ti", probed(TURING, "10.13.2", "1.7.0"), ("tensorrt", "10.13.2", TURING)),
    ("rtx-2080ti", probed(TURING, "10.13.2"), ("tensorrt", "10.13.2", TURING)),
    ("rtx-2080ti", probed(TURING, None, "1.7.0"), ("tensorrt_rtx", "1.7.0", None)),
    ("rtx-2080ti", probed(TX2, "8.2.1.9", "1.7.0"), ("tensorrt_rtx", "1.7.0", None)),
    ("rtx-2080ti", probed(NO_GPU, None, "1.7.0"), ("tensorrt_rtx", "1.7.0", None)),
])
def test_a_device_builds_for_itself_and_rtx_ahead_of_time(builder, target, found, expected):
    assert builder(target, found) == expected and builder.asked == [{}]


def test_here_rtx_builds_ahead_of_time_and_nothing_is_probed(builder):
    assert builder("rtx-2080ti", None, None) == ("tensorrt_rtx", None, None) and builder.asked == []


def test_a_device_without_tensorrt_says_how_to_get_it(builder):
    with pytest.raises(RtsegError, match="no tensorrt") as error:
        builder("jetson-tx2", probed(TX2))
    assert error.value.fix == "apt" and builder.asked == [{}, {"runtime": "tensorrt"}]


@pytest.mark.parametrize("found, place", [(probed(TURING, "8.2.1.9"), "ssh://tx2"), (probed(NO_GPU, "8.2.1.9"), None)])
def test_another_device_builds_nothing(builder, found, place):
    with pytest.raises(RtsegError):
        builder("jetson-tx2", found, place)


# ---- labels that must be the ONNX file's


def test_ties_are_not_counted():
    logits = np.zeros((1, 3, 1, 4), np.float32)
    logits[0, :, 0] = [[9, 9, 0, 1], [0, 9, 9, 1 + 1e-7], [0, 0, 0, 0]]
    wanted = ondevice.preferred(logits, 1e-3)
    assert wanted.tolist() == [[0, ondevice.TIED, 1, ondevice.TIED]]
    assert ondevice.preferred(logits[:, :1], 1e-3).tolist() == [[0, 0, 0, 0]], "one class is never a tie"
    report = ondevice.agreement({"a": wanted}, {"a": np.array([[0, 2, 1, 2]])}, "fp32")
    assert report["ok"] and report["inputs"]["a"] == {"labels_equal": 1.0, "ties": 0.5}
    assert ondevice.agreement({"a": wanted}, {"a": np.array([[0, 0, 0, 0]])}, "fp32")["inputs"]["a"]["labels_equal"] == 0.5


@pytest.mark.parametrize("wrong, fp16, fp32", [(0, True, True), (50, True, False), (150, False, False)])
def test_the_bars_are_those_of_the_proof(wrong, fp16, fp32):
    wanted = np.ones((100, 100), np.int16)
    labels = wanted.copy()
    labels.flat[:wrong] = 0
    assert ondevice.agreement({"a": wanted}, {"a": labels}, "fp16")["ok"] is fp16
    assert ondevice.agreement({"a": wanted, "b": wanted}, {"a": labels, "b": wanted}, "fp32")["ok"] is fp32


def test_labels_that_are_all_ties_prove_nothing():
    tied = np.full((2, 2), ondevice.TIED, np.int16)
    assert not ondevice.agreement({"a": tied}, {"a": tied}, "fp16")["ok"]


# ---- layers that must stay in FP32


@pytest.fixture
def device(artifact, monkeypatch):
    """A GTX 1080 Ti whose FP16 overflows in the nodes of device.bad: device.build() builds for it, device.jobs are those that it was given."""
    class Device:
        bad, jobs, name, fp32_holds = (), [], "tx2", True
        nodes = build.floating(artifact)

        def run(self, job, folder, tell):
            self.jobs.append(job)
            (folder / "engine").write_bytes(b"engine")
            (folder / build.CACHE).write_bytes(b"%d" % len(self.jobs))
            files.write_json(folder / "result.json", {
                "ok": True, "layers": LAYERS, "bytes": 6, "build_seconds": 1.0, "messages": [], "runtime": "tensorrt", "version": "8.6.1.6", "gpu": PASCAL})

        def build(self, root, fp16=True):
            return build.build_engine(artifact, "gtx-1080ti", fp16, root, place=self)

        @property
        def kept(self):
            return [job.request["keep_fp32"] for job in self.jobs]
    made = Device()

    def compared(engine, engine_path, path, place, tell):
        holds = made.fp32_holds if engine.precision == "fp32" else set(made.bad) <= set(made.kept[-1])
        report = {"ok": holds, "inputs": {"noise": {"labels_equal": float(holds)}}}
        return replace(engine, checks={**engine.checks, "run_on_device": report}), holds
    monkeypatch.setattr(launch, "probe", lambda *a, **b: probed(PASCAL, "8.6.1.6"))
    monkeypatch.setattr(ondevice, "compared", compared)
    monkeypatch.setattr(Device, "jobs", [])
    return made


def test_labels_that_hold_need_one_build(device, tmp_path):
    path, engine = device.build(tmp_path)
    assert device.kept == [[]] and "kept_fp32" not in engine.checks and engine.checks["run_on_device"]["ok"]
    assert records.read_artifact(path) == engine


def test_what_the_ranges_tell_is_in_fp32_from_the_first_build_on(device, tmp_path, monkeypatch):
    known = {device.nodes[5]: {"why": "overflow", "tensor": "t", "largest": 1e6, "on": "street"}}
    monkeypatch.setattr(build, "staying", lambda *rest: known)
    _, engine = device.build(tmp_path)
    assert device.kept == [[device.nodes[5]]] and engine.checks["kept_fp32"] == known
    device.bad = [device.nodes[9], device.nodes[5]]
    _, engine = device.build(tmp_path)
    assert engine.checks["kept_fp32"] == {**known, device.nodes[9]: build.ON_DEVICE}
    assert all(device.nodes[5] in kept for kept in device.kept), "the search begins with what is known"


@pytest.mark.parametrize("wanted", [[0], [-1], [3, 7]])
def test_layers_that_overflow_are_found_and_listed(device, tmp_path, wanted):
    device.bad = [device.nodes[number] for number in wanted]
    _, engine = device.build(tmp_path)
    assert list(engine.checks["kept_fp32"]) == device.kept[-1] and set(device.kept[-1]) == set(device.bad) and device.kept[0] == []
    assert len(device.jobs) <= 2 + len(wanted) * (1 + np.ceil(np.log2(len(device.nodes)))), "bisection"
    assert not any(one == other for one, other in zip(device.kept, device.kept[1:])), "a build takes minutes"
    assert all(set(names) <= set(device.nodes) for names in device.kept)


def test_each_build_is_given_the_timing_cache_of_the_one_before(device, tmp_path):
    device.bad = device.nodes[:1]
    device.build(tmp_path)
    caches = [job.files.get(build.CACHE) for job in device.jobs]
    assert caches[0] is None and set(caches[1:]) == {tmp_path / "gtx-1080ti/NVIDIA-GeForce-GTX-1080-Ti-8.6.1.6.timing-cache"}
    assert caches[1].read_bytes() == b"%d" % len(device.jobs)


def test_a_device_does_not_say_where_its_timing_cache_goes(device, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "probe", lambda *a, **b: probed({**PASCAL, "name": "../../../evil"}, "8.6/../.."))
    monkeypatch.setattr(facts.Target, "served_by", lambda *version: True)
    device.build(tmp_path / "a/b/c")
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {"gtx-1080ti"}


def test_fp32_that_departs_is_refused_without_a_search(device, tmp_path):
    device.fp32_holds = False
    with pytest.raises(RtsegError, match="labels on GTX 1080 Ti are not those of"):
        device.build(tmp_path, fp16=False)
    assert device.kept == [[]] and not list(tmp_path.rglob("*.engine*"))


def test_what_no_layer_explains_is_refused(device, tmp_path):
    device.bad = ["no such layer"]
    with pytest.raises(RtsegError, match="FP16 is not the reason"):
        device.build(tmp_path)
    assert device.kept == [[], device.nodes] and not list(tmp_path.rglob("*.engine*"))


def test_nodes_that_compute_with_floats(artifact):
    nodes = build.floating(artifact)
    everything = {node.name: node.op_type for node in onnx.load(artifact).graph.node}
    assert set(nodes) <= set(everything) and {"Conv", "Resize"} <= {everything[name] for name in nodes}


# ---- what a device may answer


@pytest.mark.parametrize("action, change", [
    ("probe", {"probe": []}), ("probe", {"probe": {}}), ("probe", {"probe": {"gpu": {"name": "x"}}}), ("time", {"seconds": []}),
    ("time", {"seconds": [0.1, "1"]}), ("time", {"seconds": [float("inf")]}), ("time", {"seconds": {}}), ("time", {"minor_faults": None}),
    ("time", {"device_seconds": [0.1, 0.2]}), ("time", {"stages": {"network": "0.1"}}), ("time", {"stages": []}), ("time", {"ended": 0.5}),
    ("time", {"back_to_back_seconds": "1"}), ("time", {"warmup_seconds": [-1]}), ("time", {"seconds": [0.0]}), ("time", {"warmup_converged": 1}),
    ("infer", {"environment": None}),
    ("build", {"bytes": "6"}), ("build", {"layers": {}}), ("build", {"layers": {**LAYERS, "fp16": "all"}}), ("build", {"gpu": {"name": 1}}),
    ("build", {"version": 8}),
])
def test_an_answer_that_is_none_is_told(action, change):
    good = {"ok": True, "probe": {"gpu": TX2}, "environment": {}, "seconds": [0.1], "warmup_seconds": [], "minor_faults": 0, "warmup_converged": True,
            "empty_seconds": 1e-7, "began": 1, "ended": 2, "layers": LAYERS, "bytes": 6,
            "build_seconds": 1, "messages": [], "runtime": "tensorrt", "version": "8.2", "gpu": NO_GPU}

    class Place:
        def run(self, job, folder, tell):
            (folder / "result.json").write_text(json.dumps(self.result))
    place = Place()
    place.result = good
    with launch.ran(launch.Job({"action": action}), place) as (result, _):
        assert result == good
    place.result = {**good, **change}
    with pytest.raises(RtsegError, match=f"the job to {action} is no result"), launch.ran(launch.Job({"action": action}), place):
        pass


@pytest.mark.parametrize("line, stage", [
    (b'{"stage": "building", "done": 0.5}', "building"), (b'{"stage": "timing", "expected_s": 1}', "timing"), (b"no json", None), (b"[]", None),
    (b"[" * 100_000, None),
    (b'{"done": 1}', None), (b'{"stage": 1}', None), (b'{"stage": "x", "done": "1"}', None), (b'{"stage": "x", "expected_s": null}', None),
])
def test_a_report_that_is_none_is_passed_over(line, stage):
    event = launch.reported(launch.runner.REPORT + line)
    assert (event and event["stage"]) == stage


def test_a_job_here_may_name_its_files_from_here(tmp_path, monkeypatch):
    """As the timing cache in --output-folder engines is named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").write_text("known")
    (tmp_path / "worker.py").write_text("print(open('read').read()); open('result.json', 'w').write('{}')")
    (tmp_path / "job").mkdir()
    launch.Here().run(launch.Job({"action": "build"}, {"read": "cache"}, worker=(str(tmp_path / "worker.py"),)), tmp_path / "job", launch.quiet)
    assert (tmp_path / "job/result.json").is_file()
