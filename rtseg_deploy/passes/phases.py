"""A convolution after a nearest enlargement by whole numbers as smaller convolutions of the small map, one for each place in the repeated pixel.

    y[k i + d] = sum over j of W[j] R(x)[k i + d + j - p] = sum over j of W[j] x[i + floor((d + j - p) / k)]        0 <= d < k, in both axes

Taps that meet the same pixel of x are added up beforehand: a 3x3 kernel after an enlargement by 2 has 2x2 of them, 4 products for each
result where there were 9. The border agrees: what lies beyond the large map lies beyond the small one, and is zero in both. Concat and
DepthToSpace put the results side by side. Refused where a kernel would not shrink, for strides, dilations and groups, and where the
result is of another size than the enlarged map. Computed in float64, rounded once.
"""
import itertools

import numpy as np
import onnx_graphsurgeon as gs

from .cost import known
from .fold_back import parameters
from .merge_convolutions import not_exact
from .scale_back import keeps

OPS = ("Conv",)


def why_not(conv, graph):
    """Why this convolution stays on the enlarged map; empty where it goes to the small one."""
    resize = next(iter(conv.inputs[0].inputs), None)
    if resize is None or resize.op != "Resize":
        return "its input does not come from a Resize"
    return not_exact(conv) or not_repeating(resize) or not_same(conv) or ("" if shrinks(conv, factors(resize)) else "its kernel would not shrink")


def not_repeating(resize):
    """Why a Resize does more than repeat each pixel as often in both axes; empty where it does just that."""
    attributes = [resize.attrs.get(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if attributes != ["nearest", "asymmetric", "floor"]:
        return f"{resize.name} is not the nearest one that only repeats pixels"
    if not (keeps(resize, 0) and keeps(resize, 1)):
        return f"{resize.name} may mix channels"
    rows, columns = factors(resize)
    return "" if rows == columns and rows > 1 and rows == int(rows) else f"{resize.name} does not enlarge both axes by one whole number"


def factors(resize):
    """By what a Resize enlarges height and width, as its scales say it, or its sizes."""
    scales = next((tensor.values for tensor in resize.inputs[2:3] if isinstance(tensor, gs.Constant) and tensor.values.size), None)
    if scales is None:
        small, large = known(resize.inputs[0]), known(resize.outputs[0])
        return [large[axis] / small[axis] for axis in (2, 3)] if len(small) == len(large) == 4 and all(small) else [0, 0]
    axes = list(resize.attrs.get("axes", range(4)))
    return [float(scales[axes.index(axis)]) for axis in (2, 3)]


def not_same(conv):
    """Why a convolution gives no map of its input's size from every pixel's surroundings alone; empty where it does."""
    if len(conv.inputs[1].shape) != 4:
        return "it is not one of maps"
    if conv.attrs.get("group", 1) != 1 or {*conv.attrs.get("strides", [1]), *conv.attrs.get("dilations", [1])} != {1}:
        return "it has groups, a stride or a dilation"
    same = conv.outputs[0].shape is not None and list(conv.outputs[0].shape[2:]) == list(conv.inputs[0].shape[2:])
    return "" if same and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET" else "it gives another size than it reads"


def reach(side, pad, factor, place):
    """For each tap of one axis the pixel of the small map that it meets, from the one that holds the result."""
    return [(place + tap - pad) // factor for tap in range(side)]


def shrinks(conv, enlarged):
    kernel, pads, factor = conv.inputs[1].shape[2:], conv.attrs.get("pads", [0] * 4), int(enlarged[0])
    return any(len(set(reach(side, pad, factor, place))) < side for side, pad in zip(kernel, pads) for place in range(factor))


def fold(conv):
    resize, result, weight = conv.inputs[0].inputs[0], conv.outputs[0], parameters(conv)[0]
    factor, made, parts = int(factors(resize)[0]), {}, []
    for places in itertools.product(range(factor), repeat=2):
        kernel, pads = weight, []
        for axis, place in enumerate(places):
            kernel, ends = gathered(kernel, axis + 2, reach(weight.shape[axis + 2], conv.attrs["pads"][axis], factor, place))
            pads.append(ends)
        key = kernel.tobytes(), *pads  # places that meet the same pixels have one convolution
        made[key] = made.get(key) or phase(conv, resize.inputs[0], places, kernel, pads)
        parts.append(made[key].outputs[0])
    batch, channels, *sides = parts[0].shape
    together = gs.Variable(f"{result.name}/phases", result.dtype, [batch, channels * factor**2, *sides])
    conv.op, conv.attrs, conv.inputs = "DepthToSpace", {"blocksize": factor, "mode": "DCR"}, [together]
    return [*made.values(), gs.Node("Concat", together.name, {"axis": 1}, parts, [together])]


def phase(conv, source, places, kernel, pads):
    """The convolution of the small map that gives one place of every repeated pixel."""
    result, kind = conv.outputs[0], conv.inputs[1].values.dtype
    name = f"{result.name}/phase_{places[0]}_{places[1]}"
    attributes = {"kernel_shape": list(kernel.shape[2:]), "pads": [*(ends[0] for ends in pads), *(ends[1] for ends in pads)]}
    made = gs.Variable(name, result.dtype, [*result.shape[:2], *source.shape[2:]])
    return gs.Node("Conv", name, attributes, [source, gs.Constant(f"{name}.weight", kernel.astype(kind)), *conv.inputs[2:]], [made])


def gathered(weight, axis, met):
    """(weight with the taps of an axis added up that meet the same pixel, pixels that are needed beyond either end)."""
    first, last = min(*met, 0), max(*met, 0)
    kernel = np.zeros([last - first + 1 if number == axis else side for number, side in enumerate(weight.shape)])
    np.add.at(kernel, (slice(None),) * axis + ([pixel - first for pixel in met],), weight)
    return kernel, (-first, last)
