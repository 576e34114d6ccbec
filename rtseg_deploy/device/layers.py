"""What each layer takes, by the runtime's own profiler: beside runner.py, for its sessions; Python 3.6, the standard library and numpy.

A profiler costs time of its own, so these seconds tell where a step's time goes, and never how fast a network is.
"""
import json
import time
from statistics import median

import numpy

WARMUP_STEPS = 10


def profile(job, session):
    """{"layers": [{"name", "kind", "seconds"}] in the order of a step, medians of job["steps"] steps; "seconds" of as many steps without a profiler}."""
    session.feed(numpy.load(job["inputs"][0]))
    warmed(session)
    seconds = []
    for _ in range(job["steps"]):
        begin = time.perf_counter()
        session.step()
        seconds.append(time.perf_counter() - begin)
    if hasattr(session, "profile"):
        layers = session.profile(job["steps"])
    else:
        layers = (of_tensorrt if hasattr(session, "context") else of_onnxruntime)(job, session)
    return {"layers": layers, "seconds": seconds}


def warmed(session):
    for _ in range(WARMUP_STEPS):
        session.step()


def of_tensorrt(job, session):
    """By IProfiler: TensorRT waits for each layer and calls it, so a CUDA graph has none."""
    trt, found = session.log.trt, {}

    def report_layer_time(self, layer_name, ms):
        found.setdefault(layer_name, []).append(ms / 1e3)

    profiler = type("Profiler", (trt.IProfiler,), {"report_layer_time": report_layer_time})()
    session.context.profiler = profiler
    for _ in range(job["steps"]):
        session.step()
    # a name that is there twice in a step was called twice
    return [{"name": name, "kind": "", "seconds": median(seconds) * len(seconds) / job["steps"]} for name, seconds in found.items()]


def of_onnxruntime(job, session):
    """By a second session with the first one's settings: the profiler must be on when it is opened, and writes a file when it ends."""
    first, options = session.session, session.options()
    options.enable_profiling, options.profile_file_prefix = True, "profile"
    given = first.get_provider_options()
    session.session = session.ort.InferenceSession(job["artifact"], options, providers=[(name, given[name]) for name in first.get_providers()])
    session.binding, session.fed = session.session.io_binding(), None
    session.feed(numpy.load(job["inputs"][0]))
    warmed(session)
    for _ in range(job["steps"]):
        session.step()
    with open(session.session.end_profiling()) as file:
        return of_events(json.load(file), job["steps"])


def of_events(events, steps):
    """Layers of ONNX Runtime's events, of the last so many steps; bytes: what a node reads, weights included, and writes."""
    end, seconds, about = "_kernel_time", {}, {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(end):
            name, said = event["name"][:-len(end)], event["args"]
            seconds.setdefault(name, []).append(event["dur"] / 1e6)
            moved = sum(int(said.get(part, 0)) for part in ("activation_size", "parameter_size", "output_size"))
            about[name] = {"name": name, "kind": said["op_name"], "bytes": moved}
    return [dict(about[name], seconds=median(found[-steps:])) for name, found in seconds.items()]
