"""Exact rewrites of an ONNX graph, one file each: what it does, the algebra, when it refuses.

They work on onnx_graphsurgeon graphs, in place. A rule is a module with OPS, the operators that it is for, why_not(node, graph), a
reason or "", and fold(node).
"""
from collections import Counter

import onnx
import onnx_graphsurgeon as gs

from ..errors import RtsegError, first_line
from . import (
    affine,
    before_resize,
    chains,
    clean,
    cost,
    factor,
    fold_back,
    fold_forward,
    hardswish,
    merge_convolutions,
    phases,
    scale_back,
    scale_forward,
    share_scale,
    twins,
)

RULES = (fold_back, fold_forward, scale_back, scale_forward, chains)  # one can make another possible
ALGEBRA = (twins, before_resize, share_scale, merge_convolutions, phases)  # each leaves less to compute, and none undoes another
FIRST = (hardswish, factor)         # before anything is counted: what they write is no scaling of a trained network


def optimise(model):
    """(cleaned and folded model, report). Raises RtsegError if a node that can be folded is left.

    The report counts BatchNormalizations and, under "scales", nodes that scale or shift by a constant: before, folded back, folded
    forward, merged with another or without effect, folded back beside others, kept with the reasons. Those that became part of a HardSwish
    are not counted. Under "algebra": how often each rule of ALGEBRA removed work; "macs": before, after.
    """
    graph = gs.import_onnx(clean.constants(model))
    for node in graph.nodes:
        node.name = node.name or node.outputs[0].name  # reasons name nodes
    clean.tidy(graph)
    macs = cost.total(graph)
    done = Counter({rule: fold_all(rule, graph) for rule in FIRST})
    clean.tidy(graph)
    norms, scales = len(batch_norms(graph)), len(constant_scales(graph))
    while exhausted(RULES, graph, done) or exhausted(ALGEBRA, graph, done):
        pass
    return checked(gs.export_onnx(graph)), {
        "before": norms, "back": done[fold_back], "forward": done[fold_forward],
        "kept": [explain(node, fold_back, fold_forward, graph) for node in batch_norms(graph)],
        "scales": {"before": scales, "back": done[scale_back], "forward": done[scale_forward], "merged": done[chains], "shared": done[share_scale],
                   "kept": [explain(node, scale_back, scale_forward, graph) for node in constant_scales(graph)]},
        "hardswish": done[hardswish], "algebra": {rule.__name__.rpartition(".")[2]: done[rule] for rule in (factor, *ALGEBRA)},
        "macs": {"before": macs, "after": cost.total(graph)}}


def exhausted(rules, graph, done):
    """Apply rules until none applies, and count what each did; returns whether any did."""
    any_did = False
    while any((step := {rule: fold_all(rule, graph) for rule in rules}).values()):
        done.update(step)
        clean.tidy(graph)
        any_did = True
    return any_did


def fold_all(rule, graph):
    """Apply a rule wherever it does not refuse; returns how often. A rule may return nodes of its own."""
    count, added = 0, []
    for node in graph.nodes:
        if node.op in rule.OPS and node.outputs and not rule.why_not(node, graph):
            added += rule.fold(node) or ()
            count += 1
    graph.nodes = [node for node in graph.nodes if node.outputs] + added
    return count


def batch_norms(graph):
    return [node for node in graph.nodes if node.op == "BatchNormalization"]


def constant_scales(graph):
    return [node for node in graph.nodes if affine.operands(node)]


def explain(node, back, forward, graph):
    """Why a node stays, in both directions. Raises RtsegError where it could have been folded."""
    row = {"node": node.name, "back": back.why_not(node, graph), "forward": forward.why_not(node, graph)}
    if not (row["back"] and row["forward"]):
        raise RtsegError(f"{row['node']} can be folded and was not: the export would not be what it says")
    return row


def checked(model):
    """The model, after onnx.checker and strict shape inference. Raises RtsegError."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RtsegError(f"the graph is not valid ONNX: {first_line(error)}") from None
