"""Result files as `bench` writes them, of measurements that were not made: correlated samples, telemetry, several processes."""
import json

import numpy as np

from rtseg_deploy import facts, statistics
from rtseg_deploy.records import FORMAT

CPU = {"time": "2026-11-20T10:00:00Z", "python": "3.11.9", "system": "Linux-6.1", "machine": "x86_64", "cpus": 2, "load": 0.1, "cpu": "AMD EPYC 7B13",
       "governor": None, "threads": 2, "boundary": "network, its input and output in host memory", "onnxruntime": "1.31.1"}
GPU = {**CPU, "gpu": {"name": "NVIDIA GeForce GTX 1080 Ti", "driver": "535.129.03"}, "boundary": "network, its input and output in device memory"}


def samples(rng, ms, count, noise=0.02, spikes=0.01, drift=0.0):
    """Seconds: each like the one before it, a few of them slow."""
    steps = rng.standard_normal(count) * noise * (1 - 0.6**2) ** 0.5
    wander = np.zeros(count)
    for n in range(1, count):
        wander[n] = 0.6 * wander[n - 1] + steps[n]
    slow = 1 + (rng.random(count) < spikes) * rng.uniform(0.3, 1.5, count)
    return (1e-3 * ms * np.exp(wander) * slow * np.linspace(1, 1 + drift, count)).tolist()


def telemetry(rng, began, ended, gpu, throttled):
    """Ten rows a second."""
    rows = []
    for t in np.arange(began - 2.0, ended + 0.1, max(0.1, (ended - began) / 100)):
        warm = 1 - np.exp(-(t - began + 2) / 8)
        row = {"t": float(t), "cpu_load_percent": 99.0, "others_cpu_percent": round(float(abs(rng.normal(1, 1))), 1), "load": 2.0}
        if gpu:
            late = throttled and t > began + 0.7 * (ended - began)
            row.update(sm_mhz=float(1582 - 13 * round(6 * warm) - 190 * late), memory_mhz=5508.0, sm_max_mhz=1911.0, temperature_c=round(45 + 30 * warm),
                       power_w=round(float(rng.normal(180, 4)), 1), throttled_by=["temperature (software)"] if late else [], other_processes=0)
        else:
            row.update(cpu_mhz=float(2450 + round(rng.normal(0, 15))))
        rows.append(row)
    return rows


def run(rng, ms, count, gpu, noise, spikes, drift, began, stages, throttled):
    seconds = samples(rng, ms, count, noise, spikes, drift)
    ended = began + sum(seconds)
    return {"seconds": seconds, "warmup_seconds": samples(rng, 1.15 * ms, max(50, int(1000 / ms)), 2 * noise), "warmup_converged": True,
            "device_seconds": [0.95 * one for one in seconds] if gpu else [], "enqueue_seconds": [0.4 * one for one in seconds] if gpu else [],
            "back_to_back_seconds": 0.97 * sum(seconds), "stages": {name: samples(rng, part, count, noise) for name, part in stages.items()},
            "empty_seconds": 4e-8, "minor_faults": 12, "began": began, "ended": ended, "environment": GPU if gpu else CPU,
            "telemetry": telemetry(rng, began, ended, gpu, throttled)}


def summed_up(runs, protocol):
    found = statistics.summary([one["seconds"] for one in runs])
    queued = [one["back_to_back_seconds"] / len(one["seconds"]) for one in runs]
    if facts.protocol(protocol).clock != "each":
        found["back_to_back_ms"] = 1e3 * float(np.mean(queued))
    if protocol == "paper-amortised":
        found.update(mean_ms=1e3 * float(np.mean(queued)), fps=1 / float(np.mean(queued)), fps_low=None, fps_high=None)
    return found


def result(network="sgcpnet", resolution=(512, 1024), backend="onnxruntime-cpu", ms=30.0, iterations=500, processes=1, gpu=False, machine="",
           protocol="paper-unstated", figure="", precision="fp32", output="native", noise=0.02, spikes=0.01, drift=0.0, stages=None, throttled=False,
           warnings=(), notes=(), bn=None, network_input=None, seed=0):
    """The value of a result file."""
    rng = np.random.default_rng([seed, len(backend), *resolution])
    runs = [run(rng, ms * (1 + 0.004 * rng.standard_normal()), iterations, gpu, noise, spikes, drift, 100.0 + 1000 * n, stages or {}, throttled)
            for n in range(processes)]
    for one in runs if machine else ():
        one["environment"] = {**one["environment"], **({"gpu": {"name": machine}} if gpu else {"cpu": machine})}
    artifact = {"format": FORMAT, "kind": "engine" if gpu else "onnx", "model": network, "dialect": "seeded", "classes": 19, "class_set": "",
                "resolution": list(resolution), "network_input": list(network_input or resolution), "precision": precision, "input": "normalised",
                "output": output, "sha256": "ab" * 32, "parent": {"seed": 0}}
    return {"format": FORMAT, "kind": "benchmark", "artifact": artifact, "file": f"{network}.onnx", "backend": backend, "resolution": list(resolution),
            "input": "noise, seed 0", "protocol": protocol, "boundary": runs[0]["environment"]["boundary"],
            "bn": bn or facts.protocol(protocol).bn or "folded", "iterations": iterations, "figure": figure, "same_labels": {"torch-eager": 0.9999},
            "runs": runs, "statistics": summed_up(runs, protocol), "status": "unstable" if warnings else "stable",
            "warnings": [dict(zip(("flag", "says"), one)) for one in warnings], "notes": list(notes)}


STAGES = {"decode": 6.0, "normalise": 3.2, "copy in": 0.8, "network": 5.4, "upsample": 2.1, "argmax": 1.7, "copy back": 0.2}


def several():
    """A file name and a value each: what a folder of results may hold."""
    sizes = {(360, 480): 5.4, (512, 1024): 16.2, (768, 1536): 37.0, (1024, 2048): 68.0}
    found = {}
    for backend, factor in (("onnxruntime-cpu", 1.0), ("openvino", 0.82), ("torch-eager", 2.4), ("torch-compile", 1.5)):
        for resolution, ms in sizes.items():
            found[f"{backend}-{resolution[1]}"] = result(backend=backend, resolution=resolution, ms=ms * factor, processes=3 if resolution[0] == 512 else 1)
    found["gpu"] = result(backend="tensorrt", resolution=(1024, 2048), ms=9.9, gpu=True, processes=5, iterations=1000, noise=0.004, spikes=0.002)
    found["gpu-small"] = result(backend="tensorrt", resolution=(512, 1024), ms=2.9, gpu=True, processes=5, iterations=1000, noise=0.004, spikes=0.002)
    found["hot"] = result("ddrnet-23-slim", (1024, 2048), "tensorrt", 21.0, 500, gpu=True, protocol="paper-amortised", throttled=True, drift=0.12,
                          warnings=[("throttled", "throttled: temperature (software) in 30 of 100 samples"),
                                    ("drift", "drift: +11.6 % over the run (Mann-Kendall p = 1e-9)")])
    found["whole"] = result(resolution=(360, 480), ms=19.4, protocol="end-to-end", stages=STAGES, output="labels", spikes=0.03,
                            warnings=[("spikes", "spikes: 14 slow iterations take 6% of the time; something else ran")],
                            notes=["random weights: for speed only"])
    return found


def write(folder, values=None):
    """The files of `several`, or of other values, in a folder."""
    for name, value in (values or several()).items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder
