"""FP32 graph -> FP16 graph, proven against the network it is to be."""
from . import passes, proof
from .passes import to_fp16


def convert(model, reference, inputs):
    """(FP16 graph, its parity report against `reference(Picture)`). Raises RtsegError naming the node or tensor that cannot be FP16."""
    proof.refuse_overflow(model, inputs, to_fp16.LARGEST)
    half = passes.checked(to_fp16.run(model))
    parity = proof.against(half, reference, inputs, "fp16")
    if not parity["ok"]:
        where = proof.first_departure(model, half, inputs[parity["worst"]].fed, proof.BARS["fp16"][0])
        proof.refuse(parity, f"the FP16 graph is too far from FP32; the first tensor that departs is {where or 'the output'}")
    return half, parity
