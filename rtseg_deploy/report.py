"""What a person reads: tables and lines for the terminal."""
from rich.table import Table

from .records import size


def mib(count):
    return f"{count / 2**20:,.1f} MiB"


def artifact_table(path, artifact):
    """What was exported and what was proven of it."""
    table = Table("", "", show_header=False, title=f"{path}", title_justify="left")
    fold = artifact.checks["fold"]
    names = f" ({artifact.class_set})" if artifact.class_set else ""
    table.add_row("network", f"{artifact.model}, checkpoint as {artifact.dialect} saves it, {artifact.classes} classes{names}")
    weights = mib(artifact.weights_bytes)
    table.add_row("graph", f"{size(artifact.resolution)}, {artifact.output}, {artifact.precision}, opset {artifact.opset}, weights {weights}")
    table.add_row("BatchNorm", f"{fold['before']} before, {fold['back']} folded back, {fold['forward']} folded forward, {len(fold['kept'])} kept")
    for row in fold["kept"]:
        table.add_row("", f"{row['node']}: not back, {row['back']}; not forward, {row['forward']}")
    bar = artifact.checks["parity"]["bar"]
    for name, row in artifact.checks["parity"]["inputs"].items():
        table.add_row(f"parity, {name}", f"max |Δ| {row['relative']:.1e} of the logits' scale (bar {bar[0]:.0e}), labels equal {row['labels_equal']:.4%}")
    table.add_row("sha256", artifact.sha256)
    return table


def engines_table(engines):
    """engines: [(path, Artifact)]."""
    table = Table("engine", "target", "precision", "layers FP16 / FP32", "size", "weights", "build",
                  title="Engines (built ahead of time, not run: that needs the device)", title_justify="left")
    for path, engine in engines:
        layers = engine.checks["layers"]
        table.add_row(str(path), engine.target, engine.precision, f"{layers['fp16']} / {layers['fp32']}", mib(engine.checks["bytes"]),
                      mib(engine.weights_bytes), f"{engine.checks['build_seconds']:.1f} s")
    return table


def bench_table(benchmarks):
    """benchmarks: [(result file, Benchmark)]."""
    table = Table(title="Speed: batch 1, host clock around each step, normalised float32 in, network's output in host memory", title_justify="left")
    table.add_column("what")
    table.add_column("backend")
    for name in ("N", "FPS", "mean ms", "median", "MAD", "p90", "p95", "p99", "min", "max"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for _, b in benchmarks:
        s, digits = b.statistics, 4 if b.backend == "null" else 2
        status = "[yellow]unstable[/]" if b.warnings else "stable"
        what = f"{b.artifact['model']} {size(b.resolution)} {b.artifact['precision']} {b.artifact['output']}"
        figures = (s[f"{name}_ms"] for name in ("mean", "median", "mad", "p90", "p95", "p99", "min", "max"))
        fps = "" if b.backend == "null" else f"{s['fps']:,.1f}"
        table.add_row(what, b.backend, str(len(b.seconds)), fps, *(f"{figure:.{digits}f}" for figure in figures), status)
    return table


def remarks(benchmarks):
    """Lines under the table: what makes a figure doubtful, and what limits its meaning."""
    for path, b in benchmarks:
        yield from (f"[yellow]unstable[/] {b.backend}: {warning}" for warning in b.warnings)
        yield from (f"note, {b.backend}: {note}" for note in b.notes)
        yield from (f"{b.backend} and {other}: {share:.3%} of labels equal" for other, share in b.same_labels.items())
        yield f"samples: {path}"


def networks_table(rows, resolution):
    """rows: [(Network, complexity)]."""
    table = Table("name", "parameters", f"GMACs at {size(resolution)}", "logits at", "sizes", "checkpoints of", "paper")
    for network, count in rows:
        macs = f"{count['macs'] / 1e9:.3f}" if count["macs"] else "size not taken"
        table.add_row(network.name, f"{count['parameters']:,}", macs, f"1/{network.stride}",
                      f"multiples of {network.multiple}" if network.multiple > 1 else "any",
                      "\n".join(dialect.source for dialect in network.dialects), network.paper)
    return table
