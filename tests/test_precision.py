"""What stays in FP32: found by trying on a device, or known beforehand, and kept by casts that lose nothing."""
import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser

from rtseg_deploy import fp16, passes, proof
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.passes import to_fp16
from rtseg_deploy.precision import offenders

NODES = [f"node {number}" for number in range(200)]


@given(st.sets(st.sampled_from(NODES), max_size=8))
def test_offenders_are_found_exactly_and_in_few_builds(planted):
    tries = []

    def passes(kept):
        tries.append(kept)
        return planted <= set(kept)
    assert offenders(NODES, passes) == sorted(planted, key=NODES.index)
    assert len(tries) <= 2 + len(planted) * (1 + math.ceil(math.log2(len(NODES))))


def test_a_device_that_is_wrong_without_fp16_is_told():
    with pytest.raises(RtsegError, match="FP16 is not the reason"):
        offenders(NODES, lambda kept: False)


def test_more_than_half_is_no_fp16_engine():
    with pytest.raises(RtsegError, match="an FP32 engine"):
        offenders(NODES, lambda kept: len(kept) > 100)
    assert len(offenders(NODES, lambda kept: len(kept) >= 100)) == 100


def chain(*factors):
    """x -> Mul by each factor, with a Relu after each; loud between a large factor and a small one."""
    body = " ".join(f"m{n} = Mul(r{n}, f{n}) r{n + 1} = Relu(m{n})" for n in range(len(factors)))
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g (float[1,4,5,6] r0) => (float[1,4,5,6] r{len(factors)}) {{ {body} }}'
                              .replace("r0", "input"))
    made.graph.initializer.extend(numpy_helper.from_array(np.float32(factor), f"f{n}") for n, factor in enumerate(factors))
    for node in made.graph.node:
        node.name = f"{node.op_type} {node.output[0]}"
    return onnx.shape_inference.infer_shapes(made)


PICTURES = {name: proof.Picture(x, x) for name, x in (("noise", np.random.default_rng(1).standard_normal((1, 4, 5, 6), np.float32)),)}


@pytest.mark.parametrize("factors, kept", [
    ((2, 1, 1, 1), []),
    ((1, 1e6, 1e-6, 1, 1, 1, 1), ["Mul m1", "Relu r2", "Mul m2"]),      # the value between is loud, and a weight
    ((1, 300, 300, 1e-4, 1, 1, 1), ["Mul m2", "Relu r3", "Mul m3"]),    # no weight is
    ((1, 2 ** -10, 2 ** 17, 1), ["Mul m2"]),                            # nothing but a weight is
    ((1, 3e2, 3e2, 1e-4, 1, 1, 1, 1, 1, 3e2, 3e2, 1e-4, 1, 1), ["Mul m2", "Relu r3", "Mul m3", "Mul m10", "Relu r11", "Mul m11"])])
def test_all_that_touches_a_loud_value_stays(factors, kept):
    model = chain(*factors)
    assert list(fp16.beyond_range(model, PICTURES)) == kept
    reference = proof.session(model)
    half, _ = fp16.convert(model, lambda picture: reference.run(None, {"input": picture.fed})[0], PICTURES, kept)
    x = PICTURES["noise"].fed
    expected, found = (proof.session(made).run(None, {"input": x})[0] for made in (model, half))
    assert np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max() and np.isfinite(found).all()
    singles = {node.name for node in half.graph.node if set(node.input) & {f"f{n}/in_fp32_{2 * n}" for n in range(len(factors))}}
    assert singles == {name for name in kept if name.startswith("Mul")}


def test_between_two_that_stay_nothing_is_cast():
    kept = ["Mul m1", "Relu r2", "Mul m2"]
    half = to_fp16.run(chain(1, 1e6, 1e-6, 1, 1, 1, 1), kept)
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert [onnx.helper.get_attribute_value(cast.attribute[0]) for cast in casts] == [
        onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT]


def test_a_loud_value_that_is_not_kept_is_refused():
    model = chain(1, 3e2, 3e2, 1e-4, 1)
    with pytest.raises(RtsegError, match="too far from FP32; the first tensor that departs is m2 "):
        fp16.convert(model, lambda picture: proof.logits(model)(picture.fed), PICTURES)


def test_a_node_that_stays_may_read_a_value_twice_and_end_the_graph():
    model = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[1,4] input) => (float[1,4] y) { a = Relu(input) b = Mul(a, a) y = Add(a, b) }')
    for node in model.graph.node:
        node.name = node.output[0]
    half = passes.checked(to_fp16.run(onnx.shape_inference.infer_shapes(model), ["b", "y"]))
    x = np.float32([[1, 2, 300, 4]])
    assert (proof.session(half).run(None, {"input": x})[0] == x + x * x).all()


def test_a_weight_that_is_shared_is_rounded_only_for_those_in_fp16():
    model = chain(1, 1)
    for node in model.graph.node:
        node.input[:] = [name.replace("f1", "f0") for name in node.input]
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(1 + 2 ** -20), "f0"))
    half = to_fp16.run(model, ["Mul m1"])
    values = {t.data_type: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert values[onnx.TensorProto.FLOAT] == np.float32(1 + 2 ** -20) and values[onnx.TensorProto.FLOAT16] == 1


def test_a_node_that_stays_may_read_a_weight_twice():
    model = parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[1,4] input) => (float[1,4] y) { a = Clip(input, k, k) y = Relu(a) }')
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "k"))
    model.graph.node[0].name, model.graph.node[1].name = "a", "y"
    half = passes.checked(to_fp16.run(onnx.shape_inference.infer_shapes(model), ["a"]))
    assert (proof.session(half).run(None, {"input": np.zeros((1, 4), np.float32)})[0] == 3).all()
