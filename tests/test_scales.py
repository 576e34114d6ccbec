"""Constant scalings, shifts and hard swishes: the algebra, every refusal, that a planted fault is seen, and what SGCPNet gains."""
import collections
import io
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from test_passes import BN, folded, model, normal, statistics

from rtseg_deploy import passes, proof
from rtseg_deploy.deployed import deployed
from rtseg_deploy.export import reference, trace
from rtseg_deploy.passes import affine, clean, fold_back, fold_forward, scale_back, scale_forward, to_fp16

RESOLUTION = 96, 128
X = torch.zeros(1, 3, *RESOLUTION)
PLANE = normal(1, 4, 1, 1)  # one factor per channel


def scaled(made):
    """(rewritten model, report on scales), after it is shown to compute the same."""
    result, report = folded(made)
    row = report["scales"]
    assert row["before"] == row["back"] + row["forward"] + row["merged"] + row["shared"] + len(row["kept"])
    assert all(kept["node"] and kept["back"] and kept["forward"] for kept in row["kept"])
    return result, row


def counts(row):
    return row["back"], row["forward"], row["merged"], len(row["kept"])


def operators(made):
    return [node.op_type for node in made.graph.node]


def small(body, outputs="float[1,?,?,?] y", opset=17, **weights):
    """A model with those of the usual weights that its text names; integers, for sizes and axes, are given as arrays of integers."""
    usual = {"w": normal(4, 4, 3, 3), "w1": normal(4, 4, 1, 1), "b": normal(4), "s": np.float32(0.3), "p": np.abs(PLANE), "q": PLANE,
             "three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, **statistics(4), **weights}
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    used = {name: np.asarray(value) for name, value in usual.items() if name in words}
    made = model(body, outputs, opset, **{name: value for name, value in used.items() if value.dtype.kind == "f"})
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in used.items() if value.dtype.kind == "i")
    return made


CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)"


@pytest.mark.parametrize("node", ["Mul(c, s)", "Mul(q, c)", "Mul(c, r)", "Div(c, p)", "Add(c, q)", "Add(s, c)", "Sub(c, q)", "Sub(c, s)", "Mul(c, zero)"])
@pytest.mark.parametrize("conv", [CONV, "c = Conv<strides=[2,2], group=2>(x, g)"])
def test_back_into_the_convolution(node, conv):
    result, row = scaled(small(f"{conv} y = {node}", r=normal(4, 1, 1), g=normal(4, 2, 3, 3)))
    assert counts(row) == (1, 0, 0, 0) and operators(result) == ["Conv"]
    assert result.graph.node[0].output[0] == "y"


@pytest.mark.parametrize("between, opset", [
    ("MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)", 17), ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(c)", 17),
    ('Resize<mode="nearest">(c, , twice)', 17), ('Resize<mode="linear">(c, , , sizes)', 17), ('Resize<mode="cubic">(c, , twice)', 17),
    ('Resize<mode="nearest", axes=[2,3]>(c, , , plane)', 18), ("Identity(c)", 17)])
@pytest.mark.parametrize("factor", ["s", "p"])
def test_back_through_what_commutes(between, opset, factor):
    sizes = {"twice": np.array([1, 1, 2, 3.0]), "sizes": np.array([1, 4, 18, 11]), "plane": np.array([20, 7])}
    result, row = scaled(small(f"{CONV} d = {between} y = Mul(d, {factor})", opset=opset, **sizes))
    assert counts(row) == (1, 0, 0, 0) and "Mul" not in operators(result)


def test_back_through_a_resize_that_mixes_channels_only_with_one_factor():
    body = f'{CONV} d = Resize<mode="linear">(c, , twice) y = Mul(d, FACTOR)'
    assert counts(scaled(small(body.replace("FACTOR", "s"), twice=np.array([1, 2, 1, 1.0])))[1]) == (1, 0, 0, 0)
    _, row = scaled(small(body.replace("FACTOR", "eight"), twice=np.array([1, 2, 1, 1.0]), eight=normal(1, 8, 1, 1)))
    assert "may mix channels" in row["kept"][0]["back"]


def test_tensors_on_the_way_get_names_of_their_own():
    """The search for the first tensor that departs goes by names."""
    made = small(f"{CONV} d = MaxPool<kernel_shape=[3,3]>(c) y = Mul(d, s)")
    result, _ = scaled(made)
    assert [node.output[0] for node in result.graph.node] == ["c/scaled", "y"]


@pytest.mark.parametrize("attributes, shape", [("pads=[1,1,1,1]", (6, 4, 3, 3)), ("group=2, pads=[0,1,2,0]", (6, 2, 3, 3)), ("group=4", (8, 1, 1, 1)),
                                               ('auto_pad="SAME_UPPER", strides=[2,2]', (5, 4, 3, 3))])
@pytest.mark.parametrize("node", ["Mul(x, s)", "Mul(q, x)", "Div(x, p)"])
def test_a_scaling_forward_under_any_padding(attributes, shape, node):
    result, row = scaled(small(f"m = {node} y = Conv<{attributes}>(m, v)", v=normal(*shape)))
    assert counts(row) == (0, 1, 0, 0) and operators(result) == ["Conv"] and len(result.graph.node[0].input) == 2


@pytest.mark.parametrize("node", ["Add(x, s)", "Add(q, x)", "Sub(x, q)"])
@pytest.mark.parametrize("attributes, shape", [("group=2", (6, 2, 3, 3)), ('auto_pad="VALID"', (5, 4, 3, 3))])
def test_a_shift_forward_without_padding(attributes, shape, node):
    _, row = scaled(small(f"m = {node} y = Conv<{attributes}>(m, v)", v=normal(*shape)))
    assert counts(row) == (0, 1, 0, 0)


def test_forward_into_all_consumers():
    result, row = scaled(small("m = Mul(x, q) a = Conv<pads=[1,1,1,1]>(m, w) d = Conv(m, w1) y = Add(a, d)"))
    assert counts(row) == (0, 1, 0, 0) and operators(result) == ["Conv", "Conv", "Add"]


POOL = "p1 = MaxPool<kernel_shape=[3,3]>(c)"


@pytest.mark.parametrize("body, back, forward", [
    ("r = Relu(x) y = Mul(r, s)", "comes from Relu", "is an output of the graph"),
    ("m = Mul(x, s) y = Relu(m)", "comes from the input of the graph", "goes to Relu"),
    (f"{CONV} r = Relu(c) m = Mul(c, s) y = Add(r, m)", "Conv_0 is used elsewhere too", "goes to Add"),
    (f"{CONV} {POOL} m = Mul(p1, s) z = Relu(m) r = Relu(c) y = Add(r, r)", "Conv_0 is used elsewhere too", "goes to Relu"),
    (f"{CONV} {POOL} m = Mul(p1, s) r = Relu(p1) y = Add(r, m)", "MaxPool_1 is used elsewhere too", "goes to Add"),
    ("z = Conv<pads=[1,1,1,1]>(x, w, b) m = Mul(z, s) y = Relu(m)", "Conv_0 is used elsewhere too", "goes to Relu"),
    (f"{CONV} {POOL} m = Mul(p1, q) y = Relu(m)", "MaxPool_1 keeps the largest value", "goes to Relu"),
    (f"{CONV} {POOL} m = Add(p1, s) y = Relu(m)", "a shift does not pass MaxPool_1", "goes to Relu"),
    (f"{CONV} m = Mul(c, map) y = Relu(m)", "not one number or one per channel", "not one number or one per channel"),
    (f"{CONV} m = Mul(c, long) y = ReduceMax<axes=[0], keepdims=0>(m)", "can change the shape", "can change the shape"),
    ("c = Conv(x, one) m = Mul(c, p) y = Relu(m)", "can change the shape", "can change the shape"),
    (f"{CONV} m = Div(c, zero) y = Sigmoid(m)", "divides by zero", "divides by zero"),
    ("a = Abs(x) k = ReduceSum<keepdims=1>(a) m = Max(w1, k) c = Conv(x, m) n = Mul(c, s) y = Relu(n)", "are not constants", "goes to Relu"),
    ("a = Abs(x) k = ReduceSum<keepdims=1>(a) v = Max(w1, k) n = Mul(x, s) y = Conv(n, v)", "comes from the input", "are not constants"),
    ("m = Sub(x, q) y = Conv<pads=[1,1,1,1]>(m, w)", "comes from the input", "its zeros at the border mean the value after the shift"),
    ("m = Mul(x, s) a = Conv(m, w1) y = Add(a, m)", "comes from the input", "goes to Add"),
    (f'{CONV} d = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(c, roi, , sizes) m = Mul(d, s) y = Relu(m)',
     "Resize_1 can fill", "goes to Relu"),
])
def test_what_cannot_be_folded_stays_with_its_reasons(body, back, forward):
    made = small(body, map=normal(1, 1, 9, 11), long=normal(1, 1, 4, 1, 1), one=normal(1, 4, 1, 1), roi=np.array([0, 0, 0, 0, 1, 1, 1.2, 1.2]),
                 sizes=np.array([1, 4, 9, 11]))
    _, row = scaled(with_output(made, "z") if "z =" in body else made)
    assert counts(row) == (0, 0, 0, 1)
    assert back in row["kept"][0]["back"] and forward in row["kept"][0]["forward"]


def with_output(made, name):
    made.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return made


def test_an_unknown_shape_is_refused():
    node = clean.gs.Node("Mul", inputs=[clean.gs.Variable("x", np.float32), clean.gs.Constant("s", np.float32([2]))], outputs=[clean.gs.Variable("y")])
    assert "shape of its input is not known" in affine.why_not(node)


def test_products_of_computed_tensors_and_divisions_of_a_constant_are_not_scales():
    _, row = scaled(small("a = Sigmoid(x) m = Mul(x, a) e = Exp(x) d = Div(s, e) f = Sub(s, e) t = Add(d, f) y = Add(m, t)"))
    assert row["before"] == 0


def test_an_fp16_graph_is_left_alone():
    half = to_fp16.run(passes.optimise(small("r = Relu(x) m = Mul(r, s) y = Relu(m)"))[0])
    assert passes.optimise(half)[1]["scales"]["before"] == 0


@pytest.mark.parametrize("nodes, left", [
    ("m = Mul(r, s) n = Mul(m, q) y = Relu(n)", ["Mul"]), ("m = Mul(r, s) n = Div(m, p) o = Mul(three, n) y = Relu(o)", ["Mul"]),
    ("m = Div(r, three) n = Div(m, six) y = Relu(n)", ["Mul"]), ("m = Add(r, s) n = Sub(m, q) o = Sub(n, three) y = Relu(o)", ["Add"]),
    ("m = Mul(r, third) n = Mul(m, three) y = Relu(n)", []), ("m = Add(r, s) n = Sub(m, s) y = Relu(n)", []),
    ("m = Mul(r, one) n = Div(m, one) o = Add(n, zero) k = Sub(o, zero) y = Relu(k)", []), ("m = Mul(r, ones) y = Relu(m)", []),
    ("y = Mul(r, one)", []), ("m = Div(r, six) y = Relu(m)", ["Div"])])
def test_chains_merge_and_what_does_nothing_goes(nodes, left):
    result, row = scaled(small(f"r = Relu(x) {nodes}", one=1.0, ones=np.ones((4, 1, 1)), third=np.float32(1 / 3)))
    assert operators(result) == ["Relu", *left, *["Relu"] * nodes.count("Relu")]
    assert result.graph.output[0].name == "y" and row["merged"] == row["before"] - len(left)


@pytest.mark.parametrize("body, operators_left", [
    ("m = Mul(x, s) n = Mul(m, q) o = Relu(m) y = Add(n, o)", ["Mul", "Mul", "Relu", "Add"]),
    ("z = Mul(x, s) y = Mul(z, q)", ["Mul", "Mul"]),
    ("m = Mul(x, s) y = Add(m, q)", ["Mul", "Add"]),
    ("m = Mul(x, s) y = Mul(m, map)", ["Mul", "Mul"]),
    ("m = Mul(x, tiny) y = Mul(m, tiny)", ["Mul", "Mul"]),
    ("m = Mul(x, tiny) r = Relu(m) n = Mul(r, huge) y = Div(n, tiny)", ["Mul", "Relu", "Mul", "Div"]),
    ("c = Conv(x, first) r = Relu(c) y = Mul(r, ones)", ["Conv", "Relu", "Mul"]),
    ("c = Conv(x, first) r = Relu(c) y = Add(r, noughts)", ["Conv", "Relu", "Add"]),
])
def test_chains_that_stay(body, operators_left):
    """Used in between, a scaling before a shift, a map; a product out of range; ones and noughts that widen one channel to four."""
    made = small(body, map=normal(1, 1, 9, 11), tiny=1e-30, huge=1e30, first=normal(1, 4, 1, 1), ones=np.ones((1, 4, 1, 1)), noughts=np.zeros((1, 4, 1, 1)))
    result, _ = scaled(with_output(made, "z") if "z =" in body else made)
    assert operators(result) == operators_left


def test_a_scaling_that_does_nothing_between_input_and_output_is_an_identity():
    result, row = scaled(small("y = Mul(x, one)", one=1.0))
    assert operators(result) == ["Identity"] and counts(row) == (0, 0, 1, 0)


@pytest.mark.parametrize("body, left", [
    (f"{CONV} m = Mul(c, s) y = {BN}(m, ng, nb, nm, nv)", ["Conv"]),
    (f"{CONV} n = {BN}(c, ng, nb, nm, nv) m = Mul(n, q) a = Add(m, q) y = Div(a, p)", ["Conv"]),
    (f"r = Relu(x) n = {BN}(r, ng, nb, nm, nv) m = Mul(n, q) y = Conv(m, w)", ["Relu", "Conv"]),
    (f"r = Relu(x) m = Mul(r, q) n = {BN}(m, ng, nb, nm, nv) y = Conv(n, w)", ["Relu", "Conv"]),
    (f"{CONV} m = Mul(c, one) {POOL.replace('(c)', '(m)')} k = Mul(p1, q) y = Mul(k, q)", ["Conv", "MaxPool"]),
])
def test_each_rule_can_enable_another(body, left):
    result, _ = scaled(small(body, one=1.0))
    assert operators(result) == left


class Pixels(torch.nn.Module):
    """uint8 pixels, normalised in the graph, to two first convolutions."""

    def __init__(self, padding):
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]))
        self.first, self.second = torch.nn.Conv2d(3, 8, 3, 2, padding), torch.nn.Conv2d(3, 8, 3, 2, padding, bias=False)

    def forward(self, x):
        x = (x.float() - self.mean) * (1 / self.std)
        return self.first(x) + self.second(x).relu()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("padding", [0, 1])
def test_the_mean_colour_stays_only_before_a_border(padding):
    net, buffer = Pixels(padding).eval(), io.BytesIO()
    x = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (1, 3, 17, 19), np.uint8))
    torch.onnx.export(net, (x,), buffer, dynamo=False, opset_version=17, input_names=["x"])
    result, report = passes.optimise(onnx.load_from_string(buffer.getvalue()))
    row = report["scales"]
    assert counts(row) == (0, 1, 0, 1) if padding else (0, 2, 0, 0)
    assert operators(result)[:2] == ["Cast", "Sub" if padding else "Conv"]
    assert all("mean colour" in kept["forward"] for kept in row["kept"])
    with torch.inference_mode():
        assert np.abs(net(x).numpy() - proof.session(result).run(None, {"x": x.numpy()})[0]).max() < 1e-5


@pytest.mark.parametrize("ending", ["m = Mul(x, g) y = Div(m, six)", "m = Mul(g, x) y = Mul(m, sixth)", "d = Div(g, six) y = Mul(x, d)",
                                    "d = Mul(sixth, g) y = Mul(d, x)", "d = Div(x, six) y = Mul(d, g)"])
def test_a_decomposed_hard_swish_is_one_node(ending):
    gate = "a = Add(three, x) g = Clip(a, zero, six)"
    result, report = folded(small(f"{gate} {ending}"))
    assert operators(result) == ["HardSwish"] and report["hardswish"] == 1 and report["scales"]["before"] == 0
    result, report = folded(small(f"{gate} {ending}", opset=13))
    assert "HardSwish" not in operators(result) and report["hardswish"] == 0


GATE, ENDING = "a = Add(x, three) g = Clip(a, zero, six)", "m = Mul(x, g) y = Div(m, six)"


@pytest.mark.parametrize("body", [
    f"a = Add(x, three) g = Clip(a, zero, three) {ENDING}", f"a = Add(x, three) g = Clip(a, zero) {ENDING}",
    f"a = Add(x, six) g = Clip(a, zero, six) {ENDING}", f"a = Add(x, q) g = Clip(a, zero, six) {ENDING}",
    f"a = Sub(x, three) g = Clip(a, zero, six) {ENDING}", f"{GATE} m = Mul(x, g) y = Div(m, three)",
    f"{GATE} r = Relu(x) m = Mul(r, g) y = Div(m, six)", f"r = Relu(x) {GATE} m = Mul(x, g) k = Mul(m, r) y = Div(k, six)",
    *(f"{GATE} m = Mul(x, g) d = Div(m, six) y = Add(d, {used})" for used in "agm"), f"{GATE} z = Mul(x, g) y = Div(z, six)"])
def test_what_is_no_hard_swish_stays(body):
    """Other bounds, other sums, another divisor, the gate of another tensor, a third factor; tensors between that are used elsewhere."""
    made = small(body)
    result, report = folded(with_output(made, "z") if "z =" in body else made)
    assert "HardSwish" not in operators(result) and report["hardswish"] == 0


def test_a_hard_swish_among_others():
    gate = "a = Add(c, three) g = Clip(a, zero, six) m = Mul(c, g) h = Div(m, six)"
    result, report = folded(small(f"{CONV} {gate} k = Mul(h, s) d = Conv(k, w1) t = Sigmoid(d) y = Mul(d, t)"))
    assert operators(result) == ["Conv", "HardSwish", "Conv", "Sigmoid", "Mul"]
    assert report["scales"]["forward"] == 1


def test_convolutions_without_names_keep_parameters_apart():
    made = small(f"{CONV} d = Mul(c, s) e = Conv(d, w1, b) y = Mul(e, q)")
    for node in made.graph.node:
        node.name = ""
    result, _ = scaled(made)
    names = [tensor.name for tensor in result.graph.initializer]
    assert len(set(names)) == len(names) == 4 and all(node.name for node in result.graph.node)


def test_weights_that_are_shared_and_named_like_the_new_ones_stay_apart():
    made = small("e = Conv(x, w1) y = Mul(e, s) z = Conv(x, w1)")
    rename(made, "w1", "y.weight")
    result, _ = scaled(with_output(made, "z"))
    assert len({tensor.name for tensor in result.graph.initializer}) == 2


def rename(made, old, new):
    next(tensor for tensor in made.graph.initializer if tensor.name == old).name = new
    for node in made.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def groups_forgotten(conv, scale, shift):
    weight, bias = fold_back.parameters(conv)
    fold_back.set_parameters(conv, weight * scale[:weight.shape[1]].reshape(1, -1, 1, 1), bias)


FAULTS = {
    "sign of a scaling": ("y = Mul(c, s)", affine, "scale_and_shift", lambda node, honest=affine.scale_and_shift: [-honest(node)[0], honest(node)[1]]),
    "sign of a shift": ("y = Sub(c, q)", affine, "scale_and_shift", lambda node, honest=affine.scale_and_shift: [honest(node)[0], -honest(node)[1]]),
    "bias left": ("y = Mul(c, s)", scale_back, "scale_result",
                  lambda conv, scale, shift: fold_back.set_parameters(conv, fold_back.parameters(conv)[0] * scale, fold_back.parameters(conv)[1])),
    "border": ("m = Add(x, q) y = Conv<pads=[1,1,1,1]>(m, w)", scale_forward, "padded", lambda tensor: ""),
    "MaxPool with a negative factor": (f"{POOL} y = Mul(p1, q)", scale_back, "not_passed", lambda *_: ""),
    "groups mixed up": ("m = Mul(x, q) y = Conv<group=2>(m, g)", fold_forward, "scale_input", groups_forgotten),
    "two consumers": (f"{POOL} m = Mul(p1, s) y = Relu(c) z = Relu(m)", scale_back, "not_from_conv", lambda *_: ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    body, where, name, wrong = FAULTS[fault]
    made = small(f"{CONV if '(c' in body else ''} {body}", g=normal(6, 2, 3, 3))
    made = with_output(made, "z") if "z =" in body else made
    scaled(made)
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        scaled(made)


# what TensorRT 8.2's parser reads, of what these networks can contain: docs/operators.md of onnx/onnx-tensorrt, branch release/8.2-GA
TENSORRT_8_2 = {"Add", "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Div", "HardSigmoid", "MaxPool", "Mul", "ReduceMean", "Relu", "Resize",
                "Sigmoid", "Sub"}


@pytest.mark.parametrize("opset, hard", [(13, {"HardSigmoid": 26}), (17, {"HardSigmoid": 9, "HardSwish": 17})])
def test_hard_swish_is_written_as_the_reader_knows_it(trained, opset, hard):
    for output in ("logits", "labels"):
        found = collections.Counter(operators(passes.optimise(trace(deployed(trained, output, opset), X, opset))[0]))
        assert {name: found[name] for name in found if name.startswith("Hard")} == hard and not found["Clip"]
        assert opset > 13 or found.keys() <= TENSORRT_8_2


def test_sgcpnet_loses_a_third_of_its_fusion_scalars(trained):
    """27 of them: laterals 3 to 5, skips 4 and 5, and the second top-down pass's four through its Resizes go into convolutions.

    The other 18 scale maps that are used twice, each time by another number.
    """
    net = deployed(trained, "logits", 17)
    raw = trace(net, X, 17)
    result, report = passes.optimise(raw)
    row = report["scales"]
    assert row["before"] == 27 and row["back"] >= 9
    assert all("is used elsewhere too" in kept["back"] for kept in row["kept"])
    products = collections.Counter(operators(result))["Mul"]
    assert products == 12 + 9 + len(row["kept"])  # swishes, squeeze-and-excitation gates
    parity = proof.against(result, reference(net), proof.pictures(RESOLUTION, asdict(trained.normalisation)), "fp32")
    assert parity["ok"] and max(inputs["relative"] for inputs in parity["inputs"].values()) < proof.BARS["fp32"][0] / 4
    x = proof.pictures(RESOLUTION, asdict(trained.normalisation))["street"].fed
    assert proof.first_departure(raw, result, x, 1e-4) is None  # tensors of the same name hold the same
