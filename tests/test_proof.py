"""The proof catches what would make an artifact another network, and names where."""
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from rtseg_deploy import checkpoints, passes, proof
from rtseg_deploy.deployed import deployed
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export, prove, reference, trace

RESOLUTION = 96, 128


@pytest.fixture(scope="module")
def traced(trained):
    net = deployed(trained, "logits", 17)
    inputs = proof.pictures(RESOLUTION, asdict(trained.normalisation))
    raw = trace(net, torch.from_numpy(inputs["noise"].fed), 17)
    return net, raw, passes.optimise(raw)[0], inputs


def changed(model, name, change):
    """A copy with one initialiser changed in place."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    change(value)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return copy


def conv(model, number):
    """The number-th convolution."""
    return [node for node in model.graph.node if node.op_type == "Conv"][number]


def test_the_correct_graph_passes_far_below_the_bar(traced):
    net, _, model, inputs = traced
    parity = proof.against(model, reference(net), inputs, "fp32")
    assert parity["ok"] and set(parity["inputs"]) == {"noise", "street", "extremes"}
    assert max(row["relative"] for row in parity["inputs"].values()) < proof.BARS["fp32"][0] / 4


@pytest.mark.parametrize("number", [0, 20, 50, 82])
@pytest.mark.parametrize("fault", ["bias dropped", "channel swapped", "2 % of scale"])
def test_a_fault_in_any_layer_fails_and_the_layer_is_named(traced, number, fault):
    net, raw, model, inputs = traced
    node = conv(model, number)
    change = {"bias dropped": lambda b: b.__imul__(0), "channel swapped": lambda w: w.__setitem__([0, 1], w[[1, 0]]),
              "2 % of scale": lambda w: w.__imul__(1.02)}[fault]
    broken = changed(model, node.input[2 if fault == "bias dropped" else 1], change)
    with pytest.raises(RtsegError) as error:
        prove(net, raw, broken, inputs)
    assert error.value.what.startswith("the folded graph is not the network that was trained; the first tensor that departs is " + node.output[0] + " ")


def test_a_wrong_epsilon_fails_and_is_named(trained, traced, monkeypatch):
    net, raw, _, inputs = traced
    honest = passes.fold_back.scale_and_shift

    def wrong(bn):
        bn.attrs["epsilon"] = 1e-3
        return honest(bn)

    monkeypatch.setattr(passes.fold_back, "scale_and_shift", wrong)
    with pytest.raises(RtsegError, match="departs is /net/"):
        prove(net, raw, passes.optimise(raw)[0], inputs)


def test_a_fault_of_the_exporter_is_named_by_the_module(traced):
    net, raw, _, inputs = traced
    name = conv(raw, 10).input[1]
    broken = changed(raw, name, lambda w: w.__imul__(1.02))
    with pytest.raises(RtsegError, match="departs is net.backbone.stages"):
        prove(net, broken, passes.optimise(broken)[0], inputs)


@pytest.mark.parametrize("mode", ["align_corners", "asymmetric"])
def test_another_enlargement_fails(traced, mode):
    net, raw, model, inputs = traced
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    resize = [node for node in broken.graph.node if node.op_type == "Resize"][-1]
    next(a for a in resize.attribute if a.name == "coordinate_transformation_mode").s = mode.encode()
    with pytest.raises(RtsegError, match="departs is output"):
        prove(net, raw, broken, inputs)


def test_not_a_number_fails():
    reference = np.zeros((1, 2, 3, 3), np.float32)
    row = proof.agreement(reference, np.full_like(reference, np.nan), np.zeros((1, 3, 3), np.uint8))
    assert not proof.good(row, "fp16")


def test_a_label_that_differs_counts_unless_the_network_hardly_prefers_one():
    reference = np.random.default_rng(0).standard_normal((1, 3, 100, 100)).astype(np.float32)
    order = reference.argsort(1)
    row = proof.agreement(reference, reference, order[:, -1].astype(np.uint8))
    assert row["labels_equal"] == 1 and row["ties"] == 0 and proof.good(row, "fp32")
    second = order[:, -1].copy()
    second[:, :50] = order[:, -2][:, :50]
    row = proof.agreement(reference, reference, second.astype(np.uint8))
    assert row["labels_equal"] == 0.5 and row["ties"] < 0.01 and not proof.good(row, "fp16")
    near = reference.copy()
    np.put_along_axis(near, order[:, -2:-1], np.take_along_axis(near, order[:, -1:], 1) - 1e-4, 1)
    row = proof.agreement(near, near, second.astype(np.uint8))
    assert row["labels_equal"] == 0.5 and row["ties"] == 0.5 and proof.good(row, "fp32")
    row = proof.agreement(near, near, np.full((1, 100, 100), 200, np.uint8))
    assert row["ties"] == 0 and not proof.good(row, "fp16")


@pytest.mark.parametrize("fault", ["axis", "select_last_index", "cast"])
def test_labels_are_proven_as_well_as_logits(trained, traced, fault):
    """Faults after the logits: argmax over rows, the last of equal maxima (no label changes: it must pass), labels cast to bool."""
    inputs = traced[3]
    net = deployed(trained, "labels", 17)
    model = passes.optimise(trace(net, torch.from_numpy(inputs["noise"].fed), 17))[0]
    argmax = next(node for node in model.graph.node if node.op_type == "ArgMax")
    if fault == "cast":
        cast = next(node for node in model.graph.node if node.op_type == "Cast")
        cast.attribute[0].i = onnx.TensorProto.BOOL
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BOOL
    elif fault == "axis":
        next(a for a in argmax.attribute if a.name == "axis").i = 2
        del model.graph.value_info[:]
        del model.graph.output[0].type.tensor_type.shape.dim[:]
    else:
        next(a for a in argmax.attribute if a.name == "select_last_index").i = 1
    parity = proof.against(model, reference(net), inputs, "fp32")
    assert parity["ok"] == (fault == "select_last_index")


def test_nothing_is_written_when_the_proof_fails(trained, tmp_path, monkeypatch):
    honest = passes.fold_back.scale_and_shift
    monkeypatch.setattr(passes.fold_back, "scale_and_shift", lambda bn: (honest(bn)[0], 0 * honest(bn)[1]))
    with pytest.raises(RtsegError):
        export(trained, tmp_path / "net.onnx", RESOLUTION)
    assert not list(tmp_path.iterdir())


def test_scopes_are_those_of_the_exporter(traced):
    net, raw, _, _ = traced
    scopes = {node.name.rpartition("/")[0] for node in raw.graph.node if node.op_type in ("Conv", "BatchNormalization")}
    paths = [path for path, layer in net.named_modules() if type(layer).__name__ in ("Conv2d", "BatchNorm2d")]
    assert {proof.onnx_scope(net, path) for path in paths} == scopes


def test_the_pictures_are_never_flat(trained):
    for picture in proof.pictures((40, 50), asdict(trained.normalisation)).values():
        x = picture.normalised
        assert np.array_equal(x, picture.fed) and x.dtype == np.float32 and x.shape == (1, 3, 40, 50) and x.std() > 0.5
    for kind, shape in (("rgb8", (40, 50, 3)), ("rgb8-nchw", (1, 3, 40, 50))):
        for picture in proof.pictures((40, 50), asdict(trained.normalisation), kind).values():
            assert picture.fed.dtype == np.uint8 and picture.fed.shape == shape and picture.normalised.shape == (1, 3, 40, 50)


def test_bisenetv2_is_proven_too(tmp_path):
    artifact = export(checkpoints.seeded("bisenetv2"), tmp_path / "net.onnx", (64, 96))
    fold = artifact.checks["fold"]
    assert (fold["before"], fold["back"], fold["forward"], fold["kept"], fold["hardswish"]) == (54, 53, 1, [], 0)
    assert fold["scales"] == {"before": 0, "back": 0, "forward": 0, "merged": 0, "shared": 0, "kept": []}
    assert fold["macs"]["before"] == fold["macs"]["after"] > 0 and not any(fold["algebra"].values())
    assert artifact.checks["parity"]["ok"]
