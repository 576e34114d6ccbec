"""FP32 graph -> FP16 graph that holds: what has to stay in FP32 is found before a device is touched, and the graph proven as a device computes it.

Range tells what overflows: a value beyond 65504 becomes infinite wherever it is stored in FP16, so the node that makes it and those that read it
are suspected, and so is a node with such a weight. Whether it matters, effect tells: a Clip makes of infinity what it made of the value, and of
what FP16 makes zero nearly all goes unnoticed. So the graph is simulated in FP16, and a node stays in FP32 only if the proof fails without that.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import passes, proof, ranges
from .errors import RtsegError
from .graphs import opset_of
from .passes import to_fp16
from .precision import offenders, refuse_most

# of values that FP16 holds these give values that it holds
EXACT = {"Abs", "Clip", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg",
         "Pad", "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
RARE = 1e-3                         # a tensor of which FP16 makes a smaller share zero than this is not why its node stays
REMEMBERED = 4                      # pictures whose reference logits are kept: a search asks for the same few again and again


def convert(model, reference, inputs, keep=()):
    """(FP16 graph, its parity report against `reference(Picture)`). Raises RtsegError naming the node or tensor that cannot be FP16.

    keep: names of nodes that stay in FP32, see beyond_range.
    """
    half = passes.checked(to_fp16.run(model, keep))
    rounded = simulated(half)
    parity = proof.against(rounded, reference, inputs, "fp16")
    if not parity["ok"]:
        where = proof.first_departure(model, rounded, inputs[parity["worst"]].fed, proof.BARS["fp16"][0])
        proof.refuse(parity, f"the FP16 graph is too far from FP32; the first tensor that departs is {where or 'the output'}")
    return half, parity


def simulated(half):
    """An FP16 graph as ONNX Runtime's CPU has to be given it for every FP16 tensor to be one: in FP32, each result rounded to FP16 and back.

    That runtime computes FP16 graphs in FP32, and rounds where it likes. Within a node sums are in FP32, as TensorRT has them unless
    it is told otherwise. Where a device fuses nodes it rounds less often.
    """
    copy = onnx.shape_inference.infer_shapes(half)
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*copy.graph.value_info, *copy.graph.output)}
    nodes = [made for node in copy.graph.node for made in in_single(node, {name for name in node.output if kinds.get(name) == TensorProto.FLOAT16})]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    for tensor in copy.graph.initializer:
        widen(tensor)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


def in_single(node, halves):
    """What stands for a node whose results `halves` are FP16."""
    if node.op_type == "Cast" and halves:
        return rounding(node.input[0], node.output[0])
    for given in node.attribute:
        if given.HasField("t"):
            widen(given.t)
    rounded = [name for name in node.output if name in halves and node.op_type not in EXACT]
    node.output[:] = [f"{name}/exact" if name in rounded else name for name in node.output]
    return [node, *(cast for name in rounded for cast in rounding(f"{name}/exact", name))]


def rounding(source, goal):
    half = f"{goal}/half"
    return [helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16), helper.make_node("Cast", [half], [goal], to=TensorProto.FLOAT)]


def widen(tensor):
    """Make a stored FP16 tensor one of FP32, in place."""
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def beyond_range(model, inputs, tell=lambda step, done: None):
    """{node that has to stay in FP32: why, see Found.reason}, in the graph's order; without any one of them the proof fails.

    inputs: name -> proof.Picture. Raises RtsegError where more than half would have to stay.
    """
    tell("comparing ranges with FP16's", None)
    found = Found(ranges.ranges(model, (picture.fed for picture in inputs.values())), ranges.weights(model), list(inputs))
    computing = [node for node in model.graph.node if node.output[0] in found.tensors]
    nodes, kept = [node.name for node in computing], [node.name for node in computing if found.loud(node)]
    refuse_most(kept, len(nodes))
    holds = trial(model, inputs, [*found.loudest(), *inputs], tell)
    if not holds(kept):
        kept = offenders(nodes, holds, kept)
    for name in list(kept):
        rest = [other for other in kept if other != name]
        kept = rest if holds(rest) else kept
    return {node.name: found.reason(node) for node in computing if node.name in kept}


def trial(model, inputs, order, tell):
    """f(names of nodes that stay in FP32) -> whether the simulated graph is then near enough to the model. order: of pictures, the most telling first."""
    opset, logits = opset_of(model), proof.logits(model)
    always = [node.name for node in model.graph.node if not to_fp16.accepts_half(node, opset)]   # to be refused, or not, by whoever asks
    known = lru_cache(REMEMBERED)(lambda name: logits(inputs[name].fed))

    def holds(kept):
        tell(f"simulating FP16, {len(kept)} nodes in FP32", None)
        try:
            rounded = simulated(passes.checked(to_fp16.run(model, [*kept, *always])))
        except RtsegError:          # a weight that FP16 cannot hold
            return False
        return all(proof.against(rounded, lambda picture: known(name), {name: inputs[name]}, "fp16")["ok"] for name in dict.fromkeys(order))

    return holds


@dataclass(frozen=True)
class Found:
    """Ranges as FP16 sees them."""
    tensors: dict                   # tensor -> ranges.Range
    weights: dict
    pictures: list                  # their names, in the order of Range.at

    def touched(self, node):
        """(tensor, its Range, the picture that it is largest on; None of a weight) for each that a node makes or reads."""
        for name in (*node.output, *node.input):
            if name in self.tensors:
                yield name, self.tensors[name], self.pictures[self.tensors[name].at]
            elif name in self.weights:
                yield name, self.weights[name], None

    def loud(self, node):
        return any(not held.largest <= to_fp16.LARGEST for _, held, _ in self.touched(node))

    def loudest(self):
        """Names of the pictures on which something overflows."""
        return list(dict.fromkeys(self.pictures[held.at] for held in self.tensors.values() if not held.largest <= to_fp16.LARGEST))

    def reason(self, node):
        """Why a node stays: {"why": "overflow", "tensor", "largest", "on": a picture's name, None of a weight}; {"why": "underflow", "tensor",
        "flushed": the share of it that FP16 makes zero}; {"why": "rounding"}."""
        touched = list(self.touched(node))
        name, held, picture = max(touched, key=lambda row: np.nan_to_num(row[1].largest, nan=np.inf))
        if not held.largest <= to_fp16.LARGEST:
            return {"why": "overflow", "tensor": name, "largest": held.largest, "on": picture}
        name, held, _ = max(touched, key=lambda row: row[1].tiny)
        return {"why": "underflow", "tensor": name, "flushed": held.tiny} if held.tiny >= RARE else {"why": "rounding"}
