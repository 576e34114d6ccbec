"""What a fleet costs by itself: thousands of simulated jobs over simulated devices, on this machine.

    python benchmarks/fleet.py [--jobs N]… [--devices 50] [--work SECONDS]… [-o results/fleet.json] [--document docs/fleet-scale.md]

How it is done, and what came of it: docs/fleet-scale.md. Needs the extras export and fleet, for the picture plot.
"""
import functools
import json
import logging
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import click
import distributed
import psutil

from rtseg_deploy import bench, facts, files, fleet, launch, remote, tasks
from rtseg_deploy.device import runner
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.report import markdown_table, plain_table
from rtseg_deploy.terminal import fail, progress, show

JOBS, WORK = (100, 300, 1000, 3000, 10000), (0.0, 0.1, 1.0)
WARM_SECONDS = 0.01                 # of the figure: its file has about the size of a real network's, which warms up in fewer steps
WORKED = 1000                       # jobs whose work takes time
RESOLUTION = 128, 256
SETTLE_SECONDS = 2.0                # for workers that came to say so, before the clock starts
SIDES = "scheduler", "client", "worker"
MARKS = "<!-- python benchmarks/fleet.py -->", "<!-- end -->"
PROCESSES = multiprocessing.get_context("forkserver")       # modules are loaded once: a worker begins in milliseconds
PROCESSES.set_forkserver_preload(["rtseg_deploy.fleet", "rtseg_deploy.bench"])


# ---- the parties, a process each


def schedule(told):
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    remote.scheduler("127.0.0.1", 0, None, False, told)


def work(address, target, store, seconds, figure):
    """A worker as `rtseg-deploy worker` is one, whose tasks are done when their seconds are over."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)     # who ends first is of no interest
    remote.worked = functools.partial(simulated, seconds, figure)
    remote.worker(address, (target,), None, 1, store, None, None, False, str)


def simulated(seconds, figure, folder, processors, still_wanted):
    """What the process of a task leaves. It is no process: Python's start, 10,000 times, would be all that is measured."""
    time.sleep(seconds)
    (folder / "0.json").write_bytes(figure)
    job = files.read_json(folder / "job.json")
    result = {"ok": True, "of": job["of"], "figures": {"null": "0.json"}, "failed": {}, "made": {"0.json": launch.digest(figure)}}
    (folder / "result.json").write_text(json.dumps(result))


def client(address, processes, ask, told):
    """Give out the jobs as a plan does, and take their figures."""
    by = fleet.Fleet(lambda: fleet.client(address, None))
    while len(by.workers()) < ask.devices:
        time.sleep(0.1)
    time.sleep(SETTLE_SECONDS)
    processes, how = {**processes, "client": [os.getpid()]}, bench.Ask(backends=("null",))
    targets, filing = [target_of(number) for number in range(ask.devices)], []

    def taken(number):
        def then(result, folder):
            began = time.thread_time()
            files.write_json(ask.folder / f"{number}.json", tasks.figures(result, folder, ask.artifact, how)["null"])
            filing.append(time.thread_time() - began)
        return then

    before, began = used(processes), time.perf_counter()
    given = [tasks.timing(str(number), ask.artifact, how, taken(number), targets[number % ask.devices]) for number in range(ask.jobs)]
    by.run(given, timeline=ask.folder / "timeline.jsonl")
    seconds, after = time.perf_counter() - began, used(processes)
    if not len(filing) == len(list(ask.folder.glob("[0-9]*.json"))) == ask.jobs:
        raise RtsegError(f"{ask.jobs} jobs were given out and {len(filing)} came back")
    told({"jobs": ask.jobs, "devices": ask.devices, "work_seconds": ask.work, "seconds": seconds,
          "cpu_seconds": {side: after[side]["cpu"] - before[side]["cpu"] for side in processes}, "filing_seconds": sum(filing),
          "idle_bytes": {side: before[side]["peak"] for side in processes}, "peak_bytes": {side: after[side]["peak"] for side in processes},
          "artifact_bytes": ask.artifact.stat().st_size, "figure_bytes": len(ask.figure), **travelled(by, files.sha256(ask.artifact))})
    by.close()


def travelled(by, digest):
    """How many workers have a file, and how often one got it from another one."""
    def counted(dask_worker):
        stored = (dask_worker.plugins[remote.Post.name].store / digest).is_file()
        return stored, sum(digest in key for fetch in dask_worker.transfer_incoming_log for key in fetch["keys"])

    stored, fetched = zip(*by.client.run(counted).values())
    return {"stored": sum(stored), "fetched": sum(fetched)}


def used(processes):
    """Side -> CPU seconds and the most memory so far, of the largest where there are several."""
    return {side: {"cpu": sum(sum(psutil.Process(one).cpu_times()[:2]) for one in found), "peak": max(map(peak, found))}
            for side, found in processes.items()}


def peak(process):
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


# ---- one case after another


def measured(ask):
    """The result of one case, each with a fleet of its own: memory that was taken is not given back."""
    with tempfile.TemporaryDirectory(prefix="rtseg-fleet-") as folder:
        ask = SimpleNamespace(**vars(ask), folder=Path(folder))
        started = []
        try:
            address, scheduler = told_by(schedule, started)
            workers = [begun(work, (address, target_of(number), ask.folder / f"store-{number}", ask.work, ask.figure), started)
                       for number in range(ask.devices)]
            found, _ = told_by(client, started, address, {"scheduler": [scheduler.pid], "worker": [one.pid for one in workers]}, ask)
            return found
        finally:
            for one in reversed(started):
                one.terminate()
            for one in started:
                one.join()


def begun(function, arguments, started):
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    started.append(process)
    return process


def told_by(function, started, *arguments):
    """(what a process tells, the process). Raises RtsegError where it ends first."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = begun(function, (*arguments, there.send), started)
    there.close()
    try:
        return here.recv(), process
    except EOFError:
        raise RtsegError(f"the {function.__name__} ended without a word") from None


def target_of(number):
    names = list(facts.targets())
    return names[number % len(names)]


def prepared(folder):
    """(an artifact as large as a real one, the figure of the null backend that each job brings)."""
    from rtseg_deploy import checkpoints, demo  # PyTorch: not in every process
    from rtseg_deploy.export import export

    path = folder / "network.onnx"
    export(checkpoints.load(demo.CHECKPOINT), path, RESOLUTION)
    (goal, _), = bench.bench(path, bench.Ask(backends=("null",), results=str(folder), warmup_limit=WARM_SECONDS))
    return path, goal.read_bytes()


def run(jobs, devices, work, tell):
    cases = [(count, 0.0) for count in jobs] + [(WORKED, seconds) for seconds in work if seconds]
    with tempfile.TemporaryDirectory(prefix="rtseg-fleet-") as folder:
        tell("an artifact and a figure", None)
        artifact, figure = prepared(Path(folder))
        found = []
        for number, (count, seconds) in enumerate(cases):
            tell(f"{count} jobs of {seconds:g} s", number / len(cases))
            found.append(measured(SimpleNamespace(jobs=count, work=seconds, devices=devices, artifact=artifact, figure=figure)))
    return {"format": 1, "kind": "fleet", "environment": runner.environment(), "dask": distributed.__version__, "cases": found}


# ---- for people


def rows(result):
    for one in result["cases"]:
        jobs = one["jobs"]
        yield {"jobs": jobs, "work s": f"{one['work_seconds']:g}", "wall s": f"{one['seconds']:.1f}", "wall ms a job": f"{1e3 * one['seconds'] / jobs:.2f}",
               **{f"{side} CPU ms a job": f"{1e3 * one['cpu_seconds'][side] / jobs:.2f}" for side in SIDES},
               "of it filing": f"{1e3 * one['filing_seconds'] / jobs:.2f}",
               **{f"{side} MiB": f"{mib(one, 'idle', side)} to {mib(one, 'peak', side)}" for side in SIDES},
               "artifact at": f"{one['stored']}, fetched {one['fetched']}",
               "busy": f"{busy(one):.0%}" if one["work_seconds"] else ""}


def mib(one, when, side):
    return f"{one[f'{when}_bytes'][side] / 2**20:.0f}"


def busy(one):
    """The share of the devices' time in which they worked."""
    return one["jobs"] * one["work_seconds"] / one["devices"] / one["seconds"]


def said(result):
    about, first = result["environment"], result["cases"][0]
    return (f"{first['devices']} devices on {about['cpu']}, {about['cpus']} processors, load {about['load']:.1f} when it ended, Python {about['python']}, "
            f"Dask {result['dask']}; an artifact of {first['artifact_bytes'] / 2**20:.1f} MiB, figures of {first['figure_bytes'] / 2**10:.1f} KiB.")


def fill(path, result):
    """Put the table between the marks of a document, and the picture beside it."""
    text = path.read_text()
    before, mark, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (mark and end):
        raise RtsegError(f"{path} has no place for the table", f"write two lines into it: {' and '.join(MARKS)}")
    draw(result, path.with_suffix(".png"))
    files.write(path, "\n\n".join([before + mark, said(result), markdown_table(list(rows(result))), end + after]))


def draw(result, path):
    """How time and memory grow with the number of jobs; dotted: if each job cost what one of the last case does."""
    try:
        import matplotlib
    except ImportError:
        raise RtsegError("the picture needs matplotlib, which is not installed", "pip install 'rtseg-deploy[plot]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = [one for one in result["cases"] if not one["work_seconds"]]
    jobs = [one["jobs"] for one in cases]
    figure, (times, each, memory) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for side in SIDES:
        seconds = [one["cpu_seconds"][side] for one in cases]
        label = "all workers" if side == "worker" else side
        times.plot(jobs, seconds, "o-", label=f"{label}, CPU")
        each.plot(jobs, [1e3 * value / count for value, count in zip(seconds, jobs)], "o-", label=f"{label}, CPU")
        memory.plot(jobs, [one["peak_bytes"][side] / 2**20 for one in cases], "o-", label=f"{'the largest ' if side == 'worker' else ''}{side}")
    seconds = [one["seconds"] for one in cases]
    times.plot(jobs, seconds, "ks-", label="wall")
    each.plot(jobs, [1e3 * value / count for value, count in zip(seconds, jobs)], "ks-", label="wall")
    times.plot(jobs, [seconds[-1] * count / jobs[-1] for count in jobs], "k:", label="linear")
    for axes, title in ((times, "seconds"), (each, "milliseconds a job"), (memory, "peak memory, MiB")):
        axes.set(title=title, xlabel="jobs", xscale="log", xticks=jobs, ylim=(0, None))
        axes.set_xticklabels(jobs)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    times.set_yscale("log")
    times.set_ylim(auto=True)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, facecolor="white", metadata={"Software": None})
    plt.close(figure)


@click.command(context_settings={"max_content_width": 120})
@click.option("--jobs", type=click.IntRange(1, 1_000_000), multiple=True, default=JOBS, show_default=True, help="That take no time; repeat for several.")
@click.option("--devices", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--work", type=click.FloatRange(0, 3600), multiple=True, default=WORK, show_default=True, help=f"Seconds that each of {WORKED} jobs takes.")
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False), help="Show an earlier result and measure nothing.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the result, JSON.")
@click.option("--document", type=click.Path(exists=True, dir_okay=False), help="Fill the table of a document, and draw the picture beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def cost(jobs, devices, work, source, output, document, as_json):
    """Measure what a fleet costs by itself.

    \b
    Example:
      python benchmarks/fleet.py -o results/fleet.json --document docs/fleet-scale.md
      python benchmarks/fleet.py --jobs 300 --work 0
    """
    if source:
        result = files.read_json(source)
    else:
        with progress() as tell:
            result = run(jobs, devices, work, tell)
    if output:
        files.write_json(output, result)
    if document:
        fill(Path(document), result)
    show(*([json.dumps(result, indent=1)] if as_json else [plain_table(list(rows(result))), said(result)]))


if __name__ == "__main__":
    try:
        cost()
    except RtsegError as error:
        fail(error.what, error.fix)
