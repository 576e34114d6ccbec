"""What is expected of devices that are not here: the model by hand, its two sources against each other, and the papers' 78 figures."""
import json
from dataclasses import replace

import onnx
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from rtseg_deploy import dataflow, estimate, facts, report
from rtseg_deploy.cli import cli
from rtseg_deploy.dataflow import Layer
from rtseg_deploy.deployed import Deployed
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact

# 10^9 operations and 5 * 10^8 bytes a second, so that one of two kernels is bound by each; no cache
SLOW = replace(facts.devices()["GTX 1080 Ti"], fp32_tflops=0.001, fp16_tflops=0.004, bandwidth_gbs=0.5, l2_mib=0)
TWO = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False)).eval()
# bytes at 16x16: image, weights, result of the first convolution, weights, result of the second; and both convolutions' multiply-accumulates
IMAGE, WEIGHTS, MIDDLE, POINTS, END = 3 * 256 * 4, 8 * 27 * 4, 8 * 256 * 4, 8 * 4 * 4, 4 * 256 * 4
MACS, POINT_MACS = 256 * 8 * 27, 256 * 4 * 8


@pytest.fixture(scope="module")
def two():
    return dataflow.of_module(TWO.to("meta"), (16, 16))


@pytest.fixture(scope="module")
def figures():
    """The papers' figures beside their estimates."""
    return estimate.papers()


# ---- by hand


def test_layers_are_what_the_network_does(two):
    assert [(layer.operation, layer.macs, layer.made, layer.weights) for layer in two] == [
        ("conv2d", MACS, MIDDLE, WEIGHTS), ("relu", 0, MIDDLE, 0), ("conv2d", POINT_MACS, END, POINTS)]
    assert [sum(count for _, count in layer.reads) for layer in two] == [IMAGE, MIDDLE, MIDDLE]
    assert [layer.winograd for layer in two] == [True, False, False]
    assert [layer.unrolled for layer in two] == [9 * IMAGE, 0, 0]
    assert two[0].name == "0 conv2d"


def test_the_optimistic_end_by_hand(two):
    first, second = estimate.optimistic(two, SLOW, "fp32")
    assert (first.compute, first.memory) == pytest.approx((2 * MACS / 4 / 1e9, (IMAGE + WEIGHTS + MIDDLE) / 5e8))
    assert (second.compute, second.memory) == pytest.approx((2 * POINT_MACS / 1e9, (MIDDLE + POINTS + END) / 5e8))
    assert (first.bound, second.bound) == ("compute", "memory")
    assert estimate.milliseconds([first, second]) == pytest.approx(1e3 * (2 * MACS / 4e9 + (MIDDLE + POINTS + END) / 5e8))
    assert estimate.bound([first, second]) == "compute 53%"


def test_the_pessimistic_end_by_hand(two):
    parts = estimate.pessimistic(two, SLOW, 7)
    moved = IMAGE + WEIGHTS + MIDDLE + 2 * MIDDLE + MIDDLE + POINTS + END
    assert estimate.milliseconds(parts) == pytest.approx(1e3 * (2 * (MACS + POINT_MACS) / 1e9 + moved / 5e8 + 3 * 7e-6))
    assert estimate.milliseconds(estimate.pessimistic(two, SLOW, None)) == pytest.approx(estimate.milliseconds(parts) - 3 * 7e-3)
    assert parts[1].bound == "memory" and estimate.pessimistic(two, SLOW, 1e6)[0].bound == "launches"


def test_a_cache_keeps_what_it_holds_of_what_is_read_and_of_what_is_written(two):
    first, second = estimate.optimistic(two, replace(SLOW, l2_mib=5000 / 2**20), "fp32")
    assert (first.moved, second.moved) == (MIDDLE - 5000, MIDDLE + POINTS - 5000)


def test_fp16_halves_the_bytes_and_has_its_own_peak_where_it_is_fast(two):
    half = dataflow.of_module(TWO.to("meta"), (16, 16), dataflow.HALF)
    for whole, part in zip(two, half):
        assert (part.made, part.weights, part.unrolled, part.macs) == (whole.made / 2, whole.weights / 2, whole.unrolled / 2, whole.macs)
        assert [count for _, count in part.reads] == [count / 2 for _, count in whole.reads]
    assert estimate.optimistic(half, SLOW, "fp16")[0].compute == pytest.approx(2 * MACS / 4 / 4e9)
    assert estimate.pessimistic(half, SLOW, 7)[0].compute == pytest.approx(2 * MACS / 1e9)


def test_memory_by_hand(two):
    assert estimate.memory(two, 3) == {"weights": WEIGHTS + POINTS, "activations": 2 * MIDDLE, "workspace": 9 * IMAGE, "libraries": 3 * 2**20}


def made(name, *reads, size=100, macs=0, operation=None):
    return Layer(name, operation or ("conv2d" if macs else "relu"), macs, tuple((other, 100) for other in reads), name, size, 0, False, 0)


def test_what_is_read_late_stays_in_memory():
    """Image of 100; a, b, c are read at the end, d at once."""
    layers = [made("a", "input"), made("b", "a"), made("c", "b"), made("d", "c", size=7), made("e", "a", "b", "c", "d", size=1)]
    assert dataflow.peak(layers) == 308


def test_only_what_passes_between_convolutions_moves():
    layers = [made("a", "input", macs=1), made("b", "a", macs=1), made("sum", "b", "a"), made("pool", "sum", size=25, operation="max_pool2d"),
              made("c", "pool", macs=1)]
    kernels = estimate.kernels(layers)
    assert [[layer.name for layer in kernel.layers] for kernel in kernels] == [["a"], ["b", "sum", "pool"], ["c"]]
    assert [list(kernel.reads) for kernel in kernels] == [["input"], ["a"], ["pool"]]
    # the image, a written and read, the pool's 25 written and 100 that c says it reads of it, c
    assert sum(part.moved for part in estimate.optimistic(layers, SLOW, "fp32")) == 100 + 100 + 100 + 25 + 100 + 100


def test_what_enlarges_or_joins_is_computed_by_its_readers():
    small = Layer("up", "upsample_bilinear2d", 0, (("a", 100),), "up", 1600, 0, False, 0)
    joined = Layer("join", "cat", 0, (("up", 1600), ("b", 100)), "join", 1700, 0, False, 0)
    layers = [made("a", "input", macs=1), made("b", "input", macs=1), small, joined,
              Layer("c", "conv2d", 1, (("join", 1700),), "c", 100, 0, False, 0)]
    assert estimate.kernels(layers)[-1].reads == {"a": 100, "b": 100}
    output = [*layers[:2], small]  # unless it is the output
    assert [part.moved for part in estimate.optimistic(output, SLOW, "fp32")] == [100 + 1600]


def test_what_the_output_does_not_depend_on_costs_only_the_pessimistic_end():
    layers = [made("a", "input", macs=1), made("unused", "a", macs=1000), made("b", "a", macs=1)]
    assert [part.name for part in estimate.optimistic(layers, SLOW, "fp32")] == ["a", "b"]
    assert len(estimate.pessimistic(layers, SLOW, 0)) == 3


def test_a_call_in_place_and_a_view_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            y = F.relu_(self.first(x))
            return self.last(y[:, :2].reshape(1, 2, 4, 16).reshape(1, 2, 8, 8))

    layers = dataflow.of_module(Net().to("meta"), (8, 8))
    assert [layer.operation for layer in layers] == ["conv2d", "relu_", "conv2d"]
    assert layers[1].reads == ((layers[0].makes, 1024),) and layers[2].reads == ((layers[1].makes, 512),)


# ---- the two sources


def test_onnx_and_pytorch_say_the_same(trained, artifact):
    """But for the BatchNorm that the ONNX file has folded, and for the work that was removed from it, which its sidecar tells."""
    device = facts.devices()["RTX 2080 Ti"]
    with torch.device("meta"):
        module = trained.network.module(trained.classes).eval()
    ours = dataflow.of_module(Deployed(module), (96, 128))
    resolution, theirs = dataflow.of_onnx(artifact)
    assert resolution == (96, 128)
    fold = read_artifact(artifact).checks["fold"]
    assert [sum(layer.macs for layer in layers) for layers in (ours, theirs)] == [fold["macs"]["before"], fold["macs"]["after"]]
    best, other = (estimate.milliseconds(estimate.optimistic(layers, device, "fp32")) for layers in (ours, theirs))
    assert 0.8 * best < other < best
    assert len(estimate.kernels(theirs)) == len(estimate.kernels(estimate.needed(ours))) - fold["algebra"]["merge_convolutions"] and len(theirs) < len(ours)
    assert estimate.memory(theirs, 0)["activations"] <= estimate.memory(ours, 0)["activations"]


@pytest.fixture
def graph(tmp_path):
    """Write an ONNX file of one convolution, or of nodes; sides: of its input."""
    def write(sides=(1, 3, 16, 16), nodes=None):
        nodes = nodes or [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
        model = helper.make_model(helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, sides)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, None, None, None))],
            [numpy_helper.from_array(torch.ones(8, 3, 3, 3).numpy(), "w")]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        path = tmp_path / "net.onnx"
        onnx.save(model, path)
        return path
    return write


def test_an_onnx_file_by_hand(graph):
    (layer,) = dataflow.of_onnx(graph())[1]
    assert (layer.macs, layer.reads, layer.made, layer.weights, layer.winograd, layer.unrolled) == (MACS, (("x", IMAGE),), MIDDLE, WEIGHTS, True, 9 * IMAGE)
    (free,) = dataflow.of_onnx(graph((1, 3, "h", "w")), (16, 16))[1]
    assert free == layer
    strided = [helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])]
    assert not dataflow.of_onnx(graph(nodes=strided))[1][0].winograd
    turned = [helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
              helper.make_node("DepthToSpace", ["b"], ["c"], blocksize=2), helper.make_node("Relu", ["c"], ["y"])]
    convolution, relu = dataflow.of_onnx(graph(nodes=turned))[1]
    assert relu.reads == (("a", MIDDLE),) and convolution.makes == "a"


def test_what_cannot_be_estimated_is_said(graph):
    with pytest.raises(RtsegError, match="is free"):
        estimate.estimate(str(graph((1, 3, "h", "w"))))
    with pytest.raises(RtsegError, match="not 32x32"):
        estimate.estimate(str(graph()), (32, 32))
    with pytest.raises(RtsegError, match="multiplies nothing"):
        estimate.estimate(str(graph(nodes=[helper.make_node("Relu", ["x"], ["y"])])))
    with pytest.raises(RtsegError, match="no size of its own"):
        estimate.estimate("sgcpnet")
    with pytest.raises(RtsegError, match="multiples of 8"):
        estimate.estimate("ddrnet-39", (100, 100))
    with pytest.raises(RtsegError, match="no target"):
        estimate.estimate("sgcpnet", (64, 64), ["abacus"])


# ---- devices


def test_a_device_says_whether_the_network_fits_and_fp16_helps():
    rows = {(row["target"], row["precision"]): row for row in estimate.estimate("ddrnet-39", (4096, 8192), ["jetson-tx2", "gtx-1080ti"], fp16=True)}
    assert list(rows) == [("jetson-tx2", "fp32"), ("jetson-tx2", "fp16"), ("gtx-1080ti", "fp32"), ("gtx-1080ti", "fp16")]
    assert rows["jetson-tx2", "fp32"]["memory"] == "does not fit" and rows["gtx-1080ti", "fp32"]["memory"] == "fits"
    assert rows["jetson-tx2", "fp16"]["notes"] == ["launches on Jetson TX2 are not known and left out"]
    assert rows["gtx-1080ti", "fp16"]["notes"] == ["FP16 not accelerated on GTX 1080 Ti"] and not rows["gtx-1080ti", "fp32"]["notes"]
    assert rows["jetson-tx2", "fp16"]["optimistic ms"] < 0.6 * rows["jetson-tx2", "fp32"]["optimistic ms"]
    libraries = facts.overheads()["GTX 1080 Ti"].libraries_mib
    assert rows["gtx-1080ti", "fp16"]["MiB needed"] - libraries == pytest.approx((rows["gtx-1080ti", "fp32"]["MiB needed"] - libraries) / 2, abs=1)
    assert "TF32" in estimate.estimate("sgcpnet-bk", (64, 64), ["h200"])[0]["notes"][0]


def test_every_device_and_every_paper_has_its_facts():
    assert set(facts.overheads()) == set(facts.devices())
    assert all(row["source"] for name in ("overheads.csv", "timed.csv", "outside.csv") for row in facts.rows(name))
    for figure in facts.papers():
        how = facts.timed(figure.paper, figure.table)
        assert how["output"] in ("native", "logits") and int(how["classes"]) > 1
    assert facts.timed("BiSeNetV2", "Table 9")["classes"] == "182" and facts.timed("BiSeNetV2", "Table 7")["classes"] == "19"


# ---- the papers


def test_no_figure_is_faster_than_its_optimistic_end(figures):
    assert len(figures) == 78
    assert not [row for row in figures if row["verdict"] == estimate.BEATEN]
    for row in figures:
        assert 0 < row["optimistic ms"] < row["pessimistic ms"]
        assert row["verdict"] == ("inside" if row["measured ms"] <= row["pessimistic ms"] else "slower")


def test_a_model_that_asked_for_twice_the_arithmetic_would_be_seen(monkeypatch):
    monkeypatch.setattr(estimate, "WINOGRAD", 0.5)
    ddrnet = next(figure for figure in facts.papers() if figure.network == "ddrnet-39" and figure.fps)
    assert estimate.paper_row(ddrnet, lambda step, done: None)["verdict"] == estimate.BEATEN


def test_every_figure_outside_has_its_reason(figures):
    general = {note for row in figures if row["verdict"] == estimate.INSIDE for note in row["notes"]}
    for row in figures:
        assert row["verdict"] == estimate.INSIDE or set(row["notes"]) - general, row
    given = {note for row in figures for note in row["notes"]}
    assert all(fact["reason"] in given for fact in facts.outside())


def test_a_figure_is_taken_at_what_the_network_was_fed_with_the_output_that_was_timed(figures):
    """BiSeNet V2's 1024x2048 is resized to 512x1024, and its logits back; BiSeNet V1's 1/8 logits are not enlarged."""
    whole = estimate.of_network("bisenetv2", (1024, 2048), "logits", reduced=(512, 1024))
    assert whole[0].made == 3 * 512 * 1024 * 4 and whole[-1].made == 19 * 1024 * 2048 * 4
    assert sum(layer.macs for layer in whole) == sum(layer.macs for layer in estimate.of_network("bisenetv2", (512, 1024), "native"))
    assert estimate.of_network("bisenetv1-r18", (768, 1536), "native")[-1].made == 19 * 96 * 192 * 4
    (row,) = [row for row in figures if row["figure"] == "BiSeNetV2 7" and row["network"] == "bisenetv2 512x1024"]
    device = facts.devices()["GTX 1080 Ti"]
    assert row["optimistic ms"] == estimate.three(estimate.milliseconds(estimate.optimistic(whole, device, "fp32")))


def test_the_document_says_what_the_command_says(figures):
    text = (ROOT / "docs/estimate.md").read_text()
    rows, notes = estimate.noted(figures)
    assert report.markdown_table(rows) in text and all(f"* {note}\n" in text for note in (*notes, estimate.counted(figures)))
    slower = [row["measured ms"] / row["pessimistic ms"] for row in figures if row["verdict"] == estimate.SLOWER]
    near = sorted(ratio for ratio in slower if ratio < 10)
    assert f"The other {len(near)} are {near[0]:.2f} to {near[-1]:.2f} times slower" in text and f"the {len(slower) - len(near)} on the Xeon" in text
    assert f"{min(row['measured ms'] / row['optimistic ms'] for row in figures):.1f} times slower than it" in text


# ---- the command


def invoked(*arguments, status=0):
    result = CliRunner().invoke(cli, ["estimate", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_the_command_prints_a_table_json_or_markdown():
    answer = json.loads(invoked("sgcpnet", "--resolution", "512x1024", "--fp16", "--json").stdout)
    assert "not a measurement" in answer["said"][0] and len(answer["rows"]) == 2 * len(facts.targets())
    table = invoked("sgcpnet", "--resolution", "512x1024", "--target", "h200").stdout
    assert "h200" in table and "not a measurement" in table and "=" in table and "FPS" not in table
    assert "| h200 | fp32 |" in invoked("sgcpnet", "--resolution", "512x1024", "--target", "h200", "--markdown").stdout


def test_the_command_prints_layers(artifact):
    rows = json.loads(invoked(str(artifact), "--target", "gtx-1080ti", "--layers", "--json").stdout)["rows"]
    assert {row["bound by"] for row in rows} <= {"compute", "memory", "launches"}
    whole = estimate.estimate(str(artifact), targets=["gtx-1080ti"])[0]["pessimistic ms"]
    assert sum(row["ms"] for row in rows) == pytest.approx(whole, rel=0.01)
    assert all(float(row["share"].rstrip("%")) == pytest.approx(100 * row["ms"] / whole, abs=0.1) for row in rows)
    assert "layer" in invoked("sgcpnet-bk", "--resolution", "64x64", "--target", "jetson-tx2", "--layers").stdout


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "name a NETWORK"), (("--papers", "--fp16"), "stands alone"), (("sgcpnet", "--layers"), "one --target"),
    (("sgcpnet", "--resolution", "512"), "HEIGHTxWIDTH")])
def test_wrong_usage_is_one_line(arguments, words):
    result = invoked(*arguments, status=2)
    assert words in result.stderr and result.stderr.count("\n") == 1 and not result.stdout


def test_an_unknown_network_is_one_line():
    result = invoked("nope", "--resolution", "64x64", status=1)
    assert "no network is called 'nope'" in result.stderr and not result.stdout
