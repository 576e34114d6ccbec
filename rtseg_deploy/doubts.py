"""Why a figure should not be believed as it is, each doubt with its evidence.

A doubt is grave where the same run again may give another figure: such a figure is unstable. Of the others the figure is repeatable; they say
what else than the network is in it, so that it would be another one elsewhere: the harness, the host's launches, the allocator, a warm cache.
"""
from dataclasses import dataclass
from math import erfc, inf, sqrt

import numpy as np

from . import backends, facts, telemetry

DRIFT_LIMIT = 0.02                  # of the median over the run
DRIFT_RISK = 0.01                   # that a steady run of independent blocks looks so orderly
SPREAD_LIMIT = 0.10                 # interquartile range / median, as torch.utils.benchmark warns
TWO_SPEEDS = 1.5                    # median / minimum; 1.05 to 1.15 on a quiet machine
SPIKE_LIMIT = 0.02                  # share of the time above the third quartile + 3 interquartile ranges
PROCESSES_LIMIT = 0.05              # range of the processes' means / mean
CHOSEN = telemetry.REASONS[0x2]     # somebody set the clock lower
CLOCK_LIMIT, STEADY_LIMIT = 0.75, 0.95      # of the highest clock there is (as nvbench), of the run's highest
OTHERS_LIMIT = 0.05                 # of a processor, beyond those that are free. Planted on 2: with others on 1 to 1.4, 5.5 ms took 18 to 40
HOST_LIMIT = 0.8                    # of the device's time for the host's launches, as trtexec
EMPTY_LIMIT = 0.001                 # an empty bracket of the clock / median
FAULT_SECONDS = 1e-6                # a minor page fault: some 0.5 us on a machine of one's own, 3 us measured on a virtual one
FAULTS_LIMIT = 0.01                 # of the median, for all faults of an iteration
BYTES = {"normalised": 12, "rgb8": 3, "rgb8-nchw": 3}       # a pixel of each kind of input


@dataclass(frozen=True)
class Doubt:
    flag: str
    says: str
    grave: bool


def doubts(result):
    """Doubts of a result file's object, in the order of CHECKS; empty where there are none, and for a backend that computes nothing."""
    runs = result["runs"]
    if result["backend"] == "null":
        return []
    (height, width), on_gpu = result["resolution"], backends.on_gpu(result["backend"])
    found = [of(run, on_gpu, height * width * BYTES[result["artifact"]["input"]]) for run in runs]
    merged = []
    for flag in CHECKS:
        same = [doubt for one in found for doubt in one if doubt.flag == flag]
        if same:
            share = f" (in {len(same)} of {len(runs)} processes)" if len(runs) > 1 else ""
            merged.append(Doubt(flag, same[0].says + share, same[0].grave))
    return merged + disagreement([float(np.mean(run["seconds"])) for run in runs])


def of(run, on_gpu=False, input_bytes=0):
    """Doubts of one process; run: an element of "runs", of which all but seconds may be absent. Of a GPU beside a processor that is timed nothing counts."""
    began, ended = run.get("began", -inf), run.get("ended", inf)
    run = {**run, "seconds": np.asarray(run["seconds"]), "median": float(np.median(run["seconds"])), "on_gpu": on_gpu, "input_bytes": input_bytes,
           "telemetry": [row for row in run.get("telemetry", ()) if began <= row.get("t", 0) <= ended]}
    run["gpu"] = run["telemetry"] if on_gpu else []
    said = ((flag, check(run), grave) for flag, (grave, check) in CHECKS.items())
    return [Doubt(flag, says, grave) for flag, says, grave in said if says]


def disagreement(means):
    """Whether processes that did the same took different times; means in seconds."""
    spread = (max(means) - min(means)) / np.mean(means)
    if spread <= PROCESSES_LIMIT:
        return []
    return [Doubt("processes-disagree", f"their means lie {spread:.1%} apart, {1e3 * min(means):.4g} to {1e3 * max(means):.4g} ms", True)]


# ---- of the samples


def drift(run):
    """Theil and Sen's slope through the medians of 20 parts, where Mann and Kendall's test finds them in order."""
    medians = np.array([np.median(part) for part in np.array_split(run["seconds"], min(20, len(run["seconds"])))])
    first, second = np.triu_indices(len(medians), 1)
    if not len(first):
        return None
    rises = medians[second] - medians[first]
    drifted = (len(medians) - 1) * np.median(rises / (second - first)) / run["median"]
    variance = len(medians) * (len(medians) - 1) * (2 * len(medians) + 5) / 18
    risk = erfc((abs(np.sign(rises).sum()) - 1) / sqrt(2 * variance))
    return abs(drifted) > DRIFT_LIMIT and risk < DRIFT_RISK and f"{drifted:+.1%} from the first to the last of {len(medians)} parts (p = {risk:.1g})"


def two_speeds(run):
    times = run["median"] / run["seconds"].min()
    return times > TWO_SPEEDS and f"the median is {times:.2f} times the fastest; something else uses the machine"


def spread(run):
    share = np.diff(np.percentile(run["seconds"], (25, 75)))[0] / run["median"]
    return share > SPREAD_LIMIT and f"the middle half covers {share:.0%} of the median, more than {SPREAD_LIMIT:.0%}"


def spikes(run):
    seconds, (low, high) = run["seconds"], np.percentile(run["seconds"], (25, 75))
    slow = seconds > high + 3 * (high - low)
    lost = (seconds[slow] - run["median"]).sum() / seconds.sum()
    return lost > SPIKE_LIMIT and f"{slow.sum()} slow iterations take {lost:.1%} of the time, the slowest {seconds.max() / run['median']:.1f} times the median"


def not_converged(run):
    warm_up = run.get("warmup_seconds", ())
    return run.get("warmup_converged") is False and f"{len(warm_up)} steps of warm-up in {sum(warm_up):.0f} s did not settle"


# ---- of the device


def throttled(run):
    reasons = sorted(telemetry.SLOWED & {reason for row in run["gpu"] for reason in row.get("throttled_by", ())})
    if reasons:
        return f"the device slowed down: {', '.join(reasons)}"
    slow = [(row["sm_mhz"], row["sm_max_mhz"]) for row in run["gpu"]
            if {"sm_mhz", "sm_max_mhz"} <= row.keys() and row["sm_mhz"] < CLOCK_LIMIT * row["sm_max_mhz"] and CHOSEN not in row.get("throttled_by", ())]
    return slow and "its clock fell to {:.0f} of {:.0f} MHz".format(*min(slow))


def clock_unsteady(run):
    clocks = [row["sm_mhz"] for row in run["gpu"] if "sm_mhz" in row]
    return clocks and min(clocks) < STEADY_LIMIT * max(clocks) and not throttled(run) and f"its clock moved from {min(clocks):.0f} to {max(clocks):.0f} MHz"


def other_process(run):
    """On the GPU that is timed; or on the processors that are, where fewer are free than others use."""
    most = max((row.get("other_processes", 0) for row in run["gpu"]), default=0)
    if most:
        return f"{most} other process{'es' * (most > 1)} on the device"
    used, environment = [row["others_cpu_percent"] for row in run["telemetry"] if "others_cpu_percent" in row], run.get("environment", {})
    if not used or run["on_gpu"]:
        return None
    processors = environment.get("cpus") or 1
    others = np.mean(used) / 100 * processors
    free = max(0, processors - (environment.get("threads") or processors))
    return others > free + OTHERS_LIMIT and f"others kept {others:.2f} of {processors} processors busy, {free} of which the timed process left free"


def enqueue_bound(run):
    if not run.get("device_seconds"):
        return None
    share = np.median(run["enqueue_seconds"]) / np.median(run["device_seconds"])
    return share > HOST_LIMIT and f"launching takes the host {share:.0%} of the device's time: the host limits the speed; try --cuda-graph"


def clock_resolution(run):
    share = run.get("empty_seconds", 0) / run["median"]
    return share > EMPTY_LIMIT and f"reading the clock alone takes {1e6 * run['empty_seconds']:.2g} us, {share:.2%} of the median"


def page_faults(run):
    faults = run.get("minor_faults", 0) / len(run["seconds"])
    share = faults * FAULT_SECONDS / run["median"]
    return share > FAULTS_LIMIT and f"{faults:.0f} minor page faults an iteration, about {share:.0%} of its time: memory is taken anew each time"


def input_in_cache(run):
    """A repeated input that stays in the L2 of a GPU: a camera's image does not."""
    gpu = run.get("environment", {}).get("gpu") or {}
    name = gpu.get("name", "") if isinstance(gpu, dict) else gpu
    device = facts.device_called(name)
    hot = run["on_gpu"] and device and 0 < run["input_bytes"] < 2 * device.l2_mib * 2**20
    return hot and f"hot: the input, {run['input_bytes'] / 2**20:.1f} MiB and the same each time, can stay in the {device.l2_mib:g} MiB of L2"


CHECKS = {"drift": (True, drift), "two-speeds": (True, two_speeds), "spread": (True, spread), "spikes": (True, spikes),
          "not-converged": (True, not_converged), "throttled": (True, throttled), "clock-unsteady": (True, clock_unsteady),
          "other-process": (True, other_process), "enqueue-bound": (False, enqueue_bound), "clock-resolution": (False, clock_resolution),
          "page-faults": (False, page_faults), "input-in-cache": (False, input_in_cache)}
