"""Every rule: a model that breaks it and one that does not, the repair of the first, and TensorRT-RTX's own parser where it can be asked."""
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import run
from onnx import TensorProto, numpy_helper, parser

from rtseg_deploy import check, checkpoints, facts, files, fix, graphs, records, repairs, rules
from rtseg_deploy.device import parser as rtx_parser
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export

X = "float[1,4,8,8] x"


def model(body, inputs=X, outputs="float[a,b,c,d] y", opset=13, **stored):
    """An ONNX model from text, with initialisers by name."""
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "other": 1]> g ({inputs}) => ({outputs}) {{ {body} }}')
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items())
    return made


def f(*sides):
    return np.random.default_rng(3).standard_normal(sides).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


SCALE, SHARP, FEW = np.float32([1, 1, 2, 2]), np.float32(0.1), i(2)
W, B, V = f(4, 4, 1, 1), f(4), f(4) + 3
ROIS = {"r": np.float32([0, 0, 0, 0, 1, 1, 1, 1]), "s": SCALE}
MADE = "k = Abs(v) "                # a node makes k
INT, INTS, LABELS, ROW = "int64[1] r", "int64[2] r", "int64[a,b,c,d] y", "float[a,b] y"
NORM = "y = BatchNormalization(x, v, b, b, {})"
EXACT = model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.int8(0))

# rule -> (the model that breaks it, its repaired twin)
PAIRS = {
    "operator": (model("y = HardSwish(x)", opset=14), model("h = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, h)")),
    "opset": (model("y = Relu(x)", opset=26), model("y = Relu(x)")),
    "opset-old": (model("y = Relu(x)", opset=8), model("y = Relu(x)")),
    "opset-older": (model("y = Relu(x)", opset=6), model("y = Relu(x)")),
    "free-sides": (model("y = Relu(x)", "float[1,4,h,w] x"), model("y = Relu(x)")),
    "type": (model("k = Cast<to=5>(x) y = Cast<to=1>(k)"), model("k = Cast<to=6>(x) y = Cast<to=1>(k)")),
    "double": (model("y = Relu(x)", "double[1,4,8,8] x", "double[a,b,c,d] y"), model("y = Relu(x)")),
    "reduce-axes": (model("y = ReduceMean(x, k)", opset=18, k=i(2, 3)), model("y = ReduceMean<axes=[2,3]>(x)")),
    "reduce-noop": (model("y = ReduceMean<noop_with_empty_axes=1>(x)", opset=18), model("y = Identity(x)")),
    "reduce-axes-computed": (model(MADE + "y = ReduceSum(x, k)", v=FEW), model("y = ReduceSum(x, v)", v=FEW)),
    "reduce-axes-varying": (model("y = ReduceMean(x, r)", f"{X}, {INT}", opset=18), model("y = ReduceMean(x, k)", opset=18, k=FEW)),
    "conv-bias": (model(MADE + "y = Conv(x, w, k)", w=W, v=B), model("y = Conv(x, w, v)", w=W, v=B)),
    "conv-weights": (model(MADE + "y = Conv(x, k)", v=W), model("y = Conv(x, v)", v=W)),
    "norm-parameters": (model(MADE + NORM.format("k"), v=V, b=B), model(NORM.format("v"), v=V, b=B)),
    "norm-half": (model(NORM.format("v"), X.replace("float", "float16"), "float16[a,b,c,d] y", v=V.astype("f2"), b=B.astype("f2")),
                  model(NORM.format("v"), v=V, b=B)),
    "norm-training": (model("y, m, n = BatchNormalization<training_mode=1>(x, v, v, b, v)", opset=14, v=V, b=B), model(NORM.format("v"), v=V, b=B)),
    "instance-parameters": (model(MADE + "y = InstanceNormalization(x, k, v)", v=V), model("y = InstanceNormalization(x, v, v)", v=V)),
    "pool-window": (model("y = AveragePool<kernel_shape=[330,310]>(x)", "float[1,1,340,400] x"), model("y = GlobalAveragePool(x)")),
    "pool-pads": (model("y = AveragePool<kernel_shape=[3,3], pads=[0,1,2,1], strides=[2,2]>(x)"),
                  model("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)")),
    "pool-dilated": (model("y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)"), model("y = MaxPool<kernel_shape=[2,2], dilations=[1,1]>(x)")),
    "pool-indices": (model("y, k = MaxPool<kernel_shape=[2,2]>(x)"), model("y = MaxPool<kernel_shape=[2,2]>(x)")),
    "resize-cubic": (model('y = Resize<mode="cubic">(x, , s)', s=SCALE), model('y = Resize<mode="linear">(x, , s)', s=SCALE)),
    "resize-antialias": (model('y = Resize<mode="linear", antialias=1>(x, , s)', opset=18, s=SCALE), model('y = Resize<mode="linear">(x, , s)', s=SCALE)),
    "resize-axes": (model('y = Resize<mode="linear", axes=[2,3]>(x, , , s)', opset=18, s=i(16, 24)),
                    model('y = Resize<mode="linear">(x, , , s)', s=i(1, 4, 16, 24))),
    "resize-axes-varying": (model('y = Resize<axes=[2,3]>(x, , r)', f"{X}, float[2] r", opset=18),
                            model('y = Resize<axes=[2,3]>(x, , s)', opset=18, s=SCALE[2:])),
    "resize-aspect": (model('y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , s)', opset=18, s=i(1, 4, 16, 16)),
                      model("y = Resize(x, , , s)", s=i(1, 4, 16, 16))),
    "resize-coordinates": (model('y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, r, s)', **ROIS),
                           model('y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , s)', s=SCALE)),
    "resize-nearest": (model('y = Resize<nearest_mode="floor", coordinate_transformation_mode="tf_half_pixel_for_nn">(x, , s)', s=SCALE),
                       model('y = Resize<nearest_mode="floor", coordinate_transformation_mode="asymmetric">(x, , s)', s=SCALE)),
    "resize-scales": (model(MADE + "y = Resize(x, , k)", v=SCALE), model("y = Resize(x, , v)", v=SCALE)),
    "resize-outer": (model('y = Resize<mode="linear">(x, , s)', s=SCALE + np.float32([1, 0, 0, 0])), model('y = Resize<mode="linear">(x, , s)', s=SCALE)),
    "resize-outer-cubic": (model('y = Resize<mode="cubic">(x, , s)', s=SCALE + np.float32([0, 1, 0, 0])), model('y = Resize<mode="cubic">(x, , s)', s=SCALE)),
    "resize-type": (model("y = Resize(x, , s)", "int32[1,4,8,8] x", "int32[a,b,c,d] y", s=SCALE), model("y = Resize(x, , s)", s=SCALE)),
    "resize-bool": (model("y = Resize(x, , s)", "bool[1,4,8,8] x", "bool[a,b,c,d] y", s=SCALE), model("y = Resize(x, , s)", s=SCALE)),
    "pad-axes": (model("y = Pad(x, p, v, k)", opset=18, p=i(1, 2, 0, 1), v=SHARP, k=i(2, 3)), model("y = Pad(x, p, v)", p=i(0, 0, 1, 2, 0, 0, 0, 1), v=SHARP)),
    "pad-wrap": (model('y = Pad<mode="wrap">(x, p)', opset=19, p=i(0, 0, 1, 1, 0, 0, 1, 1)), model('y = Pad<mode="edge">(x, p)', p=i(0, 0, 1, 1, 0, 0, 1, 1))),
    "slice-axes": (model(MADE + "y = Slice(x, s, v, k)", v=FEW, s=i(0)), model("y = Slice(x, s, v, v)", v=FEW, s=i(0))),
    "squeeze-axes": (model(MADE + "y = Unsqueeze(x, k)", "float[4,8,8] x", v=FEW), model("y = Unsqueeze(x, v)", "float[4,8,8] x", v=FEW)),
    "squeeze-axes-varying": (model("y = Unsqueeze(x, r)", f"float[4,8,8] x, {INT}"), model("y = Unsqueeze(x, v)", "float[4,8,8] x", v=FEW)),
    "split-sizes": (model(MADE + "y, z = Split<axis=1>(x, k)", v=i(1, 3)), model("y, z = Split<axis=1>(x, v)", v=i(1, 3))),
    "split-uneven": (model("y, z, q = Split<axis=3, num_outputs=3>(x)", opset=18), model("y, z, q = Split<axis=3>(x, v)", v=i(3, 3, 2))),
    "cumsum-axis": (model(MADE + "y = CumSum(x, k)", v=np.int64(1)), model("y = CumSum(x, v)", v=np.int64(1))),
    "clip-half": (model("h = Cast<to=10>(x) k = Abs(v) c = Clip(h, k) y = Cast<to=1>(c)", v=np.float16(0.5)),
                  model("h = Cast<to=10>(x) c = Clip(h, v) y = Cast<to=1>(c)", v=np.float16(0.5))),
    "range-float": (model("m = Abs(v) k = Range(m, l, v) y = Add(x, k)", v=np.float32(1), l=np.float32(9)),
                    model("k = Range(v, l, v) y = Add(x, k)", v=np.float32(1), l=np.float32(9))),
    "topk-k": (model(MADE + "y, z = TopK(x, k)", v=FEW), model("y, z = TopK(x, v)", v=FEW)),
    "topk-unsorted": (model("y, z = TopK<sorted=0>(x, v)", v=FEW), model("y, z = TopK<sorted=1>(x, v)", v=FEW)),
    "topk-large": (model("y, z = TopK(x, v)", "float[1,1,1,5000] x", v=i(3840)), model("y, z = TopK(x, v)", "float[1,1,1,5000] x", v=i(3839))),
    "argmax-type": (model("k = ArgMax<axis=1>(x) y = Cast<to=1>(k)", "int32[1,4,8,8] x"), model("k = ArgMax<axis=1>(x) y = Cast<to=1>(k)")),
    "argmax-rounded": (model("k = ArgMax<axis=1>(x) y = Cast<to=1>(k)", "int32[1,4,8,8] x"), model("k = ArgMax<axis=1>(x) y = Cast<to=1>(k)")),
    "nms-limits": (model("k = Abs(v) n = NonMaxSuppression(x, s, k) y = Cast<to=1>(n)", "float[1,6,4] x", ROW, v=FEW, s=f(1, 1, 6)),
                   model("n = NonMaxSuppression(x, s, v) y = Cast<to=1>(n)", "float[1,6,4] x", ROW, v=FEW, s=f(1, 1, 6))),
    "einsum-ellipsis": (model('y = Einsum<equation="...ij,...jk->...ik">(x, x)'), model('y = Einsum<equation="abij,abjk->abik">(x, x)')),
    "einsum-diagonal": (model('y = Einsum<equation="abii->abi">(x)', outputs="float[a,b,c] y"),
                        model('y = Einsum<equation="abij->abi">(x)', outputs="float[a,b,c] y")),
    "einsum-broadcast": (model('y = Einsum<equation="abij,abjk->abik">(x, z)', f"{X}, float[1,1,8,8] z"),
                         model('y = Einsum<equation="abij,abjk->abik">(x, x)')),
    "quantize-zero-point": (model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.int8(3)),
                            model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.int8(0))),
    "quantize-uint8": (model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.uint8(0)),
                       model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.int8(0))),
    "quantize-narrowed": (model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.uint8(0)),
                          model("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", s=SHARP, z=np.int8(0))),
    "quantize-integers": (model("y = DequantizeLinear(v, s)", f"{X}", "float[a] y", v=np.int32([1, 2]), s=SHARP),
                          model("y = DequantizeLinear(v, s)", f"{X}", "float[a] y", v=np.int8([1, 2]), s=SHARP)),
    "quantize-tx2": (EXACT, model("y = Relu(x)")),
    "quantize-maxwell": (EXACT, model("y = Relu(x)")),
    "quantize-turing": (EXACT, model("y = Relu(x)")),
    "dropout-training": (model("y = Dropout(x, v, t)", v=SHARP, t=np.array(True)), model("y = Dropout(x, v, t)", v=SHARP, t=np.array(False))),
    "layer-norm-outputs": (model("y, m = LayerNormalization(x, v)", opset=17, v=f(8)), model("y = LayerNormalization(x, v)", opset=17, v=f(8))),
    "scatter-reduction": (model('y = ScatterND<reduction="add">(x, k, u)', opset=16, k=np.zeros((1, 4), np.int64), u=f(1)),
                          model("y = ScatterND(x, k, u)", k=np.zeros((1, 4), np.int64), u=f(1))),
    "grid-rank": (model("y = GridSample(x, g)", "float[1,1,4,4,4] x", "float[a,b,c,d,e] y", 20, g=f(1, 4, 4, 4, 3)),
                  model("y = GridSample(x, g)", opset=20, g=f(1, 4, 4, 2))),
    "constant-int": (model("k = Constant<value_ints=[1,4,64,1]>() y = Reshape(x, k)"), model("y = Reshape(x, k)", k=i(1, 4, 64, 1))),
    "uint8-input": (model("t = Transpose<perm=[2,0,1]>(x) u = Unsqueeze(t, v) y = Cast<to=1>(u)", "uint8[8,8,3] x", v=i(0)), model("y = Relu(x)")),
    "uint8-output": (model("k = ArgMax<axis=1>(x) y = Cast<to=2>(k)", outputs="uint8[a,b,c,d] y"),
                     model("k = ArgMax<axis=1>(x) y = Cast<to=6>(k)", outputs="int32[a,b,c,d] y")),
    "uint8-read": (model("t = Transpose<perm=[2,0,1]>(x) y = Cast<to=1>(t)", "uint8[8,8,3] x", "float[a,b,c] y"),
                   model("t = Cast<to=1>(x) y = Transpose<perm=[2,0,1]>(t)", "uint8[8,8,3] x", "float[a,b,c] y")),
    "uint8-inside": (model("k = Cast<to=2>(x) y = Cast<to=1>(k)"), model("k = Floor(x) y = Clip(k, v, w)", v=np.float32(0), w=np.float32(255))),
    "int64-output": (model("y = ArgMax<axis=1>(x)", outputs=LABELS), model("k = ArgMax<axis=1>(x) y = Cast<to=6>(k)", outputs="int32[a,b,c,d] y")),
    "int64-binding": (model("y = ArgMax<axis=1>(x)", outputs=LABELS), model("k = ArgMax<axis=1>(x) y = Cast<to=6>(k)", outputs="int32[a,b,c,d] y")),
    "gemm-turing": (model("y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)", "float[3,4] x", ROW, w=f(5, 4), b=f(5)),
                    model("y = Conv(x, w)", w=W)),
    "grouped-turing": (model("y = Conv<group=4>(x, w)", w=f(4, 1, 1, 1)), model("y = Conv(x, w)", w=W)),
}
# TensorRT-RTX's parser takes what only its builder refuses
BUILDER = ("gemm-turing", "quantize-turing")
CASES = [(name, one) for name, rule in facts.rules().items() for one in rule.parsers]
MENDED = [(name, one) for name, one in CASES if facts.rules()[name].repair]


def chip(rule):
    """A compute capability that breaks no other rule."""
    return rule.capability or ("8.6" if "QuantizeLinear" in rule.operators else "7.5")


def found(made, name, capability="7.5"):
    return check.findings(made, facts.parsers()[name], capability)


def test_every_rule_has_its_pair_and_every_pair_its_rule():
    assert PAIRS.keys() == facts.rules().keys() and len(PAIRS) >= 25
    for rule in facts.rules().values():
        assert rule.source and rule.reason and rule.fix and rule.severity in ("error", "warning", "note")
        assert set(rule.parsers) <= set(facts.parsers()) and (not rule.repair or rule.repair in repairs.REPAIRS)
        assert all(callable(getattr(rules, name)) for name, _ in rule.condition)
        assert set(rule.operators) <= {"*", "model", *facts.operators()}
    assert {rule.repair for rule in facts.rules().values()} - {""} == set(repairs.REPAIRS)


def test_every_operator_of_onnx_is_known():
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert not {name for name, (takes, _) in facts.operators().items() if set(takes) - set(facts.parsers())}
    assert len(known - facts.operators().keys()) < 20 and {"Conv", "HardSwish", "Resize", "ArgMax"} <= facts.operators().keys()


@pytest.mark.parametrize("name, one", CASES)
def test_a_rule_is_broken_by_one_model_and_not_by_its_twin(name, one):
    rule, (broken, twin) = facts.rules()[name], PAIRS[name]
    if name == "operator" and one != "8.2":
        broken = model("y = Det(x)", outputs="float[a,b] y")
    seen = found(broken, one, chip(rule))
    assert name in {finding.rule for finding in seen}
    assert {finding.rule for finding in check.errors(seen)} == ({name} if rule.severity == "error" else set())
    assert next(finding for finding in seen if finding.rule == name).severity == rule.severity
    assert found(twin, one, chip(rule)) == ()


@pytest.mark.parametrize("name, one", [case for case in MENDED if case[0] != "operator" or case[1] == "8.2"])
def test_a_repair_gives_the_same_and_passes(name, one):
    broken = PAIRS[name][0]
    mended, rows = repairs.repaired(broken, facts.parsers()[one], "7.5")
    assert found(mended, one) == () and any("done" in row for row in rows)
    fix.prove(broken, mended, "the file")


@pytest.mark.parametrize("name", [name for name, rule in facts.rules().items() if "rtx" in rule.parsers and rule.severity == "error"])
def test_the_real_parser_agrees(name, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    said = []
    for made in (model("y = Det(x)", outputs="float[a,b] y"), PAIRS[name][1]) if name == "operator" else PAIRS[name]:
        files.write(tmp_path / "net.onnx", made.SerializeToString())
        said.append(rtx_parser.ask(str(tmp_path / "net.onnx"))["takes"])
    assert said == [name in BUILDER, True]


@pytest.mark.parametrize("body, stored, opset", [
    ("y = ReduceMax(x, k)", {"k": i(2)}, 20), ("y = ReduceL2(x, k)", {"k": i(2, 3)}, 18), ("y, z = Split<axis=1, num_outputs=2>(x)", {}, 18),
    ('y = Resize<mode="linear", axes=[2,3], antialias=0, keep_aspect_ratio_policy="stretch">(x, , s)', {"s": SCALE[2:]}, 20),
    ("y = BatchNormalization<training_mode=0>(x, v, b, b, v)", {"v": V, "b": B}, 17), ("y = Reshape<allowzero=0>(x, k)", {"k": i(1, 4, 64, 1)}, 21),
    ("y = AveragePool<kernel_shape=[3,3], dilations=[1,1], pads=[1,1,1,1], count_include_pad=1>(x)", {}, 22), ("y = HardSwish(x)", {}, 22),
    ("y = MaxPool<kernel_shape=[3,3], ceil_mode=1>(x)", {}, 22), ("k = Cast<to=1, saturate=1>(x) y = Relu(k)", {}, 19)])
def test_what_a_newer_opset_writes_otherwise_is_the_same_at_13(body, stored, opset):
    made = model(body, opset=opset, **stored)
    lowered, rows = repairs.lower(made, facts.parsers()["8.2"])
    assert graphs.opset_of(lowered) == 13 and not any("refused" in row for row in rows)
    fix.prove(made, lowered, "the file")


@pytest.mark.parametrize("body, stored, opset, lowest, why", [
    ('y = Resize<mode="linear", antialias=1>(x, , s)', {"s": SCALE / 4}, 18, 18, "antialias"),
    ("y = LayerNormalization(x, v)", {"v": f(8)}, 18, 17, "came with opset 17"),
    ("y = Gelu(x)", {}, 21, 20, "came with opset 20"), ("y = GroupNormalization<num_groups=2>(x, v, v)", {"v": V}, 21, 21, "came with opset 21"),
    ("y = RoiAlign(x, r, k)", {"r": f(1, 4), "k": i(0)}, 17, 16, "means something else")])
def test_what_cannot_be_lowered_stays_and_is_told(body, stored, opset, lowest, why):
    lowered, rows = repairs.lower(model(body, opset=opset, **stored), facts.parsers()["8.2"])
    assert graphs.opset_of(lowered) == lowest and why in next(row["refused"] for row in rows if "refused" in row)


@pytest.mark.parametrize("takes, refused", [(13, True), (2**31 - 1, False)])
def test_an_opset_that_is_not_known_is_not_stepped_down_from(takes, refused):
    made = model("y = Relu(x)", opset=2**31 - 1)
    lowered, rows = repairs.lower(made, replace(facts.parsers()["8.2"], opset=takes))
    assert lowered is made and ["here knows them up to" in row["refused"] for row in rows] == [True] * refused


def test_pooling_whose_padding_does_not_count():
    for include in (0, 1):
        made = model(f"y = AveragePool<kernel_shape=[3,5], pads=[0,1,2,4], strides=[2,1], count_include_pad={include}>(x)")
        mended, _ = repairs.repaired(made, facts.parsers()["8.2"])
        assert {node.op_type for node in mended.graph.node} == {"Pad", "AveragePool"} | ({"Mul"} if not include else set())
        fix.prove(made, mended, "the file")


@pytest.mark.parametrize("window", ["kernel_shape=[340,400]", "kernel_shape=[330,310], pads=[3,0,5,2], strides=[2,3]"])
@pytest.mark.parametrize("pool", ["AveragePool", "MaxPool"])
def test_large_windows(pool, window):
    made = model(f"y = {pool}<{window}>(x)", "float[1,2,340,400] x")
    mended, _ = repairs.repaired(made, facts.parsers()["8.6"])
    assert found(mended, "8.6") == ()
    fix.prove(made, mended, "the file")


def test_a_planted_fault_in_a_repair_is_seen(monkeypatch, tmp_path):
    """The proof is worth what it catches."""
    onnx.save(PAIRS["pool-pads"][0], tmp_path / "net.onnx")
    monkeypatch.setattr("rtseg_deploy.repairs.nodes.corrections", lambda node, shape: np.ones((1, 1, 1, 1), np.float32))
    with pytest.raises(RtsegError, match="departs"):
        fix.fix(tmp_path / "net.onnx", tmp_path / "out.onnx", ["jetson-tx2"])
    assert not (tmp_path / "out.onnx").exists()


def test_what_is_not_known_is_not_held_against_a_node():
    made = model("k = other.Unknown(x) a = Resize(k, , s) b = ArgMax(a) y = Cast<to=1>(b)", s=SCALE)
    assert {finding.rule for finding in found(made, "8.2")} == {"operator"}


def test_a_crash_of_the_real_parser_is_told(monkeypatch, tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(rtx_parser, "__file__", str(worker))
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: True)
    verdict, = check.check(model("y = Relu(x)"), ["rtx-2080ti"])
    assert not verdict.passes and "SIGSEGV" in verdict.findings[0].reason


def test_the_real_parser_is_asked_in_a_process_of_its_own():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    made = PAIRS["pool-dilated"][0]
    rtx, newer, old = check.check(made, ["rtx-2080ti", "h200", "jetson-tx2"])
    assert old.asked is None and rtx.asked == newer.asked and not rtx.asked["takes"]
    assert [finding.severity for finding in rtx.findings] == ["error", "error"] and "a proxy" in newer.findings[1].source
    assert [finding.severity for finding in newer.findings] == ["error", "warning"]


def test_the_command(tmp_path):
    onnx.save(model("a = HardSwish(x) k = ReduceMean(a, r) y = Add(a, k)", opset=18, r=i(2, 3)), tmp_path / "net.onnx")
    out = json.loads(run("check", tmp_path / "net.onnx", "--target", "jetson-tx2", "--target", "gtx-1080ti", "--json", status=1)[0])
    assert [[one["rule"] for one in target["findings"]] for target in out["targets"]] == [["operator", "reduce-axes", "opset"], ["reduce-axes", "opset"]]
    assert "HardSwish_0 (HardSwish)" in run("check", tmp_path / "net.onnx", "--target", "jetson-tx2", status=1)[0]
    out = run("check", tmp_path / "net.onnx", "--target", "jetson-tx2", "--fix", "-o", tmp_path / "out.onnx")[0]
    assert "opset 18 written as 13" in out and "passes" in out
    run("check", tmp_path / "out.onnx", "--target", "jetson-tx2", "--target", "rtx-2080ti", "--parser", "8.2")


@pytest.mark.parametrize("arguments, status, text", [
    (["--target", "jetson-tx2", "--parser", "10.15"], 1, "does not serve jetson-tx2; those that do: 8.2"),
    (["--target", "jetson"], 1, "no target is called 'jetson'"), (["--target", "h200", "--parser", "9"], 1, "no parser is called '9'"),
    ([], 2, "at least one --target"), (["--target", "h200", "--fix"], 2, "go together")])
def test_what_is_asked_wrongly(tmp_path, arguments, status, text):
    onnx.save(model("y = Relu(x)"), tmp_path / "net.onnx")
    assert text in run("check", tmp_path / "net.onnx", *arguments, status=status)[1]


def test_files_that_are_none(tmp_path):
    for data in (b"", b"no ONNX", model("y = Relu(x)").SerializeToString()[:40]):
        (tmp_path / "net.onnx").write_bytes(data)
        with pytest.raises(RtsegError):
            check.read(tmp_path / "net.onnx")


def test_a_free_side_is_not_repaired(tmp_path):
    onnx.save(model("y = HardSwish(x)", "float[1,4,h,w] x", opset=17), tmp_path / "net.onnx")
    with pytest.raises(RtsegError, match="a side of x is free"):
        fix.fix(tmp_path / "net.onnx", tmp_path / "out.onnx", ["jetson-tx2"])


def test_an_artifact_keeps_its_sidecar(trained, tmp_path):
    export(trained, tmp_path / "net.onnx", (64, 96), 20, output="labels")
    verdicts, rows = fix.fix(tmp_path / "net.onnx", tmp_path / "tx2.onnx", ["jetson-tx2"])
    artifact, before = records.read_artifact(tmp_path / "tx2.onnx"), records.read_artifact(tmp_path / "net.onnx")
    assert verdicts[0].passes and artifact.opset == 13 and artifact.parent == before.parent and artifact.checks["repairs"]["of"] == before.sha256
    assert before.warnings and not artifact.warnings and {row["repair"] for row in rows} == {"int32_output", "lower"}
    assert onnx.load(tmp_path / "tx2.onnx").graph.output[0].type.tensor_type.elem_type == TensorProto.INT32
    assert (before.checks["tensors"]["output"]["type"], artifact.checks["tensors"]["output"]["type"]) == ("UINT8", "INT32")


def test_an_artifact_that_takes_bytes_goes_on_to(trained, tmp_path):
    export(trained, tmp_path / "net.onnx", (64, 96), 13, input="rgb8")
    verdicts, _ = fix.fix(tmp_path / "net.onnx", tmp_path / "out.onnx", ["jetson-tx2"])
    assert [finding.rule for finding in check.errors(verdicts[0].findings)] == ["uint8-input"] and "normalised" in verdicts[0].findings[0].fix
    with pytest.raises(RtsegError, match="takes no uint8 input"):
        export(trained, tmp_path / "tx2.onnx", (64, 96), input="rgb8", target="jetson-tx2")
    assert not (tmp_path / "tx2.onnx").exists()


# a third of the registry: each family, and each variant with operators of its own
NETWORKS = ["bisenetv1-x39", "bisenetv1-r18", "bisenetv1-u8s", "bisenetv2", "bisenetv2-d2", "ddrnet-23-slim", "ddrnet-23-slim-ppm", "ddrnet-23-slim-no-context",
            "sgcpnet", "bcpnet", "sgcpnet-avg3", "sgcpnet-sum"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_for_its_target(name, tmp_path):
    target = facts.target("jetson-tx2")
    artifact = export(checkpoints.seeded(name), tmp_path / "net.onnx", (64, 128), output="labels", target=target.name)
    assert artifact.checks["parity"]["ok"] and artifact.opset == target.opset
    made = check.read(tmp_path / "net.onnx")
    assert [found(made, one, "") for one in facts.parsers()] == [()] * len(facts.parsers())
    if name in ("sgcpnet", "ddrnet-23-slim-ppm"):
        artifact = export(checkpoints.seeded(name), tmp_path / "net.onnx", (64, 128), output="labels", target="gtx-1080ti")
        assert artifact.opset == 17 and not check.errors(found(check.read(tmp_path / "net.onnx"), "8.6"))


def test_an_opset_that_is_asked_for_wins(trained, tmp_path):
    assert export(trained, tmp_path / "a.onnx", (64, 96), 14, target="gtx-1080ti").opset == 14
    with pytest.raises(RtsegError, match="HardSwish.*no such operator"):
        export(trained, tmp_path / "b.onnx", (64, 96), 17, target="jetson-tx2")
    with pytest.raises(RtsegError, match="every axis is reduced"):
        export(trained, tmp_path / "b.onnx", (64, 96), 18, target="gtx-1080ti")
    assert not (tmp_path / "b.onnx").exists()
