"""Artifact x backend -> a figure: raw samples, their statistics, and what makes them doubtful.

The clock is the one in device/runner.py; each figure is a process of its own.
"""
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import backends, files, images, launch
from .records import FORMAT, read_artifact, size

PAPERS_RANGE = (500, 5000)          # iterations that the papers state (DDRNet 500, BiSeNet V2 5000)
DRIFT_LIMIT = 0.05                  # between the medians of the two halves
SPREAD_LIMIT = 0.10                 # interquartile range / median, as torch.utils.benchmark warns
TWO_SPEEDS = 1.5                    # median / minimum; 1.05 to 1.15 on a quiet machine
SPIKE_LIMIT = 0.05                  # share of the time above the third quartile + 3 interquartile ranges
SAME_LABELS = 0.999                 # below this two backends did not do the same work
FAULTS_WORTH_A_NOTE = 100           # minor page faults an iteration
SAMPLES = ("seconds", "warmup_seconds", "device_seconds", "enqueue_seconds")


@dataclass(frozen=True)
class Benchmark:
    """One figure. seconds are the samples as they were taken; everything else about speed follows from them."""
    artifact: dict
    file: str
    backend: str
    resolution: tuple
    input: str
    seconds: tuple
    warmup_seconds: tuple
    minor_faults: int
    environment: dict
    same_labels: dict                # backend compared with -> share of equal labels
    device_seconds: tuple = ()       # of a GPU: by its own events, in steps of their own
    enqueue_seconds: tuple = ()      # the host's, until each of those calls returned
    back_to_back_seconds: float = 0.0    # as many steps once more, waited for together: a queue, not a latency

    @property
    def statistics(self):
        found = statistics(self.seconds)
        if self.device_seconds:
            found.update(device_median_ms=1e3 * float(np.median(self.device_seconds)), enqueue_median_ms=1e3 * float(np.median(self.enqueue_seconds)),
                         back_to_back_fps=len(self.device_seconds) / self.back_to_back_seconds)
        return found

    @property
    def warnings(self):
        different = [f"does not do the same work as {other}: {share:.2%} of labels are equal"
                     for other, share in self.same_labels.items() if share < SAME_LABELS]
        return different + (doubts(self.seconds) if self.backend != "null" else [])

    @property
    def notes(self):
        """What limits the figure's meaning without making it doubtful."""
        low, high = PAPERS_RANGE
        faults = self.minor_faults / len(self.seconds)
        rows = [(not low <= len(self.seconds) <= high, f"N = {len(self.seconds)} is outside the papers' {low} to {high}"),
                ("seed" in self.artifact["parent"], "random weights: for speed only"),
                (faults > FAULTS_WORTH_A_NOTE, f"{faults:.0f} minor page faults an iteration: memory is taken anew each time"),
                (self.environment.get("note"), self.environment.get("note"))]
        return [text for applies, text in rows if applies]

    def to_json(self, samples=True):
        value = {"format": FORMAT, "kind": "benchmark", **asdict(self), "iterations": len(self.seconds), "statistics": self.statistics,
                 "status": "unstable" if self.warnings else "stable", "warnings": self.warnings, "notes": self.notes}
        return value if samples else {name: value[name] for name in value if name not in SAMPLES}


def statistics(seconds):
    """Milliseconds and frames per second; FPS = 1000 / mean, never a mean of FPS."""
    ms = np.asarray(seconds) * 1e3
    p90, p95, p99 = np.percentile(ms, (90, 95, 99))
    median = float(np.median(ms))
    return {"fps": 1e3 / float(ms.mean()), "mean_ms": float(ms.mean()), "median_ms": median, "min_ms": float(ms.min()), "max_ms": float(ms.max()),
            "p90_ms": float(p90), "p95_ms": float(p95), "p99_ms": float(p99), "mad_ms": float(np.median(np.abs(ms - median)))}


def doubts(seconds):
    """Why these samples should not be believed as they are; empty where they may."""
    samples = np.asarray(seconds)
    found = []
    first, second = np.median(samples[:len(samples) // 2 or 1]), np.median(samples[len(samples) // 2:])
    if abs(second / first - 1) > DRIFT_LIMIT:
        found.append(f"drift: the second half's median is {second / first - 1:+.1%} of the first's")
    if np.median(samples) > TWO_SPEEDS * samples.min():
        found.append(f"two speeds: the median is {np.median(samples) / samples.min():.2f} times the fastest; something else uses the machine")
    quarter, median, three_quarters = np.percentile(samples, (25, 50, 75))
    if (three_quarters - quarter) / median > SPREAD_LIMIT:
        found.append(f"spread: the middle half covers {(three_quarters - quarter) / median:.0%} of the median, more than {SPREAD_LIMIT:.0%}")
    slow = samples > three_quarters + 3 * (three_quarters - quarter)
    lost = (samples[slow] - median).sum() / samples.sum()
    if lost > SPIKE_LIMIT:
        found.append(f"spikes: {slow.sum()} slow iterations take {lost:.0%} of the time; something else ran")
    return found


def bench(path, asked, iterations, image=None, threads=None, results="results", own=None, place=None, cuda_graph=False,
          tell=lambda step, done: None):
    """Time one artifact on each backend asked for, in order; returns [(result file, Benchmark)]. Every figure is on disk as soon as it is done."""
    artifact = read_artifact(path)
    names = backends.chosen(artifact, asked)
    array, fed = picture(artifact, image)
    done, first = [], None
    for backend in names:
        title = f"{artifact.model} {size(artifact.resolution)} {backend}"
        job = launch.on_backend("time", path, artifact, backend, [array], threads, own, iterations=iterations, cuda_graph=cuda_graph)
        with launch.ran(job, place, lambda step, share, title=title: tell(f"{title}: {step}", share)) as (result, folder):
            (labels,) = launch.labels_in(folder, job)
        same = {}
        if labels is not None:
            first = first or (backend, labels)
            same = {} if first[0] == backend else {first[0]: float((first[1] == labels).mean())}
        benchmark = figure(artifact, path, backend, fed, result, place.name if place else "", same)
        done.append((write(benchmark, results), benchmark))
    return done


def figure(artifact, path, backend, fed, result, on="", same=None):
    """The Benchmark of a worker's result."""
    return Benchmark(artifact.to_json(), str(path), backend, artifact.resolution, fed, tuple(result["seconds"]), tuple(result["warmup_seconds"]),
                     result["minor_faults"], {**result["environment"], "on": on}, same or {}, tuple(result.get("device_seconds", ())),
                     tuple(result.get("enqueue_seconds", ())), result.get("back_to_back_seconds", 0.0))


def picture(artifact, image):
    """(input, what it is called): an image, or seeded noise; never zeros, which some hardware runs faster."""
    rng = np.random.default_rng(0)
    if image is not None:
        pixels = images.resized(images.read(image), artifact.resolution)
        return images.fed(pixels, artifact.input, artifact.normalisation), f"{image} sha256 {files.sha256(image)}"
    if artifact.input == "normalised":
        return rng.standard_normal((1, 3, *artifact.resolution), np.float32), "noise, seed 0"
    return images.fed(rng.integers(0, 256, (*artifact.resolution, 3), np.uint8), artifact.input, None), "noise, seed 0"


def write(benchmark, folder):
    """One file a figure, named by what was timed and when."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"{benchmark.artifact['model']}-{size(benchmark.resolution)}-{benchmark.artifact['precision']}-{benchmark.backend}-{stamp}"
    path, number = Path(folder, f"{name}.json"), 1
    while path.exists():
        number += 1
        path = Path(folder, f"{name}-{number}.json")
    files.write_json(path, benchmark.to_json())
    return path
