"""FP32 graph -> FP16 graph, proven against the network it is to be."""
from . import passes, proof
from .passes import to_fp16


def convert(model, logits, resolution, normalisation):
    """(FP16 graph, its parity report against `logits(input)`). Raises RtsegError naming the node or tensor that cannot be FP16."""
    proof.refuse_overflow(model, resolution, normalisation, to_fp16.LARGEST)
    half = passes.checked(to_fp16.run(model))
    parity = proof.against(half, logits, resolution, normalisation, "fp16")
    if not parity["ok"]:
        x = proof.pictures(resolution, normalisation)[parity["worst"]]
        where = proof.first_departure(model, half, x, proof.BARS["fp16"][0])
        proof.refuse(parity, f"the FP16 graph is too far from FP32; the first tensor that departs is {where or 'the output'}")
    return half, parity
