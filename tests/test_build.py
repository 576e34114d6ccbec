"""Engines ahead of time, on a machine with no GPU; and what is refused instead of being silently FP32 or wrong."""
import importlib.util
import json
import sys

import numpy as np
import onnx
import pytest
from conftest import run
from onnx import numpy_helper

from rtseg_deploy import build, facts, files, records
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export
from rtseg_deploy.passes import to_fp16

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")


@rtx
def test_fp32_and_fp16_with_their_sidecars(artifact, tmp_path):
    for fp16, precision in ((False, "fp32"), (True, "fp16")):
        path, engine = build.build_engine(artifact, "rtx-2080ti", fp16, tmp_path)
        assert path == tmp_path / f"rtx-2080ti/net.{precision}.engine"
        assert records.read_artifact(path) == engine
        assert engine.parent["sha256"] == files.sha256(artifact) and engine.sha256 == files.sha256(path)
        assert engine.checks["bytes"] == path.stat().st_size and engine.checks["build_seconds"] < 10
        layers = engine.checks["layers"]
        assert (layers["fp16"] > 100 and layers["fp32_names"] == []) if fp16 else (layers["fp16"] == 0 and layers["fp32"] > 100)
        assert "tensorrt_rtx" in engine.versions and engine.checks["run_on_device"] is False
    assert len(list((tmp_path / "rtx-2080ti").iterdir())) == 4


@rtx
def test_the_command_warns_of_an_engine_many_times_its_weights(trained, tmp_path):
    export(trained, tmp_path / "net.onnx", (256, 512))
    out, err = run("build-engine", tmp_path / "net.onnx", "--target", "rtx-2080ti", "--json", "-o", tmp_path, "--keep-depthwise")
    described = json.loads(out)
    assert described["checks"]["bytes"] > 8 * described["weights_bytes"] and "grouped" not in described["checks"]
    assert "times its weights" in err and "depthwise" in err
    out, err = run("build-engine", tmp_path / "net.onnx", "--target", "rtx-2080ti", "-o", tmp_path / "grouped")
    engine = records.read_artifact(tmp_path / "grouped/rtx-2080ti/net.fp32.engine")
    assert "times its weights" not in err and "groups of 4 channels" in out
    assert engine.checks["bytes"] < described["checks"]["bytes"] / 4 and engine.weights_bytes == described["weights_bytes"]
    assert engine.checks["grouped"]["parity"]["ok"] and len(engine.checks["grouped"]["convolutions"]) == 23


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_width_of_the_groups_is_the_one_that_makes_the_smallest_engine(artifact, tmp_path, monkeypatch, precision):
    """The rows of facts/groups.csv, held against the installed version."""
    known = facts.group_channels()["rtx", "7.5", precision]
    found = {}
    for channels in (4, 8, 16):
        monkeypatch.setattr(facts, "group_channels", lambda channels=channels: {("rtx", "7.5", precision): channels})
        found[channels] = build.build_engine(artifact, "rtx-2080ti", precision == "fp16", tmp_path)[1].checks["bytes"]
    assert min(found, key=found.get) == known, found


def test_only_rows_with_a_source_widen_groups():
    assert all(row["source"] and row["parser"] in facts.parsers() for row in facts.rows("groups.csv"))
    assert {key[:2] for key in facts.group_channels()} == {("rtx", "7.5")}, "the other capabilities store depthwise convolutions as they are"


@rtx
def test_other_capabilities_keep_their_depthwise_convolutions(artifact, tmp_path):
    _, engine = build.build_engine(artifact, "rtx-4090", root=tmp_path)
    assert "grouped" not in engine.checks


def test_a_rewrite_that_is_not_the_same_is_not_built(artifact, tmp_path, monkeypatch):
    from rtseg_deploy.passes import dense_groups
    plain = dense_groups.fold

    def wrong(node, channels):
        plain(node, channels)
        node.inputs[1].values = np.roll(node.inputs[1].values, 1, axis=1)
    monkeypatch.setattr(dense_groups, "fold", wrong)
    with pytest.raises(RtsegError, match="wider groups is not the same"):
        build.build_engine(artifact, "rtx-2080ti", root=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@rtx
def test_the_sidecar_says_what_the_engine_was_built_with(artifact, tmp_path):
    _, engine = build.build_engine(artifact, "rtx-2080ti", root=tmp_path)
    built = engine.checks["built"]
    assert (built["runtime"], built["compute_capability"], built["version"]) == ("tensorrt_rtx", "7.5", engine.versions["tensorrt_rtx"])


@rtx
def test_an_fp16_graph_builds_without_being_asked(trained, tmp_path):
    export(trained, tmp_path / "half.onnx", (64, 96), precision="fp16")
    _, engine = build.build_engine(tmp_path / "half.onnx", "rtx-2080ti", root=tmp_path)
    assert engine.precision == "fp16" and engine.checks["layers"]["fp16"] > 100


def test_an_unknown_target_lists_the_known(artifact, tmp_path):
    with pytest.raises(RtsegError) as error:
        build.build_engine(artifact, "rtx-9090", root=tmp_path)
    assert all(name in error.value.fix for name in facts.targets())


@pytest.mark.parametrize("target", ["gtx-1080ti", "jetson-tx2"])
def test_targets_that_build_on_themselves_say_so(artifact, tmp_path, target):
    with pytest.raises(RtsegError, match="on the device itself"):
        build.build_engine(artifact, target, root=tmp_path)
    assert not list(tmp_path.iterdir())


def first(graph, operator):
    return next(node for node in graph.node if node.op_type == operator)


def set_weight(graph, name, value):
    tensor = next(t for t in graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def loud_weight(graph):
    set_weight(graph, first(graph, "Conv").input[1], 1e6)
    return first(graph, "Conv").name


def loud_tensor(graph):
    set_weight(graph, first(graph, "Conv").input[2], 6e4)
    node = next(n for n in graph.node if n.op_type == "HardSwish")
    node.op_type = "Mul"
    node.input.append(node.input[0])
    return node.name


def no_half_form(graph):
    node = first(graph, "Relu")
    node.op_type, node.domain = "Relu", "com.example"
    return node.name


@pytest.mark.parametrize("edit", [loud_weight, no_half_form])
def test_a_graph_that_cannot_be_fp16_is_refused_by_its_node(artifact, edit):
    model = onnx.load(artifact)
    name = edit(model.graph)
    with pytest.raises(RtsegError) as error:
        to_fp16.run(model)
    assert error.value.what.startswith(name) and "--fp16" in error.value.fix


def edited(path, edit):
    """Change an artifact's graph, and its sidecar to fit; returns what edit(graph) returns."""
    model = onnx.load(path)
    name = edit(model.graph)
    described = records.from_json(json.loads(records.sidecar(path).read_text()), path)
    records.write_model(path, model, described)
    return name


@pytest.mark.parametrize("edit", [loud_weight, loud_tensor])
def test_a_network_that_is_mostly_beyond_fp16_is_refused_by_name_and_nothing_is_written(artifact, copy_of, tmp_path, edit):
    path = copy_of(artifact)
    name = edited(path, edit)
    _, err = run("build-engine", path, "--target", "rtx-2080ti", "--fp16", "-o", tmp_path / "engines", status=1)
    assert name in err.splitlines()[-1] and "would be an FP32 engine" in err.splitlines()[-1]
    assert not (tmp_path / "engines").exists() or not any(p.is_file() for p in (tmp_path / "engines").rglob("*"))


def loud_pair(graph):
    """Scale what a convolution gives far up, and down again by the one after the Relu: the same network, beyond FP16 in between."""
    readers, made = {}, {node.output[0]: node for node in graph.node}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    relu = next(node for node in graph.node if node.op_type == "Relu" and made[node.input[0]].op_type == "Conv"
                and [reader.op_type for reader in readers[node.output[0]]] == ["Conv"] and len(readers[node.input[0]]) == 1)
    before, (after,) = made[relu.input[0]], readers[relu.output[0]]
    for name, factor in ((before.input[1], 2.0 ** 20), (before.input[2], 2.0 ** 20), (after.input[1], 2.0 ** -20)):
        tensor = next(t for t in graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return [before.name, relu.name, after.name]


@rtx
def test_what_fp16_cannot_hold_stays_in_fp32_and_is_listed(artifact, copy_of, tmp_path):
    path = copy_of(artifact)
    names = edited(path, loud_pair)
    out, _ = run("build-engine", path, "--target", "rtx-2080ti", "--fp16", "-o", tmp_path / "engines")
    engine = records.read_artifact(tmp_path / "engines/rtx-2080ti/net.fp16.engine")
    assert list(engine.checks["kept_fp32"]) == names and all(f"kept in FP32, {name}: " in out for name in names)
    layers = engine.checks["layers"]
    assert layers["fp16"] > 100 and layers["fp32_names"] == names and engine.checks["parity"]["ok"]


def test_weights_at_the_edge_of_fp16_pass(artifact):
    model = onnx.load(artifact)
    set_weight(model.graph, first(model.graph, "Conv").input[1], 65504)
    half = to_fp16.run(model)
    assert np.isfinite([numpy_helper.to_array(t).astype(np.float32).max() for t in half.graph.initializer]).all()


def test_an_engine_is_not_built_from_an_engine(artifact, copy_of):
    with pytest.raises(RtsegError, match="is an engine already"):
        build.build_engine(copy_of(artifact, kind="engine"), "rtx-2080ti")


def test_a_worker_that_dies_is_told_and_leaves_nothing(artifact, tmp_path, monkeypatch):
    from rtseg_deploy import launch
    ended = launch.watched

    def killed(command, tell, **options):
        return ended([sys.executable, "-c", "import os, signal; print('almost', flush=True); os.kill(os.getpid(), signal.SIGKILL)"], tell, **options)
    monkeypatch.setattr(launch, "watched", killed)
    with pytest.raises(RtsegError, match=r"worker for build was killed by SIGKILL \(out of memory\?\): almost"):
        build.build_engine(artifact, "rtx-2080ti", root=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("version, refused", [("8.2.1.8", True), ("8.6.1", True), ("10.13.3.9", False), ("11.1.0.106", False)])
def test_what_the_parser_does_not_take_is_refused_before_the_device_builds(trained, tmp_path, monkeypatch, version, refused):
    """Opset 18 gives ReduceMean its axes as an input, which TensorRT 8 does not read; judged by the version that the device has."""
    from rtseg_deploy import launch

    export(trained, tmp_path / "net.onnx", (64, 96), opset=18)
    monkeypatch.setattr(build, "builder", lambda target, place, tell: ("tensorrt", version, {"name": "a GPU"}))

    def asked(*rest):
        raise RtsegError("the device was asked")
    monkeypatch.setattr(launch, "ran", asked)
    with pytest.raises(RtsegError) as error:
        build.build_engine(tmp_path / "net.onnx", "gtx-1080ti", root=tmp_path)
    assert ("does not take" in error.value.what) == refused and ("was asked" in error.value.what) != refused
