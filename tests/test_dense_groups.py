"""Depthwise convolutions in wider groups: the same sums, and zeros."""
import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from rtseg_deploy import passes, proof
from rtseg_deploy.passes import dense_groups

RNG = np.random.default_rng(3)


def conv(groups, outputs, width, attributes="", dynamic=False):
    """x -> Conv with `groups` groups of `width` channels in and `outputs` out -> y."""
    attributes = ", ".join(filter(None, [f"group={groups}", attributes]))
    weight = "w = Identity(x2)" if dynamic else ""
    second = f", float[{groups * outputs},{width},3,3] x2" if dynamic else ""
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g (float[1,{groups * width},9,11] x{second}) => (float[1,c,h,w] y) '
                              f'{{ {weight} y = Conv<{attributes}>(x, w, b) }}')
    made.graph.node[-1].name = "conv"
    if not dynamic:
        made.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal((groups * outputs, width, 3, 3), np.float32), "w"))
    made.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal(groups * outputs, np.float32), "b"))
    return made


def group(model):
    return next(onnx.helper.get_attribute_value(a) for a in model.graph.node[-1].attribute if a.name == "group")


@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.parametrize("groups, outputs, width, attributes", [
    (16, 1, 1, "pads=[1,1,1,1]"), (16, 6, 1, "strides=[2,2], pads=[2,1,0,3]"), (8, 2, 2, "dilations=[2,2]"), (8, 3, 1, 'auto_pad="SAME_UPPER"')])
def test_the_same_convolution_in_wider_groups(channels, groups, outputs, width, attributes):
    model = conv(groups, outputs, width, attributes)
    wide, names = dense_groups.run(model, channels)
    passes.checked(wide)
    assert names == ["conv"] and group(wide) == groups * width // channels
    x = RNG.standard_normal((1, groups * width, 9, 11), np.float32)
    before, after = (proof.session(made).run(None, {"x": x})[0] for made in (model, wide))
    assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()


@pytest.mark.parametrize("groups, outputs, width, reason", [
    (1, 4, 4, "one group"), (6, 1, 1, "do not come out even"), (4, 1, 3, "no multiple"), (4, 2, 4, "4 channels already"), (2, 2, 8, "8 channels already")])
def test_what_cannot_be_widened_stays(groups, outputs, width, reason):
    import onnx_graphsurgeon as gs
    model = conv(groups, outputs, width)
    assert reason in dense_groups.why_not(gs.import_onnx(model).nodes[-1], 4)
    same, names = dense_groups.run(model, 4)
    assert not names and group(same) == groups


def test_weights_that_are_computed_stay():
    import onnx_graphsurgeon as gs
    assert "not constants" in dense_groups.why_not(gs.import_onnx(conv(4, 1, 1, dynamic=True)).nodes[-1], 4)


def test_a_weight_that_two_convolutions_share_is_widened_for_each():
    model = conv(8, 1, 1)
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name, second.output[0] = "again", "z"
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = "z"
    wide, names = dense_groups.run(model, 4)
    x = RNG.standard_normal((1, 8, 9, 11), np.float32)
    first, again = proof.session(wide).run(None, {"x": x})
    assert names == ["conv", "again"] and (first == again).all()
    assert np.allclose(first, proof.session(model).run(None, {"x": x})[0], atol=1e-5)
