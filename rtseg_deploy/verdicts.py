"""A network of every paper, as torch exports it at three opsets, against the parsers: as it comes, folded, and after the repairs."""
import torch

from . import check, checkpoints, facts, models, passes, repairs
from .deployed import deployed
from .export import trace

OPSETS = 13, 17, 20
PARSERS = "8.2", "8.6", "10.15", "rtx"
RESOLUTION = 128, 256
CAPABILITY = "7.5"                  # of the RTX 2080 Ti: only for TensorRT-RTX are there rules that ask


def families(tell):
    """Rows of plain values: each paper's first network, at each opset, in three forms."""
    papers = {}
    for network in models.networks().values():
        papers.setdefault(network.paper, network.name)
    return [row for name in papers.values() for opset in OPSETS for row in forms(name, opset, tell)]


def forms(name, opset, tell):
    tell(f"{name} at opset {opset}", None)
    raw = trace(deployed(checkpoints.seeded(name), "labels", opset), torch.zeros(1, 3, *RESOLUTION), opset)
    folded, _ = passes.optimise(raw)
    parsers = [facts.parsers()[one] for one in PARSERS]
    versions = {"as torch writes it": [raw] * len(parsers), "as export folds it": [folded] * len(parsers),
                "after --fix": [repairs.repaired(folded, parser, CAPABILITY)[0] for parser in parsers]}
    for form, graphs in versions.items():
        found = [check.findings(graph, parser, CAPABILITY) for graph, parser in zip(graphs, parsers)]
        yield {"network": name, "opset": opset, "graph": form, **{one: brief(seen) for one, seen in zip(PARSERS, found)},
               "the real parser": agreement(check.ask(graphs[-1]), not check.errors(found[-1]))}


def brief(found):
    """As in: passes, 2 warnings; or: reduce-axes x 9."""
    words = [f"{one.rule} x {count}" for one, count in check.grouped(check.errors(found))]
    warnings = sum(one.severity == "warning" for one in found)
    return "; ".join(words or ["passes"]) + (f", {warnings} warning{'s' * (warnings != 1)}" if warnings else "")


def agreement(said, ours):
    """Whether TensorRT-RTX's own parser takes a graph just where the rules for it do."""
    if said is None:
        return "not installed"
    return "agrees" if said["takes"] == ours else "differs: " + said["errors"][0]["reason"] if said["errors"] else "differs: it takes it"
