"""Write docs/harness.md: rtseg-deploy's clock beside harnesses that people trust, on one network in one run. Needs the extras export, cpu, openvino.

    python docs/harness.py [--rounds 7] [--iterations 200]

The machine may be shared: what is compared takes turns, round by round, and is compared within its round.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from contenders import onnxruntime_bound, onnxruntime_session  # noqa: E402

from rtseg_deploy import bench, checkpoints, demo, launch  # noqa: E402
from rtseg_deploy.backends import find, torch_eager  # noqa: E402
from rtseg_deploy.device import runner  # noqa: E402
from rtseg_deploy.export import export  # noqa: E402
from rtseg_deploy.records import read_artifact, size  # noqa: E402
from rtseg_deploy.report import markdown_table  # noqa: E402

RESOLUTION = 480, 640               # near 10 ms with ONNX Runtime on two cores
BLOCK = 5                           # steps between two readings of the bare loop's clock
NULL_ITERATIONS = 5000


def session_of(network, backend, threads):
    """What a worker of that backend times, opened here and warm, and its input."""
    artifact = read_artifact(network)
    job = {**launch.on_backend("time", network, artifact, backend, [], threads).request, "artifact": str(network)}
    session = runner.own_session(job) if backend in runner.SESSIONS else find(backend).open(job)
    array, _ = bench.picture(artifact, None)
    session.feed(array)
    runner.warm_up(session.step)
    return session, array


def ours(network, backend, iterations, threads):
    """A figure by the command line; in milliseconds, as everything here."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rtseg_deploy", "bench", str(network), "--backend", backend, "-n", str(iterations), "--threads", str(threads),
                   "--json", "-o", folder]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    return json.loads(done.stdout)[0]["statistics"]


# ---- the others: each is a process of its own and prints its median


def onnxruntime_loop(network, iterations, threads):
    """As its documentation shows I/O binding, with nothing of rtseg-deploy in the loop."""
    array, _ = bench.picture(read_artifact(network), None)
    step, _, _ = onnxruntime_bound(onnxruntime_session(network, threads), array)
    for _ in range(iterations // 2):
        step()
    times = []
    for _ in range(iterations):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return 1e3 * median(times)


def torch_timer(network, iterations, threads):
    import torch
    from torch.utils.benchmark import Timer

    session, _ = session_of(network, "torch-eager", threads)
    with torch.inference_mode():
        timer = Timer("module(image)", globals={"module": session.module, "image": session.input}, num_threads=threads)
        return 1e3 * median(timer.timeit(BLOCK).mean for _ in range(iterations // BLOCK))


def benchmark_app(network, iterations, threads):
    """OpenVINO's; one request at a time."""
    done = subprocess.run([Path(sys.executable).with_name("benchmark_app"), "-m", network, "-d", "CPU", "-hint", "none", "-nstreams", "1", "-nireq", "1",
                           "-nthreads", str(threads), "-niter", str(iterations), "-infer_precision", "f32"], stdout=subprocess.PIPE, text=True, check=True)
    return float(re.search(r"Median:\s+([\d.]+) ms", done.stdout)[1])


def bare(network, iterations, threads):
    """[(a block of steps in the harness's loop, a block in a bare one)], taking turns in one process: each the mean of a step."""
    session, _ = session_of(network, "onnxruntime-cpu", threads)

    def harness():
        runner.clock_steps(session.step, BLOCK)

    def loop():
        for _ in range(BLOCK):
            session.step()

    pairs = []
    for turn in range(iterations // BLOCK):
        found = {}
        for steps in (harness, loop) if turn % 2 else (loop, harness):
            begin = time.perf_counter()
            steps()
            found[steps] = 1e3 * (time.perf_counter() - begin) / BLOCK
        pairs.append((found[harness], found[loop]))
    return pairs


OTHERS = {"onnxruntime-cpu": ("ONNX Runtime, an I/O-bound loop of Python", onnxruntime_loop), "torch-eager": ("torch.utils.benchmark.Timer", torch_timer),
          "openvino": ("OpenVINO's benchmark_app", benchmark_app)}
PROCESSES = {function.__name__: function for function in (bare, *(function for _, function in OTHERS.values()))}


def apart(name, network, iterations, threads):
    """The answer of one of the functions above, in a process of its own, with the allocator's settings that a torch worker has."""
    done = subprocess.run([sys.executable, __file__, "--process", name, str(network), str(iterations), str(threads)], stdout=subprocess.PIPE, text=True,
                          check=True, env={**os.environ, **(torch_eager.ENVIRONMENT if name == "torch_timer" else {})})
    return json.loads(done.stdout.splitlines()[-1])


# ---- the document


def against(rows):
    """A row of the table of pairs of medians, a round each: [(ours, the other's)]."""
    low, middle, high = quantiles([first / second for first, second in rows], n=4, method="inclusive")
    first, second = ([f"{value:.2f}" for value in (median(values), min(values), max(values))] for values in zip(*rows))
    return {"rtseg-deploy ms": f"{first[0]} ({first[1]} to {first[2]})", "it ms": f"{second[0]} ({second[1]} to {second[2]})",
            "ratio": f"{middle:.4f}", "middle half": f"{low:.4f} to {high:.4f}", "ratio of the fastest": f"{float(first[1]) / float(second[1]):.4f}"}


def document(name, null, alone, pairs, rounds, iterations, threads, load):
    about = runner.environment()
    table = [{"harness": OTHERS[backend][0], "backend": backend, **against(rows)} for backend, rows in pairs.items()]
    overhead = [{"backend": "onnxruntime-cpu", "blocks": len(alone), **{key.replace("it ms", "bare loop ms"): value for key, value in against(alone).items()}}]
    return f"""# The harness beside others

Written by `python docs/harness.py --rounds {rounds} --iterations {iterations}`: one run on {about['cpu']}, {threads} threads, Python {about['python']},
load {load[0]:.1f} before and {load[1]:.1f} after it (1 would be this run alone on one core). {name}, float32, batch 1.

The empty loop (`bench --backend null -n {NULL_ITERATIONS}`): median {1e3 * null['median_ms']:.2f} us, p99 {1e3 * null['p99_ms']:.2f} us, to be under 5.

## Without the harness

The harness's loop and a bare one take turns in one process, {BLOCK} steps each. The ratio of neighbours is to be within 0.5 % of 1.

{markdown_table(overhead)}

## Beside harnesses that people trust

{rounds} rounds; in each, ours and the other's process run one after the other, {iterations} iterations. Medians of the rounds' medians, with the least and
the greatest; the ratio is that of one round, its median and middle half, and that of the two sides' fastest rounds. To be within 3 %.

{markdown_table(table)}

What differs by construction: `Timer` divides blocks of {BLOCK} calls and reads no clock between them, and uses one thread unless told otherwise.
`benchmark_app` takes random values of its own for input; with `-api sync` it copies each result, a millisecond or more at full-size logits, so it is
run with one asynchronous request, and without `-infer_precision f32` it computes in BF16 where the CPU can. `onnxruntime_perf_test` is in no wheel.

A process here runs at one of two speeds from its beginning to its end, whatever is in it: the machine is shared. Two processes that met
different ones make a ratio of 0.5 or 2, which the median leaves out; the fastest rounds are those that met nobody.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--process", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        name, network, iterations, threads = given.process
        print(json.dumps(PROCESSES[name](network, int(iterations), int(threads))))
        return
    threads, load, pairs = launch.cpus(), [os.getloadavg()[0]], {backend: [] for backend in OTHERS}
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder, "net.onnx")
        export(checkpoints.load(demo.CHECKPOINT), network, RESOLUTION)
        null = ours(network, "null", NULL_ITERATIONS, threads)
        alone = apart("bare", network, 10 * given.iterations, threads)
        for number in range(given.rounds):
            for backend, (_, other) in OTHERS.items():
                def first(backend=backend):
                    return ours(network, backend, given.iterations, threads)["median_ms"]

                def second(other=other):
                    return apart(other.__name__, network, given.iterations, threads)

                turns = {turn: turn() for turn in ((first, second) if number % 2 else (second, first))}
                pairs[backend].append((turns[first], turns[second]))
                print(f"round {number + 1}: {backend} {turns[first]:.2f} ms, {OTHERS[backend][0]} {turns[second]:.2f} ms", file=sys.stderr)
    load.append(os.getloadavg()[0])
    text = document(f"SGCPNet {size(RESOLUTION)}", null, alone, pairs, given.rounds, given.iterations, threads, load)
    Path(__file__).with_name("harness.md").write_text(text)


if __name__ == "__main__":
    main()
