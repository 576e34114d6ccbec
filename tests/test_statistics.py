"""Statistics: the arithmetic on planted samples, and whether intervals and bounds hold the truth where it is known."""
import json
import time

import numpy as np
import pytest
from conftest import ROOT, script
from hypothesis import given
from hypothesis import strategies as st

from rtseg_deploy import statistics
from rtseg_deploy.statistics import summary

coverage = script(ROOT / "docs/coverage.py")


def steady(count=1000, noise=0.01, seed=0):
    return 0.010 * (1 + noise * np.random.default_rng(seed).standard_normal(count))


def test_fps_is_a_thousand_over_the_mean():
    s = summary([[0.0333, 0.0167, 0.005]])
    assert s["fps"] == pytest.approx(1000 / ((33.3 + 16.7 + 5) / 3))
    assert s["median_ms"] == pytest.approx(16.7) and s["mad_ms"] == pytest.approx(11.7) and s["robust_sd_ms"] == pytest.approx(17.35, rel=1e-3)
    assert (s["min_ms"], s["max_ms"]) == (pytest.approx(5), pytest.approx(33.3))


def test_percentiles_lie_between_order_statistics():
    s = summary([np.arange(1, 102) / 1000])
    assert [s["p90_ms"], s["p95_ms"], s["p99_ms"]] == pytest.approx([91, 96, 100])
    assert s["iqr_ratio"] == pytest.approx(50 / 51)


@given(st.lists(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50), min_size=1, max_size=3))
def test_statistics_keep_their_order(runs):
    s = summary(runs)
    assert s["min_ms"] <= s["median_ms"] <= s["p90_ms"] <= s["p95_ms"] <= s["p99_ms"] <= s["max_ms"]
    assert s["p90_bound_ms"] <= s["p95_bound_ms"] <= s["p99_bound_ms"] <= s["max_ms"]
    assert s["min_ms"] * 0.999 <= s["mean_ms"] <= s["max_ms"] * 1.001
    assert 0 < s["mean_low_ms"] <= s["mean_ms"] * 1.001 and s["mean_ms"] <= s["mean_high_ms"] * 1.001
    assert s["fps_low"] == pytest.approx(1000 / s["mean_high_ms"]) and s["fps_high"] == pytest.approx(1000 / s["mean_low_ms"])
    json.dumps(s, allow_nan=False)


def test_nothing_is_removed():
    samples = steady(500)
    slow = samples.copy()
    slow[100] = 10
    assert summary([slow])["mean_ms"] - summary([samples])["mean_ms"] == pytest.approx(1e3 * (10 - samples[100]) / 500)


@pytest.mark.parametrize("percent, above", [(90, (34, 78, 168, 450)), (95, (13, 34, 77, 214)), (99, (0, 2, 9, 33))])
def test_as_many_samples_lie_above_a_bound_as_the_binomial_tail_allows(percent, above):
    assert tuple(statistics.bound(count, 1 - percent / 100)[0] for count in (500, 1000, 2000, 5000)) == above


def test_too_few_samples_for_a_bound_say_so():
    assert statistics.bound(458, 0.01)[1] < 0.99 <= statistics.bound(459, 0.01)[1]
    s = summary([steady(100)])
    assert s["p99_bound_ms"] == s["max_ms"] and s["p99_bound_confidence"] == pytest.approx(1 - 0.99**100)


def test_a_bound_of_a_higher_percentile_is_a_bound():
    """Where neighbours depend on each other for long, fewer samples count for the 90th than for the 99th."""
    for one in coverage.series(np.random.default_rng(0), 100, 500, 0.97):
        found = statistics.percentiles(one)
        assert found["p90_bound_ms"] <= found["p95_bound_ms"] <= found["p99_bound_ms"]


def test_students_quantiles():
    """To the digits of the usual tables."""
    assert [round(statistics.student(df), 3) for df in (1, 2, 3, 4, 9, 10, 30, 1000)] == [12.706, 4.303, 3.182, 2.776, 2.262, 2.228, 2.042, 1.962]


def test_what_depends_on_its_neighbours_is_worth_less():
    for phi, tau in ((0, 1), (0.5, 3), (0.9, 19)):     # (1 + phi) / (1 - phi)
        found = [statistics.worth(statistics.clipped(one)) for one in coverage.series(np.random.default_rng(0), 20, 5000, phi)]
        assert np.median(found) == pytest.approx(tau, rel=0.2)


def test_the_same_samples_give_the_same_interval_in_time():
    runs = [steady(5000, seed=seed) for seed in range(5)]
    begin = time.perf_counter()
    assert summary(runs[:1]) == summary(runs[:1]) and summary(runs) == summary(runs)
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("count, phi", [(500, 0), (500, 0.9), (1000, 0.5)])
def test_intervals_and_bounds_hold_the_truth(count, phi):
    """A sample of docs/statistics.md: 300 series, so that a share has a standard error of up to 0.02."""
    found = coverage.row(count, phi, 300, coverage.truths(np.random.default_rng(0)))
    assert found["mean"] > max(found["plain"], coverage.DESIGN[count, phi] - 0.02) and found["median"] > 0.9
    assert found["width"] < 0.025 and min(found["p90"], found["p95"], found["p99"]) > 0.95


def test_processes_that_differ_widen_the_interval():
    assert coverage.of_several(3, 0.05, 300) > 0.92
    one, five = summary([steady(500)]), summary([steady(500, seed=seed) * (1 + 0.02 * seed) for seed in range(5)])
    assert five["mean_ms"] == pytest.approx(np.mean(five["process_means_ms"])) and five["half_width"] > 10 * one["half_width"]
    assert one["approximate"] and not five["approximate"] and not summary([steady(2000)])["approximate"]


def test_processes_count_alike_however_long_they_ran():
    assert summary([[0.010] * 900, [0.020] * 100])["mean_ms"] == pytest.approx(15)
