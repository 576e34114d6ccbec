"""How long `rtseg-deploy results` takes where there are 100,000: files made of one real result, varied, in a temporary folder.

    python benchmarks/results.py results/RESULT.json

Each command is a process of its own, with what Python and its modules take. The samples are fewer than those of real results: what is in a file is read
once, when it is new. With --drop-caches (as root, on Linux) the files' times are also read from the disk itself once.
"""
import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from rtseg_deploy import entries
from rtseg_deploy.report import markdown_table
from rtseg_deploy.results import read_one

SAMPLES = 20
NETWORKS = ("sgcpnet", "bcpnet", "bisenetv1-r18", "bisenetv1-x39", "bisenetv2", "ddrnet-23-slim", "ddrnet-23", "ddrnet-39")
SIZES = ((256, 512), (360, 480), (384, 768), (512, 1024), (720, 960), (768, 1536), (1024, 1024), (1024, 2048))
BACKENDS = ("onnxruntime-cpu", "openvino", "torch-eager", "torch-compile", "null")
MACHINES = 10
SECONDS = 600                       # between two results


def varied(value, number):
    """The result that a shelf of machines gave as its n-th."""
    found, kinds = copy.copy(value), number // MACHINES
    found["artifact"] = {**value["artifact"], "model": NETWORKS[kinds % len(NETWORKS)], "resolution": SIZES[kinds // len(NETWORKS) % len(SIZES)]}
    found["resolution"], found["backend"] = found["artifact"]["resolution"], BACKENDS[kinds // len(NETWORKS) // len(SIZES) % len(BACKENDS)]
    first, factor = value["runs"][0], 1 + 0.3 * (number * 7919 % 1000) / 1000
    series = {name: [one * factor for one in first[name][:SAMPLES]] for name in ("seconds", "warmup_seconds")}
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1.7e9 + SECONDS * number))
    found["runs"] = [{**first, **series, "device_seconds": [], "enqueue_seconds": [], "telemetry": [], "stages": {},
                      "environment": {**first["environment"], "time": when, "cpu": f"{first['environment']['cpu']} {number % MACHINES}"}}]
    fps = SAMPLES / sum(series["seconds"])
    found["statistics"] = {**value["statistics"], "fps": fps, "fps_low": 0.97 * fps, "fps_high": 1.03 * fps, "mean_ms": 1e3 / fps}
    return found


def fill(folder, value, count, each=2000):
    for number in range(count):
        goal = folder / f"machine-{number % MACHINES}" / f"{number // MACHINES // each:03}" / f"{number:06}.json"
        if number // MACHINES % each == 0:
            goal.parent.mkdir(parents=True, exist_ok=True)
        goal.write_text(json.dumps(varied(value, number)))


def timed(words, environment, times=5):
    """Seconds of a command, the median of some."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rtseg_deploy", *words], env=environment, stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def measured(folder, environment, drop):
    """{what: seconds} of each command."""
    chosen = ["--network", "ddrnet-23-slim", "--resolution", "1024x2048"]
    found = {"list, the first time": timed(["results", "list", folder], environment, 1)}
    one = next(Path(folder).rglob("*.json"))
    with open(one, "a") as file:
        file.write("\n")
    found["list, when one was edited"] = timed(["results", "list", folder], environment, 1)
    if drop:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        found["list, nothing in the page cache"] = timed(["results", "list", folder], environment, 1)
    name = entries.entry(one)["id"]
    commands = {"list": ["list", folder], "list of one network at one size": ["list", folder, *chosen],
                "list of a month": ["list", folder, "--since", "2024-02", "--until", "2024-02"], "show": ["show", name, folder],
                "trend": ["trend", folder, *chosen, "--backend", "openvino"], "prune, what would go": ["prune", folder, *chosen, "--keep", "3"],
                "list --json, all of them": ["list", folder, "--json"]}
    return {**found, **{what: timed(["results", *words], environment) for what, words in commands.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", help="a result file of bench")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--drop-caches", action="store_true")
    asked = parser.parse_args()
    value = json.loads(Path(read_one(asked.result).file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        fill(results, value, asked.count)
        seconds = measured(str(results), {**os.environ, "XDG_CACHE_HOME": str(Path(folder, "cache"))}, asked.drop_caches)
        index = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*.sqlite"))
    print(f"{asked.count:,} results, an index of {index / 2**20:.0f} MiB\n")
    print(markdown_table([{"rtseg-deploy results": what, "s": f"{taken:.2f}"} for what, taken in seconds.items()]))


if __name__ == "__main__":
    main()
