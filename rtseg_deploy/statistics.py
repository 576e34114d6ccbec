"""What samples of time say, nothing removed: of one process or of several, in milliseconds and frames per second.

One process. Its N samples depend on each other, so that an interval comes from blocks of them, of
    l = max(ceil(N^(1/3)), min(N / 10, ceil(24 tau)))
samples in a row; tau = 1 + 2 sum of rho_k, the autocorrelations until the first below 2 / sqrt(N), of the series clipped at 5 MAD, is how many
samples are worth one. With S_j the means of all N - l + 1 blocks about the series' mean m,
    se^2 = sum of S_j^2 l / ((N - l + 1) (N - l))                              overlapping batch means (Meketon and Schmeiser, WSC 1984)
and the interval of the mean is [m - T_hi se, m - T_lo se], T the 2.5 and 97.5 % points of (mean* - mean S) / se* over B draws of N / l blocks, se*
being the draw's own standard error: slow steps are rare and large, and the draws without one have a small se*, which sends the upper end out
to where the mean may well be. Plain percentiles of mean* fall short of it. How often each covers the truth: docs/statistics.md.
The median's interval is from the quantiles 0.5 -+ t se of the samples, se being that of the share of samples below the median (Woodruff, 1952),
t Student's for 1.5 (N / l - 1) degrees of freedom.

Several processes. What differs between them (memory, clocks, neighbours) is in no process' own samples: the figure is the mean of their means,
and the interval is Student's, of the logarithms of the means.
"""
from functools import cache
from math import atan, ceil, comb, exp, log, log1p, pi, sin, sqrt

import numpy as np

LEVEL = 0.95                        # of every interval
DRAWS = 2000                        # of the bootstrap
SMALLEST_SHARE = 0.25               # of se: below it a draw's own standard error says only that the draw met no slow step; without it, no end to the interval
FEW = 20                            # samples of a process: with fewer their whole range is the interval
ENOUGH = 2000                       # samples of one process: with fewer the interval covers less than it says, see docs/statistics.md
BOUND_RISK = 0.01                   # that a percentile lies above its bound
PERCENTILES = (90, 95, 99)


def summary(runs):
    """runs: the seconds of each process. FPS = 1000 / mean of the processes' means, never a mean of FPS; percentiles are of all samples together."""
    processes = [np.asarray(seconds) * 1e3 for seconds in runs]
    ms, means, medians = np.concatenate(processes), [float(one.mean()) for one in processes], [float(np.median(one)) for one in processes]
    lengths = [block(one) for one in processes]
    low, high = of_processes(means) if len(means) > 1 else mean_interval(ms, lengths[0])
    median_low, median_high = of_processes(medians) if len(means) > 1 else median_interval(ms, lengths[0])
    mean, median = float(np.mean(means)), float(np.median(ms))
    mad, (low_quarter, high_quarter) = float(np.median(np.abs(ms - median))), np.percentile(ms, (25, 75))
    return {"fps": 1e3 / mean, "fps_low": 1e3 / high, "fps_high": 1e3 / low, "mean_ms": mean, "mean_low_ms": low, "mean_high_ms": high,
            "median_ms": median, "median_low_ms": median_low, "median_high_ms": median_high, "min_ms": float(ms.min()), "max_ms": float(ms.max()),
            **percentiles(ms), "mad_ms": mad, "robust_sd_ms": 1.4826 * mad, "cv": float(ms.std() / ms.mean()),
            "iqr_ratio": float(high_quarter - low_quarter) / median, "effective_samples": sum(len(one) / worth(clipped(one)) for one in processes),
            "block": max(lengths), "half_width": (high - low) / 2 / mean, "approximate": len(means) == 1 and len(ms) < ENOUGH, "process_means_ms": means}


# ---- intervals


def mean_interval(samples, length):
    """(low, high) of the mean of a series. The same samples give the same interval."""
    if len(samples) < FEW:
        return float(samples.min()), float(samples.max())
    mean, error, means, errors = draws(samples, length)
    low, high = studentised((means - mean) / np.maximum(errors, SMALLEST_SHARE * error)) if error else (0.0, 0.0)
    return max(mean - high * error, float(samples.min())), mean - low * error


def studentised(values):
    return map(float, np.percentile(values, (50 * (1 - LEVEL), 50 * (1 + LEVEL))))


def draws(samples, length, seed=0):
    """(mean, its standard error, and DRAWS of each by moving blocks); the draws' means are about the same mean."""
    count, mean = len(samples), float(samples.mean())
    blocks, error = block_means(samples - mean, length)
    drawn = blocks[np.random.default_rng(seed).integers(0, len(blocks), (DRAWS, count // length))]
    return mean, error, mean + drawn.mean(1) - blocks.mean(), drawn.std(1, ddof=1) / sqrt(count // length)


def block_means(centred, length):
    """The means of all blocks, and the standard error of the series' mean that follows from them."""
    count, sums = len(centred), np.concatenate([[0.0], np.cumsum(centred)])
    blocks = (sums[length:] - sums[:-length]) / length
    return blocks, sqrt(float(np.square(blocks).sum()) * length / ((count - length + 1) * (count - length)))


def median_interval(samples, length):
    """(low, high) of the median of a series."""
    if len(samples) < FEW:
        return float(samples.min()), float(samples.max())
    below = (samples <= np.median(samples)) - 0.5
    reach = student(int(1.5 * (len(samples) / length - 1))) * block_means(below, length)[1]
    return tuple(map(float, np.quantile(samples, np.clip([0.5 - reach, 0.5 + reach], 0, 1))))


def sign_interval(samples):
    """(low, high) of the median of independent samples, whatever their distribution: as many are left out at each end as the sign test allows.

    Of fewer than six it is their whole range, which then covers the median less often than LEVEL.
    """
    ordered, count = np.sort(samples), len(samples)
    left_out, risk = 0, 2.0 * 0.5**count
    while left_out < (count - 1) // 2 and risk + 2 * comb(count, left_out + 1) * 0.5**count <= 1 - LEVEL:
        left_out += 1
        risk += 2 * comb(count, left_out) * 0.5**count
    return float(ordered[left_out]), float(ordered[-1 - left_out])


def of_processes(means):
    """(low, high) of the mean over processes, from two means or more."""
    logs = np.log(means)
    reach = exp(student(len(means) - 1) * float(logs.std(ddof=1)) / sqrt(len(means)))
    return float(np.mean(means)) / reach, float(np.mean(means)) * reach


def clipped(samples):
    """The series with its slow steps cut at 5 MAD: they come alone, and would hide how the others depend on each other."""
    median = np.median(samples)
    reach = 5 * np.median(np.abs(samples - median))
    return np.clip(samples, median - reach, median + reach)


def worth(series):
    """tau: how many samples say as much as one that does not depend on the others."""
    count, centred = len(series), series - series.mean()
    products = np.fft.irfft(np.abs(np.fft.rfft(centred, 2 * count)) ** 2)[:count]
    if count < 2 or products[0] <= 0:
        return 1.0
    rho = products[1:] / products[0]
    low = rho < 2 / sqrt(count)
    return float(max(1.0, 1 + 2 * rho[:low.argmax() if low.any() else count].sum()))


def block(samples):
    """The number of samples in a block."""
    count = len(samples)
    return max(ceil(count ** (1 / 3)), min(count // 10, ceil(24 * worth(clipped(samples)))))


# ---- percentiles


def percentiles(ms):
    """Between order statistics, and a bound from above, which is one of the samples, with the confidence that it is a bound.

    Samples above a percentile come in groups where samples depend on each other: they count as so many as they are worth.
    """
    ordered, values, bounds = np.sort(ms), np.percentile(ms, PERCENTILES), []
    for percent, value in zip(PERCENTILES, values):
        count = max(1, int(len(ms) / worth((ms > value) * 1.0)))
        above, confidence = bound(count, 1 - percent / 100)
        bounds.append((float(ordered[-1 - above * len(ms) // count]), -confidence))
    found = {}
    for place, (percent, value) in enumerate(zip(PERCENTILES, values)):
        most, confidence = min(bounds[place:])      # what bounds a higher percentile bounds this one
        found.update({f"p{percent}_ms": float(value), f"p{percent}_bound_ms": most, f"p{percent}_bound_confidence": -confidence})
    return found


@cache
def bound(count, tail):
    """(how many samples may lie above the bound, its confidence): the most, t, for which P[Binomial(count, tail) <= t] is within BOUND_RISK.

    The maximum, at a lower confidence, where there are too few samples for any: 459 for the 99th percentile.
    """
    k = np.arange(ceil(count * tail) + 1)       # the median of the count is among them
    steps = np.log((count - k[:-1]) / (k[:-1] + 1)) + log(tail) - log1p(-tail)
    below = np.cumsum(np.exp(count * log1p(-tail) + np.concatenate([[0.0], np.cumsum(steps)])))
    above = max(0, int(np.searchsorted(below, BOUND_RISK, "right")) - 1)
    return above, float(1 - below[above])


# ---- Student's t


@cache
def student(freedom):
    """The value that |t| stays below with probability LEVEL, for a whole number of degrees of freedom, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, max(1, freedom)) < LEVEL else (low, middle)
    return low


def within(t, freedom):
    """P(|T| < t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    square = 1 / (1 + t * t / freedom)
    term, total = sqrt(square) if odd else 1.0, 0.0
    for k in range(odd, freedom - odd, 2):
        total += term
        term *= square * (k + 1) / (k + 2)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
