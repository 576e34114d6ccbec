"""How often the intervals of rtseg_deploy.statistics hold what is true, on series of which that is known; fills the tables of docs/statistics.md.

    python docs/coverage.py [series in each row]

A series is 1 + 0.02 x, x an AR(1) process of variance 1 with coefficient phi; one step in a hundred takes longer by an exponential of mean 0.35.
"""
import re
import sys
from math import ceil, sqrt
from pathlib import Path

import numpy as np

from rtseg_deploy import doubts, statistics

NOISE, SPIKES, SPIKE = 0.02, 0.01, 0.35
DESIGN = {(500, 0): 0.85, (500, 0.5): 0.89, (500, 0.9): 0.84, (1000, 0): 0.89, (1000, 0.5): 0.92, (1000, 0.9): 0.88,
          (5000, 0): 0.94, (5000, 0.5): 0.94, (5000, 0.9): 0.95}      # of the plain rule's interval of the mean, simulated when this was designed


def series(rng, many, count, phi, noise=NOISE):
    """many x count samples."""
    x = rng.standard_normal((many, count))
    for i in range(1, count):           # the first is of variance 1 as well
        x[:, i] = phi * x[:, i - 1] + sqrt(1 - phi * phi) * x[:, i]
    return 1 + noise * x + spikes(rng, x.shape)


def spikes(rng, shape):
    return (rng.random(shape) < SPIKES) * rng.exponential(SPIKE, shape)


def truths(rng):
    """What one sample of any of the series is distributed by: its mean, median and percentiles."""
    many = 4_000_000
    marginal = 1 + NOISE * rng.standard_normal(many) + spikes(rng, many)
    return {"mean": 1 + SPIKES * SPIKE, "median": np.median(marginal), **{f"p{p}": np.percentile(marginal, p) for p in statistics.PERCENTILES}}


def plain(samples):
    """The usual interval of the mean: percentiles of the drawn means, blocks of 4 tau."""
    length = max(ceil(len(samples) ** (1 / 3)), min(len(samples) // 10, ceil(4 * statistics.worth(statistics.clipped(samples)))))
    return statistics.studentised(statistics.draws(samples, length)[2])


def held(samples, truth):
    """What held, for one series: name -> whether, and the width of the mean's interval."""
    found, (low, high) = statistics.summary([samples / 1e3]), plain(samples)
    inside = {"plain": low <= truth["mean"] <= high, "width": found["mean_high_ms"] - found["mean_low_ms"]}
    inside.update({name: found[f"{name}_low_ms"] <= truth[name] <= found[f"{name}_high_ms"] for name in ("mean", "median")})
    return {**inside, **{f"p{p}": truth[f"p{p}"] <= found[f"p{p}_bound_ms"] for p in statistics.PERCENTILES}}


def row(count, phi, many, truth):
    rng = np.random.default_rng(count)
    rows = [held(one, truth) for _ in range(ceil(many / 100)) for one in series(rng, 100, count, phi)]
    return {name: float(np.median([one[name] for one in rows]) if name == "width" else np.mean([one[name] for one in rows])) for name in rows[0]}


def of_several(processes, spread, many):
    """Coverage of the mean over processes whose own means differ by `spread` (sd), each of 500 samples, phi 0.5."""
    rng, hits = np.random.default_rng(processes), []
    for _ in range(many):
        runs = series(rng, processes, 500, 0.5) + spread * rng.standard_normal((processes, 1))
        found = statistics.summary(runs / 1e3)
        hits.append(found["mean_low_ms"] <= 1 + SPIKES * SPIKE <= found["mean_high_ms"])
    return float(np.mean(hits))


def raised(count, phi, noise, drift, many):
    """Share of series, drifting by so much from end to end, that raise any doubt, and drift alone."""
    rng, flags = np.random.default_rng(count), []
    for _ in range(ceil(many / 100)):
        flags += [[doubt.flag for doubt in doubts.of({"seconds": one})] for one in series(rng, 100, count, phi, noise) * (1 + drift * np.linspace(0, 1, count))]
    return float(np.mean([bool(one) for one in flags])), float(np.mean([one == ["drift"] for one in flags]))


def tables(many):
    truth = truths(np.random.default_rng(0))
    yield "| N | phi | mean: plain rule, as designed | plain rule, here | mean | width of it | median | p90's bound | p95's | p99's |"
    yield "| --- " * 10 + "|"
    for (count, phi), designed in DESIGN.items():
        found = row(count, phi, many, truth)
        cells = [f"{found[name]:.3f}" for name in ("plain", "mean", "median", "p90", "p95", "p99")]
        cells.insert(2, f"{found['width']:.2%}")
        yield f"| {count} | {phi} | {designed:.2f} | {' | '.join(cells)} |"
    yield "\n| processes | their means differ by 0 | by 1 % | by 5 % |\n| --- | --- | --- | --- |"
    for processes in (2, 3, 5, 10):
        yield f"| {processes} | {' | '.join(f'{of_several(processes, spread, many):.3f}' for spread in (0, 0.01, 0.05))} |"
    yield "\n| N | phi | noise | steady, and doubted | 3 % drift, found | 5 % drift, found |\n| --- | --- | --- | --- | --- | --- |"
    for count, phi in DESIGN:
        for noise in (0.01, 0.02):
            found = raised(count, phi, noise, 0, many)[0], raised(count, phi, noise, 0.03, many)[1], raised(count, phi, noise, 0.05, many)[1]
            yield f"| {count} | {phi} | {noise:.0%} | {' | '.join(f'{share:.4f}' for share in found)} |"


if __name__ == "__main__":
    many, page = int(sys.argv[1]) if len(sys.argv) > 1 else 4000, Path(__file__).with_name("statistics.md")
    filled = f"<!-- python docs/coverage.py -->\n\n{many:,} series in each row.\n\n" + "\n".join(tables(many)) + "\n\n<!-- end -->"
    page.write_text(re.sub(r"<!-- python docs/coverage.py -->.*?<!-- end -->", lambda _: filled, page.read_text(), flags=re.DOTALL))
