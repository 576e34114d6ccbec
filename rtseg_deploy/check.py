"""An ONNX file against the parser of a target: what it does not take, misreads, or does otherwise. No device and no TensorRT are needed.

The rules are facts/rules.csv and facts/operators.csv. Where TensorRT-RTX is installed its own parser is asked too: it is the target's
for TensorRT-RTX, and a proxy for TensorRT 10 and 11, whose parser it shares; of 8.x it says nothing.
"""
import importlib.util
from dataclasses import asdict, dataclass

import onnx

from . import facts, graphs, launch, rules
from .device import parser as rtx_parser
from .errors import RtsegError, first_line

ASKED = ("rtx", "10.15")            # parsers that TensorRT-RTX's own says something of
OLD = ("jetson-tx2", "gtx-1080ti")  # targets that every artifact is held against, whatever it was made for


@dataclass(frozen=True)
class Finding:
    severity: str                   # error, warning, note
    rule: str                       # a name in facts/rules.csv; "parser" where TensorRT-RTX's own says it
    node: str                       # "" for the model itself
    operator: str
    reason: str
    fix: str
    repair: str                     # a name in repairs.REPAIRS, or ""
    source: str


@dataclass(frozen=True)
class Verdict:
    """Of one file for one target."""
    target: str
    parser: str                     # a name in facts/parsers.csv
    findings: tuple
    asked: dict | None              # what TensorRT-RTX's own parser says; None where it was not asked

    @property
    def passes(self):
        return not errors(self.findings)

    def lines(self):
        """[(the first Finding of a rule, where it and its like are)]"""
        return [(one, where(one, count)) for one, count in grouped(self.findings)]

    def to_json(self):
        return {"target": self.target, "parser": self.parser, "passes": self.passes, "findings": [asdict(finding) for finding in self.findings],
                "asked": self.asked}


def errors(findings):
    return [finding for finding in findings if finding.severity == "error"]


def read(source):
    """The model in any ONNX file, its functions inlined. Raises RtsegError where it is not valid."""
    model = graphs.load(source)
    try:
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
        if not any(tensor.external_data for graph in graphs.graphs(model.graph) for tensor in graph.initializer):
            onnx.checker.check_model(model)
        graphs.opset_of(model)
    except (onnx.checker.ValidationError, UnicodeDecodeError, ValueError, RuntimeError) as error:
        raise RtsegError(f"{source} is not valid ONNX: {first_line(error)}", "export it again") from None
    return model


def findings(model, parser, capability=""):
    """Every Finding of facts/rules.csv, errors first. parser: a facts.Parser. capability: the target's, for rules that depend on it."""
    view = graphs.view(model)
    found = []
    for rule in facts.rules().values():
        if parser.name in rule.parsers and rule.capability in ("", capability):
            whole = [None] if "model" in rule.operators else []
            nodes = [node for node in view.nodes if node.op_type in rule.operators or "*" in rule.operators]
            found += [finding(rule, node) for node in whole + nodes if rules.meets(rule, node, view, parser)]
    return tuple(sorted(found, key=lambda one: ("error", "warning", "note").index(one.severity)))


def finding(rule, node):
    fix = rule.fix
    if rule.name == "operator" and facts.operators().get(node.op_type, ("", ""))[1]:
        fix = f"{fix}: {facts.operators()[node.op_type][1]}"
    return Finding(rule.severity, rule.name, node.name or next(iter(node.output), "") if node else "", node.op_type if node else "", rule.reason, fix,
                   rule.repair, rule.source)


def parser_for(target, name=""):
    """The facts.Parser that a target is judged by: its usual one, or another that serves it. Raises RtsegError for one that does not."""
    if name and name not in facts.parsers():
        raise RtsegError(f"no parser is called {name!r}", f"the known ones: {', '.join(facts.parsers())}")
    if name and not target.served_by(name):
        serve = [parser for parser in facts.parsers() if target.served_by(parser)]
        raise RtsegError(f"TensorRT {name} does not serve {target.name}", f"those that do: {', '.join(serve)}")
    return facts.parsers()[name or target.parser]


def check(model, targets, parser=""):
    """[Verdict] of a model for targets by name, judged by their own parsers or by the one of that name."""
    chosen = [(target, parser_for(target, parser)) for target in map(facts.target, targets)]
    asked = ask(model) if any(one.name in ASKED for _, one in chosen) else None
    return [verdict(model, target, one, asked if one.name in ASKED else None) for target, one in chosen]


def verdict(model, target, parser, asked=None):
    own = findings(model, parser, target.compute_capability)
    theirs = [said(row, parser, asked) for row in asked["errors"]] if asked else []
    return Verdict(target.name, parser.name, (*errors(own), *theirs, *(one for one in own if one.severity != "error")), asked)


def said(row, parser, asked):
    """What TensorRT-RTX's own parser refuses, as a Finding: for TensorRT 10 and 11 it is not the last word."""
    source = f"{asked['by']}, the parser itself" + ("" if parser.name == "rtx" else ": a proxy for TensorRT 10 and 11")
    return Finding("error" if parser.name == "rtx" else "warning", "parser", row["node"], row["operator"], row["reason"],
                   "see what the rules say of the same node", "", source)


def ask(model):
    """What TensorRT-RTX's own parser says of a model; None where it is not installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return None
    job = launch.Job({"action": "parser", "model": "model.onnx"}, {"model.onnx": model.SerializeToString()}, worker=(rtx_parser.__file__,))
    try:
        with launch.ran(job) as (result, _):
            pass
    except RtsegError as error:
        return {"by": "tensorrt_rtx", "takes": False, "errors": [{"node": "", "operator": "", "reason": f"the parser itself failed: {error.what}"}]}
    return {"by": f"tensorrt_rtx {result['version']}", "takes": result["takes"], "errors": result["errors"]}


def grouped(found):
    """[(first Finding, how many)] of each rule."""
    groups = {}
    for one in found:
        groups.setdefault((one.rule, one.reason) if one.rule == "parser" else one.rule, []).append(one)
    return [(group[0], len(group)) for group in groups.values()]


def where(one, count):
    """As in: Conv_3 (Conv) and 4 more."""
    return (f"{one.node} ({one.operator})" if one.operator else one.node or "the model") + (f" and {count - 1} more" if count > 1 else "")


def refuse(found, what):
    """Raise RtsegError for the first error, if there is one; what: begins its line."""
    for one, count in grouped(errors(found)):
        raise RtsegError(f"{what}: {where(one, count)}: {one.reason}", one.fix)


def old_parser_warnings(model):
    """What an older TensorRT misreads without a word, or does not take: 8.2 where the opset is one that it states, and 8.6."""
    lines = []
    for target in map(facts.target, OLD):
        parser = parser_for(target)
        if target.name != OLD[0] or graphs.opset_of(model) <= parser.opset:
            lines += [f"{parser.serves} ({target.device.name}): {where(one, count)}: {one.reason}; for it, export with --target {target.name}, "
                      f"or rtseg-deploy check --fix" for one, count in grouped(errors(findings(model, parser, target.compute_capability)))]
    return tuple(lines)
