"""Rules that remove work: the algebra, every refusal, that a planted fault is seen, and what the networks lose."""
from dataclasses import asdict, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_passes import folded, normal
from test_scales import operators, scaled, small

from rtseg_deploy import check, checkpoints, dataflow, matrix, models, passes, proof, report
from rtseg_deploy.deployed import deployed
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import reference, trace
from rtseg_deploy.passes import before_resize, clean, factor, merge_convolutions, phases, share_scale, twins

X = np.random.default_rng(7).standard_normal((1, 4, 9, 11), np.float32)
TWICE = np.array([1, 1, 2, 2.0])
NEAREST = 'Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
LINEAR = 'Resize<mode="linear">'


def outputs(body, channels=4):
    """Those of a text: y, and z where it makes one."""
    return f"float[1,?,?,?] y, float[1,{channels},9,11] z" if "z =" in body else "float[1,?,?,?] y"


def rewritten(made):
    """(rewritten model, how often each rule applied, report), after it is shown to compute the same, in no more multiply-accumulates, and to call
    no tensor by the name of another."""
    result, report = folded(made)
    assert report["macs"]["after"] <= report["macs"]["before"]
    before, after = ({name for node in one.graph.node for name in node.output} for one in (made, result))
    names = sorted(before & after)
    for name, one, other in zip(names, tensors(made, names), tensors(result, names)):
        assert one.shape == other.shape and np.abs(one - other).max() <= 1e-5 * max(1, np.abs(one).max()), name
    return result, {rule: count for rule, count in report["algebra"].items() if count}, report


def tensors(made, names):
    return proof.session(proof.with_outputs(onnx.shape_inference.infer_shapes(made), names)).run(None, {"x": X})


def reasons(rule, made):
    """Why a rule leaves what it leaves of a graph."""
    graph = gs.import_onnx(clean.constants(made))
    return "; ".join(rule.why_not(node, graph) for node in graph.nodes if node.op in rule.OPS)


# ---- convolutions in a row

WIDE = {"f": normal(12, 4, 1, 1), "fb": normal(12), "g": normal(6, 12, 1, 1), "g3": normal(6, 12, 3, 3), "t": normal(3), "k": normal(3, 12, 1, 1),
        "n": normal(3, 4, 3, 3), "small": normal(2, 4, 1, 1), "deep": normal(12, 1, 3, 3), "two": normal(6, 6, 1, 1), "e": normal(12, 1, 1, 1)}


@pytest.mark.parametrize("body, left", [
    ("c = Conv(x, f) d = Conv(c, g) y = Abs(d)", ["Conv", "Abs"]),
    ("c = Conv(x, f, fb) d = Conv(c, k, t) y = Abs(d)", ["Conv", "Abs"]),
    ("c = Conv(x, f, fb) d = Conv(c, k) e1 = Conv(c, k, t) j = Add(d, e1) y = Abs(j)", ["Conv", "Conv", "Add", "Abs"]),
    ("c = Conv(x, f) d = Conv<pads=[1,1,1,1], strides=[2,2]>(c, g3) y = Abs(d)", ["Conv", "Abs"]),
    ("c = Conv(x, f, fb) d = Conv<dilations=[2,2]>(c, g3) y = Abs(d)", ["Conv", "Abs"]),
    ("c = Conv(x, f, fb) d = Conv<group=2>(c, two) y = Abs(d)", ["Conv", "Abs"]),
    ("c = Conv(x, f, fb) d = Conv(c, g) e1 = Conv(d, h) y = Abs(e1)", ["Conv", "Abs"]),
])
def test_a_convolution_goes_into_those_that_read_it(body, left):
    result, counts, report = rewritten(small(body, **WIDE, h=normal(2, 6, 1, 1)))
    assert counts.keys() == {"merge_convolutions"} and sorted(operators(result)) == sorted(left)
    assert report["macs"]["after"] < report["macs"]["before"]


@pytest.mark.parametrize("body, why", [
    ("c = Conv(x, f, fb) d = Conv<pads=[1,1,1,1]>(c, g3) y = Abs(d)", "Conv_1 pads its input, and its zeros at the border would become the bias"),
    ('c = Conv(x, f, fb) d = Conv<auto_pad="SAME_UPPER">(c, g3) y = Abs(d)', "Conv_1 pads its input, and its zeros"),
    ("c = Conv(x, f) r = Relu(c) d = Conv(r, g) y = Abs(d)", "goes to Relu"),
    ("c = Conv(x, f) r = Abs(c) d = Conv(c, g) i = Conv(r, g) j = Add(d, i) y = Abs(j)", "goes to Abs"),
    ("z = Conv(x, f) d = Conv(z, g) y = Abs(d)", "is an output of the graph"),
    ("c = Conv(x, small) d = Conv(c, big) y = Abs(d)", "merged they would cost as much or more"),
    ("c = Conv(x, f) d = Conv<group=12, pads=[1,1,1,1]>(c, deep) y = Abs(d)", "merged they would cost as much or more"),
    ("c = Conv(x, n) d = Conv(c, h) y = Abs(d)", "its kernel is larger than 1"),
    ("c = Conv<strides=[2,2]>(x, f) d = Conv(c, k) y = Abs(d)", "it has a stride"),
    ("c = Conv<pads=[1,1,1,1]>(x, f) d = Conv(c, k) y = Abs(d)", "it pads its input"),
    ("c = Conv<group=4>(x, e) d = Conv(c, k) y = Abs(d)", "it has groups"),
    ("s1 = ReduceMean<axes=[2,3]>(x) v = Mul(s1, f) c = Conv(x, v) d = Conv(c, k) y = Abs(d)", "its weights are not constants"),
    ("s1 = ReduceMean<axes=[2,3]>(x) v = Concat<axis=1>(s1, s1, s1) c = Conv(x, f) d = Conv(c, v) y = Abs(d)", "the weights of Conv_3 are not constants"),
])
def test_convolutions_that_stay_apart(body, why):
    made = small(body, outputs(body, 12), **WIDE, big=normal(20, 2, 1, 1), h=normal(2, 3, 1, 1))
    _, counts, _ = rewritten(made)
    assert not counts and why in reasons(merge_convolutions, made)


def test_weights_in_half_precision_are_left_alone():
    half = gs.Node("Conv", "half", {}, [gs.Variable("x"), gs.Constant("w", np.ones((1, 1, 1, 1), np.float16))], [gs.Variable("y")])
    assert "half precision" in merge_convolutions.not_exact(half) and "half precision" in merge_convolutions.why_not(half, None)


READERS = st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3]), st.sampled_from([1, 3]), st.sampled_from([0, 1, 2]),
                             st.sampled_from([1, 2]), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=40)
@given(st.sampled_from([6, 12, 24]), st.booleans(), READERS)
def test_any_readers(width, biased, readers):
    """They merge just where that is cheaper and no border is in the way."""
    weights = {"first": normal(width, 4, 1, 1), "firstb": normal(width)}
    body, ends = f"c = Conv(x, first{', firstb' if biased else ''})", []
    for number, (outputs, groups, kernel, pad, stride, bias) in enumerate(readers):
        weights |= {f"v{number}": normal(outputs * groups, width // groups, kernel, kernel), f"a{number}": normal(outputs * groups)}
        body += (f" d{number} = Conv<group={groups}, pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]>(c, v{number}{f', a{number}' if bias else ''})"
                 f" m{number} = ReduceMean(d{number})")
        ends.append(f"m{number}")
    made = small(f"{body} y = {f'Sum({chr(44).join(ends)})'}", **weights)
    _, counts, report = rewritten(made)
    bordered = biased and any(pad for *_, pad, _, _ in readers)
    assert counts == ({"merge_convolutions": 1} if report["macs"]["after"] < report["macs"]["before"] else {})
    assert not (bordered and counts)
    if not bordered:
        dense = sum(outputs * groups * 4 * kernel**2 * ((9 + 2 * pad - kernel) // stride + 1) * ((11 + 2 * pad - kernel) // stride + 1)
                    for outputs, groups, kernel, pad, stride, _ in readers)
        assert bool(counts) == (dense < report["macs"]["before"])


# ---- before a Resize


@pytest.mark.parametrize("resize", [f"{NEAREST}(x, , twice)", f"{LINEAR}(x, , twice)", f"{LINEAR}(x, , , sizes)",
                                    'Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , odd)',
                                    'Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(x, , odder)',
                                    'Resize<mode="nearest", nearest_mode="ceil">(x, , , odd)'])
@pytest.mark.parametrize("node", ["Conv(r, w1, b)", "Conv<group=2>(r, pair)", "Conv(r, many, mb)", "Mul(r, q)", "Sub(r, s)", "Add(q, r)"])
def test_before_a_resize(resize, node):
    sizes = {"twice": TWICE, "sizes": np.array([1, 4, 18, 22]), "odd": np.array([1, 4, 14, 40]), "odder": np.array([1, 1, 1.3, 2.7])}
    made = small(f"r = {resize} d = {node} y = Abs(d)", **sizes, pair=normal(6, 2, 1, 1), many=normal(9, 4, 1, 1), mb=normal(9))
    result, counts, _ = rewritten(made)
    assert counts == {"before_resize": 1} and operators(result) == [node.partition("(")[0].partition("<")[0], "Resize", "Abs"]


@pytest.mark.parametrize("function", ["Sigmoid", "Relu", "HardSigmoid", "HardSwish", "Tanh", "Elu", "LeakyRelu", "Softplus"])
def test_functions_before_a_nearest_resize_alone(function):
    result, counts, _ = rewritten(small(f"r = {NEAREST}(x, , twice) f1 = {function}(r) y = Neg(f1)", twice=TWICE))
    assert counts == {"before_resize": 1} and operators(result) == [function, "Resize", "Neg"]
    made = small(f"r = {LINEAR}(x, , twice) f1 = {function}(r) y = Neg(f1)", twice=TWICE)
    assert not rewritten(made)[1] and f"mixes pixels, and {function} of a mix is no mix of {function}" in reasons(before_resize, made)


@pytest.mark.parametrize("body, why", [
    ('r = Resize<mode="cubic">(x, , twice) d = Conv(r, w1) y = Abs(d)', "the weights of Resize_0 may not add up to 1"),
    ('r = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, twice) d = Conv(r, w1, b) y = Abs(d)', "may not add up to 1"),
    (f"r = {NEAREST}(x, , deeper) d = Conv(r, w8) y = Abs(d)", "Resize_0 may mix channels"),
    (f"r = {LINEAR}(x, , twice) d = Conv(r, w, b) y = Abs(d)", "its kernel is larger than 1"),
    (f"r = {LINEAR}(x, , twice) d = Conv<strides=[2,2]>(r, w1) y = Abs(d)", "it has a stride"),
    (f"r = {LINEAR}(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w1, b) y = Abs(d)", "it pads its input"),
    (f"r = {LINEAR}(x, , half) d = Conv(r, w1) y = Abs(d)", "it would cost as much or more"),
    (f"r = {LINEAR}(x, , twice) d = Mul(r, map) y = Abs(d)", "not one number or one per channel"),
    (f"r = {NEAREST}(x, , twice) f1 = Relu(r) g1 = Abs(r) y = Add(f1, g1)", "it would cost as much or more"),
    ("r = Relu(x) d = Conv(r, w1) y = Abs(d)", "does not come from a Resize"),
    (f"r = {NEAREST}(x, , twice) s1 = ReduceMax<keepdims=0>(x) d = Clip(r, s1) y = Abs(d)", "its parameters are not constants"),
])
def test_what_stays_after_a_resize(body, why):
    sizes = {"twice": TWICE, "half": np.array([1, 1, 0.5, 0.5]), "deeper": np.array([1, 2, 2, 2.0]), "map": normal(1, 1, 18, 22),
             "roi": np.array([0, 0, -0.2, 0, 1, 1, 1.3, 1.0])}
    made = small(body, **sizes, w8=normal(2, 8, 1, 1))
    assert not rewritten(made)[1] and why in reasons(before_resize, made)


def test_before_a_resize_that_others_read_only_where_two_are_cheaper():
    body = f"r = {NEAREST}(x, , twice) d = Conv(r, WEIGHT) e1 = Abs(d) h = Abs(r) k = Concat<axis=1>(e1, h) y = Abs(k)"
    assert rewritten(small(body.replace("WEIGHT", "w1"), twice=TWICE))[1] == {"before_resize": 1}
    assert not rewritten(small(body.replace("WEIGHT", "deep4").replace("Conv(", "Conv<group=4>("), twice=TWICE, deep4=normal(4, 1, 1, 1)))[1]


def test_a_convolution_before_a_resize_meets_another():
    result, counts, _ = rewritten(small(f"c = Conv(x, f, fb) r = {LINEAR}(c, , twice) d = Conv(r, k, t) y = Abs(d)", twice=TWICE, **WIDE))
    assert counts == {"before_resize": 1, "merge_convolutions": 1} and operators(result) == ["Conv", "Resize", "Abs"]


# ---- one scale for several readers

CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b)"
POOL = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"


@pytest.mark.parametrize("body, left", [
    ("m = Mul(c, s) n1 = Mul(q, c) f1 = Relu(m) h = Tanh(n1) y = Add(f1, h)", 1),
    ("m = Mul(c, s) n1 = Div(c, p) f1 = Relu(m) h = Tanh(n1) y = Add(f1, h)", 1),
    (f"v = {POOL}(c) m = Mul(v, p) n1 = Mul(c, s) f1 = Tanh(n1) h = Tanh(m) k = Concat<axis=1>(f2, h) y = Abs(k)".replace("f2", "g1")
     .replace("h = Tanh(m)", f"h = Tanh(m) g1 = {POOL}(f1)"), 1),
    (f"v = {NEAREST}(c, , twice) m = Mul(v, q) n1 = Mul(c, s) f1 = Tanh(m) g1 = {NEAREST}(n1, , twice) y = Add(f1, g1)", 1),
    ("m = Mul(c, s) n1 = Mul(c, s2) f1 = Relu(m) h = Tanh(n1) k = Tanh(n1) i = Add(k, h) y = Add(f1, i)", 1),
])
def test_one_scale_of_several_goes_into_the_convolution(body, left):
    made = small(f"{CONV} {body}", twice=TWICE, s2=0.7)
    result, counts, report = rewritten(made)
    assert counts["share_scale"] == 1 == report["scales"]["shared"] and operators(result).count("Mul") + operators(result).count("Div") == left
    scaled(made)


@pytest.mark.parametrize("body, why", [
    (f"{CONV} m = Mul(c, s) f1 = Relu(c) y = Add(f1, m)", "Relu uses it unscaled"),
    ("z = Conv<pads=[1,1,1,1]>(x, w, b) m = Mul(z, s) n1 = Mul(z, q) f1 = Relu(n1) y = Add(f1, m)", "z is an output of the graph"),
    (f"{CONV} m = Mul(c, s) n1 = Add(c, q) f1 = Relu(n1) y = Add(f1, m)", "Add uses it unscaled"),
    (f"{CONV} m = Mul(c, zero) n1 = Mul(c, s2) f1 = Relu(n1) g1 = Tanh(m) y = Add(f1, g1)", "it scales by zero"),
    (f"{CONV} m = Mul(c, q) n1 = Mul(c, map) f1 = Relu(n1) y = Add(f1, m)", "Mul uses it unscaled"),
    (f"{CONV} v = {POOL}(c) m = Mul(c, minus) n1 = Mul(v, s) f1 = Tanh(n1) d = ReduceMean(f1) g1 = Tanh(m) y = Add(g1, d)", "keeps the largest value"),
    (f"{CONV} m = Mul(c, tiny) n1 = Mul(c, huge) f1 = Relu(n1) y = Add(f1, m)", "the quotient of two factors is out of range"),
    ("r = Relu(x) m = Mul(r, s) n1 = Mul(r, q) f1 = Relu(n1) y = Add(f1, m)", "does not come from a Conv"),
])
def test_scales_that_stay(body, why):
    made = small(body, outputs(body), s2=0.7, minus=-0.4, tiny=1e-30, huge=1e30, map=normal(1, 1, 9, 11))
    assert "share_scale" not in rewritten(made)[1] and why in reasons(share_scale, made)


# ---- x + x g, and what is there already

GATE = "m0 = ReduceMean<axes=[2,3]>(x) gate = Sigmoid(m0)"


@pytest.mark.parametrize("body", ["p1 = Mul(x, gate) y = Add(x, p1)", "p1 = Mul(gate, x) y = Add(p1, x)"])
def test_x_and_x_times_g_are_one_product(body):
    result, counts, _ = rewritten(small(f"{GATE} {body}"))
    assert counts == {"factor": 1} and operators(result) == ["ReduceMean", "Sigmoid", "Add", "Mul"]


@pytest.mark.parametrize("body, why", [
    (f"{GATE} p1 = Mul(x, gate) h = Abs(p1) a = Add(x, p1) y = Add(a, h)", "is used elsewhere too"),
    ("gate = Sigmoid(x) p1 = Mul(x, gate) y = Add(x, p1)", "is as large as"),
    ("p1 = Mul(x, x) y = Add(x, p1)", "it is not x + x g"),
    (f"{GATE} h = Relu(x) p1 = Mul(x, gate) y = Add(h, p1)", "it is not x + x g"),
    (f"{GATE} p1 = Mul(m0, x) y = Add(m0, p1)", "is of another type or shape"),
])
def test_sums_that_stay(body, why):
    made = small(body)
    assert not rewritten(made)[1] and why in reasons(factor, made)


@pytest.mark.parametrize("body, left", [
    ("a = ReduceMean<axes=[2,3]>(x) d = ReduceMean<axes=[2,3]>(x) e1 = Tanh(a) h = Sigmoid(d) y = Add(e1, h)", ["ReduceMean", "Tanh", "Sigmoid", "Add"]),
    (f"a = {NEAREST}(x, , , sizes) d = {NEAREST}(x, , , sizes) e1 = Sin(a) h = Cos(d) y = Add(e1, h)", ["Resize", "Sin", "Cos", "Add"]),
    ("a = Tanh(x) d = Relu(a) e1 = Relu(d) y = Neg(e1)", ["Tanh", "Relu", "Neg"]),
    ("a = Sigmoid(x) d = Relu(a) y = Neg(d)", ["Sigmoid", "Neg"]),
])
def test_what_is_there_already(body, left):
    result, counts, _ = rewritten(small(body, sizes=np.array([1, 4, 18, 22])))
    assert counts.keys() == {"twins"} and operators(result) == left


@pytest.mark.parametrize("body, why", [
    ("a = ReduceMean<axes=[2]>(x) d = ReduceMean<axes=[3]>(x) y = Add(a, d)", "nothing before it gives the same"),
    ("a = Conv(x, w1, b) d = Conv(x, w1, b) y = Add(a, d)", "nothing before it gives the same"),
    ("a = Conv(x, w1, b) d = Conv(x, w1) y = Add(a, d)", "nothing before it gives the same"),
    ("a = Conv(x, w1) d = Conv(x, v1) y = Add(a, d)", "nothing before it gives the same"),
    ("a = Sub(x, x2) d = Sub(x2, x) y = Mul(a, d)", "nothing before it gives the same"),
    ("a = Tanh(x) d = Relu(a) y = Neg(d)", "nothing before it gives the same"),
    ("z = Tanh(x) y = Tanh(x)", "its result is an output of the graph"),
    ("a = RandomNormalLike(x) d = RandomNormalLike(x) h = Sub(a, d) k = Mul(zero, h) y = Add(k, x)", "it may not give the same twice"),
])
def test_what_only_looks_alike(body, why):
    body = body.replace("a = Sub(x, x2)", "x2 = Tanh(x) a = Sub(x, x2)")
    made = small(body, outputs(body), v1=normal(4, 4, 1, 1))
    if "Random" in body:
        result, report = passes.optimise(made)
        assert operators(result).count("RandomNormalLike") == 2
    else:
        assert not rewritten(made)[1]
    assert why in reasons(twins, made)


# ---- convolutions of enlarged maps


@settings(max_examples=30)
@given(st.sampled_from([2, 3, 4]), st.sampled_from([(3, 3), (5, 5), (1, 3), (3, 2), (2, 2)]), st.booleans(), st.booleans(), st.data())
def test_phases(enlarged, kernel, biased, by_size, data):
    begins = [data.draw(st.integers(0, side - 1)) for side in kernel]
    pads = [*begins, *(side - 1 - begin for side, begin in zip(kernel, begins))]
    size = ", , sizes" if by_size else ", factors"
    made = small(f"r = {NEAREST}(x, {size}) d = Conv<pads={str(pads).replace(' ', '')}>(r, v{', a' if biased else ''}) y = Abs(d)".replace("(x, ,", "(x, ,"),
                 v=normal(5, 4, *kernel), a=normal(5), factors=np.array([1, 1, enlarged, enlarged * 1.0]), sizes=np.array([1, 4, 9 * enlarged, 11 * enlarged]))
    result, counts, report = rewritten(made)
    met = [len({tuple((place + tap - begin) // enlarged for tap in range(side)) for place in range(enlarged)}) for side, begin in zip(kernel, begins)]
    assert counts == {"phases": 1} and operators(result).count("Conv") == met[0] * met[1]
    if (enlarged, kernel) == (2, (3, 3)):
        assert report["macs"]["after"] * 9 == report["macs"]["before"] * 4


@pytest.mark.parametrize("body, why", [
    (f"r = {LINEAR}(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)", "is not the nearest one that only repeats pixels"),
    ('r = Resize<mode="nearest", coordinate_transformation_mode="align_corners", nearest_mode="floor">(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)',
     "is not the nearest one that only repeats pixels"),
    ('r = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil">(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)',
     "is not the nearest one that only repeats pixels"),
    (f"r = {NEAREST}(x, , odd) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)", "does not enlarge both axes by one whole number"),
    (f"r = {NEAREST}(x, , taller) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)", "does not enlarge both axes by one whole number"),
    (f"r = {NEAREST}(x, , deeper) d = Conv<pads=[1,1,1,1]>(r, w8) y = Abs(d)", "may mix channels"),
    (f"r = {NEAREST}(x, , twice) d = Conv<pads=[1,1,1,1], strides=[2,2]>(r, w) y = Abs(d)", "it has groups, a stride or a dilation"),
    (f"r = {NEAREST}(x, , twice) d = Conv<pads=[2,2,2,2], dilations=[2,2]>(r, w) y = Abs(d)", "it has groups, a stride or a dilation"),
    (f"r = {NEAREST}(x, , twice) d = Conv<pads=[1,1,1,1], group=4>(r, deep4) y = Abs(d)", "it has groups, a stride or a dilation"),
    (f"r = {NEAREST}(x, , twice) d = Conv(r, w) y = Abs(d)", "it gives another size than it reads"),
    (f'r = {NEAREST}(x, , twice) d = Conv<auto_pad="SAME_LOWER">(r, w) y = Abs(d)', "it gives another size than it reads"),
    (f"r = {NEAREST}(x, , twice) s1 = ReduceMean<axes=[2,3]>(x) v = Mul(s1, w) d = Conv<pads=[1,1,1,1]>(r, v) y = Abs(d)", "its weights are not constants"),
])
def test_convolutions_that_stay_on_the_enlarged_map(body, why):
    made = small(body, twice=TWICE, odd=np.array([1, 1, 1.5, 1.5]), taller=np.array([1, 1, 2, 1.0]), deeper=np.array([1, 2, 2, 2.0]), deep4=normal(4, 1, 3, 3),
                 w8=normal(2, 8, 3, 3))
    assert "phases" not in rewritten(made)[1] and why in reasons(phases, made)


# ---- the tests are worth what they catch


def bias_lost(conv):
    first, _ = merge_convolutions.parameters(conv)
    merge_convolutions.set_parameters(conv, first, np.zeros(len(first)))
    HONEST["merge"](conv)


def groups_lost(conv):
    for reader in conv.outputs[0].outputs:
        reader.inputs[1] = gs.Constant("rolled", np.roll(reader.inputs[1].values, 1, 0))
    HONEST["merge"](conv)


def unscaled_left_out(tensor):
    passed, ends = HONEST["tree"](tensor)
    return passed, [end for end in ends if end.op == "Mul"]


def rolled(weight, axis, met):
    kernel, ends = HONEST["gathered"](weight, axis, met)
    return kernel, ends[::-1]


HONEST = {"merge": merge_convolutions.fold, "gathered": phases.gathered, "tree": share_scale.tree}
ENLARGED = f"r = {NEAREST}(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w, b) y = Abs(d)"
FAULTS = {
    "bias lost": ("c = Conv(x, f, fb) d = Conv(c, k) y = Abs(d)", merge_convolutions, "fold", bias_lost),
    "groups lost": ("c = Conv(x, f) d = Conv<group=2>(c, two) y = Abs(d)", merge_convolutions, "fold", groups_lost),
    "border": ("c = Conv(x, f, fb) d = Conv<pads=[1,1,1,1]>(c, g3) y = Abs(d)", merge_convolutions, "padded", lambda tensor: ""),
    "stride": ("c = Conv<strides=[2,2]>(x, f) d = Conv(c, k) y = Abs(d)", merge_convolutions, "not_pointwise", lambda conv: ""),
    "between": ("z = Conv(x, f) d = Conv(z, k) y = Abs(d)", merge_convolutions, "not_to_convs", lambda tensor, graph: "" if tensor.name == "z" else "no"),
    "dearer": ("c = Conv(x, small) d = Conv(c, big) y = Abs(d)", merge_convolutions, "cheaper", lambda *_: True),
    "function of a mix": (f"r = {LINEAR}(x, , twice) d = Sigmoid(r) y = Abs(d)", before_resize, "not_passed", lambda *_: ""),
    "kernel over a mix": (f"r = {LINEAR}(x, , twice) d = Conv<pads=[1,1,1,1]>(r, w) y = Abs(d)", before_resize, "not_pointwise", lambda *_: ""),
    "channels of the size": (f"r = {LINEAR}(x, , , sizes) d = Conv(r, k4) y = Abs(d)", before_resize, "sized", lambda tensor, *_: tensor),
    "a crop's own value": ('r = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, twice) d = Conv(r, w1, b) y = Abs(d)',
                           before_resize, "not_mixing", lambda resize: ""),
    "another reader's scale": (f"{CONV} m = Mul(c, s) n1 = Mul(c, q) f1 = Relu(m) h = Tanh(n1) y = Add(f1, h)", share_scale, "divide", lambda *_: None),
    "read unscaled": (f"{CONV} m = Mul(c, s) h = Relu(c) y = Add(m, h)", share_scale, "tree", unscaled_left_out),
    "negative before MaxPool": (f"{CONV} v = {POOL}(c) m = Mul(c, minus) n1 = Mul(v, s) f1 = Tanh(n1) d = ReduceMean(f1) g1 = Tanh(m) y = Add(g1, d)",
                                share_scale, "not_passed", lambda *_: ""),
    "quotient out of range": (f"{CONV} m = Mul(c, tiny) n1 = Mul(c, huge) f1 = Tanh(n1) y = Add(f1, m)", share_scale, "fits", lambda *_: True),
    "gate of another": (f"{GATE} h = Relu(x) p1 = Mul(x, gate) y = Add(h, p1)", factor, "parts",
                        lambda add: next(((tensor.inputs[0], *tensor.inputs[0].inputs) for tensor in add.inputs if tensor.inputs[0].op == "Mul"), None)),
    "product read elsewhere": (f"{GATE} p1 = Mul(x, gate) h = Abs(p1) a = Add(x, p1) y = Add(a, h)", factor, "used_elsewhere", lambda *_: False),
    "attributes": ("a = ReduceMean<axes=[2]>(x) d = ReduceMean<axes=[3]>(x) y = Add(a, d)", twins, "repr", lambda attributes: ""),
    "weights": ("a = Conv(x, w1) d = Conv(x, v1) y = Add(a, d)", twins, "alike", lambda *_: True),
    "a negative": ("a = Tanh(x) d = Relu(a) y = Neg(d)", twins, "NOT_NEGATIVE", ("Tanh",)),
    "phases turned": (ENLARGED, phases, "gathered", rolled),
    "phases of a mix": (ENLARGED.replace(NEAREST, LINEAR), phases, "not_repeating", lambda resize: ""),
    "phases of a smaller map": (ENLARGED.replace("<pads=[1,1,1,1]>", "<pads=[0,0,0,0]>"), phases, "not_same", lambda conv: ""),
    "phases of a stride": (ENLARGED.replace("<pads", "<dilations=[2,2], pads"), phases, "not_same", lambda conv: ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    body, where, name, wrong = FAULTS[fault]
    made = small(body, outputs(body, 12), twice=TWICE, **WIDE, sizes=np.array([1, 4, 18, 22]), big=normal(20, 2, 1, 1),
                 k4=normal(3, 4, 1, 1), v1=normal(4, 4, 1, 1), minus=-0.4, tiny=1e-30, huge=1e30, roi=np.array([0, 0, -0.2, 0, 1, 1, 1.3, 1.0]))
    rewritten(made)
    monkeypatch.setattr(where, name, wrong, raising=False)
    with pytest.raises((AssertionError, RtsegError, RuntimeWarning)):
        rewritten(made)


# ---- networks


def optimised(name, dialect=None, trained=None):
    """(traced network with random weights, its graph, the rewritten one, report)"""
    found = trained or checkpoints.seeded(name)
    if dialect:
        means = next(one for one in found.network.dialects if one.name == dialect)
        found = replace(found, module=found.network.module(19, means).eval(), dialect=means)
    net = deployed(found, "native", 13)
    raw = trace(net, torch.zeros(1, 3, 64, 128), 13)  # TensorRT 8.2 reads opset 13
    return net, raw, *passes.optimise(raw)


def test_sgcpnet_computes_a_seventh_less(trained):
    net, raw, result, report = optimised("sgcpnet", trained=trained)
    assert report["algebra"]["merge_convolutions"] == 4 and report["scales"]["shared"] == 8
    assert report["macs"]["after"] < 0.87 * report["macs"]["before"]
    pictures = proof.pictures((64, 128), asdict(trained.normalisation))
    parity = proof.against(result, reference(net), pictures, "fp32")
    assert parity["ok"] and max(row["relative"] for row in parity["inputs"].values()) < proof.BARS["fp32"][0] / 4
    assert proof.first_departure(raw, result, pictures["street"].fed, 1e-4) is None


@pytest.mark.parametrize("name, dialect, counts, share", [
    ("bcpnet", None, {"merge_convolutions": 4}, 0.14), ("bisenetv1-r18", "coincheung", {"phases": 2, "factor": 1}, 0.028),
    ("bisenetv1-r18", "ooooverflow", {"before_resize": 1}, 0.007),
    ("bisenetv2", "coincheung", {"before_resize": 1}, 0)])
def test_what_networks_lose(name, dialect, counts, share):
    net, raw, result, report = optimised(name, dialect)
    assert report["algebra"].items() >= counts.items() and 1 - report["macs"]["after"] / report["macs"]["before"] >= share
    for key, model in (("before", raw), ("after", result)):
        model = onnx.shape_inference.infer_shapes(clean.constants(model), data_prop=True)
        assert report["macs"][key] == sum(layer.macs for layer in dataflow.of_graph(model.graph, 4, name))
    assert not [finding for verdict in check.check(result, ["jetson-tx2"]) for finding in verdict.findings if finding.severity == "error"]
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 128), np.float32)
    wanted = net.logits(torch.from_numpy(x)).detach().numpy()
    assert np.abs(proof.logits(result)(x) - wanted).max() <= 1e-5 * wanted.std()


def test_lists_and_summaries_say_what_was_removed():
    network = models.find("sgcpnet-td1")
    row = matrix.algebra_row(network, network.reading, lambda step, done: None)
    assert row["after"] < row["MMACs at 128x256"] and "merge_convolutions 1" in row["by"] and float(row["less %"]) > 5
    fold = {"macs": {"before": 3_275_000_000, "after": 2_813_000_000}, "algebra": {"merge_convolutions": 4, "phases": 0}}
    assert report.macs_text(fold) == "3.275 G before, 2.813 G after (-14.1 %), merge convolutions 4"
