"""The result of peers.py for people: tables, a document, a picture, and which bars it holds."""
import csv
import re
from pathlib import Path

from rtseg_deploy import backends, files
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.report import markdown_table, plain_table

BARS = Path(__file__).with_name("bars.csv")
MARKS = "<!-- python benchmarks/peers.py -->", "<!-- end -->"
NOBODY = "—"


def ratio_of(one):
    return f"{one['ratio']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def title(case):
    return f"{case['network']} {case['resolution']}, {case['classes']} classes, weights {case['weights']}, {case['threads']} threads"


def rows(case):
    """A row for each contender."""
    by = {(one["peer"], one["of"]): one for one in case["ratios"]}
    for one in case["contenders"]:
        if one["failed"]:
            yield {"contender": one["name"], "failed": one["failed"]}
            continue
        pixels, tensor = by.get((one["name"], "pixels")), by.get((one["name"], "tensor"))
        low, high = one["middle_half_ms"]
        yield {"contender": one["name"], "ms": f"{one['ms']:.2f}", "middle half": f"{low:.2f} to {high:.2f}",
               "ours / it": ratio_of(pixels) + (" *" if pixels["best"] else "") if pixels else NOBODY,
               "ms, tensor in": f"{one['tensor_ms']:.2f}" if "tensor_ms" in one else NOBODY, "ours / it, tensor in": ratio_of(tensor) if tensor else NOBODY,
               "faults": f"{one['faults']:.0f}", "peak MiB": f"{one['memory_bytes'] / 2**20:.0f}", "start s": f"{one['start_seconds']:.2f}",
               "same labels": f"{one['labels_equal']:.4%}"}


def doubts(case):
    """Lines under a case's table."""
    for one in case["contenders"]:
        if one["failed"]:
            yield f"{one['name']} is left out: {one['failed']}"
            continue
        if one["precision"] == "fp32" and one["labels_equal"] < backends.SAME_LABELS["fp32"]:
            yield f"{one['name']} did other work: {one['labels_equal']:.3%} of its labels are ours"


def settings(result):
    """What each contender was set to: a line each, of the first case that has it."""
    said = {}
    for case in result["cases"]:
        for one in case["contenders"]:
            if not one["failed"]:
                said.setdefault(one["name"], f"{one['name']}: {'; '.join(f'{name} {flat(value)}' for name, value in one['facts'].items() if value)}")
            if one["tried_ms"]:
                tried = ", ".join(f"{way} {ms:.1f}" for way, ms in one["tried_ms"].items())
                said.setdefault((one["name"], case["resolution"]), f"{one['name']} {case['resolution']} normalises by {one['way']}; tried, ms a frame: {tried}")
    said = [*said.values(), *(f"{name}: not here yet" for name in result["missing"])]
    return [line for line in said if line]


def flat(value):
    return ", ".join(f"{name}={inner}" for name, inner in value.items()) if isinstance(value, dict) else value


def summed(result):
    """A row for each case and precision: ours against the best peer, and the memory of ours against the plain export's in ONNX Runtime."""
    for case in result["cases"]:
        named = {one["name"]: one for one in case["contenders"]}
        for best in (one for one in case["ratios"] if one["best"] and one["of"] == "pixels"):
            ours, peer = named[best["ours"]], named[best["peer"]]
            tensor = next(one for one in case["ratios"] if one["best"] and one["of"] == "tensor" and one["precision"] == best["precision"])
            memory = memory_ratio(case) if best["precision"] == "fp32" else None
            yield {"network": case["network"], "size": case["resolution"], "precision": best["precision"],
                   "ours": f"{ours['ms']:.2f} ms, {ours['name'].removeprefix('ours, ')}", "best peer": f"{peer['ms']:.2f} ms, {peer['name']}",
                   "ratio": ratio_of(best), "ratio, tensor in": f"{ratio_of(tensor)} {tensor['peer']}",
                   "memory": f"{memory:.2f}" if memory else NOBODY}


def memory_ratio(case):
    """Our quickest FP32 contender's peak over that of ONNX Runtime with the plain export; None where one is not there."""
    ours = [one for one in case["contenders"] if one["side"] == "ours" and one["precision"] == "fp32" and not one["failed"]]
    plain = [one for one in case["contenders"] if one["name"] == "ONNX Runtime" and not one["failed"]]
    return min(ours, key=lambda one: one["ms"])["memory_bytes"] / plain[0]["memory_bytes"] if ours and plain else None


# ---- bars


def held(result, changes=()):
    """A row for each bar that this result has a value for; the first row of a network and size that fits counts."""
    with open(BARS, newline="") as file:
        bars = list(csv.DictReader(file))
    found = []
    for case in result["cases"]:
        for best in (one for one in case["ratios"] if one["best"] and one["of"] == "pixels"):
            found.append(judged(bars, "time", case, best["precision"], best["ratio"]))
        found.append(judged(bars, "memory", case, "fp32", memory_ratio(case)))
    found += [judged(bars, "again", one, one["precision"], abs(one["change"])) for one in changes if one["of"] == "pixels"]
    return [one for one in found if one]


def judged(bars, of, case, precision, value):
    asked = {"of": of, "network": case["network"], "resolution": case["resolution"], "precision": precision}
    bar = next((bar for bar in bars if all(bar[name] in ("", value) for name, value in asked.items())), None)
    return bar and value is not None and {**asked, "value": value, "at_most": float(bar["at_most"]), "held": value <= float(bar["at_most"]),
                                          "source": bar["source"]}


def changes(now, before):
    """A row for each ratio that both results have: how much it changed, of 1."""
    known = {key(case, one): one["ratio"] for case in before.get("cases", []) for one in case["ratios"]}
    return [{"network": case["network"], "resolution": case["resolution"], "precision": one["precision"], "of": one["of"], "peer": one["peer"],
             "before": known[key(case, one)], "now": one["ratio"], "change": one["ratio"] / known[key(case, one)] - 1}
            for case in now["cases"] for one in case["ratios"] if key(case, one) in known]


def key(case, one):
    return case["network"], case["resolution"], one["precision"], one["of"], one["peer"]


# ---- the terminal and a document


LEGEND = ("ours / it: our quickest's time over the peer's in the same round, with its 95 % interval; * the best peer; tensor in: the input of the peer is "
          "normalised before the clock starts, ours is not; faults: minor page faults a frame; memory: our peak over ONNX Runtime's with the plain export")


def tables(result, changes, bars):
    for case in result["cases"]:
        good = [row for row in rows(case) if "failed" not in row]
        yield title(case)
        yield plain_table(good)
        yield from doubts(case)
        yield ""
    yield from settings(result)
    yield LEGEND
    if any(case["ratios"] for case in result["cases"]):
        yield plain_table(list(summed(result)))
    if changes:
        yield plain_table([{**one, "before": f"{one['before']:.3f}", "now": f"{one['now']:.3f}", "change": f"{one['change']:+.1%}"} for one in changes])
    for bar in bars:
        where = " ".join(filter(None, (bar["network"], bar["resolution"], bar["precision"])))
        yield f"{'held' if bar['held'] else 'MISSED'}: {bar['of']} {where}: {bar['value']:.3f}, at most {bar['at_most']:g} ({bar['source']})"


def markdown(result):
    about = result["environment"]
    parts = [f"One run of {result['seconds'] / 60:.0f} minutes, {result['rounds']} rounds, on {about['cpu']}, {about['cpus']} processors, load "
             f"{about['load']:.1f} when it ended; frame: {result['image']}, resized.", f"{LEGEND}.", markdown_table(list(summed(result)))]
    for case in result["cases"]:
        parts += [f"### {title(case)}", markdown_table([row for row in rows(case) if "failed" not in row]), *(f"* {line}" for line in doubts(case))]
    return "\n\n".join([*parts, "### Settings", "\n".join(f"* {line}" for line in settings(result))])


def fill(path, result):
    """Put the tables between the marks of a document, and the picture beside it."""
    text = path.read_text()
    if not all(mark in text for mark in MARKS):
        raise RtsegError(f"{path} has no place for the tables", f"write two lines into it: {' and '.join(MARKS)}")
    draw(result, path.with_suffix(".png"))
    inner = f"{MARKS[0]}\n\n{markdown(result)}\n\n{MARKS[1]}"
    files.write(path, re.sub(".*?".join(map(re.escape, MARKS)), lambda _: inner, text, count=1, flags=re.DOTALL))


def draw(result, path):
    """Each peer's ratio with its interval, a panel for each case; a dashed line is the bar."""
    try:
        import matplotlib
    except ImportError:
        raise RtsegError("the picture needs matplotlib, which is not installed", "pip install 'rtseg-deploy[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [(case, [one for one in case["ratios"] if one["of"] == "pixels"]) for case in result["cases"]]
    drawn = [(case, ratios) for case, ratios in drawn if ratios]
    inches = [0.5 + 0.25 * len(ratios) for _, ratios in drawn]
    figure, panels = plt.subplots(len(drawn), 1, figsize=(7.5, 0.6 + sum(inches)), squeeze=False, sharex=True, layout="constrained", height_ratios=inches)
    bars = held(result)
    for axes, (case, ratios) in zip(panels[:, 0], drawn):
        panel(axes, case, ratios, bars)
    panels[-1, 0].set_xlabel("our time / the peer's, frame to labels: left of 1 ours is quicker\n"
                             "bar: 95 % interval; ringed: the best peer; dashed: the goal beside it", fontsize=10)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def panel(axes, case, ratios, bars):
    colours = {"fp32": "tab:blue", "reduced": "tab:orange"}
    for place, one in enumerate(ratios):
        axes.plot([one["low"], one["high"]], [place, place], color=colours[one["precision"]], linewidth=7, alpha=0.35, solid_capstyle="butt")
        axes.plot(one["ratio"], place, "o", color=colours[one["precision"]], markersize=7, markeredgecolor="black" if one["best"] else "none")
        axes.annotate(f"{one['ratio']:.2f}", (one["high"], place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=10,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    for bar in bars:
        if (bar["of"], bar["network"], bar["resolution"]) == ("time", case["network"], case["resolution"]):
            places = [place for place, one in enumerate(ratios) if one["precision"] == bar["precision"]]
            axes.plot([bar["at_most"]] * 2, [min(places) - 0.4, max(places) + 0.4], "--", color="tab:red", linewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), [one["peer"] for one in ratios], fontsize=10)
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.set_xlim(0, max(1.1, 1.15 * max(one["high"] for one in ratios), axes.get_xlim()[1]))
    axes.grid(axis="x", alpha=0.25)
    axes.set_title(f"{case['network']} {case['resolution']}", fontsize=11, loc="left")
