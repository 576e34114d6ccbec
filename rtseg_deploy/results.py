"""Result files of `bench` -> plain values: what they hold, whether they are sound, and what follows from their samples."""
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import backends, facts, files
from .errors import RtsegError
from .records import FORMAT, PRECISIONS, has, size

KIND = "benchmark"
AGAIN = "time it again with rtseg-deploy bench"
WHOLE = {"artifact": {"model": str, "precision": str, "output": str, "input": str, "classes": int, "network_input": list}, "file": str, "backend": str,
         "resolution": list, "input": str, "protocol": str, "boundary": str, "bn": str, "iterations": int, "figure": str, "same_labels": dict,
         "runs": list, "statistics": dict, "status": str, "warnings": list, "notes": list}
RUN = {"seconds": list, "warmup_seconds": list, "warmup_converged": bool, "device_seconds": list, "enqueue_seconds": list,
       "back_to_back_seconds": (int, float), "empty_seconds": (int, float), "stages": dict, "minor_faults": int, "began": (int, float),
       "ended": (int, float), "environment": dict, "telemetry": list}
SAMPLES = ("seconds", "warmup_seconds", "device_seconds", "enqueue_seconds", "stages", "telemetry")
ALWAYS, SOMETIMES = ("fps", "mean_ms", "median_ms", "p90_ms", "p99_ms"), ("fps_low", "fps_high", "p99_bound_ms", "back_to_back_ms", "energy_j")
SENSORS = {"sm_mhz": "GPU clock, MHz", "sm_max_mhz": "GPU clock at most, MHz", "memory_mhz": "memory clock, MHz", "cpu_mhz": "CPU clock, MHz",
           "temperature_c": "temperature, °C", "cpu_temperature_c": "temperature of the CPU, °C", "power_w": "power, W", "cpu_power_w": "power of the CPU, W",
           "gpu_load_percent": "load of the GPU, %", "cpu_load_percent": "load of the CPUs, %", "others_cpu_percent": "other processes, % of the CPUs",
           "sampler_percent": "the sampler itself, % of a CPU", "other_processes": "other processes on the GPU", "load": "load average"}
WIDEST = 1 << 20                    # pixels
LONGEST = 1e6                       # seconds of a step: nobody waits for eleven days
SAME = 1e-9                         # relative; of a statistic that was written and the same one computed again


def short(value):
    """What a result file says, without its samples."""
    return {**value, "runs": [{name: run[name] for name in run if name not in SAMPLES} for run in value["runs"]]}


@dataclass(frozen=True)
class Result:
    """One figure as its file has it."""
    file: str
    sha256: str
    value: dict

    @property
    def network(self):
        return self.value["artifact"]["model"]

    @property
    def precision(self):
        return self.value["artifact"]["precision"]

    @property
    def computed(self):
        """The precision that its backend computes it in."""
        return backends.computes(self.precision, self.value["backend"])

    @property
    def resolution(self):
        return tuple(self.value["resolution"])

    @property
    def network_input(self):
        """(height, width) that the image is resized to within it."""
        return tuple(self.value["artifact"]["network_input"])

    @property
    def megapixels(self):
        return math.prod(self.resolution) / 1e6

    @property
    def name(self):
        return f"{self.network} {size(self.resolution)} {self.computed} {self.value['backend']}"

    @property
    def statistics(self):
        return self.value["statistics"]

    @property
    def runs(self):
        return self.value["runs"]

    @property
    def seconds(self):
        """Every sample, in the order of the processes."""
        return [one for run in self.runs for one in run["seconds"]]

    @property
    def on_gpu(self):
        """Whether a GPU's events are there, or, of a frame's whole way, a backend that runs on one."""
        return bool(self.runs[0]["device_seconds"]) or backends.on_gpu(self.value["backend"])

    @cached_property
    def machine(self):
        return machine(self.runs[0]["environment"], self.on_gpu)

    @cached_property
    def device(self):
        """Its facts.Device; None where the facts have no such device."""
        return facts.device_called(self.machine, *[str(self.runs[0]["environment"].get("model"))] * self.on_gpu)

    @property
    def back_to_back_fps(self):
        """Of steps that were waited for together; None where there are none."""
        each = [run["back_to_back_seconds"] / len(run["seconds"]) for run in self.runs]
        return len(each) / sum(each) if all(each) else None

    @property
    def clock(self):
        """What is around the samples that FPS is of: a bracket a step (each), or one (together; overlapping, where ms are of each frame by itself)."""
        clock = facts.protocol(self.value["protocol"]).clock
        return clock if clock in ("together", "overlapping") and self.back_to_back_fps else "each"

    @property
    def ms(self):
        """The timed figure."""
        return self.statistics["mean_ms"] if self.clock == "overlapping" else 1e3 / self.statistics["fps"]

    @property
    def stages(self):
        """Name -> mean milliseconds, in their order."""
        return {name: 1e3 * mean([one for run in self.runs for one in run["stages"][name]]) for name in self.runs[0]["stages"]}

    def telemetry(self, name):
        """What was sampled of it, in all processes."""
        return [row[name] for run in self.runs for row in run["telemetry"] if name in row]


def machine(environment, on_gpu):
    """What something ran on, as that says of itself."""
    if not on_gpu:
        return str(environment.get("cpu") or "a processor without a name")
    gpu = environment.get("gpu")
    return str((gpu.get("name") if isinstance(gpu, dict) else gpu) or environment.get("model") or "a GPU without a name")


def mean(values):
    return math.fsum(values) / len(values)


def read(paths, warn):
    """The Results in files and folders, in order, each file once; warn(line) gets what is wrong with the others. Raises RtsegError: none is left."""
    found = {}
    for path in dict.fromkeys(one for given in map(Path, paths) for one in sorted(filter(Path.is_file, given.rglob("*.json"))) or [given]):
        try:
            result = read_one(path)
            found.setdefault(result.sha256, result)
        except RtsegError as error:
            warn(f"left out: {error.what}")
    if not found:
        raise RtsegError(f"no result of bench is in {', '.join(map(str, paths))}", "name result files, or the folder that bench wrote them to")
    return list(found.values())


def read_one(path):
    """The Result in a file. Raises RtsegError where there is none, or where it contradicts itself."""
    return sound(path, files.read_json(path), files.sha256(path))


def sound(path, value, digest):
    """The Result of a file's object. Raises RtsegError where it is none."""
    if value.get("kind") != KIND:
        raise RtsegError(f"{path} is no result of bench")
    if value.get("format") != FORMAT:
        raise RtsegError(f"{path} is of format {value.get('format')}, and this version reads {FORMAT}", AGAIN)
    if not whole(value):
        raise RtsegError(f"{path} is damaged: {missing(value)}", AGAIN)
    result = Result(str(path), digest, value)
    again = 1 / mean([mean(run["seconds"]) for run in result.runs]) if result.clock == "each" else result.back_to_back_fps
    if not math.isclose(result.statistics["fps"], again, rel_tol=SAME):
        raise RtsegError(f"{path} is damaged: its FPS is {result.statistics['fps']:.6g}, and its samples give {again:.6g}", AGAIN)
    return result


def whole(value):
    """Whether it holds what the report shows, and every number is one."""
    if not has(value, WHOLE):
        return False
    artifact, statistics = value["artifact"], value["statistics"]
    return (bool(value["runs"]) and all(map(whole_run, value["runs"])) and len({tuple(run["stages"]) for run in value["runs"]}) == 1
            and value["protocol"] in facts.protocols() and artifact["precision"] in PRECISIONS
            and all(map(whole_size, (value["resolution"], artifact["network_input"])))
            and all(has(one, {"flag": str, "says": str}) for one in value["warnings"]) and all(isinstance(one, str) for one in value["notes"])
            and all(map(number, value["same_labels"].values())) and all(statistics.get(name) is None or number(statistics[name]) for name in SOMETIMES)
            and all(number(statistics.get(name)) and statistics[name] > 0 for name in ALWAYS))


def whole_size(pair):
    return len(pair) == 2 and all(type(side) is int and 0 < side < WIDEST for side in pair)


def whole_run(run):
    if not has(run, RUN):
        return False
    series = [*(run[name] for name in ("seconds", "warmup_seconds", "device_seconds", "enqueue_seconds")), *run["stages"].values()]
    return (bool(run["seconds"]) and all(isinstance(one, list) and all(number(value) and 0 < value < LONGEST for value in one) for one in series)
            and all(run["stages"].values()) and all(number(run[name]) for name in ("began", "ended", "back_to_back_seconds", "empty_seconds", "minor_faults"))
            and run["began"] < run["ended"] and all(map(whole_row, run["telemetry"])))


def whole_row(row):
    """Of telemetry."""
    return has(row, {"t": (int, float)}) and all(number(row[name]) for name in ("t", *SENSORS) if name in row) and isinstance(row.get("throttled_by", []), list)


def number(value):
    return type(value) in (int, float) and abs(value) <= sys.float_info.max      # JSON's integers have no end


def missing(value):
    """What is wrong, in a few words: the names that are not there, or that a value makes no sense."""
    runs = value["runs"] if isinstance(value.get("runs"), list) else []
    absent = [name for name in WHOLE if name not in value] or [name for run in runs if isinstance(run, dict) for name in RUN if name not in run]
    return f"it has no {', '.join(dict.fromkeys(absent))}" if absent else "a value in it is not what it should be"
