"""Doubts: each planted fault raises its flag and no other, and steady machines, noisy as they are, raise none."""
import numpy as np
import pytest
from conftest import ROOT, script
from hypothesis import given
from hypothesis import strategies as st

from rtseg_deploy.doubts import doubts, of

coverage = script(ROOT / "docs/coverage.py")


def steady(count=500, noise=0.01, seed=0):
    return 0.010 * (1 + noise * np.random.default_rng(seed).standard_normal(count))


def row(t=5.0, **changes):
    return {"t": t, "sm_mhz": 1545.0, "sm_max_mhz": 1545.0, "temperature_c": 60, "power_w": 200, "throttled_by": [], "other_processes": 0, **changes}


def run(**changes):
    """A GPU's process without a fault."""
    samples = steady()
    values = {"seconds": list(samples), "warmup_seconds": [0.01] * 200, "warmup_converged": True, "device_seconds": list(samples * 0.95),
              "enqueue_seconds": list(samples * 0.3), "back_to_back_seconds": 4.8, "empty_seconds": 1e-7, "minor_faults": 20, "began": 1.0, "ended": 9.0,
              "environment": {"cpus": 8, "threads": None, "gpu": {"name": "NVIDIA GeForce RTX 2080 Ti"}}, "telemetry": [row(float(t)) for t in range(1, 10)]}
    return {**values, **changes}


def on_cpu(others, cpus=4, threads=4):
    return run(device_seconds=[], enqueue_seconds=[], environment={"cpus": cpus, "threads": threads}, telemetry=[{"t": 5.0, "others_cpu_percent": others}])


QUIET = {"runs": [], "backend": "onnxruntime-cuda", "resolution": [1024, 2048], "artifact": {"input": "normalised"}}


def flags(one, **changes):
    return [doubt.flag for doubt in doubts({**QUIET, "runs": [one], **changes})]


def ramp(share):
    return steady() * np.linspace(1, 1 + share, 500)


def step():
    return steady() * np.repeat([1, 1.05], 250)


def one_spike():
    return np.where(np.arange(500) == 250, 0.2, steady())


def many_spikes():
    return steady() * np.where(np.arange(500) % 50, 1, 4)


def halved():
    return steady() * np.where(np.arange(500) < 15, 0.5, 1)


PLANTED = [
    ("drift", dict(seconds=ramp(0.03))), ("drift", dict(seconds=ramp(-0.03))), ("drift", dict(seconds=step())),
    ("spikes", dict(seconds=one_spike())), ("spikes", dict(seconds=many_spikes())),
    ("spread", dict(seconds=steady() * np.tile([1, 1.3], 250))),
    ("two-speeds", dict(seconds=halved())),
    ("not-converged", dict(warmup_converged=False)),
    ("throttled", dict(telemetry=[row(), row(throttled_by=["power cap"])])),
    ("throttled", dict(telemetry=[row(throttled_by=["temperature (hardware)", "application clocks"])])),
    ("throttled", dict(telemetry=[row(), row(sm_mhz=900.0)])),
    ("throttled", dict(telemetry=[row(sm_mhz=900.0)] * 9)),
    ("clock-unsteady", dict(telemetry=[row(), row(sm_mhz=1400.0)])),
    ("other-process", dict(telemetry=[row(), row(other_processes=1)])),
    ("enqueue-bound", dict(enqueue_seconds=list(steady() * 0.9))),
    ("clock-resolution", dict(empty_seconds=2e-5)),
    ("page-faults", dict(minor_faults=500 * 500)),
]
NOTES = ("enqueue-bound", "clock-resolution", "page-faults", "input-in-cache")


@pytest.mark.parametrize("flag, fault", PLANTED)
def test_each_planted_fault_raises_its_flag_alone(flag, fault):
    (doubt,) = of(run(**fault), True)
    assert doubt.flag == flag and doubt.says and doubt.grave == (flag not in NOTES)


def test_without_a_fault_there_is_no_doubt():
    assert flags(run()) == flags({"seconds": list(steady())}) == []


def test_an_input_that_stays_in_the_cache():
    small = dict(resolution=[360, 480])                 # 2 MB of float32, and 5.5 MiB of L2
    (doubt,) = doubts({**QUIET, "runs": [run()], **small})
    assert doubt.flag == "input-in-cache" and not doubt.grave and "2.0 MiB" in doubt.says
    assert flags(on_cpu(0), backend="onnxruntime-cpu", **small) == []
    assert flags(run(), resolution=[512, 1024]) == ["input-in-cache"]      # 6 MiB: more than half of it finds room
    h200 = {"gpu": {"name": "NVIDIA H200"}}             # 25 MB, and 50 MiB
    assert flags(run(environment=h200)) == ["input-in-cache"] and flags(run(environment=h200), resolution=[4096, 4096]) == []


def test_a_clock_that_somebody_set_is_not_throttled():
    assert flags(run(telemetry=[row(sm_mhz=900.0, throttled_by=["application clocks"])] * 9)) == []


def test_an_idle_gpu_beside_a_processor_that_is_timed_does_not_count():
    idle = [row(sm_mhz=210.0, throttled_by=["power cap"], other_processes=2), row()]
    assert flags(run(telemetry=idle), backend="onnxruntime-cpu") == [] and flags(run(telemetry=idle)) == ["throttled", "other-process"]


def test_what_happens_before_and_after_the_timed_part_does_not_count():
    assert flags(run(telemetry=[row(0.5, sm_mhz=300.0), row(), row(9.5, throttled_by=["power cap"], other_processes=3)])) == []


@pytest.mark.parametrize("others, cpus, threads, flag", [
    (1, 4, 4, []), (3, 4, 4, ["other-process"]), (25, 4, None, ["other-process"]), (25, 4, 2, []), (60, 4, 2, ["other-process"]), (12.5, 16, 8, [])])
def test_others_count_where_they_need_the_same_processors(others, cpus, threads, flag):
    assert flags(on_cpu(others, cpus, threads), backend="onnxruntime-cpu") == flag


def test_processes():
    quiet = {**QUIET, "runs": [run(seconds=list(steady(seed=seed))) for seed in range(3)]}
    assert doubts(quiet) == []
    one = {**quiet, "runs": [*quiet["runs"], run(seconds=list(ramp(0.04)))]}
    assert [(doubt.flag, doubt.says.endswith("(in 1 of 4 processes)")) for doubt in doubts(one)] == [("drift", True)]
    apart = {**quiet, "runs": [*quiet["runs"], run(seconds=list(1.06 * steady()))]}
    assert [doubt.flag for doubt in doubts(apart)] == ["processes-disagree"]


def test_a_backend_that_computes_nothing_raises_none():
    assert flags(run(seconds=list(many_spikes() / 1e5), minor_faults=10**6, warmup_converged=False), backend="null") == []


@pytest.mark.parametrize("count, many", [(500, 200), (5000, 20)])
@pytest.mark.parametrize("phi", [0, 0.5, 0.9])
def test_steady_machines_raise_none(count, many, phi):
    """Noise of 1 %, of which each step hands phi to the next, and one spike in a hundred: 660 series."""
    series = coverage.series(np.random.default_rng(0), many, count, phi, 0.01)
    assert [doubt for one in series for doubt in of({"seconds": one})] == []
    assert np.mean([[doubt.flag for doubt in of({"seconds": one * np.linspace(1, 1.03, count)})] == ["drift"] for one in series]) > 0.85


def test_noise_that_rises_by_chance_is_no_drift():
    """Three samples in each part: their medians often rise by more than 2 %, and one time in a hundred in order."""
    assert sum(doubt.flag == "drift" for seed in range(300) for doubt in of({"seconds": steady(60, 0.05, seed)})) < 8


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50))
def test_any_samples_are_answered(seconds):
    of({"seconds": seconds})
