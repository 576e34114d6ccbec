"""A network of every paper, as torch exports it at three opsets, against the parsers: as it is, and after the repairs."""
import torch

from . import check, checkpoints, facts, models, passes, repairs
from .deployed import deployed
from .export import trace

OPSETS = 13, 17, 20
PARSERS = "8.2", "8.6", "10.15", "rtx"
RESOLUTION = 128, 256
CAPABILITY = "7.5"                  # TensorRT-RTX's parser is the one for which it matters; 10.x has no rule that asks


def families(tell):
    """A row of plain values for each paper's first network and each opset."""
    papers = {}
    for network in models.networks().values():
        papers.setdefault(network.paper, network.name)
    return [row(name, opset, tell) for name in papers.values() for opset in OPSETS]


def row(name, opset, tell):
    tell(f"exporting {name} at opset {opset}", None)
    raw = trace(deployed(checkpoints.seeded(name), "labels", opset), torch.zeros(1, 3, *RESOLUTION), opset)
    model, _ = passes.optimise(raw)
    found = {"network": name, "opset": opset}
    for parser in map(facts.parsers().get, PARSERS):
        mended, _ = repairs.repaired(model, parser, CAPABILITY)
        words = [brief(check.findings(one, parser, CAPABILITY)) for one in (raw, model, mended)]
        found[f"{parser.name}, as torch writes it"], found[f"{parser.name}, exported"], found[f"{parser.name}, --fix"] = words
    return {**found, **agreement(raw, model)}


def brief(findings):
    """As in: passes, 2 warnings; or: reduce-axes at 3 nodes."""
    errors = check.errors(findings)
    warnings = sum(one.severity == "warning" for one in findings)
    if errors:
        return "; ".join(f"{one.rule} x {count}" for one, count in check.grouped(errors))
    return "passes" + (f", {warnings} warnings" if warnings else "")


def agreement(*versions):
    """Whether TensorRT-RTX's own parser says the same as the rules for it do, of each version of a graph."""
    said = [check.ask(model) for model in versions]
    if None in said:
        return {"the parser itself": "not installed"}
    ours = [not check.errors(check.findings(model, facts.parsers()["rtx"])) for model in versions]
    return {"the parser itself": "agrees" if [one["takes"] for one in said] == ours else "differs"}
