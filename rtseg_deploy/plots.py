"""Results -> pictures: how the samples lie, how they went over the run, speed against size and accuracy, and where the time goes.

Every sample is drawn: none is left out for being far away. See svg.py for how.
"""
import numpy as np

from . import svg
from .records import size
from .report import milliseconds
from .results import SENSORS

LOG_FROM = 4                        # largest / smallest from which an axis is logarithmic; of distributions half of it
STRIP = 58                          # height of one distribution
LEFT, RIGHT = 38, svg.WIDTH - 8
TRACKS = ("sm_mhz", "cpu_mhz", "temperature_c", "power_w", "others_cpu_percent")      # of telemetry, that are drawn


def wide(values, limit=LOG_FROM):
    return min(values) > 0 and max(values) > limit * min(values)


# ---- how the samples lie


def distributions(results):
    """A strip for each result, all on one axis: a histogram, every sample as a stroke under it, p50, p90 and p99 marked."""
    series = [1e3 * np.asarray(result.seconds) for result in results]
    every = np.concatenate(series)
    log = wide(every, LOG_FROM / 2)
    axis = svg.around(every, 8, RIGHT, log)
    bottom = STRIP * len(results) + 4
    said = "; ".join(f"{label}: p50 {milliseconds(np.median(ms))}, p99 {milliseconds(np.percentile(ms, 99))}, max {milliseconds(ms.max())} ms"
                     for label, ms in zip(labels(results), series))
    root = svg.picture(bottom + 30, f"Distribution of the samples of {results[0].network} at {size(results[0].resolution)}", said)
    svg.across(root, axis, bottom, f"milliseconds{', logarithmic' if log else ''}", 14)
    for place, (label, ms) in enumerate(zip(labels(results), series)):
        strip(root, axis, STRIP * (place + 1) - 6, label, ms)
    return svg.text_of(root)


def labels(results):
    """What tells them apart within a picture of one network, size and protocol."""
    many = len({result.precision for result in results}) > 1
    return [f"{result.value['number']}  {result.value['backend']}{' ' + result.precision if many else ''}" for result in results]


def strip(root, axis, base, label, ms):
    """One distribution above and under y = base."""
    quantiles = np.percentile(ms, (50, 90, 99))
    svg.words(root, axis.start, base - 33, label, "label")
    svg.words(root, axis.stop, base - 33, " · ".join(f"p{p} {milliseconds(q)}" for p, q in zip((50, 90, 99), quantiles)), "tick", "end")
    edges = np.linspace(axis.start, axis.stop, 115)
    counts, _ = np.histogram([axis(value) for value in ms], edges)
    heights = 22 * counts / counts.max()
    outline = [(edges[0], base)]
    for left, right, height in zip(edges, edges[1:], heights):
        outline += [(left, base - height), (right, base - height)]
    svg.path(root, [(round(x, 1), round(y, 1)) for x, y in [*outline, (edges[-1], base)]], "area")
    strokes = sorted({round(2 * axis(value)) / 2 for value in ms})
    svg.add(root, "path", "rug", d="".join(f"M{x:g} {base + 2:g}v5" for x in strokes))
    for p, value in zip((50, 90, 99), quantiles):
        svg.line(root, axis(value), base - 24, axis(value), base + 8, "mark" if p == 50 else "mark thin")


# ---- how they went over the run


def over_time(result):
    """Each sample at its time, with what was sampled of the device on the same axis; a column a process, its warm-up shaded."""
    tracks = {name: SENSORS[name] for name in TRACKS if result.telemetry(name)}
    spans = [(run["began"] - sum(run["warmup_seconds"]), run["ended"]) for run in result.runs]
    offsets = np.cumsum([0.0, *(end - start for start, end in spans)])
    time = svg.Axis(0.0, float(offsets[-1]), LEFT, RIGHT)
    every = [1e3 * one for run in result.runs for one in (*run["seconds"], *run["warmup_seconds"])]
    axis = svg.around(every, 126, 22, wide(every), zero=not wide(every))
    bottom = 126 + 50 * len(tracks)
    root = svg.picture(bottom + 30, f"{result.name} over the run", described(result, tracks))
    for (start, _), offset, run in zip(spans, offsets, result.runs):
        shade(root, time, offset, start, run, bottom)
    svg.upward(root, axis, LEFT, RIGHT, "milliseconds" + (", logarithmic" if axis.log else ""))
    for (start, _), offset, run in zip(spans, offsets, result.runs):
        warm = start + np.cumsum(run["warmup_seconds"])
        timed = run["began"] + np.cumsum(run["seconds"])
        svg.dots(root, [(time(t - start + offset), axis(1e3 * s)) for t, s in zip(warm, run["warmup_seconds"])], "dots faint")
        svg.dots(root, [(time(t - start + offset), axis(1e3 * s)) for t, s in zip(timed, run["seconds"])], "dots")
    for place, (name, text) in enumerate(tracks.items()):
        track(root, time, result, spans, offsets, name, text, 126 + 50 * place)
    svg.across(root, time, bottom, "seconds" + (f", {len(spans)} processes one after the other" if len(spans) > 1 else ""))
    return svg.text_of(root)


def described(result, tracks):
    ms = [1e3 * one for one in result.seconds]
    ranges = [f"{text} {min(values):g} to {max(values):g}" for name, text in tracks.items() for values in [result.telemetry(name)]]
    return "; ".join([f"{len(result.runs)} x {len(result.runs[0]['seconds'])} samples from {milliseconds(min(ms))} to {milliseconds(max(ms))} ms", *ranges])


def shade(root, time, offset, start, run, bottom):
    """The warm-up, a rule between processes, and the moments at which the device said that it was throttled."""
    left = time(offset)
    svg.add(root, "rect", "warm", x=left, y=18, width=max(0.5, round(time(run["began"] - start + offset) - left, 1)), height=bottom - 18)
    if offset:
        svg.line(root, left, 18, left, bottom, "between")
    for row in run["telemetry"]:
        if row.get("throttled_by") and start <= row["t"] <= run["ended"]:
            svg.line(root, time(row["t"] - start + offset), 18, time(row["t"] - start + offset), bottom, "alarm")


def track(root, time, result, spans, offsets, name, text, top):
    axis = svg.around(result.telemetry(name), top + 44, top + 20, room=0.1)
    svg.words(root, LEFT, top + 13, text, "tick")
    for value in dict.fromkeys((min(result.telemetry(name)), max(result.telemetry(name)))):
        svg.line(root, LEFT, axis(value), RIGHT, axis(value), "grid")
        svg.words(root, LEFT - 4, axis(value) + 3, svg.named(round(value, 1)), "tick", "end")
    for (start, end), offset, run in zip(spans, offsets, result.runs):
        points = [(time(row["t"] - start + offset), axis(row[name])) for row in run["telemetry"] if name in row and start <= row["t"] <= end]
        if points:
            svg.path(root, points if len(points) > 1 else points * 2, "track")


# ---- against size and accuracy


def against_size(network, lines, points):
    """Milliseconds against megapixels of one network. lines: {label: [(megapixels, ms)]} of ours; points: {label: [(megapixels, ms)]} of papers."""
    every = [pair for group in (*lines.values(), *points.values()) for pair in group]
    log = wide([ms for _, ms in every])
    bottom, right = 200, svg.WIDTH - 106
    x = svg.around([pixels for pixels, _ in every], LEFT, right, log, 0.08, zero=not log)
    y = svg.around([ms for _, ms in every], bottom, 24, log, 0.08, zero=not log)
    ours = "; ".join(f"{label}: " + ", ".join(f"{ms:.3g} ms at {pixels:.3g}" for pixels, ms in group) for label, group in lines.items())
    root = svg.picture(bottom + 30, f"{network}: milliseconds against megapixels", f"{ours}. Of papers, on their devices: {', '.join(points) or 'none'}")
    svg.upward(root, y, LEFT, right, "milliseconds" + (", logarithmic" if log else ""))
    svg.across(root, x, bottom, "megapixels", 24)
    ends = []
    for label, group in points.items():
        for pixels, ms in group:
            svg.add(root, "circle", "hollow", cx=x(pixels), cy=y(ms), r=3)
        ends.append((x(group[-1][0]), y(group[-1][1]), label, "label quiet"))
    for place, (label, group) in enumerate(lines.items()):
        if len(group) > 1:
            svg.path(root, [(x(pixels), y(ms)) for pixels, ms in group], f"line s{place % 6}")
        for pixels, ms in group:
            svg.add(root, "circle", f"full s{place % 6}", cx=x(pixels), cy=y(ms), r=3.2)
        ends.append((x(group[-1][0]), y(group[-1][1]), label, f"label s{place % 6}"))
    svg.beside(root, ends, right + 10, 28, bottom - 2)
    return svg.text_of(root)


def against_accuracy(theirs, ours):
    """mIoU against FPS, as the papers' Figure 1. theirs, ours: [(label, mIoU in %, FPS, look of the label)]."""
    every = [*theirs, *ours]
    bottom = 300
    x = svg.around([fps for _, _, fps, _ in every], LEFT, RIGHT - 6, True, 0.06)
    y = svg.around([miou for _, miou, _, _ in every], bottom, 24, room=0.08)
    said = "; ".join(f"{label}: {miou:g} %, {fps:.4g} FPS" for label, miou, fps, _ in every)
    root = svg.picture(bottom + 30, "mIoU against frames per second", said)
    svg.upward(root, y, LEFT, RIGHT, "mIoU, %", 6)
    svg.across(root, x, bottom, "frames per second, logarithmic", 24)
    names = svg.Labels(root, LEFT, svg.WIDTH, 20, bottom, [(x(fps), y(miou)) for _, miou, fps, _ in every])
    for kind, radius, group in (("full", 3.6, ours), ("hollow", 2.8, theirs)):
        for label, miou, fps, look in group:
            svg.add(root, "circle", kind, cx=x(fps), cy=y(miou), r=radius)
            names.put(x(fps), y(miou), label, look)
    return svg.text_of(root)


# ---- where the time goes


def stages(result):
    """The mean time of each stage as one stacked bar, and what each is under it."""
    parts = list(result.stages.items())
    whole = sum(ms for _, ms in parts)
    axis = svg.Axis(0.0, whole, 8, RIGHT)
    root = svg.picture(44 + 15 * len(parts), f"{result.name}: stages", "; ".join(f"{name} {milliseconds(ms)} ms" for name, ms in parts))
    done = 0.0
    for place, (name, ms) in enumerate(parts):
        left, right = axis(done), axis(done + ms)
        svg.add(root, "rect", f"stage t{place % 7}", x=left, y=2, width=round(max(0.5, right - left - 1), 1), height=24)
        level = 44 + 15 * place
        svg.add(root, "rect", f"stage t{place % 7}", x=8, y=level - 8, width=9, height=9)
        svg.words(root, 22, level, name, "label")
        svg.words(root, 210, level, f"{milliseconds(ms)} ms", "tick", "end")
        svg.words(root, 262, level, f"{ms / whole:.1%}", "tick", "end")
        done += ms
    return svg.text_of(root)
