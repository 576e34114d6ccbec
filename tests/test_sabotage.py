"""Faults that deployment makes, planted where they happen: verify-chain names the step and the layer, and says nothing of the same file without the fault."""
import copy
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch.nn import functional as F

from rtseg_deploy import checkpoints, graphs, images, int8, links, passes, proof, records, remarks
from rtseg_deploy.chain import Ask, verify_chain
from rtseg_deploy.deployed import Deployed
from rtseg_deploy.export import trace
from rtseg_deploy.passes import to_fp16

RESOLUTION = 96, 128
OPSET = 17


def settled(net):
    """The network with statistics that are nearer to those of a trained one: those of a fresh one shift nothing."""
    norms = [layer for layer in net.module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in norms:
        layer.momentum = 0.5
    with torch.inference_mode():
        net.module.train()(torch.from_numpy(np.concatenate([one.normalised for one in proof.pictures(RESOLUTION, asdict(net.normalisation)).values()])))
    net.module.eval()
    return net


@pytest.fixture(scope="module")
def ddrnet():
    return settled(checkpoints.seeded("ddrnet-23-slim", classes=11))


@pytest.fixture(autouse=True)
def quickly(made_once):
    """Every file here is held against the same few networks."""


@pytest.fixture
def street(tmp_path):
    """A folder of one picture."""
    folder = tmp_path / "street"
    folder.mkdir()
    (folder / "street.png").write_bytes(images.STREET.read_bytes())
    return folder


def written(path, model, trained, **said):
    """The graph with the sidecar that an honest export would write."""
    fields = dict(kind="onnx", model=trained.network.name, dialect=trained.dialect.name, classes=trained.classes, class_set="", resolution=RESOLUTION,
                  network_input=RESOLUTION, enlarge=trained.dialect.enlarge, precision="fp32", input="normalised", output="logits",
                  normalisation=asdict(trained.normalisation), opset=OPSET, weights_bytes=remarks.weights_bytes(model), parent={"seed": 0},
                  checks={"parity": {"ok": True}})
    records.write_model(path, model, records.Artifact(**{**fields, **said}))
    return path


def exported(net, kind="normalised"):
    """The graph of a module, as torch writes it."""
    x = np.zeros((*RESOLUTION, 3), np.uint8) if kind == "rgb8" else np.zeros((1, 3, *RESOLUTION), np.float32)
    return trace(net.eval(), torch.from_numpy(x), OPSET)


def honest(trained, output="logits", kind="normalised"):
    reading = replace(links.reading_of(trained, RESOLUTION), output=output, input=kind)
    return links.traced(trained, reading)[1]


def copied(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def failed(trained, path, **asked):
    """What the chain says of the first step that fails, None where none does; the steps before the file's pass."""
    report = verify_chain(trained, [path], Ask(RESOLUTION, **asked))
    assert [step["step"] for step in report["steps"]][:2] == ["pytorch", "folded"]
    assert all(step["ok"] for step in report["steps"][:2]) and report["ok"] == (report["failed"] is None)
    return report["failed"]


# ---- the input


class Faulty(Deployed):
    """Takes rgb8, and normalises it wrongly."""

    def __init__(self, trained, fault):
        super().__init__(trained.module, trained.dialect.enlarge, None, (trained.normalisation.mean, trained.normalisation.std, "hwc"))
        self.fault = fault

    def normalised(self, x):
        x = x.float().permute(2, 0, 1)[None]
        mean, std = self.centre / 255, 1 / (255 * self.scale)
        return {"none": lambda: (x / 255 - mean) / std, "bgr": lambda: (x[:, [2, 1, 0]] / 255 - mean) / std, "left out": lambda: x / 255,
                "std first": lambda: x / 255 / std - mean}[self.fault]()


@pytest.mark.parametrize("fault, says", [("bgr", "looks like BGR for RGB:"), ("left out", "looks like mean and std left out:"),
                                         ("std first", "looks like std applied before mean:"), ("none", None)])
def test_faults_of_the_input_in_a_graph_that_takes_bytes(trained, tmp_path, fault, says):
    path = written(tmp_path / "net.onnx", exported(Faulty(trained, fault), "rgb8"), trained, input="rgb8")
    found = failed(trained, path)
    assert found is None if says is None else (found["step"], found["layer"]) == ("onnx", "input") and found["where"].startswith(says)


def test_a_sidecar_without_mean_and_std(trained, tmp_path):
    model = honest(trained)
    assert failed(trained, written(tmp_path / "net.onnx", model, trained)) is None
    found = failed(trained, written(tmp_path / "net.onnx", model, trained, normalisation={"mean": (0, 0, 0), "std": (1, 1, 1)}))
    assert (found["step"], found["layer"]) == ("onnx", "input") and found["where"].startswith("looks like mean and std left out:")


# ---- the graph


def resizes(model):
    return [node for node in model.graph.node if node.op_type == "Resize"]


def set_attribute(node, name, value):
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


@pytest.mark.parametrize("network", ["sgcpnet", "ddrnet"])
@pytest.mark.parametrize("name, value, right", [("coordinate_transformation_mode", "align_corners", "half_pixel"), ("mode", "nearest", "linear")])
def test_a_resize_that_reads_other_pixels(trained, ddrnet, tmp_path, network, name, value, right):
    net = {"sgcpnet": trained, "ddrnet": ddrnet}[network]
    model = copied(honest(net))
    node = [one for one in resizes(model) if graphs.attribute(one, "mode") == "linear"][-1 if net is trained else 1]
    set_attribute(node, name, value)
    found = failed(net, written(tmp_path / "net.onnx", model, net))
    assert (found["step"], found["layer"], found["where"]) == ("onnx", f"{node.name} (Resize)", f"{name} is {value}, not {right}")


@pytest.mark.parametrize("network", ["sgcpnet", "ddrnet"])
def test_an_epsilon_in_the_module_before_it_is_folded(trained, ddrnet, tmp_path, network):
    net = {"sgcpnet": trained, "ddrnet": ddrnet}[network]
    module = copy.deepcopy(net.module)
    kept = {node.name.rpartition("/")[0] for node in honest(net).graph.node if node.op_type == "BatchNormalization"}
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.BatchNorm2d) and layer.eps == 1e-5
             and proof.onnx_scope(Deployed(net.module), f"net.{name}") not in kept}
    path, layer = min(norms.items(), key=lambda item: float(item[1].running_var.median()))
    layer.eps = 1e-3
    model, _ = passes.optimise(exported(Deployed(module, net.dialect.enlarge)))
    found = failed(net, written(tmp_path / "net.onnx", model, net))
    scope = proof.onnx_scope(Deployed(net.module), f"net.{path}").rpartition("/")[0]
    assert found["step"] == "onnx" and found["layer"].startswith(scope) and found["layer"].endswith("(Conv)")
    assert "folded with a BatchNorm epsilon of 0.001, and the network has 1e-05" in found["where"]


@pytest.mark.parametrize("network", ["sgcpnet", "ddrnet"])
def test_a_folded_bias_that_is_dropped(trained, ddrnet, tmp_path, network):
    net = {"sgcpnet": trained, "ddrnet": ddrnet}[network]
    model = copied(honest(net))
    node = [one for one in model.graph.node if one.op_type == "Conv" and len(one.input) == 3][7]
    del node.input[2]
    found = failed(net, written(tmp_path / "net.onnx", model, net))
    assert (found["step"], found["layer"], found["where"]) == ("onnx", f"{node.name} (Conv)", "its bias is gone")


# ---- FP16


def scaled(model, factor):
    """(a graph that computes the same, the convolution whose result is so many times as large): through a ReLU, and divided by the next one."""
    model = copied(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def reader(node):
        found = [one for one in model.graph.node if node.output[0] in one.input]
        return found[0] if len(found) == 1 else node

    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    conv = next(node for node in convs if reader(node).op_type == "Relu" and reader(reader(node)).op_type == "Conv")
    for name, times in ((conv.input[1], factor), (conv.input[2], factor), (reader(reader(conv)).input[1], 1 / factor)):
        value = numpy_helper.to_array(stored[name])
        stored[name].CopyFrom(numpy_helper.from_array((value * times).astype(np.float32), name))
    return model, conv


@pytest.mark.parametrize("network", ["sgcpnet", "ddrnet"])
def test_a_weight_that_is_scaled_so_that_fp16_overflows(trained, ddrnet, tmp_path, network):
    net = {"sgcpnet": trained, "ddrnet": ddrnet}[network]
    assert failed(net, written(tmp_path / "half.onnx", to_fp16.run(honest(net)), net, precision="fp16")) is None
    model, conv = scaled(honest(net), 2.0 ** 14)
    assert failed(net, written(tmp_path / "net.onnx", model, net)) is None      # in FP32 it is the same network
    found = failed(net, written(tmp_path / "half.onnx", to_fp16.run(model), net, precision="fp16"))
    assert (found["step"], found["layer"]) == ("fp16", f"{conv.name} (Conv)") and found["where"].startswith("beyond FP16, which ends at 65504")


# ---- after the logits


@pytest.mark.parametrize("network", ["sgcpnet", "ddrnet"])
def test_argmax_over_the_height(trained, ddrnet, tmp_path, network):
    net = {"sgcpnet": trained, "ddrnet": ddrnet}[network]
    model = copied(honest(net, "labels"))
    assert failed(net, written(tmp_path / "net.onnx", model, net, output="labels")) is None
    node = next(one for one in model.graph.node if one.op_type == "ArgMax")
    set_attribute(node, "axis", 2)
    del model.graph.value_info[:], model.graph.output[0].type.tensor_type.shape.dim[:]
    found = failed(net, written(tmp_path / "net.onnx", model, net, output="labels"))
    assert (found["step"], found["layer"]) == ("onnx", f"{node.name} (ArgMax)") and "over axis 2, the height" in found["where"]


class LabelsEnlarged(torch.nn.Module):
    """Takes the ArgMax at the network's own size, and enlarges the labels."""

    def __init__(self, net, mode):
        super().__init__()
        self.net, self.mode = net, mode

    def forward(self, x):
        labels = self.net(x).argmax(1, keepdim=True).float()
        return F.interpolate(labels, size=RESOLUTION, mode=self.mode)[:, 0].to(torch.uint8)


@pytest.mark.parametrize("mode, says", [("bilinear", "labels are enlarged by interpolation (mode linear)"),
                                        ("nearest", "labels are enlarged, and not the logits")])
def test_labels_that_are_enlarged(trained, tmp_path, mode, says):
    model = exported(LabelsEnlarged(trained.module, mode))
    found = failed(trained, written(tmp_path / "net.onnx", model, trained, output="labels"))
    assert (found["step"], found["layer"]) == ("onnx", f"{resizes(model)[-1].name} (Resize)") and found["where"].startswith(says)


# ---- INT8


def test_calibration_on_one_black_image(trained, tmp_path, street):
    pixels = images.resized(images.read(images.STREET), RESOLUTION)
    feed = {name: images.normalised(value, asdict(trained.normalisation)) for name, value in (("street", pixels), ("black", np.zeros_like(pixels)))}
    paths = {name: written(tmp_path / f"{name}.onnx", int8.quantised(honest(trained), [x]), trained, precision="int8") for name, x in feed.items()}
    assert failed(trained, paths["street"], images=str(street)) is None
    found = failed(trained, paths["black"], images=str(street))
    assert found["step"] == "int8" and "calibrated for" in found["where"]
    assert found["layer"] in {f"{node.name} ({node.op_type})" for node in honest(trained).graph.node} | {"input"}
