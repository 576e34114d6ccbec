"""Results -> everything that a report shows, as plain values: its pages, tables and pictures are drawn from these alone."""
from dataclasses import replace
from itertools import groupby

from . import beside, facts
from .records import FORMAT, size
from .results import SENSORS, number

COUNTERS = ("t", "throttled_by", "energy_j", "cpu_energy_j")     # of telemetry: what is no value of its moment
STATISTICS = ("fps", "fps_low", "fps_high", "mean_ms", "median_ms", "p90_ms", "p99_ms", "p99_bound_ms", "energy_j")
BESIDES = ("time", "load", "boundary", "environment")      # of an environment: what differs from process to process, or is said elsewhere


def summary(results, paper=None, table=None, tell=lambda step, done: None):
    """{figures, groups, papers, accuracy, conditions, curves, results}; figures are in the order in which they are shown. Raises RtsegError."""
    ordered = sorted(results, key=lambda r: (r.value["protocol"], r.value["boundary"], r.network, r.resolution, r.value["backend"], r.precision))
    ordered = [replace(result, value={"number": number, "result": result.file, "sha256": result.sha256, **result.value})
               for number, result in enumerate(ordered, 1)]
    figures = [headline(result) for result in ordered]
    groups = [{"protocol": protocol, "boundary": boundary, "clock": clock, "numbers": [figure["number"] for figure in members]}
              for (protocol, boundary, clock), members in groupby(figures, lambda figure: [figure[name] for name in ("protocol", "boundary", "clock")])]
    return {"format": FORMAT, "kind": "report", "figures": figures, "groups": groups, "papers": beside.of_paper(ordered, paper, table, tell) if paper else [],
            "accuracy": beside.accuracy(ordered, paper), "conditions": conditions(ordered), "curves": curves(ordered),
            "results": [result.value for result in ordered]}


def headline(result):
    """What a table has of a figure. Times are milliseconds; None for what is not known."""
    value, statistics = result.value, result.statistics
    queued = statistics.get("back_to_back_ms")
    return {**{name: value[name] for name in ("number", "backend", "protocol", "boundary", "status", "notes", "result", "sha256")},
            **{name: statistics.get(name) for name in STATISTICS}, "network": result.network, "resolution": size(result.resolution),
            "precision": result.computed, "output": value["artifact"]["output"], "device": result.machine, "clock": result.clock,
            "iterations": len(result.runs[0]["seconds"]), "processes": len(result.runs), "approximate": bool(statistics.get("approximate")),
            "back_to_back_fps": 1e3 / queued if queued else None, "stages_ms": result.stages,
            "warnings": [f"{one['flag']}: {one['says'].removeprefix(one['flag'] + ': ')}" for one in value["warnings"]]}


# ---- conditions


def conditions(results):
    """{shared: what is the same for all, each: the rest of each figure, in order}; names and texts."""
    each = [conditions_of(result) for result in results]
    shared = {name: text for name, text in each[0].items() if len(each) > 1 and all(one.get(name) == text for one in each)}
    return {"shared": shared, "each": [{name: text for name, text in one.items() if name not in shared} for one in each]}


def conditions_of(result):
    value, first = result.value, result.runs[0]
    warm = [len(run["warmup_seconds"]) for run in result.runs]
    found = {"artifact": f"{value['file']}, sha256 {value['artifact'].get('sha256', 'unknown')}", "input": f"{value['artifact']['input']}, {value['input']}",
             "output": value["artifact"]["output"], "BatchNorm": value["bn"], "protocol": value["protocol"], "inside the clock": value["boundary"],
             "run for the figure": value["figure"], "iterations asked for": str(value["iterations"]), "processes": str(len(result.runs)),
             "warm-up": f"{span(warm)} steps, {'converged' if all(run['warmup_converged'] for run in result.runs) else 'NOT converged'}",
             "minor page faults an iteration": span([round(run["minor_faults"] / len(run["seconds"]), 1) for run in result.runs]),
             "cost of the clock": f"{span([round(1e6 * run['empty_seconds'], 3) for run in result.runs])} µs a step",
             "timed at": " to ".join(dict.fromkeys(pick(str(run["environment"].get("time", "?")) for run in result.runs) for pick in (min, max)))}
    for name, text in flat(first["environment"]):
        found[name] = text
    found["load before"] = span([run["environment"]["load"] for run in result.runs if number(run["environment"].get("load"))])
    found.update(sampled(result))
    found.update({f"labels equal to {other}": f"{share:.3%}" for other, share in value["same_labels"].items()})
    return {name: text for name, text in found.items() if text}


def flat(environment):
    """Names and texts of an environment, the parts of a part each by itself."""
    for name, value in environment.items():
        for part, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if name not in BESIDES and inner not in (None, "", []):
                yield f"{name} {part}".strip().replace("_", " "), ", ".join(map(str, inner)) if isinstance(inner, list) else str(inner)


def sampled(result):
    """What the device said while it was timed, from the least to the most."""
    names = dict.fromkeys(name for run in result.runs for row in run["telemetry"] for name in row if name not in COUNTERS and number(row[name]))
    found = {SENSORS.get(name, name.replace("_", " ")): span(result.telemetry(name)) for name in names}
    reasons = dict.fromkeys(str(reason) for reasons in result.telemetry("throttled_by") for reason in reasons)
    if result.telemetry("throttled_by"):
        found["throttled by"] = ", ".join(reasons) or "nothing"
    if result.statistics.get("energy_j"):
        found["energy"] = f"{result.statistics['energy_j']:.3g} J an image"
    return found


def span(values):
    low, high = min(values, default=""), max(values, default="")
    return f"{low:g}" if low == high != "" else f"{low:g} to {high:g}" if values else ""


# ---- curves


def curves(results):
    """Milliseconds against megapixels: a panel for each network and protocol, a line for each backend and precision."""
    found = []
    ordered = sorted(results, key=lambda r: (r.network, r.value["protocol"], r.megapixels))
    for (network, protocol), members in groupby(ordered, lambda r: (r.network, r.value["protocol"])):
        lines = {}
        for result in members:
            reduced = "" if result.precision == "fp32" else f" {result.precision}"
            lines.setdefault(result.value["backend"] + reduced, []).append((result.megapixels, result.ms))
        points = printed(network, protocol)
        if sum(map(len, (*lines.values(), *points.values()))) > 1:
            found.append({"network": network, "protocol": protocol, "lines": lines, "points": points})
    return found


def printed(network, protocol):
    """{the paper's device: [(megapixels, ms)]} of a network, where its paper was timed by that protocol."""
    found = {}
    for figure in facts.papers():
        if figure.network == network and (figure.fps or figure.ms) and facts.timed(figure.paper, figure.table)["protocol"] == protocol:
            height, width = figure.input
            pair = height * width / 1e6, 1e3 / figure.fps if figure.fps else figure.ms
            group = found.setdefault(figure.device, [])
            group += [pair] * (pair not in group)
    return {name: sorted(group) for name, group in found.items()}
