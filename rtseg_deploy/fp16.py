"""FP32 graph -> FP16 graph, proven against the network it is to be."""
from . import passes, proof
from .passes import to_fp16
from .precision import refuse_most


def convert(model, reference, inputs, keep=()):
    """(FP16 graph, its parity report against `reference(Picture)`). Raises RtsegError naming the node or tensor that cannot be FP16.

    keep: names of nodes that stay in FP32, see beyond_range.
    """
    proof.refuse_overflow(model, inputs, to_fp16.LARGEST, keep)
    half = passes.checked(to_fp16.run(model, keep))
    parity = proof.against(half, reference, inputs, "fp16")
    if not parity["ok"]:
        where = proof.first_departure(model, half, inputs[parity["worst"]].fed, proof.BARS["fp16"][0])
        proof.refuse(parity, f"the FP16 graph is too far from FP32; the first tensor that departs is {where or 'the output'}")
    return half, parity


def beyond_range(model, inputs):
    """Names of the nodes that have to stay in FP32, in their order: they give or read a tensor, or hold a weight, that FP16 cannot hold.

    Raises RtsegError where they are more than half.
    """
    loud = {name for _, name, _, _ in proof.overflows(model, inputs, to_fp16.LARGEST)}
    kept = [node.name for node in model.graph.node if loud & {*node.input, *node.output} or to_fp16.loud_weight(node, model)]
    refuse_most(kept, len(model.graph.node))
    return kept
