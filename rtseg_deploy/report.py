"""What a person reads: tables and lines for the terminal."""
import math
from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from . import backends, facts
from .records import size


def mib(count):
    return f"{count / 2**20:,.1f} MiB"


def artifact_table(path, artifact):
    """What was exported and what was proven of it."""
    table = Table("", "", show_header=False, box=SIMPLE_HEAD)
    fold = artifact.checks["fold"]
    names = f" ({artifact.class_set})" if artifact.class_set else ""
    known = {"adopted": "from an ONNX file", "seeded": "random weights", "own": "by its own code"}
    origin = known.get(artifact.dialect, f"checkpoint, {artifact.dialect} dialect")
    table.add_row("network", f"{artifact.model}, {origin}, {artifact.classes} classes{names}")
    weights = mib(artifact.weights_bytes)
    table.add_row("graph", f"{size(artifact.resolution)}, {artifact.output}, {artifact.precision}, opset {artifact.opset}, weights {weights}")
    table.add_row("input", f"{artifact.input}, mean {artifact.normalisation['mean']}, std {artifact.normalisation['std']}")
    table.add_row("BatchNorm", f"{fold['before']} before, {fold['back']} folded back, {fold['forward']} folded forward, {len(fold['kept'])} kept")
    for row in fold["kept"]:
        table.add_row("", f"{row['node']}: not back, {row['back']}; not forward, {row['forward']}")
    scales = fold["scales"]
    if scales["before"]:
        table.add_row("constant scales", f"{scales['before']} before, {scales['back']} folded back, {scales['forward']} folded forward, "
                                         f"{scales['merged']} merged, {scales.get('shared', 0)} shared, {len(scales['kept'])} kept")
    if "macs" in fold:  # not in sidecars from before there was a count
        table.add_row("MACs", macs_text(fold))
    parity = artifact.checks["parity"]
    bar, inputs = parity["bar"], parity["inputs"]
    if len(inputs) > MOST_PICTURES:
        inputs = {f"worst of {len(inputs)}: {parity['worst']}": inputs[parity["worst"]]}
    for name, row in inputs.items():
        logits = "" if row["relative"] is None else f"max |Δ| {row['relative']:.1e} of the logits' scale (bar {bar[0]:.0e}), "
        table.add_row(f"parity, {name}", f"{logits}labels equal {row['labels_equal']:.4%}" + (f", ties {row['ties']:.4%}" if row.get("ties") else ""))
    table.add_row("sha256", artifact.sha256)
    return Group(Text(str(path), no_wrap=True, overflow="ignore"), table)


def macs_text(fold):
    """What rewriting left of a graph's multiply-accumulates, and what it did."""
    before, after = fold["macs"]["before"], fold["macs"]["after"]
    rules = [f"{name.replace('_', ' ')} {count}" for name, count in fold["algebra"].items() if count]
    return f"{before / 1e9:.4g} G before, {after / 1e9:.4g} G after ({100 * after / max(before, 1) - 100:+.1f} %)" + "".join(f", {rule}" for rule in rules)


def side_by_side(title, headings, rows):
    """A table with a column for each thing and a row for each property, which fits a narrow terminal; rows: [(property, values)]."""
    table = Table("", *(Column(Text(heading), justify="right") for heading in headings), box=SIMPLE_HEAD)
    for name, values in rows:
        table.add_row(name, *values)
    return Group(title, table)


def engines_table(engines):
    """engines: [(path, Artifact)]."""
    checks = [engine.checks for _, engine in engines]
    return side_by_side(
        "Engines, built ahead of time and not run: that needs the device", [f"{engine.target}\n{engine.precision}" for _, engine in engines],
        [("layers in INT8", [str(c["layers"].get("int8", 0)) for c in checks])] * any("int8" in c["layers"] for c in checks) +
        [("layers in FP16", [str(c["layers"]["fp16"]) for c in checks]), ("layers in FP32", [str(c["layers"]["fp32"]) for c in checks]),
         ("engine", [mib(c["bytes"]) for c in checks]), ("weights", [mib(engine.weights_bytes) for _, engine in engines]),
         ("built in", [f"{c['build_seconds']:.1f} s" for c in checks])])


def bench_table(benchmarks):
    """benchmarks: [(result file, Benchmark)]."""
    figures = [benchmark for _, benchmark in benchmarks]
    statistics = [figure.statistics for figure in figures]
    rows = [("FPS", ["" if f.backend == "null" else f"{s['fps']:,.1f}" for f, s in zip(figures, statistics)])]
    rows.append(("95 %", ["" if f.backend == "null" else within(s, "fps", "{:,.1f}") for f, s in zip(figures, statistics)]))
    rows += [(f"{name} ms", [milliseconds(s[key]) if key in s else "" for s in statistics]) for name, key in MILLISECONDS if any(key in s for s in statistics)]
    stages = dict.fromkeys(name for figure in figures for name in figure.runs[0].stages)
    rows += [(f"{name} ms", [stage(figure, name) for figure in figures]) for name in stages]
    rows += [("joules an image", [f"{s['energy_j']:.3g}" if "energy_j" in s else "" for s in statistics])] if any("energy_j" in s for s in statistics) else []
    if any(not backends.on_gpu(figure.backend) for figure in figures):
        rows.append(("page faults an iteration", [faults(figure) for figure in figures]))
    rows += [("iterations", [f"{len(f.runs)} x {f.iterations}" if len(f.runs) > 1 else str(f.iterations) for f in figures]),
             ("status", [Text("unstable", "yellow") if f.warnings else "stable" for f in figures])]
    said = dict.fromkeys(f"{figure.protocol} ({CLOCKS[facts.protocol(figure.protocol).clock]}): {figure.boundary}" for figure in figures)
    return side_by_side(f"Speed, batch 1; protocol {'; '.join(said)}",
                        [f"{f.artifact['model']} {size(f.resolution)}\n{f.artifact['precision']} {f.artifact['output']}\n{f.backend}" for f in figures], rows)


MOST_PICTURES = 8                   # of a proof, that get a row each
CLOCKS = {"each": "each step by itself", "together": "all steps under one bracket", "both": "each step by itself, and all under one bracket",
          "overlapping": "ms of each frame from its begin to its end, FPS of all under one bracket"}
MILLISECONDS = (*((name, f"{name.lower()}_ms") for name in ("mean", "median", "MAD", "p90", "p95", "p99")), ("p99 at most", "p99_bound_ms"), ("min", "min_ms"),
                ("max", "max_ms"), ("device median", "device_median_ms"), ("enqueue median", "enqueue_median_ms"), ("back to back", "back_to_back_ms"))


def within(statistics, name, form):
    """The interval of a statistic; one bracket has none."""
    low, high = statistics[f"{name}_low"], statistics[f"{name}_high"]
    return "" if low is None else f"{form.format(low)} to {form.format(high)}{' approx.' if statistics['approximate'] else ''}"


def stage(figure, name):
    samples = [seconds for run in figure.runs for seconds in run.stages.get(name, ())]
    return milliseconds(1e3 * sum(samples) / len(samples)) if samples else ""


def faults(figure):
    """Of a CPU: memory that a runtime takes anew each time costs it a minor page fault for every page."""
    counted = sum(run.minor_faults for run in figure.runs) / sum(len(run.seconds) for run in figure.runs)
    return "" if backends.on_gpu(figure.backend) else f"{counted:,.1f}"


def milliseconds(value):
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def protocol_rows(protocols):
    """Rows of plain values; protocols: facts.Protocol."""
    return [{"protocol": one.name, "inside the clock": one.boundary, "clock": CLOCKS[one.clock], "N": one.iterations, "input": one.input or "any",
             "output": one.output or "any", "precision": one.precision or "any", "BatchNorm": one.bn or "any", "what": one.about, "source": one.source}
            for one in protocols]


def plan_rows(outcomes):
    """Rows of plain values; outcomes: campaign.Outcome."""
    rows = []
    for one in outcomes:
        told = one.result["statistics"] if one.result else None
        rows.append({"network": one.row.subject, "resolution": size(one.row.resolution) if one.row.resolution else "", "precision": one.row.precision or "",
                     "figure of": one.row.device, "backend": one.backend, "FPS": f"{told['fps']:,.1f}" if told else "",
                     "95 %": within(told, "fps", "{:,.1f}") if told else "", "ms": milliseconds(told["mean_ms"]) if told else "",
                     "status": one.result["status"] if told else one.skipped or "failed"})
    return rows


def remarks(benchmarks):
    """Lines under the table: what makes a figure doubtful, and what limits its meaning."""
    for path, b in benchmarks:
        name = f"{size(b.resolution)} {b.backend}"
        yield from (f"unstable: {name}: {warning.flag}: {warning.says}" for warning in b.warnings)
        yield from (f"note: {name}: {note}" for note in b.notes)
        yield from (f"{name} and {other}: {share:.3%} of labels equal" for other, share in b.same_labels.items())
        yield f"{name}: {path}"


def probe_table(found):
    """found: see runner.probe; what is made of parts is shown a line a part."""
    table = Table("", "", show_header=False, box=SIMPLE_HEAD)
    for name, value in found.items():
        for part, inner in value.items() if isinstance(value, dict) else [("", value)]:
            if inner not in (None, "", []):
                table.add_row(f"{name} {part}".strip().replace("_", " "), Text(cell(inner)))
    return table


def plain_table(rows):
    """Rows, dicts of plain values, as a table; what is the same in every row, or empty, and longer words, go under it."""
    asides = [name for name in ("paper", "reason", "note") if name in rows[0]]
    names = [name for name in rows[0] if name not in asides and any(row[name] not in ("", None, []) for row in rows)]
    table = Table(*(Column(name, justify="right" if isinstance(rows[0][name], (int, float)) else "left") for name in names), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell(row[name])) for name in names))
    said = dict.fromkeys(f"{row['network']}: {row[name]}" for name in asides if name != "paper" for row in rows if row[name])
    return Group(table, *said)


def brackets(rows, width=20):
    """The rows with a picture of each bracket, all on one logarithmic scale."""
    ends = [[math.log(row[end]) for end in ("optimistic ms", "pessimistic ms")] for row in rows]
    low, high = min(first for first, _ in ends), max(last for _, last in ends)
    cells = [[round((end - low) / (high - low) * (width - 1)) for end in pair] for pair in ends]
    return [{**row, "bracket": "".join("=" if first <= n <= last else "." for n in range(width))} for row, (first, last) in zip(rows, cells)]


def markdown_table(rows):
    """The same for a document."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join("| " + " | ".join(no_markup(cell(value)) for value in line) + " |" for line in lines)


def no_markup(text):
    """A cell's text, which a name in a file makes neither more cells of, nor lines, nor HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")


def cell(value):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def exact(found):
    """Those of the nearest implementations that a file fits."""
    return [near for near in found["nearest"] if not near["differences"]]


def inspection_table(found):
    """found: see inspection.inspect."""
    table = Table("", "", show_header=False, box=SIMPLE_HEAD)
    wrapped = " in ".join([*("prefix " + p.rstrip(".") for p in found["prefixes"]), *reversed(found["containers"])]) or "none"
    rows = [("network", found["network"] or ("one of several" if len(exact(found)) > 1 else "none that is known")), ("wrapper", wrapped),
            ("weights", f"{found['tensors']} tensors, {found['parameters']:,} parameters, saved as {', '.join(found['saved_as'])}")]
    if found["beside"]:
        rows.append(("beside them", ", ".join(f"{name} {str(value)[:60]}" for name, value in found["beside"].items())))
    if found["network"]:
        rows[1:1] = [("saved by", f"{found['source']} ({found['dialect']})"), ("classes", str(found["classes"])),
                     ("arithmetic", ", ".join(f"{name} {value}" for name, value in found["arithmetic"].items()) or "as the paper's"),
                     *([("or else", " or ".join(f"--dialect {name}" for name in found["otherwise"]) + ": the same keys, another arithmetic")]
                       if found["otherwise"] else []),
                     ("enlarged", {"corners": "bilinear, corners aligned"}.get(found["enlarged"], found["enlarged"])),
                     ("sizes", f"multiples of {found['multiple']}" if found["multiple"] > 1 else "any"),
                     ("trained to see", f"RGB / 255, mean {found['normalisation']['mean']}, std {found['normalisation']['std']}"),
                     ("not needed", f"{found['dropped']} tensors: {', '.join(found['dropped_keys'])}" if found["dropped"] else "nothing")]
    else:
        rows.append(("why", f"{found['why']}; {found['fix']}"))
        rows += [(f"nearest {n}", f"{near['network']} as {near['source']} saves it: {'; '.join(near['differences']) or 'exact'}")
                 for n, near in enumerate(exact(found) or found["nearest"], 1)]
    for name, value in rows:
        table.add_row(name, Text(value))
    return Group(Text(found["file"], no_wrap=True, overflow="ignore"), table)


def findings_table(verdict):
    """What a target's parser makes of a file, a line for each rule; verdict: a check.Verdict."""
    found = Counter(one.severity for one in verdict.findings)
    counts = ", ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in found.items()) or "nothing found"
    said = verdict.asked and (f"; {verdict.asked['by']} itself {'takes it' if verdict.asked['takes'] else 'refuses it'}"
                              + ("" if verdict.parser == "rtx" else " (a proxy for TensorRT 10 and 11)"))
    title = f"{verdict.target}, parser {verdict.parser}: {'passes' if verdict.passes else 'does not pass'}; {counts}{said or ''}"
    if not verdict.findings:
        return Group(title, "")
    table = Table("", "rule", "at", "what", "what to do", box=SIMPLE_HEAD)
    for one, where in verdict.lines():
        table.add_row(*(Text(word) for word in (one.severity, one.rule, where, one.reason, one.fix)))
    return Group(title, table)


def repairs_table(rows):
    """What was rewritten and what was not; rows: of repairs.repaired."""
    table = Table("repair", "what", "nodes", box=SIMPLE_HEAD)
    for row in rows:
        nodes = ", ".join(row["nodes"][:3]) + (f" and {len(row['nodes']) - 3} more" if len(row["nodes"]) > 3 else "")
        table.add_row(*(Text(word) for word in (row["repair"], row.get("done") or f"not done: {row['refused']}", nodes)))
    return table


def target_rows(targets):
    """Rows of plain values; targets: facts.Target."""
    return [{"target": one.name, "device": one.device.name, "compute capability": one.compute_capability, "TensorRT": one.runtime,
             "served by": ", ".join(one.tensorrt), "parser": one.parser, "opset": one.opset, "JetPack": one.jetpack, "CUDA": one.cuda, "Python": one.python,
             "built": "here, ahead of time" if one.ahead_of_time else "on the device", "fast FP16": "yes" if one.device.fast_fp16 else "no",
             "fast INT8": "yes" if one.device.fast_int8 else "no", "memory GiB": one.device.memory_gib, "FP32 TFLOPS": one.device.fp32_tflops,
             "FP16 TFLOPS": one.device.fp16_tflops, "GB/s": one.device.bandwidth_gbs, "L2 MiB": one.device.l2_mib,
             "source": f"{one.source}; {one.device.source}"} for one in targets]


def rule_rows(rules):
    """Rows of plain values; rules: facts.Rule."""
    return [{"rule": one.name, "operators": {"*": "any", "model": "the model"}.get(" ".join(one.operators), ", ".join(one.operators)),
             "parsers": ", ".join(one.parsers), "severity": one.severity + (f" for {one.capability}" if one.capability else ""), "what": one.reason,
             "what to do": one.fix, "--fix": one.repair and "yes", "source": one.source} for one in rules]


def upright(rows):
    """A table with a column for each row, for rows of many values."""
    first, *names = rows[0]
    return side_by_side("", [str(row[first]) for row in rows], [(name, [cell("" if row[name] is None else row[name]) for row in rows]) for name in names])
