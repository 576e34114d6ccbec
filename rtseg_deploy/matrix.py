"""Every network x every size that its paper lists -> exported, folded, proven, compiled in FP32 and FP16; a file a row, so it can go on."""
import time
from dataclasses import replace
from pathlib import Path

import torch

from . import checkpoints, facts, files, locks, models, passes
from .build import build_engine
from .deployed import deployed
from .errors import RtsegError
from .export import export, trace
from .records import FORMAT, size

UNLISTED = 512, 1024                # for a network whose paper prints no figure of it


def plan(networks=(), resolutions=()):
    """[(network, (height, width))] of those networks, all if none, at those sizes.

    Without sizes at its paper's: what is fed to it, and the whole image where it is timed.
    """
    rows = []
    for name in networks or models.networks():
        models.find(name)
        figures = [figure for figure in facts.papers() if figure.network == name]
        listed = [figure.input for figure in figures] + [figure.resolution for figure in figures if figure.fps or figure.ms]
        rows += [(name, resolution) for resolution in sorted(set(resolutions or listed or [UNLISTED]))]
    return rows


def matrix(rows, target, folder, tell=lambda step, done: None):
    """What came of each row of a plan, in its order; rows that are in `folder` already are not done again."""
    facts.target(target)
    done = []
    for number, (name, resolution) in enumerate(rows):
        path = Path(folder, f"{name}-{size(resolution)}-{target}.json")
        title, begin, share = f"{number + 1} of {len(rows)}: {name} {size(resolution)}", number / len(rows), 1 / len(rows)

        def inner(step, part, title=title, begin=begin, share=share):
            tell(f"{title}: {step}", begin + share * (part or 0))

        row = finished(path)
        if row is None:
            with locks.goal(path, inner):
                row = finished(path)    # another run may have made it meanwhile
                if row is None:
                    row = made(name, resolution, target, inner)
                    files.write_json(path, row)
        done.append(row)
    return done


def finished(path):
    """A row that was made by this version of the files, and did not fail; None where there is none."""
    if not path.is_file():
        return None
    row = files.read_json(path)
    return row if row.get("format") == FORMAT and not row.get("failed") else None


def made(name, resolution, target, tell):
    """One row: nothing is kept of it but what is known now."""
    row = {"format": FORMAT, "network": name, "resolution": list(resolution), "target": target}
    begin = time.perf_counter()
    try:
        with files.scratch() as folder:
            path = Path(folder, "net.onnx")
            artifact = export(checkpoints.seeded(name), path, resolution, tell=lambda step, share: tell(step, 0.4 * share))
            row.update(fold=artifact.checks["fold"], parity=artifact.checks["parity"], weights_bytes=artifact.weights_bytes, engines={})
            for part, fp16 in ((0.4, False), (0.7, True)):
                _, engine = build_engine(path, target, fp16, folder, lambda step, share, part=part: tell(step, part))
                row["engines"][engine.precision] = {key: engine.checks[key] for key in ("bytes", "build_seconds", "layers", "parity")}
                row["runtime"] = {key: value for key, value in engine.versions.items() if key.startswith("tensorrt")}
    except RtsegError as error:
        row["failed"] = error.line
    return {**row, "seconds": time.perf_counter() - begin}


def table(rows):
    """Rows of plain values for people."""
    return [cells(row) for row in rows]


def cells(row):
    found = {"network": row["network"], "input": size(row["resolution"]),
             **dict.fromkeys(("BatchNorm", "folded", "kept", "max Δ", "labels %", "weights MiB", "FP32 MiB", "FP16 MiB", "FP16 layers", "FP16 max Δ"), "")}
    if "fold" in row:
        fold = row["fold"]
        found.update({"BatchNorm": fold["before"], "folded": fold["back"] + fold["forward"], "kept": len(fold["kept"]), "max Δ": furthest(row),
                      "labels %": f"{100 * min(picture['labels_equal'] for picture in row['parity']['inputs'].values()):.3f}",
                      "weights MiB": round(row["weights_bytes"] / 2**20, 1)})
    for precision, engine in row.get("engines", {}).items():
        found[f"{precision.upper()} MiB"] = round(engine["bytes"] / 2**20, 1)
    if half := row.get("engines", {}).get("fp16"):
        found.update({"FP16 layers": half["layers"]["fp16"], "FP16 max Δ": furthest(half)})
    return {**found, "note": row.get("failed", "")}


def furthest(proven):
    return f"{max(picture['relative'] for picture in proven['parity']['inputs'].values()):.1e}"


def folding(tell):
    """For each network: its BatchNorms before, folded back, folded forward, kept and why; and its constant scales."""
    return [fold_row(network, tell) for network in models.networks().values()]


def fold_row(network, tell):
    tell(f"folding {network.name}", None)
    net = deployed(checkpoints.seeded(network.name), "logits", 17)
    _, fold = passes.optimise(trace(net, torch.zeros(1, 3, 128, 256), 17))
    reasons = {}
    for row in fold["kept"]:
        reason = f"{row['back']}; {row['forward']}"
        reasons[reason] = reasons.get(reason, 0) + 1
    return {"network": network.name, "BatchNorm": fold["before"], "back": fold["back"], "forward": fold["forward"], "kept": len(fold["kept"]),
            "constant scales": fold["scales"]["before"], "folded": sum(fold["scales"][way] for way in ("back", "forward", "merged", "shared")),
            "kept because": "; ".join(f"{count} x {reason}" for reason, count in reasons.items())}


def algebra(tell):
    """For each network, and each implementation of it: multiply-accumulates before and after the rules that remove work, and how often each applied."""
    return [algebra_row(network, dialect, tell) for network in models.networks().values() for dialect in (network.dialects or (network.reading,))]


def algebra_row(network, dialect, tell):
    tell(f"rewriting {network.name}, {dialect.name}", None)
    trained = replace(checkpoints.seeded(network.name), module=network.module(19, dialect).eval(), dialect=dialect)
    _, fold = passes.optimise(trace(deployed(trained, "native", 17), torch.zeros(1, 3, 128, 256), 17))
    before, after = fold["macs"]["before"], fold["macs"]["after"]
    return {"network": network.name, "implementation": dialect.name, "MMACs at 128x256": round(before / 1e6, 2), "after": round(after / 1e6, 2),
            "less %": f"{100 - 100 * after / before:.2f}", "by": ", ".join(f"{name} {count}" for name, count in fold["algebra"].items() if count)}
