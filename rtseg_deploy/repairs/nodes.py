"""Nodes that a parser does not take, written otherwise: rewrite(node, view) -> (nodes, initialisers) that give exactly the same, or None."""
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ..graphs import attribute, given
from .lower import NOTHING, without_effect

MOVES = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile")  # values pass through them unchanged
LARGEST_AREA = 300 * 300            # of one pooling; the limit of the rule pool-window lies above


def reduced_nothing(node, view):
    """A reduction over no axes gives its input."""
    axes = view.value(given(node, 1))
    empty = not given(node, 1) or axes is not None and not axes.size
    return (without_effect(node), []) if node.op_type in NOTHING and attribute(node, "noop_with_empty_axes", 0) and empty else None


def padded_first(node, view):
    """AveragePool<pads, count_include_pad=1>(x) = AveragePool(Pad(x, 0)).

    Without the padded elements in the count the mean is that mean times k / n, n being how many of the k elements of a window lie in x:
    a constant of the output's height and width.
    """
    pads, shape = attribute(node, "pads"), view.shapes.get(node.input[0])
    auto = attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    if node.op_type != "AveragePool" or not pads or auto or attribute(node, "ceil_mode", 0) or set(attribute(node, "dilations", [1])) != {1}:
        return None
    if shape is None or None in shape or len(shape) != 4 or len(pads) != 4:
        return None
    out = node.output[0]
    stored = [numpy_helper.from_array(np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), f"{out}/pads")]
    pad = helper.make_node("Pad", [node.input[0], f"{out}/pads"], [f"{out}/padded"], f"{node.name}/pad")
    pool = helper.make_node("AveragePool", [f"{out}/padded"], [out], node.name, kernel_shape=attribute(node, "kernel_shape"),
                            strides=attribute(node, "strides", [1, 1]))
    if attribute(node, "count_include_pad", 0):
        return [pad, pool], stored
    pool.output[0] = f"{out}/sum"
    stored.append(numpy_helper.from_array(corrections(node, shape), f"{out}/share"))
    return [pad, pool, helper.make_node("Mul", [f"{out}/sum", f"{out}/share"], [out], f"{node.name}/share")], stored


def corrections(node, shape):
    """k / n of every window, 1 x 1 x h x w."""
    kernel, pads, strides = attribute(node, "kernel_shape"), attribute(node, "pads"), attribute(node, "strides", [1, 1])
    shares = []
    for axis in (0, 1):
        side, k = shape[2 + axis], kernel[axis]
        begins = np.arange(0, side + pads[axis] + pads[2 + axis] - k + 1, strides[axis]) - pads[axis]
        shares.append(k / (np.minimum(begins + k, side) - np.maximum(begins, 0)))
    return np.outer(*shares)[None, None].astype(np.float32)


def pooled_by_axes(node, view):
    """Pooling over a whole map is GlobalAveragePool or GlobalMaxPool; over another window, pooling over its height, then over its width.

    The mean of a window's rows' means is its mean, padded or not, because each row of a window has as many elements; so of the maximum.
    """
    kernel, shape, pads = attribute(node, "kernel_shape", []), view.shapes.get(node.input[0]), attribute(node, "pads", [0] * 4)
    if node.op_type not in ("AveragePool", "MaxPool") or len(kernel) != 2 or kernel[0] * kernel[1] <= LARGEST_AREA or any(node.output[1:]):
        return None
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or set(attribute(node, "dilations", [1])) != {1}:
        return None
    if shape and shape[2:] == list(kernel) and not any(pads):
        return [helper.make_node(node.op_type.replace("Average", "GlobalAverage").replace("Max", "GlobalMax"), [node.input[0]], list(node.output),
                                 node.name)], []
    strides = attribute(node, "strides", [1, 1])
    same = {name: attribute(node, name) for name in ("ceil_mode", "count_include_pad") if attribute(node, name) is not None}
    rows = f"{node.output[0]}/rows"
    return [helper.make_node(node.op_type, [node.input[0]], [rows], f"{node.name}/rows", kernel_shape=[kernel[0], 1], strides=[strides[0], 1],
                             pads=[pads[0], 0, pads[2], 0], **same),
            helper.make_node(node.op_type, [rows], list(node.output), node.name, kernel_shape=[1, kernel[1]], strides=[1, strides[1]],
                             pads=[0, pads[1], 0, pads[3]], **same)], []


def as_convolution(node, view):
    """x W + b over the last axis of x, P rows of K elements, is a 1x1 convolution of a 1 x K x P x 1 map, with W transposed for weights."""
    shape, product = view.shapes.get(node.input[0]), weights_and_bias(node, view)
    if product is None or shape is None or None in shape or len(shape) < 2:
        return None
    weights, bias = product
    rows, (width, wide) = int(np.prod(shape[:-1])), weights.shape
    out, name = node.output[0], node.name or node.output[0]
    stored = {"weights": weights.T[:, :, None, None], "as_rows": np.array([1, rows, width, 1]), "as_before": np.array([*shape[:-1], wide])}
    stored |= {} if bias is None else {"bias": bias}
    turned = [helper.make_node("Reshape", [node.input[0], f"{out}/as_rows"], [f"{out}/rows"], f"{name}/rows"),
              helper.make_node("Transpose", [f"{out}/rows"], [f"{out}/map"], f"{name}/map", perm=[0, 2, 1, 3]),
              helper.make_node("Conv", [f"{out}/map", f"{out}/weights", *([f"{out}/bias"] if bias is not None else [])], [f"{out}/product"], name),
              helper.make_node("Transpose", [f"{out}/product"], [f"{out}/back"], f"{name}/back", perm=[0, 2, 1, 3]),
              helper.make_node("Reshape", [f"{out}/back", f"{out}/as_before"], [out], f"{name}/shape")]
    return turned, [numpy_helper.from_array(np.ascontiguousarray(value), f"{out}/{key}") for key, value in stored.items()]


def weights_and_bias(node, view):
    """(K x N weights, N biases or None) of a MatMul, or of a Gemm of its first operand as it is; None where they are not stored."""
    weights = view.value(given(node, 1))
    if node.op_type not in ("MatMul", "Gemm") or weights is None or weights.ndim != 2 or attribute(node, "transA", 0):
        return None
    weights = weights.T if attribute(node, "transB", 0) else weights
    weights = (weights * np.float32(attribute(node, "alpha", 1.0))).astype(weights.dtype)
    if node.op_type == "MatMul" or not given(node, 2):
        return weights, None
    bias = view.value(node.input[2])
    if bias is None or bias.size not in (1, weights.shape[1]) or bias.shape[:-1] not in ((), (1,)):
        return None
    return weights, np.broadcast_to(bias.ravel() * np.float32(attribute(node, "beta", 1.0)), weights.shape[1]).astype(weights.dtype)


def cast_first(node, view):
    """Cast(move(x)) = move(Cast(x)) for what moves values and does not compute: the move, of floats, behind a Cast of its own."""
    name, result = node.input[0], node.output[0]
    readers = [other for other in view.nodes if result in other.input]
    kinds = {attribute(other, "to") if other.op_type == "Cast" else None for other in readers}
    last = result in {value.name for value in view.model.graph.output}
    if node.op_type not in MOVES or view.kinds.get(name) != TensorProto.UINT8 or last or len(kinds) != 1 or None in kinds:
        return None
    floats = f"{node.output[0]}/cast"
    moved = helper.make_node(node.op_type, [floats, *node.input[1:]], list(node.output), node.name)
    moved.attribute.extend(node.attribute)
    return [helper.make_node("Cast", [name], [floats], f"{node.name}/cast", to=kinds.pop()), moved], []
