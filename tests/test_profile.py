"""Where a step's time goes: what the runtimes' profilers say, and what of it is joined to the graph."""
import ast
import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from test_runner import VERSIONS, fake, runtime

from rtseg_deploy import backends, bench, dataflow, facts, launch, profile, report
from rtseg_deploy.device import layers, runner
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact

LAYERS = Path(layers.__file__)


class InThisProcess:
    """A place that does what a worker does, here."""
    name = ""

    def run(self, job, folder, tell):
        for name, source in job.files.items():
            (folder / name).write_bytes(source if isinstance(source, bytes) else Path(source).read_bytes())
        assert job.request["action"] == "profile" and (folder / "layers.py").is_file()
        before = os.getcwd()
        os.chdir(folder)
        try:
            session = backends.open_session(job.request) if job.worker == launch.BACKENDS else runner.own_session(job.request)
            found = layers.profile(job.request, session)
        finally:
            os.chdir(before)
        (folder / "result.json").write_text(json.dumps({**found, "ok": True, "environment": session.facts()}))


def test_the_command_shows_the_layers_of_each_backend(artifact):
    out, _ = run("bench", artifact, "--profile", "--backend", "onnxruntime-cpu", "--backend", "torch-eager", "--threads", 1, "--json")
    first, second = json.loads(out)
    assert (first["backend"], second["backend"]) == ("onnxruntime-cpu", "torch-eager")
    assert all(sum(row["MACs"] or 0 for row in found["rows"]) > 1e6 and found["step_ms"] > 0 for found in (first, second))
    assert "convolutions or products" in " ".join(run("bench", artifact, "--profile", "--threads", 1)[0].split())


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "torch-eager", "openvino"])
def test_every_multiplication_of_the_graph_is_in_a_row(artifact, backend):
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed: pip install 'rtseg-deploy[openvino]'")
    described = read_artifact(artifact)
    found = profile.profile(artifact, described, backend, bench.picture(described, None)[0], 2, InThisProcess(), steps=5)
    macs = described.checks["fold"]["macs"]
    assert macs["after"] == sum(layer.macs for layer in dataflow.of_onnx(artifact)[1])
    assert sum(row["MACs"] or 0 for row in found.rows) == macs["before" if backend == "torch-eager" else "after"]
    assert [row["ms"] for row in found.rows] == sorted((row["ms"] for row in found.rows), reverse=True)
    assert found.layers_ms == pytest.approx(sum(row["ms"] for row in found.rows), rel=0.02) and found.step_ms > 0
    assert all(row["GMAC/s"] > 0 for row in found.rows if row["MACs"] and row["ms"]) and found.device == ""
    assert json.dumps(found.to_json()) and report.plain_table(found.rows)
    joined = sum(row["ms"] for row in found.rows if row["bytes"])
    assert joined > 0.7 * found.layers_ms


# ---- ONNX Runtime's events


def event(name, microseconds, kind="Node", end="_kernel_time"):
    return {"cat": kind, "name": name + end, "dur": microseconds,
            "args": {"op_name": "Conv", "activation_size": "100", "parameter_size": "20", "output_size": "3"}}


def test_a_layer_is_the_median_of_the_last_steps():
    events = [event("a", 900), event("a", 10), event("b", 1), event("a", 30), event("a", 20),
              event("a", 5, end="_fence_before"), event("a", 7, "Session")]
    assert layers.of_events(events, 3) == [{"name": "a", "kind": "Conv", "bytes": 123, "seconds": 20e-6}, {"name": "b", "kind": "Conv", "bytes": 123,
                                                                                                            "seconds": 1e-6}]


# ---- TensorRT


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_tells_each_layer_and_is_asked_by_names_that_it_has(version, monkeypatch, tmp_path):
    import fake_cuda
    monkeypatch.setitem(vars(ctypes.cdll), "libcuda.so.1", fake_cuda.DRIVER)
    trt, plan = fake(version), {"version": version, "layers": [["conv1 + relu1", "FLOAT"], ["conv2", "FLOAT"]], "broken": False, "seconds": 1 / 1024,
                                "tensors": [["input", True, "FLOAT", [1, 3, 4, 6]], ["output", False, "INT32", [1, 4, 6]]]}
    np.save(tmp_path / "0.npy", np.ones((1, 3, 4, 6), np.float32))
    job = {"backend": runtime(version), "inputs": [str(tmp_path / "0.npy")], "steps": 4, "described": {"input": "normalised", "precision": "fp32"}}
    found = layers.profile(job, runner.TensorRT(runner.Log(trt), json.dumps(plan).encode(), job))
    assert found["layers"] == [{"name": name, "kind": "", "seconds": pytest.approx(1 / 2048)} for name in ("conv1 + relu1", "conv2")]
    assert len(found["seconds"]) == 4


# ---- the join


def layer(name, operation, macs=0, reads=("image",), makes=None):
    return dataflow.Layer(name, operation, macs, tuple((tensor, 1000) for tensor in reads), makes or f"{name}_out", 500, 40, False, 0)


GRAPH = [layer("conv1", "Conv", 7), layer("relu1", "Relu", reads=["conv1_out"]), layer("conv2", "Conv", 11, ["relu1_out"]),
         layer("mean", "ReduceMean", reads=["conv2_out"]), layer("conv3", "Conv", 13, ["mean_out", "relu1_out"]),
         layer("add", "Add", reads=["conv3_out", "mean_out"])]


def joined(*names, kind="Conv", device=None):
    rows = profile.rows([{"name": name, "kind": kind, "seconds": 1e-6 * (9 - n)} for n, name in enumerate(names)], GRAPH, device, "fp32")
    return [row["MACs"] or None for row in rows]


@pytest.mark.parametrize("name, macs", [
    ("conv1", 7), ("conv1 + relu1", 7), ("fused conv1", 7), ("conv1 + relu1 + conv2", 18), ("PWN(relu1)", None),
    ("{ForeignNode[conv1...conv3]}", None),                     # a range says no more than its ends
    ("Reformatting CopyNode for Input Tensor 0 to conv1", None), ("conv", None), ("conv1_out", 7), ("conv11", None),
    ("relu1_out_nchwc", 7), ("conv2_out_nchwc", 11), ("mean_out_nchwc", 11), ("add_out_nchwc", None), ("gone_nchwc", None),
])
def test_a_row_is_joined_by_names_and_tensors_and_never_by_a_guess(name, macs):
    assert joined(name) == [macs]


def test_a_pool_by_its_tensor_is_not_its_convolution():
    assert joined("relu1_out_nchwc", kind="Upsample") == [None]


def test_a_layer_that_two_rows_claim_is_in_neither():
    assert joined("conv1", "conv2", "conv1 + relu1") == [None, 11, None]


def test_bytes_of_a_fused_row_leave_out_what_stays_inside():
    (row,) = profile.rows([{"name": "conv1 + relu1", "kind": "", "seconds": 1e-6}], GRAPH, None, "fp32")
    assert row["bytes"] == 1000 + 2 * 40 + 500 and row["GB/s"] == 1.58 and row["GMAC/s"] == 0.007
    (row,) = profile.rows([{"name": "conv1", "kind": "", "seconds": 1e-6, "bytes": 5}], GRAPH, None, "fp32")
    assert row["bytes"] == 5


def test_the_limits_of_all_rows_are_the_networks():
    from rtseg_deploy import estimate
    device = facts.devices()["GTX 1080 Ti"]
    graph = [replace(one, macs=one.macs * 10**9) for one in GRAPH]
    measured = [{"name": one.name, "kind": "", "seconds": 1.0} for one in graph]
    found = profile.rows(measured, graph, device, "fp32")
    assert sum(row["limit ms"] or 0 for row in found) == pytest.approx(estimate.milliseconds(estimate.optimistic(graph, device, "fp32")), rel=0.01)
    assert [row["of the limit"] for row in found if row["MACs"]] and not any(row["of the limit"] for row in found if not row["MACs"])


@pytest.mark.parametrize("environment, name", [
    ({"gpu": {"name": "NVIDIA GeForce RTX 2080 Ti"}, "cpu": "Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz"}, "RTX 2080 Ti"),
    ({"cpu": "Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz"}, "Xeon Silver 4210"), ({"cpu": "Intel(R) Xeon(R) Silver 4210R CPU"}, None),
    ({"gpu": {"name": "NVIDIA H200"}}, "H200"), ({"gpu": {"error": "no CUDA"}, "cpu": "AMD EPYC"}, None), ({"gpu": {"name": "GeForce RTX 4090 D"}}, None),
    ({"gpu": {"name": "NVIDIA GeForce RTX 4090 Laptop GPU"}}, None), ({}, None),
])
def test_a_device_is_known_by_its_name_alone(artifact, environment, name):
    found = profile.device_of(read_artifact(artifact), environment)
    assert (found and found.name) == name


def test_an_engines_device_is_its_targets_and_its_graph_is_the_file_that_it_was_built_from(artifact, tmp_path):
    engine = replace(read_artifact(artifact), kind="engine", target="jetson-tx2", parent={"file": str(artifact), "sha256": read_artifact(artifact).sha256})
    assert profile.device_of(engine, {}).name == "Jetson TX2"
    assert profile.graph_of("net.engine", engine, "tensorrt", None, launch.quiet) == dataflow.of_onnx(artifact)[1]
    for parent in ({"file": str(tmp_path / "gone"), "sha256": ""}, {**engine.parent, "sha256": "0" * 64}):
        assert profile.graph_of("net.engine", replace(engine, parent=parent), "tensorrt", None, launch.quiet) == []


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_launches_are_not_shown_as_layers(artifact, backend):
    with pytest.raises(RtsegError, match="what it launches on a GPU, not what that takes"):
        profile.profile(artifact, read_artifact(artifact), backend, None)


def test_what_is_said_under_the_table():
    found = profile.Profile("tensorrt", "Jetson TX2", 1.0, 1.2, ({"MACs": 3}, {"MACs": ""}))
    assert [line.partition(":")[0] for line in profile.remarks(found)] == [
        "2 layers, 1 of them convolutions or products, take 1.0 ms", "a step without the profiler takes 1.2 ms", "limit"]
    assert "no data sheet" in list(profile.remarks(replace(found, device="")))[-1]


def test_the_device_side_is_written_in_python_36_and_needs_numpy_alone():
    tree = ast.parse(LAYERS.read_text(), feature_version=(3, 6))
    roots = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots == {"json", "time", "statistics", "numpy"}
    vermin = shutil.which("vermin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if vermin is None:
        pytest.skip("vermin is not installed: pip install 'rtseg-deploy[dev]'")
    done = subprocess.run([vermin, "-t=3.6-", "--violations", str(LAYERS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
