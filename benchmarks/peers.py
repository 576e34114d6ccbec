"""Ours and what a user could take instead, side by side: an RGB frame in host memory to its labels there. Needs the extras export, cpu, openvino.

    python benchmarks/peers.py [--network NAME]… [--resolution HxW]… [-o results/peers.json] [--document docs/peers.md] [--gate]

How it is done, and what came of it: docs/peers.md.
"""
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import processes  # noqa: E402 (it lies beside this file)
import shown  # noqa: E402
from contenders import TENSOR  # noqa: E402

from rtseg_deploy import backends, bench, checkpoints, files, images, launch, locks, tune, tuned, turns  # noqa: E402
from rtseg_deploy.device import runner  # noqa: E402
from rtseg_deploy.errors import RtsegError  # noqa: E402
from rtseg_deploy.records import read_artifact, size  # noqa: E402
from rtseg_deploy.terminal import Size, fail, progress, show  # noqa: E402

NETWORKS = "sgcpnet", "ddrnet-23-slim", "bisenetv2", "bisenetv1-r18", "bisenetv1-x39"
RESOLUTIONS = (512, 1024), (1024, 2048)
WARM_SECONDS, WARM_FRAMES = 0.5, 3
OUTSIDE = "numpy", "cv2.LUT", "cv2.dnn"     # ways to normalise outside the runtime


@dataclass(frozen=True)
class Contender:
    name: str
    side: str                           # ours, peer
    precision: str                      # fp32; reduced: what the runtime takes where nobody asks for FP32
    kind: str                           # a class of contenders.py
    backend: str = ""                   # of a worker of ours
    ways: tuple = ("stages",)           # in which the frame may be normalised
    settings: dict = field(default_factory=dict)


CONTENDERS = (
    *(Contender(f"ours, {name}", "ours", precision, "Ours", name)
      for name, precision in (("onnxruntime-cpu", "fp32"), ("openvino", "fp32"), ("openvino-bf16", "reduced"))),
    Contender("PyTorch eager", "peer", "fp32", "Torch", "torch-eager", ("torch", "numpy")),
    Contender("torch.compile", "peer", "fp32", "Torch", "torch-compile", ("torch", "numpy")),
    Contender("ONNX Runtime", "peer", "fp32", "OnnxRuntime", ways=("graph", *OUTSIDE)),
    Contender("OpenVINO f32", "peer", "fp32", "OpenVINO", ways=("PrePostProcessor", *OUTSIDE), settings={"INFERENCE_PRECISION_HINT": "f32"}),
    Contender("OpenVINO as it comes", "peer", "reduced", "OpenVINO", ways=("PrePostProcessor", *OUTSIDE)),
)


@dataclass(frozen=True)
class Case:
    """One network at one size: its files in a folder that goes away."""
    folder: Path
    artifact: object
    threads: int
    frame: np.ndarray

    def job(self, contender):
        """What a contender's folder holds: of ours all that a worker's does, of PyTorch the network to build, of the others nothing."""
        network = self.folder / "ours.onnx"
        if contender.kind == "Ours":
            ask, entry = bench.Ask(threads=self.threads, protocol="end-to-end"), tuned.found(self.artifact, self.threads)
            return bench.timing(network, self.artifact, contender.backend, self.frame, 1, ask, tune.of(entry, contender.backend))
        if contender.kind == "Torch":
            return launch.on_backend("time", network, replace(self.artifact, output="labels"), contender.backend, [], self.threads, bn="folded")
        return launch.Job({})

    def given(self, contender, way):
        paths = {name: str(self.folder / file) for name, file in (("plain", "plain.onnx"), ("pixels", "pixels.onnx"), ("frame", "frame.npy"),
                                                                  ("tensor", "tensor.npy"))}
        return {"kind": contender.kind, "way": way, "threads": self.threads, "settings": contender.settings, **paths, **self.artifact.normalisation}

    def start(self, contender, way, what="in"):
        return processes.Process(contender.name, self.given(contender, way), self.job(contender), self.folder / f"{what} {contender.name}", processes.SCRIPT)


def prepared(trained, resolution, image, threads, folder, tell):
    """The Case: our artifact, the plain exports of the same module, and the frame."""
    from rtseg_deploy.deployed import deployed
    from rtseg_deploy.export import DEFAULT_OPSET, export

    export(trained, folder / "ours.onnx", resolution, output="native", tell=tell)
    artifact = read_artifact(folder / "ours.onnx")
    frame = np.ascontiguousarray(images.resized(images.read(image), resolution))
    tensor = images.normalised(frame, artifact.normalisation)
    np.save(folder / "frame.npy", frame)
    np.save(folder / "tensor.npy", tensor)
    for name, kind, example in (("plain.onnx", "normalised", tensor), ("pixels.onnx", "rgb8", frame)):
        tell(f"torch.onnx.export with {kind} input", None)
        plainly(deployed(trained, "labels", DEFAULT_OPSET, kind), example, DEFAULT_OPSET, folder / name)
    return Case(folder, artifact, threads, frame)


def plainly(module, example, opset, path):
    """torch.onnx.export as its documentation shows it, with nothing of ours."""
    import warnings

    import torch

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.from_numpy(example),), path, dynamo=False, opset_version=opset, input_names=["input"], output_names=["labels"])


def available(contender):
    return not contender.backend or contender.backend in backends.names()


def ways_of(contender):
    return [way for way in contender.ways if not way.startswith("cv2") or find_spec("cv2")]


def chosen_ways(case, contenders, tell):
    """Contender's name -> (its quickest way to normalise, {way: ms of a frame}); the quickest is found by trying them on this network."""
    found = {}
    for one in contenders:
        ways = ways_of(one)
        if len(ways) > 1:
            tell(f"{one.name}: trying how it normalises", None)
            process = None
            try:
                process = case.start(one, ways[0], "try")
                found[one.name] = processes.quickest(process, ways)
            except RtsegError:
                pass                    # it is told where it is to be timed
            finally:
                if process:
                    process.close()
        found.setdefault(one.name, (ways[0], {}))
    return found


def begun(case, one, way, seconds):
    """(its process, warm; its row; way -> frames of a turn of so many seconds; its labels)."""
    process = case.start(one, way)
    try:
        row, plan = {"start_seconds": process.start_seconds}, {}
        for kind in (way, TENSOR) if one.side == "peer" else (way,):
            first = process.ask(way=kind, frames=WARM_FRAMES)["seconds"]
            warm = process.ask(way=kind, frames=max(1, round(WARM_SECONDS / min(first))))["seconds"]
            plan[kind] = max(1, round(seconds / median(warm)))
            if kind == way:             # the most memory that it took so far: nothing else was done in this process
                labels = process.folder / "labels.npy"
                row.update(process.ask(labels=str(labels)))
    except RtsegError:
        process.close()
        raise
    return process, row, plan, np.load(labels)


def measured(case, ways, contenders, count, seconds, tell):
    """The result of one case."""
    started, rows, plans, labels, failed = {}, {}, {}, {}, {}
    try:
        for one in contenders:
            tell(f"starting {one.name}", None)
            try:
                started[one.name], rows[one.name], plans[one.name], labels[one.name] = begun(case, one, ways[one.name][0], seconds)
            except RtsegError as error:
                failed[one.name] = error.what
        taken = processes.rounds(started, plans, count, TENSOR, tell)
    finally:
        for process in started.values():
            process.close()
    failed.update(taken.failed)
    if not any(one.side == "ours" and one.name not in failed for one in contenders):
        raise RtsegError(f"none of ours ran: {'; '.join(failed.values())}", "rtseg-deploy bench says more")
    reference = next(labels[one.name] for one in contenders if one.side == "ours" and one.name in labels)
    told = [row(one, ways[one.name], rows.get(one.name, {}), taken, labels.get(one.name), reference, failed.get(one.name)) for one in contenders]
    return {"network": case.artifact.model, "resolution": size(case.artifact.resolution), "classes": case.artifact.classes, "weights": weights(case.artifact),
            "threads": case.threads, "plan": plans, "contenders": told, "ratios": list(ratios(told))}


def weights(artifact):
    return f"random, seed {artifact.parent['seed']}" if "seed" in artifact.parent else f"trained, sha256 {artifact.parent['sha256'][:12]}"


def row(one, chosen, begun, taken, labels, reference, failed):
    """What is told of a contender."""
    way, tried = chosen
    found = {"name": one.name, "side": one.side, "precision": one.precision, "way": way, "tried_ms": tried, "failed": failed}
    if failed:
        return found
    turned = taken.turns[one.name]
    found.update({key: begun[key] for key in ("start_seconds", "memory_bytes", "facts")}, rounds_ms=taken.ms(one.name, way), **spread(taken.ms(one.name, way)),
                 tensor_rounds_ms=taken.ms(one.name, TENSOR) if TENSOR in turned else {}, labels_equal=float((labels == reference).mean()),
                 faults=median(turn["faults"] for turn in turned[way].values()))
    if found["tensor_rounds_ms"]:
        found["tensor_ms"] = median(found["tensor_rounds_ms"].values())
    return found


def spread(ms):
    low, middle, high = np.quantile(list(ms.values()), (0.25, 0.5, 0.75)).tolist()
    return {"ms": middle, "middle_half_ms": (low, high)}


def ratios(told):
    """Of each precision: our quickest against each peer, with its normalisation in the clock and without."""
    good = [one for one in told if not one["failed"]]
    for precision in dict.fromkeys(one["precision"] for one in good):
        ours, peers = ([one for one in good if one["precision"] == precision and one["side"] == side] for side in ("ours", "peer"))
        if not ours or not peers:
            continue
        mine = min(ours, key=lambda one: one["ms"])
        for of, ms in (("pixels", "ms"), (TENSOR, "tensor_ms")):
            best = min(peers, key=lambda one: one[ms])
            for peer in peers:
                theirs = peer["rounds_ms" if of == "pixels" else "tensor_rounds_ms"]
                both = sorted(set(mine["rounds_ms"]) & set(theirs))
                ratio, low, high = turns.ratio([mine["rounds_ms"][n] for n in both], [theirs[n] for n in both])
                yield {"precision": precision, "of": of, "ours": mine["name"], "peer": peer["name"], "best": peer is best, "ratio": ratio, "low": low,
                       "high": high, "rounds": len(both)}


def run(trained, resolutions, image, contenders, threads, count, seconds, tune_seconds, tell):
    """The result of every network, given as functions that load it, at every size."""
    begin, ways, cases = time.monotonic(), {}, []
    have = [one for one in contenders if available(one)]
    for load in trained:
        network = load()
        for resolution in resolutions:
            title = f"{network.network.name} {size(resolution)}"

            def told(step, done, title=title):
                tell(f"{title}: {step}", done)

            with tempfile.TemporaryDirectory(prefix="rtseg-peers-") as folder:
                case = prepared(network, resolution, image, threads, Path(folder), told)
                if tune_seconds and not tuned.found(case.artifact, threads):
                    tune.tune(case.folder / "ours.onnx", tune.Ask((), "bf16", threads, tune_seconds), told)
                with locks.machine(True, told):
                    ways[resolution] = ways.get(resolution) or chosen_ways(case, have, told)
                    cases.append(measured(case, ways[resolution], have, count, seconds, told))
    return {"format": 1, "kind": "peers", "environment": runner.environment(), "seconds": time.monotonic() - begin, "rounds": count, "turn_seconds": seconds,
            "image": Path(image).name, "missing": [one.name for one in contenders if not available(one)], "cases": cases,
            "contenders": [asdict(one) for one in contenders]}


def loaders(networks, checkpoint):
    """Functions that load the networks, one at a time: a checkpoint takes the place of the network that it is."""
    given = checkpoints.load(checkpoint) if checkpoint else None
    names = networks or ((given.network.name,) if given else NETWORKS)
    return [(lambda: given) if given and name == given.network.name else (lambda name=name: checkpoints.seeded(name)) for name in names]


@click.command(context_settings={"max_content_width": 120})
@click.option("--network", "networks", multiple=True, help=f"Repeat for several; {', '.join(NETWORKS)} if not given.")
@click.option("--resolution", "resolutions", type=Size(), multiple=True, help="Repeat for several; 512x1024 and 1024x2048 if not given.")
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False), help="Weights of the network that it is, instead of random ones.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False), default=images.STREET, help="The frame, resized; the package's street if not given.")
@click.option("--rounds", "count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option("--turn", "seconds", type=click.FloatRange(0.0, 10), default=0.2, show_default=True, help="Seconds of a turn, about.")
@click.option("--tune", "tune_seconds", type=click.FloatRange(0, 3600), default=0.0, help="Seconds for each artifact of ours that is not tuned here yet.")
@click.option("--threads", type=click.IntRange(1, 1024), help="All processors if not given.")
@click.option("--only", multiple=True, help="Words in a contender's name: leave the others out. Repeat for several.")
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False), help="Show an earlier result and measure nothing.")
@click.option("--again", type=click.Path(exists=True, dir_okay=False), help="An earlier result: how much each ratio has changed.")
@click.option("--gate", is_flag=True, help="Exit status 1 where a bar of benchmarks/bars.csv is missed.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the result, JSON.")
@click.option("--document", type=click.Path(dir_okay=False), help="Fill the tables of a document, and draw the picture beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--markdown", is_flag=True, help="Print the tables for a document.")
def peers(networks, resolutions, checkpoint, image, count, seconds, tune_seconds, threads, only, source, again, gate, output, document, as_json, markdown):
    """Time ours and its peers, taking turns; a frame in host memory to its labels there.

    \b
    Example:
      python benchmarks/peers.py -o results/peers.json
      python benchmarks/peers.py --network sgcpnet --resolution 512x1024 --gate
      python benchmarks/peers.py --from results/peers.json --document docs/peers.md
    """
    if source:
        result = files.read_json(source)
    else:
        contenders = [one for one in CONTENDERS if not only or any(word in one.name for word in only)]
        with progress() as tell:
            result = run(loaders(networks, checkpoint), resolutions or RESOLUTIONS, image, contenders, threads or launch.cpus(), count, seconds,
                         tune_seconds, tell)
        result = json.loads(json.dumps(result, default=str))        # as it will be read
    if output:
        files.write_json(output, result)
    changes = shown.changes(result, files.read_json(again)) if again else []
    bars = shown.held(result, changes)
    if document:
        shown.fill(Path(document), result)
    if as_json:
        click.echo(json.dumps({**result, "bars": bars, "changes": changes}, indent=1))
    elif markdown:
        click.echo(shown.markdown(result))
    else:
        show(*shown.tables(result, changes, bars))
    if gate and not all(bar["held"] for bar in bars):
        sys.exit(1)


if __name__ == "__main__":
    try:
        peers()
    except RtsegError as error:
        fail(error.what, error.fix)
