"""Artifact x backend -> a figure: raw samples, their statistics, and what makes them doubtful.

The clock is the one in device/runner.py; each run is a process of its own.
"""
import random
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from . import backends, doubts, facts, files, images, launch, limits, locks, results, statistics, stream, telemetry, tune
from .errors import RtsegError
from .records import FORMAT, read_artifact, size

PAPERS_RANGE = (500, 5000)          # iterations that the papers state (DDRNet 500, BiSeNet V2 5000)


@dataclass(frozen=True)
class Ask:
    """How an artifact is to be timed."""
    backends: tuple = ()
    protocol: str = "network"       # a name of facts.protocols()
    iterations: int | None = None   # the protocol's if not given
    processes: int = 1
    image: str | None = None        # instead of seeded noise
    decode: bool = False            # the image's file is decoded within the clock
    threads: int | None = None
    cuda_graph: bool = False
    bn: str = ""                    # folded or kept, where PyTorch is timed; the protocol's if not given
    portrait: bool = False          # an image that is higher than wide is meant
    warmup_limit: float = 30.0      # seconds
    precision: str | None = None    # that the backend "auto" may compute in; the artifact's if not given
    untuned: bool = False           # with no settings but the backend's own, whatever tune found
    place: object = None
    own: dict | None = None         # the arguments of own.load, for a network that only its own code can build
    figure: str = ""                # id of the paper's figure that this is for
    results: str = "results"
    names: dict = field(default_factory=dict)    # backend -> the file's name, where it is to have a certain one


@dataclass(frozen=True)
class Run:
    """What one process measured, as it was measured: see time_steps in device/runner.py."""
    seconds: tuple                  # host, each step waited for
    warmup_seconds: tuple
    warmup_converged: bool
    minor_faults: int               # in the timed part
    empty_seconds: float            # of a bracket with nothing in it
    began: float                    # time.perf_counter, as telemetry's t
    ended: float
    environment: dict
    back_to_back_seconds: float     # of as many steps under one bracket: on a GPU they queue
    device_seconds: tuple = ()      # of a GPU: by its own events, in steps of their own
    enqueue_seconds: tuple = ()     # the host's, until each of those calls returned
    stages: dict = field(default_factory=dict)   # name -> seconds, in order
    telemetry: tuple = ()           # rows of telemetry.rows


@dataclass(frozen=True)
class Benchmark:
    """One figure. The runs hold the samples as they were taken; everything else about speed follows from them."""
    artifact: dict
    file: str
    backend: str
    resolution: tuple
    input: str
    protocol: str
    iterations: int                 # of each run
    runs: tuple                     # of Run
    same_labels: dict               # backend compared with -> share of equal labels
    figure: str = ""                # id of the paper's figure that it is for

    @property
    def environment(self):
        """Of the first run: what differs between runs is in each."""
        return self.runs[0].environment

    @property
    def boundary(self):
        """What is inside the clock: a name of facts, and the sentence of who timed it."""
        return f"{facts.protocol(self.protocol).boundary}: {self.environment.get('boundary', 'not said')}"

    @property
    def bn(self):
        return self.environment.get("bn", "folded")

    @cached_property
    def statistics(self):
        found = statistics.summary([run.seconds for run in self.runs])
        queued = [run.back_to_back_seconds / len(run.seconds) for run in self.runs]
        clock = facts.protocol(self.protocol).clock
        if clock != "each" or self.runs[0].device_seconds:
            found["back_to_back_ms"] = 1e3 * float(np.mean(queued))
        if self.runs[0].device_seconds:
            found.update(device_median_ms=1e3 * median(self.runs, "device_seconds"), enqueue_median_ms=1e3 * median(self.runs, "enqueue_seconds"))
        if clock in ("together", "overlapping"):
            bracket = together(found["back_to_back_ms"], [1e3 * mean for mean in queued])
            found.update({name: value for name, value in bracket.items() if clock == "together" or "fps" in name})
        found.update({"energy_j": energy} if (energy := self.energy) is not None else {})
        return found

    @property
    def energy(self):
        """Joules an image, all of the device's while it was timed; None where it does not tell power."""
        spent = [telemetry.energy(run.telemetry, run.began, run.ended, cpu=not backends.on_gpu(self.backend)) for run in self.runs]
        return None if None in spent else sum(spent) / sum(len(run.seconds) for run in self.runs)

    @cached_property
    def doubts(self):
        different = [doubts.Doubt("other-work", f"does not do the same work as {other}: {share:.2%} of labels are equal", True)
                     for other, share in self.same_labels.items() if share < self.to_be_equal(other)]
        return different + doubts.doubts(asdict(self))

    def to_be_equal(self, other):
        """The share of labels that this backend and another are to have in common."""
        return min(backends.SAME_LABELS[backends.computes(self.artifact["precision"], name)] for name in (self.backend, other))

    @property
    def warnings(self):
        return [doubt for doubt in self.doubts if doubt.grave]

    @property
    def notes(self):
        """What limits the figure's meaning without making it doubtful."""
        low, high = PAPERS_RANGE
        protocol = facts.protocol(self.protocol)
        rows = [(not low <= self.iterations <= high, f"N = {self.iterations} is outside the papers' {low} to {high}"),
                ("seed" in self.artifact["parent"], "random weights: for speed only"),
                (protocol.name == "paper-unstated", protocol.about),
                (protocol.name == "paper-bisenetv2", protocol.about),
                (protocol.precision not in ("", self.artifact["precision"]), f"{self.artifact['precision']}; {protocol.name} is {protocol.precision}"),
                (protocol.bn not in ("", self.bn), f"BatchNorm {self.bn}; {protocol.bn} in {protocol.name}"),
                (self.environment.get("chosen"), f"auto chose {self.environment.get('chosen')}"),
                (self.environment.get("tuned"), f"settings that tune found: {self.environment.get('tuned')}"),
                (self.environment.get("note"), self.environment.get("note"))]
        return [text for applies, text in rows if applies] + [f"{doubt.flag}: {doubt.says}" for doubt in self.doubts if not doubt.grave]

    def to_json(self, samples=True):
        value = {"format": FORMAT, "kind": "benchmark", **asdict(self), "boundary": self.boundary, "bn": self.bn, "statistics": self.statistics,
                 "status": "unstable" if self.warnings else "stable", "warnings": [{"flag": one.flag, "says": one.says} for one in self.warnings],
                 "notes": self.notes}
        return value if samples else results.short(value)


def together(ms, means):
    """What the statistics say of steps under one bracket: one process gives one number, and no interval."""
    low, high = statistics.of_processes(means) if len(means) > 1 else (None, None)
    return {"mean_ms": ms, "mean_low_ms": low, "mean_high_ms": high, "process_means_ms": means, "fps": 1e3 / ms, "fps_low": high and 1e3 / high,
            "fps_high": low and 1e3 / low, "half_width": high and (high - low) / 2 / ms}


def median(runs, name):
    return float(np.median(np.concatenate([getattr(run, name) for run in runs])))


def bench(path, ask, tell=launch.quiet):
    """Time one artifact as asked, on each backend; returns [(result file, Benchmark)]. A figure is on disk as soon as its last run is done.

    With several processes the backends take turns in a shuffled order, so that none has the machine's better hour.
    """
    artifact = read_artifact(path)
    protocol = facts.protocol(ask.protocol)
    refuse_other(path, artifact, protocol, ask)
    choices = {one.backend: one for one in tune.chosen(path, artifact, ask.backends, tell, ask.threads, ask.precision, ask.untuned, ask.place)}
    names = list(choices)
    refuse_processors(protocol, names)
    array, fed = picture(artifact, ask.image, "file" if ask.decode else protocol.frame)
    iterations = ask.iterations or protocol.iterations
    order = [name for name in names for _ in range(ask.processes)]
    if ask.processes > 1:
        random.Random(0).shuffle(order)
    runs, first, done = {name: [] for name in names}, None, {}
    for number, name in enumerate(order, 1):
        title = f"{artifact.model} {size(artifact.resolution)} {name}" + (f" ({number} of {len(order)})" if ask.processes > 1 else "")
        job = timing(path, artifact, name, array, iterations, ask, choices[name].settings)
        with launch.ran(job, ask.place, lambda step, share, title=title: tell(f"{title}: {step}", share)) as (result, folder):
            runs[name].append(tuned(run_of(result, folder), choices[name]))
            (labels,) = launch.labels_in(folder, job)
        if len(runs[name]) < ask.processes:
            continue
        same = {first[0]: float((first[1] == labels).mean())} if first and labels is not None else {}
        first = first or (None if labels is None else (name, labels))
        benchmark = figure(artifact, path, name, fed, runs[name], ask.place.name if ask.place else "", ask.protocol, same, ask.figure)
        done[name] = write(benchmark, ask.results, ask.names.get(name)), benchmark
    return [done[name] for name in names]


def figure(artifact, path, backend, fed, runs, on, protocol="network", same=None, of=""):
    """The Benchmark of some runs."""
    runs = tuple(replace(run, environment={**run.environment, "on": on}) for run in runs)
    return Benchmark(artifact.to_json(), str(path), backend, artifact.resolution, fed, protocol, len(runs[0].seconds), runs, same or {}, of)


def tuned(run, choice):
    """The Run with what was chosen for it; nothing is added where nothing was."""
    said = {"tuned": tune.written(choice.settings), "chosen": choice.why}
    return replace(run, environment={**run.environment, **{name: value for name, value in said.items() if value}})


def timing(path, artifact, backend, array, iterations, ask, settings=None):
    """The job that times one backend once."""
    frame = "file" if ask.decode else facts.protocol(ask.protocol).frame
    stages, protocol = stream.around(artifact, frame) if frame else None, facts.protocol(ask.protocol)
    return launch.on_backend("time", path, artifact, backend, [array], ask.threads, ask.own, iterations=iterations, cuda_graph=ask.cuda_graph,
                             warmup_limit=ask.warmup_limit, stages=stages, streaming=protocol.clock == "overlapping", bn=ask.bn or protocol.bn,
                             settings=settings)


def refuse_other(path, artifact, protocol, ask):
    """Raise RtsegError for what the protocol does not time."""
    height, width = artifact.resolution
    if height > width and not ask.portrait:
        raise RtsegError(f"{path} takes {size(artifact.resolution)}, height first: higher than wide",
                         "export it the other way round, or add --portrait if that is meant")
    for name in ("input", "output") if protocol.fixed else ():
        have, wanted = getattr(artifact, name), getattr(protocol, name)
        if have != wanted:
            raise RtsegError(f"{protocol.name} times a network with {wanted} {name}, and {path} has {have}",
                             f"export it with --{name} {wanted}, or name its checkpoint or network with --resolution: bench exports it so")
    if protocol.name == "paper-bisenetv2" and artifact.network_input == artifact.resolution:
        raise RtsegError(f"{path} does not resize the image, and {protocol.name} times that too", "export it with --network-input 512x1024")
    if ask.decode and not (protocol.frame == "pixels" and ask.image):
        raise RtsegError("--decode times the decoding of an image file", "add --protocol end-to-end --image FILE")
    if protocol.frame == "pixels":
        stream.refuse_unknown_enlarging(path, artifact)


def refuse_processors(protocol, names):
    """Raise RtsegError where there is nothing that could overlap."""
    for name in names:
        if protocol.clock == "overlapping" and not backends.on_gpu(name):
            raise RtsegError(f"{protocol.name} overlaps a GPU's work with the copies there and back, and {name} has neither",
                             "time the same on a processor with --protocol end-to-end")


def run_of(result, folder=None):
    """The Run of a worker's result. A device may answer anything: what it says besides what it must is left alone."""
    sampled = folder and Path(folder, launch.TELEMETRY)
    lines = limits.data(sampled, limits.TELEMETRY_BYTES).decode(errors="replace").splitlines() if sampled and sampled.is_file() else []
    device = {name: tuple(result.get(name, ())) for name in ("device_seconds", "enqueue_seconds")}
    return Run(tuple(result["seconds"]), tuple(result["warmup_seconds"]), result["warmup_converged"], result["minor_faults"], result["empty_seconds"],
               result["began"], result["ended"], result["environment"], result.get("back_to_back_seconds", result["ended"] - result["began"]), **device,
               stages=result.get("stages", {}), telemetry=tuple(telemetry.rows(lines)))


def picture(artifact, image=None, frame=""):
    """(what a step begins with, what it is called): an image, or seeded noise; never one colour, which some hardware runs faster."""
    rng = np.random.default_rng(0)
    if image is None and (artifact.input, frame) in (("normalised", ""), ("normalised", "tensor")):
        return rng.standard_normal((1, 3, *artifact.resolution), np.float32), "noise, seed 0"
    pixels = rng.integers(0, 256, (*artifact.resolution, 3), np.uint8) if image is None else images.read(image)
    if pixels.min() == pixels.max():
        raise RtsegError(f"{image} has one value everywhere, which some hardware runs faster than a picture", "take another --image, or none: seeded noise")
    fed = "noise, seed 0" if image is None else f"{image} sha256 {files.sha256(image)}"
    if frame == "file":
        return np.frombuffer(Path(image).read_bytes(), np.uint8), fed
    if frame == "pixels":
        return pixels, fed
    return images.fed(images.resized(pixels, artifact.resolution), artifact.input, artifact.normalisation), fed


def write(benchmark, folder, name=None):
    """One file a figure, named by what was timed and when, or as it is asked for."""
    if name is None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        how = "" if benchmark.protocol == "network" else f"{benchmark.protocol}-"
        name = f"{benchmark.artifact['model']}-{size(benchmark.resolution)}-{benchmark.artifact['precision']}-{how}{benchmark.backend}-{stamp}.json"
        with locks.goal(Path(folder, name)):    # of who ends in the same second each has a name
            name = next(free for free in numbered(name) if not Path(folder, free).exists())
            files.write_json(Path(folder, name), benchmark.to_json())
    else:
        files.write_json(Path(folder, name), benchmark.to_json())
    return Path(folder, name)


def numbered(name):
    """name.json, name-2.json, …"""
    yield name
    number = 2
    while True:
        yield f"{name.removesuffix('.json')}-{number}.json"
        number += 1
