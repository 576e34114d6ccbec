"""How large, and how small, the values of each tensor become: of the weights, and of what a graph computes on pictures that pass by one at a time.

The tensors are asked for and looked at here: reductions within the graph took ten times as long and more memory (measured at 1024x2048).
"""
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from . import proof

FLUSHED = 2.0 ** -25                # magnitudes up to here become zero in FP16: half of its smallest number, 2^-24, and a tie goes to zero
GROUP = 512 << 20                   # bytes of tensors that are asked for at once; the graph runs once for each group
BLOCK = 1 << 17                     # values that are looked at at once: they stay in a processor's cache


@dataclass(frozen=True)
class Range:
    """What a tensor holds, over all pictures. Not a number where one value is none."""
    low: float
    high: float
    largest: float                  # magnitude
    smallest: float                 # magnitude above zero; infinite where all are zero
    nonzero: int                    # values
    held: int                       # of those, what FP16 does not make zero
    at: int = 0                     # number of the picture with the largest magnitude

    @property
    def tiny(self):
        """The share, of what is not zero, that FP16 makes zero."""
        return 1 - self.held / self.nonzero if self.nonzero else 0.0

    def __or__(self, later):
        """Of both. NaN, once seen, stays."""
        louder = not later.largest <= self.largest and not np.isnan(self.largest)
        return Range(float(np.minimum(self.low, later.low)), float(np.maximum(self.high, later.high)), float(np.maximum(self.largest, later.largest)),
                     min(self.smallest, later.smallest), self.nonzero + later.nonzero, self.held + later.held, later.at if louder else self.at)


NOTHING = Range(np.inf, -np.inf, 0.0, np.inf, 0, 0)


def ranges(model, feeds):
    """Tensor -> Range of each float32 tensor that a model computes, over inputs as the graph takes them. One input is held at a time."""
    groups = [(names, proof.session(proof.with_outputs(model, names))) for names in grouped(model)]
    found = {name: NOTHING for names, _ in groups for name in names}
    for number, fed in enumerate(feeds):
        for names, runner in groups:
            for name, values in zip(names, runner.run(None, {"input": fed})):
                found[name] |= of(values, number)
    return found


def grouped(model):
    """The float32 tensors that a model computes, in its order, in lists of at most GROUP bytes."""
    sizes, groups, room = floats(model), [], 0
    for name in (name for node in model.graph.node for name in node.output if name in sizes):
        if sizes[name] > room:
            groups.append([])
            room = GROUP
        groups[-1].append(name)
        room -= sizes[name]
    return groups


def floats(model):
    """float32 tensor -> its bytes, as far as the shape is known."""
    values = (*onnx.shape_inference.infer_shapes(model).graph.value_info, *model.graph.output)
    kinds = {value.name: value.type.tensor_type for value in values}
    return {name: 4 * int(np.prod([side.dim_value for side in kind.shape.dim])) for name, kind in kinds.items() if kind.elem_type == TensorProto.FLOAT}


def weights(model):
    """Initialiser -> Range of each float32 one."""
    return {tensor.name: of(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}


def of(values, at=0):
    """The Range of an array."""
    found, flat = NOTHING, values.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        found |= of_block(flat[start:start + BLOCK], at)
    return found


def of_block(block, at):
    size = np.abs(block)
    return Range(float(block.min()), float(block.max()), float(size.max()), float(size.min(where=size > 0, initial=np.inf)),
                 int(np.count_nonzero(size)), int(np.count_nonzero(size > FLUSHED)), at)
