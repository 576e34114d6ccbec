"""Folding: the algebra, every refusal, and that a planted fault is seen."""
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper, parser

from rtseg_deploy import passes, proof
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.passes import clean, fold_back, fold_forward

RNG = np.random.default_rng(1)


def model(body, outputs="float[1,?,?,?] y", opset=17, **weights):
    """An ONNX model from text, with weights by name; its input x is 1 x 4 x 9 x 11."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[1,4,9,11] x) => ({outputs}) {{ {body} }}'
    made = parser.parse_model(text.replace("?,?,?", "c,h,w"))
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items())
    return made


def normal(*shape):
    return RNG.standard_normal(shape)


def statistics(width, name="n"):
    """gamma, beta, mean, variance of a BatchNormalization that changes its input visibly."""
    return {f"{name}g": normal(width), f"{name}b": normal(width), f"{name}m": normal(width), f"{name}v": RNG.uniform(0.01, 2, width)}


def run(made):
    return proof.session(made).run(None, {"x": np.random.default_rng(7).standard_normal((1, 4, 9, 11), np.float32)})


def folded(made):
    """(folded model, report), after it is shown to compute the same."""
    result, report = passes.optimise(made)
    for before, after in zip(run(made), run(result)):
        assert np.abs(before - after).max() <= 1e-5 * max(1, np.abs(before).max())
    assert sum(node.op_type == "BatchNormalization" for node in result.graph.node) == len(report["kept"])
    assert report["before"] == report["back"] + report["forward"] + len(report["kept"])
    return result, report


def counts(report):
    return report["back"], report["forward"], len(report["kept"])


BN = "BatchNormalization<epsilon=0.001>"


@pytest.mark.parametrize("attributes, weight, bias", [
    ("pads=[1,1,1,1]", (6, 4, 3, 3), True), ("strides=[2,2], pads=[2,1,0,3]", (6, 4, 3, 3), False),
    ("group=4, pads=[1,1,1,1]", (4, 1, 3, 3), True), ("group=2", (6, 2, 1, 1), False), ("group=4", (24, 1, 3, 3), True)])
def test_back_into_any_convolution(attributes, weight, bias):
    body = f"c = Conv<{attributes}>(x, w{', b' if bias else ''}) y = {BN}(c, ng, nb, nm, nv)"
    weights = {"w": normal(*weight), **({"b": normal(weight[0])} if bias else {}), **statistics(weight[0])}
    result, report = folded(model(body, **weights))
    assert counts(report) == (1, 0, 0)
    assert [node.op_type for node in result.graph.node] == ["Conv"]
    assert result.graph.node[0].output[0] == "y"


@pytest.mark.parametrize("attributes, weight, bias", [
    ("", (6, 4, 1, 1), True), ("group=2", (6, 2, 1, 1), False), ("group=4", (8, 1, 1, 1), True), ("pads=[0,0,0,0]", (5, 4, 3, 3), False),
    ('auto_pad="VALID", strides=[2,2]', (5, 4, 3, 3), True)])
def test_forward_into_convolutions_without_padding(attributes, weight, bias):
    body = f"n = {BN}(x, ng, nb, nm, nv) y = Conv<{attributes}>(n, w{', b' if bias else ''})"
    body = body.replace("<>", "")
    result, report = folded(model(body, w=normal(*weight), **({"b": normal(weight[0])} if bias else {}), **statistics(4)))
    assert counts(report) == (0, 1, 0)


def test_forward_into_all_consumers_and_back_after_it():
    body = f"n = {BN}(x, ng, nb, nm, nv) a = Conv(n, w) d = {BN}(a, og, ob, om, ov) e = Conv(n, v) y = Add(d, e)"
    _, report = folded(model(body, w=normal(3, 4, 1, 1), v=normal(3, 4, 1, 1), **statistics(4), **statistics(3, "o")))
    assert counts(report) == (1, 1, 0)


@pytest.mark.parametrize("body, back, forward", [
    (f"r = Relu(x) n = {BN}(r, ng, nb, nm, nv) y = Relu(n)", "comes from Relu", "goes to Relu"),
    (f"n = {BN}(x, ng, nb, nm, nv) y = Conv<pads=[1,1,1,1]>(n, w3)", "comes from the input of the graph", "pads its input"),
    (f'n = {BN}(x, ng, nb, nm, nv) y = Conv<auto_pad="SAME_UPPER">(n, w3)', "comes from the input of the graph", "pads its input"),
    (f"c = Conv(x, w1) n = {BN}(c, ng, nb, nm, nv) r = Relu(n) y = Add(r, c)", "is used elsewhere too", "goes to Relu"),
    (f"c = Conv(x, w1) y = {BN}(c, ng, nb, nm, nv) z = Relu(c)", "is used elsewhere too", "is an output of the graph"),
    (f"n = {BN}(x, ng, nb, nm, nv) a = Conv(n, w1) y = Add(a, n)", "comes from the input of the graph", "goes to Add"),
    (f"f = ReduceMean<axes=[2,3]>(x) k = Mul(f, one) q = Conv(x, k) n = {BN}(q, og, ob, om, ov) y = Relu(n)", "are not constants", "goes to Relu"),
    (f"v = Abs(xm) n = {BN}(x, ng, nb, nm, v) y = Relu(n)", "comes from the input", "goes to Relu"),
])
def test_what_cannot_be_folded_stays_with_its_reasons(body, back, forward):
    weights = {"w1": normal(4, 4, 1, 1), "w3": normal(5, 4, 3, 3), "one": np.ones((1, 4, 1, 1)), **statistics(4), **statistics(1, "o")}
    if "xm" in body:  # a variance that the graph computes
        body = body.replace("v = Abs(xm)", "s = ReduceMean<axes=[0,2,3], keepdims=0>(x) v = Abs(s)")
    used = {name: value for name, value in weights.items() if f"{name}," in body or f"{name})" in body}
    outputs = "float[1,?,?,?] y, float[1,4,9,11] z" if "z =" in body else "float[1,?,?,?] y"
    _, report = folded(model(body, outputs, **used))
    assert counts(report) == (0, 0, 1)
    assert back in report["kept"][0]["back"] and forward in report["kept"][0]["forward"]


def test_weights_shared_by_two_convolutions_stay_apart():
    body = f"a = Conv(x, w) y = {BN}(a, ng, nb, nm, nv) z = Conv(x, w)"
    _, report = folded(model(body, "float[1,4,9,11] y, float[1,4,9,11] z", w=normal(4, 4, 1, 1), **statistics(4)))
    assert counts(report) == (1, 0, 0)


def test_a_foldable_one_that_is_left_stops_the_export(monkeypatch):
    monkeypatch.setattr(passes, "fold_all", lambda rule, graph: 0)
    with pytest.raises(RtsegError, match="BatchNormalization_1 can be folded and was not"):
        passes.optimise(model(f"c = Conv(x, w) y = {BN}(c, ng, nb, nm, nv)", w=normal(4, 4, 1, 1), **statistics(4)))


def test_identities_shape_arithmetic_and_equal_initialisers_go():
    body = """i = Identity(x) s = Shape(i) h = Gather<axis=0>(s, two) j = Unsqueeze(h, zero) t = Concat<axis=0>(j, j)
              k = Concat<axis=0>(lead, t) r = Resize<mode="nearest">(i, , , k) a = Conv<pads=[1,1,1,1]>(r, w) b = Relu(a) e = Conv(b, v) y = Identity(e)"""
    made = model(body, w=np.ones((4, 4, 3, 3)), v=np.ones((4, 4, 3, 3)))
    for name, value in (("two", 2), ("zero", [0]), ("lead", [1, 4])):
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
    before = run(made)
    result, _ = passes.optimise(made)
    assert [node.op_type for node in result.graph.node] == ["Resize", "Conv", "Relu", "Conv"]
    assert result.graph.output[0].name == "y"
    assert np.array_equal(before[0], run(result)[0])
    floats = [t for t in result.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert len(floats) == 1


def test_an_identity_that_joins_input_to_output_stays():
    graph = gs.import_onnx(model("y = Identity(x)", "float[1,4,9,11] y"))
    clean.tidy(graph)
    assert [node.op for node in graph.nodes] == ["Identity"]


@pytest.mark.parametrize("fault", ["epsilon", "shift", "sign", "border"])
def test_a_planted_fault_is_seen(fault, monkeypatch):
    """The comparison in folded() is worth what it catches."""
    honest = fold_back.scale_and_shift

    def faulty(bn):
        if fault == "epsilon":
            bn.attrs["epsilon"] = 1e-5
        scale, shift = honest(bn)
        return scale, {"shift": 0 * shift, "sign": -shift}.get(fault, shift)

    monkeypatch.setattr(fold_back, "scale_and_shift", faulty)
    monkeypatch.setattr(fold_forward, "scale_and_shift", faulty)
    body = f"c = Conv(x, w) y = {BN}(c, ng, nb, nm, nv)"
    if fault == "border":
        body = f"n = {BN}(x, ng, nb, nm, nv) y = Conv<pads=[1,1,1,1]>(n, w)"
        monkeypatch.setattr(fold_forward, "why_not", lambda bn, graph: "")
    made = model(body, w=normal(4, 4, 3, 3), **statistics(4))
    with pytest.raises(AssertionError):
        folded(made)
