"""INT8 in a graph and in an engine: where pairs are, with which scales, what parsers say of them, and that no engine silently computes otherwise."""
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run as command
from onnx import numpy_helper
from test_calibrate import SIZE
from test_calibrate import network as drawn
from test_runner import RUNNER, STRONG, WEAK, api, assert_told, build, run  # noqa: F401 - fixtures among them

from rtseg_deploy import build as builds
from rtseg_deploy import calibration_table, check, facts, files, int8, proof, records
from rtseg_deploy.calibrate import BEYOND
from rtseg_deploy.device import quantised
from rtseg_deploy.errors import RtsegError

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")
PEAKS = {"input": 2.64, "a: b": 127.0, "deep": 3e-5}


@pytest.fixture(scope="module")
def network(artifact):
    """(FP32 model, feeds of a few streets, its street, ranges of each form)."""
    model, described = onnx.load(artifact), records.read_artifact(artifact)
    street = proof.pictures(described.resolution, described.normalisation)["street"].fed
    feeds = [street, street[..., ::-1].copy(), street * np.float32(0.9)]
    return model, feeds, {form: int8.measured(model, feeds, form=form) for form in int8.FORMS}


def constant(model, name):
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def readers(model, name):
    return [node for node in model.graph.node if name in node.input]


def test_the_gates_stay_and_the_ends_are_the_ends(network):
    model = network[0]
    names, every = int8.layers(model), [node.name for node in model.graph.node if node.op_type == "Conv"]
    gates = [name for name in every if "attention" in name]
    assert len(gates) == 18 and not set(gates) & set(names) and len(names) > len(every) * 3 / 4
    assert int8.ends(model) == [names[0], names[-1]]


def test_a_graph_for_tensorrt_has_pairs_before_convolutions_and_nowhere_else(network):
    model, _, data = network
    kept = int8.ends(model)
    made = int8.paired(model, data["tensorrt"], kept)
    assert int8.in_int8(made) == [name for name in int8.layers(model) if name not in kept]
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = constant(made, node.input[2])
            assert zero.dtype == np.int8 and not zero.any()
        if node.op_type == "Relu" and makers[node.input[0]].op_type == "Conv":
            assert len(readers(made, node.input[0])) == 1, "nothing between a convolution and its ReLU"
        if node.op_type == "Conv" and len(node.input) > 2:
            assert constant(made, node.input[2]).dtype == np.float32
        if node.name in int8.in_int8(made):
            weights = makers[node.input[1]]
            assert constant(made, weights.input[1]).shape == (constant(made, weights.input[0]).shape[0],), "a scale a channel"
            assert makers[node.input[0]].input[0] == makers[makers[node.input[0]].input[0]].output[0]
    assert {value.name for value in (*made.graph.input, *made.graph.output)} == {"input", "output"}
    assert {name for node in model.graph.node for name in node.output} <= makers.keys(), "every tensor keeps its name"


def test_a_graph_for_onnxruntime_is_uint8_and_its_relus_are_gone(network):
    model, _, data = network
    made = int8.paired(model, data["onnxruntime"], int8.ends(model), "onnxruntime")
    kinds = {constant(made, node.input[2]).dtype for node in made.graph.node if node.op_type == "QuantizeLinear" and constant(made, node.input[2]).ndim == 0}
    assert kinds == {np.dtype(np.uint8)}
    counts = [sum(node.op_type == "Relu" for node in one.graph.node) for one in (model, made)]
    assert counts[1] < counts[0] == 15


@pytest.mark.parametrize("form", int8.FORMS)
def test_it_labels_as_fp32_does_and_a_wrong_scale_does_not(network, form):
    model, feeds, data = network
    made = int8.paired(model, data[form], int8.ends(model), form)
    reference = proof.logits(model)

    def against(graph):
        return proof.against(graph, lambda picture: reference(picture.fed), {"street": proof.Picture(feeds[0], None)}, "int8")
    assert against(made)["ok"]
    first = next(node for node in made.graph.node if node.op_type == "QuantizeLinear")
    scale = next(tensor for tensor in made.graph.initializer if tensor.name == first.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / np.float32(8), scale.name))
    assert not against(made)["ok"]


@pytest.mark.parametrize("method", int8.METHODS)
def test_the_same_images_give_the_same_bytes_and_each_method_its_own(method):
    model, rng = drawn(), np.random.default_rng(7)
    feeds = [rng.standard_normal((1, 3, *SIZE), np.float32) for _ in range(3)]
    one, again = (int8.quantised(model, iter(feeds), method).SerializeToString() for _ in range(2))
    assert one == again
    others = [other for other in int8.METHODS if other != method][:1]
    assert all(int8.quantised(model, feeds, other).SerializeToString() != one for other in others)


def test_ranges_hold_what_was_seen(network):
    model, feeds, _ = network
    data = int8.measured(model, feeds, "minmax")
    assert int8.peaks(data)["input"] == max(float(np.abs(fed).max()) for fed in feeds)
    assert int8.beyond(model, data, feeds[0]) <= 1
    grey = int8.measured(model, [np.zeros_like(feeds[0])])
    assert int8.beyond(model, grey, feeds[0]) > BEYOND > int8.beyond(model, network[2]["tensorrt"], feeds[0])


def test_what_is_unknown_is_told(network):
    model, feeds, data = network
    with pytest.raises(RtsegError, match="no way to find ranges is called 'best'"):
        int8.quantised(model, feeds, "best")
    with pytest.raises(RtsegError, match="no convolution called nothing"):
        int8.paired(model, data["tensorrt"], ["nothing"])


# ---- parsers


def found(model, target):
    verdict, = check.check(model, [target])
    return {one.rule for one in verdict.findings if one.severity == "error"}


def test_parsers_take_tensorrts_form_and_refuse_the_other(network):
    model, _, data = network
    pairs = {form: int8.paired(model, data[form], int8.ends(model), form) for form in int8.FORMS}
    assert found(pairs["tensorrt"], "gtx-1080ti") == found(pairs["tensorrt"], "h200") == found(pairs["tensorrt"], "rtx-4090") == set()
    for target in ("gtx-1080ti", "h200", "rtx-4090"):
        assert {"quantize-zero-point", "quantize-integers"} <= found(pairs["onnxruntime"], target)
    assert "quantize-tx2" in found(pairs["tensorrt"], "jetson-tx2") and "quantize-turing" in found(pairs["tensorrt"], "rtx-2080ti")
    assert "no INT8 (no dp4a)" in facts.rules()["quantize-tx2"].reason


def test_what_tensorrt_rtx_cannot_on_a_chip_is_not_held_against_tensorrt_11(network, tmp_path):
    model, _, data = network
    onnx.save(int8.paired(model, data["tensorrt"]), tmp_path / "net.onnx")
    builds.refuse_unparsed(tmp_path / "net.onnx", facts.target("rtx-2080ti"), "11.1.0")
    with pytest.raises(RtsegError, match="computes in FP32"):
        builds.refuse_unparsed(tmp_path / "net.onnx", facts.target("rtx-2080ti"), "")


def test_quantised_weights_are_no_weights_that_a_node_makes(network):
    model, _, data = network
    made = int8.paired(model, data["tensorrt"])
    assert not any(one.rule == "conv-weights" for one in check.check(made, ["gtx-1080ti"])[0].findings)


# ---- the table


def test_the_table_is_what_tensorrt_reads():
    text = calibration_table.text(PEAKS)
    assert text.startswith("TRT-8601-EntropyCalibration2\ninput: 3caa4a57\n") and "\na: b: 3f800000\n" in text and text.endswith("\n")
    assert calibration_table.scales(text) == pytest.approx({name: peak / 127 for name, peak in PEAKS.items()}, rel=1e-7)


@pytest.mark.parametrize("text", ["", "TRT-8601-EntropyCalibration2\n", "input: 3ca9e1c4\n", "TRT-8601-EntropyCalibration2\ninput 3ca9e1c4\n",
                                  "TRT-8601-MinMaxCalibration\ninput: 3ca9e1c4\n", "TRT-8601-EntropyCalibration2\ninput: 3ca9e1c4x\n"])
def test_what_is_no_table_is_refused(text):
    with pytest.raises(RtsegError, match="no calibration table"):
        calibration_table.scales(text)


def test_a_table_is_of_one_graph(tmp_path):
    path = tmp_path / "net.table"
    calibration_table.write(path, PEAKS, "abc", kept=["first"])
    assert calibration_table.read(path, "abc") == (path.read_text(), ["first"])
    with pytest.raises(RtsegError, match="another ONNX file"):
        calibration_table.read(path, "abd")
    path.write_text(path.read_text().replace("3f800000", "3f800001"))
    with pytest.raises(RtsegError, match="was changed"):
        calibration_table.read(path, "abc")


# ---- engines, on the fakes

CONVOLUTIONS = [["conv1", "FLOAT"], ["conv2", "FLOAT"], ["argmax", "INT32"]]
PAIRS = {"layers": [["q", "INT8"], ["d", "FLOAT"], ["w", "INT8"], ["dw", "FLOAT"], ["conv1", "FLOAT"], ["conv2", "FLOAT"]],
         "kinds": {"q": "QUANTIZE", "d": "DEQUANTIZE", "w": "CONSTANT", "dw": "DEQUANTIZE"},
         "reads": {"q": ["x"], "d": ["q"], "conv1": ["d", "dw"], "conv2": ["conv1", "dw"]}}


@pytest.fixture
def with_module(tmp_path):
    """What travels with a job for INT8, and a table of another version than the device's."""
    shutil.copy(quantised.__file__, tmp_path / "quantised.py")
    (tmp_path / "table").write_text(calibration_table.text(PEAKS))


@pytest.mark.parametrize("version", WEAK)
def test_a_table_gives_scales_under_the_version_of_the_device(python, build, with_module, version):  # noqa: F811
    result, engine = build(python, version, {"layers": CONVOLUTIONS}, precision="int8", table="table")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 0, "fp32": 0, "fp32_names": [], "int8": 2}
    assert engine["config"]["flags"] == ["INT8"] and engine["scales"] == calibration_table.text(PEAKS).splitlines()[1:]


@pytest.mark.parametrize("version", WEAK)
def test_layers_that_cost_too_much_are_held_to_fp32(build, with_module, version):  # noqa: F811
    result, engine = build(sys.executable, version, {"layers": CONVOLUTIONS}, precision="int8", table="table", keep_fp32=["conv1"])
    assert result["layers"]["fp32_names"] == result["kept_fp32"] == ["conv1"] and result["layers"]["int8"] == 1
    assert set(engine["config"]["flags"]) == {"INT8", "OBEY_PRECISION_CONSTRAINTS"}


@pytest.mark.parametrize("version", WEAK)
def test_without_scales_nothing_is_built(python, build, with_module, version):  # noqa: F811
    result, engine = build(python, version, {"layers": CONVOLUTIONS}, precision="int8")
    assert_told(result, "no scaling factors")
    assert engine is None


@pytest.mark.parametrize("version", WEAK)
def test_pairs_are_built_with_the_flag(build, with_module, version):  # noqa: F811
    result, engine = build(sys.executable, version, PAIRS, precision="int8")
    assert result["ok"] and engine["config"]["flags"] == ["INT8"] and result["layers"]["int8"] == 6


@pytest.mark.parametrize("version", STRONG)
def test_where_the_graph_decides_a_layer_is_int8_by_what_it_reads(python, build, with_module, version):  # noqa: F811
    result, engine = build(python, version, PAIRS, precision="int8")
    assert result["ok"] and result["layers"] == {"fp16": 0, "fp32": 1, "fp32_names": ["conv2"], "int8": 1}
    assert engine["config"]["flags"] == []


@pytest.mark.parametrize("version", [*WEAK, *STRONG])
def test_int8_without_a_layer_in_int8_is_refused(python, build, with_module, version):  # noqa: F811
    """Weakly typed: the builder ignores the flag, as it may. Strongly typed: the graph has no pairs."""
    result, engine = build(python, version, {"layers": CONVOLUTIONS, "ignore_int8": True}, precision="int8", **({"table": "table"} if version in WEAK else {}))
    assert_told(result, "no layer of the engine computes in INT8")
    assert engine is None


def test_the_version_of_a_table_is_as_tensorrt_counts(with_module, tmp_path):
    """8.6.1 is 8601, and 10.13.3 is 101303: a header seen in public for 10.14.1 is TRT-101401."""
    def head(version):
        class Base:
            pass
        trt = type("trt", (), {"__version__": version, "IInt8EntropyCalibrator2": Base})
        return quantised.set_table(trt, type("config", (), {})(), tmp_path / "table").read_calibration_cache().split(b"\n")[0]
    assert [head(version) for version in ("8.6.1", "8.2.1.8", "10.14.1.48")] == [b"TRT-%s-EntropyCalibration2" % n for n in (b"8601", b"8201", b"101401")]
    assert {version: head(api.RELEASES[version]).split(b"-")[1].decode() for version in WEAK} == api.TABLES


def test_the_module_that_travels_is_old_python():
    assert Path(quantised.__file__).parent == RUNNER.parent
    vermin = shutil.which("vermin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if vermin is None:
        pytest.skip("vermin is not installed: pip install 'rtseg-deploy[dev]'")
    done = subprocess.run([vermin, "-t=3.6-", "--violations", quantised.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- build-engine


@pytest.fixture
def paired(network, artifact, tmp_path):
    """The INT8 artifact."""
    model, _, data = network
    made = int8.paired(model, data["tensorrt"], int8.ends(model))
    parent = records.read_artifact(artifact)
    records.write_model(tmp_path / "net.int8.onnx", made, records.replace(parent, precision="int8", parent={"file": str(artifact), "sha256": parent.sha256}))
    return tmp_path / "net.int8.onnx"


@rtx
def test_an_int8_graph_builds_as_it_is_and_says_what_is_in_int8(paired, tmp_path):
    path, engine = builds.build_engine(paired, "rtx-4090", root=tmp_path)
    assert path.name == "net.int8.engine" and engine.precision == "int8"
    assert engine.checks["layers"]["int8"] == len(int8.in_int8(onnx.load(paired))) > 50 and engine.checks["layers"]["fp16"] == 0
    out, _ = command("build-engine", paired, "--target", "rtx-4090", "-o", tmp_path)
    assert "layers in INT8" in out


@pytest.mark.parametrize("target, words", [("jetson-tx2", "a Jetson TX2 has no INT8 (no dp4a)"), ("gtx-titan-x", "has no INT8"),
                                           ("rtx-2080ti", "rounds to INT8 for compute capability 7.5 and computes in FP32")])
def test_a_target_without_int8_says_so_in_one_line(paired, tmp_path, target, words):
    _, err = command("build-engine", paired, "--target", target, "-o", tmp_path / "engines", status=1)
    assert words in err and len(err.splitlines()) <= 2 and not (tmp_path / "engines").exists()


def test_a_table_is_for_fp32_graphs_and_weak_typing(artifact, paired, tmp_path):
    table, sha256 = tmp_path / "net.table", files.sha256(artifact)
    calibration_table.write(table, PEAKS, sha256, kept=["first"])
    wrong = "makes INT8 of an FP32 graph"
    for path, target, fp16, words in ((paired, "gtx-1080ti", False, wrong), (artifact, "gtx-1080ti", True, wrong),
                                      (artifact, "rtx-4090", False, "takes no calibration table"), (artifact, "jetson-tx2", False, "no INT8")):
        with pytest.raises(RtsegError, match=words):
            builds.build_engine(path, target, fp16, tmp_path, table=table)
    described, target = records.read_artifact(artifact), facts.target("gtx-1080ti")
    plan = builds.planned(artifact, described, target, "int8", "tensorrt", tmp_path / "g.onnx", version="8.6.1", scales=calibration_table.read(table, sha256))
    request = plan.job.request
    assert request["precision"] == "int8" and request["keep_fp32"] == list(plan.proven["kept_fp32"]) == ["first"]
    assert plan.job.files[request["table"]] == table.read_bytes() and Path(plan.job.files["quantised.py"]).is_file()
    assert plan.job.files["network.onnx"] == artifact, "the FP32 graph itself"


def test_an_int8_engine_is_held_to_the_street_alone(paired, artifact):
    from rtseg_deploy import ondevice
    assert set(ondevice.pictures(records.read_artifact(paired))) == {"street"} and len(ondevice.pictures(records.read_artifact(artifact))) == 3


