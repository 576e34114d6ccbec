"""Exact rewrites of an ONNX graph, one file each: what it does, the algebra, when it refuses.

They work on onnx_graphsurgeon graphs, in place. A folding rule is a module with why_not(bn, graph), a reason or "", and fold(bn).
"""
import onnx
import onnx_graphsurgeon as gs

from ..errors import RtsegError
from . import clean, fold_back, fold_forward


def optimise(model):
    """(cleaned and folded model, fold report). Raises RtsegError if a BatchNormalization that can be folded is left."""
    graph = gs.import_onnx(clean.constants(model))
    before = sum(node.op == "BatchNormalization" for node in graph.nodes)
    back = forward = 0
    while True:
        folded = fold_all(fold_back, graph), fold_all(fold_forward, graph)
        if not any(folded):
            break
        back += folded[0]
        forward += folded[1]
    clean.tidy(graph)
    kept = [explain(node, graph) for node in graph.nodes if node.op == "BatchNormalization"]
    for row in kept:
        if not (row["back"] and row["forward"]):
            raise RtsegError(f"{row['node']} can be folded and was not: the export would not be what it says")
    return checked(gs.export_onnx(graph)), {"before": before, "back": back, "forward": forward, "kept": kept}


def fold_all(rule, graph):
    """Apply a folding rule wherever it does not refuse; returns how often."""
    foldable = [node for node in graph.nodes if node.op == "BatchNormalization" and not rule.why_not(node, graph)]
    for bn in foldable:
        rule.fold(bn)
    folded = set(map(id, foldable))
    graph.nodes = [node for node in graph.nodes if id(node) not in folded]
    return len(foldable)


def explain(bn, graph):
    """Why a BatchNormalization stays, in both directions; an empty reason means that it could have been folded."""
    return {"node": bn.name, "back": fold_back.why_not(bn, graph), "forward": fold_forward.why_not(bn, graph)}


def checked(model):
    """The model, after onnx.checker and strict shape inference. Raises RtsegError."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RtsegError(f"the graph is not valid ONNX: {str(error).splitlines()[0]}") from None
