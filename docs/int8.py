"""The tables of docs/int8.md:  python docs/int8.py CHECKPOINT CAMVID > tables.md

CHECKPOINT: SGCPNet trained on CamVid. CAMVID: the folder with test, testannot, val, valannot. On a quiet machine: every artifact of a network is
timed in one process, in turns, by the loop that bench uses.
"""
import sys
import tempfile
from pathlib import Path
from statistics import median

import onnx

from rtseg_deploy import calibrate, checkpoints, datasets, images, int8, lists, proof, records
from rtseg_deploy.calibrate import Ask
from rtseg_deploy.device import layers, runner
from rtseg_deploy.export import export
from rtseg_deploy.launch import cpus
from rtseg_deploy.report import markdown_table

SIZE = (360, 480)
DENSE = ("ddrnet-23-slim", "bisenetv1-r18")     # random weights: for speed alone
ROUNDS, STEPS = 7, 30


def main(checkpoint, camvid):
    with tempfile.TemporaryDirectory(prefix="rtseg-deploy-") as folder:
        folder = Path(folder)
        export(checkpoints.load(checkpoint), folder / "sgcpnet.onnx", SIZE)
        print(markdown_table(accuracy(folder, Path(camvid))), "\n", sep="\n")
        for name in DENSE:
            export(checkpoints.seeded(name), folder / f"{name}.onnx", SIZE)
            by_form(folder, name, Path(camvid))
        print(markdown_table([row for name in ("sgcpnet", *DENSE) for row in speed(folder, name)]), "\n", sep="\n")
        for name in ("sgcpnet", "ddrnet-23-slim"):
            print(f"{name}, ms of a step by kind of layer\n", markdown_table(kinds(folder, name)), "\n", sep="\n")


def fed_by(artifact):
    return lambda path: images.fed(images.resized(images.read(path), artifact.resolution), artifact.input, artifact.normalisation)


def accuracy(folder, camvid):
    """Test mIoU of FP32, of every method with the ends in FP32 alone, and of what calibrate makes."""
    path, test = folder / "sgcpnet.onnx", datasets.dataset(camvid, split="test")
    model, fed = onnx.load(path), fed_by(records.read_artifact(path))
    chosen = lists.listed(camvid / "val", calibrate.COUNT)

    def row(what, form, made):
        points = calibrate.miou(proof.logits(made), fed, test, test.pairs)
        return {"what": what, "for": form, "convolutions in INT8": len(int8.in_int8(made)), "mIoU %": f"{points:.2f}"}

    rows = [row("FP32", "", model)]
    for form in int8.FORMS:
        for method in int8.METHODS:
            data = int8.measured(model, map(fed, chosen), method, form)
            rows.append(row(f"{method}, all but the gates", form, int8.paired(model, data, (), form)))
            rows.append(row(f"{method}, and the ends in FP32", form, int8.paired(model, data, int8.ends(model), form)))
        made, artifact = calibrate.calibrate(path, camvid / "val", folder / f"sgcpnet.{form}.onnx", Ask(form=form, data=str(camvid), split="val"))
        rows.append(row(f"calibrate, {len(artifact.checks['int8']['kept'])} in FP32", form, onnx.load(made)))
    return rows


def by_form(folder, name, camvid):
    model, fed = onnx.load(folder / f"{name}.onnx"), fed_by(records.read_artifact(folder / f"{name}.onnx"))
    for form in int8.FORMS:
        feeds = map(fed, lists.listed(camvid / "val", 8))
        onnx.save(int8.quantised(model, feeds, "minmax", int8.ends(model), form), folder / f"{name}.{form}.onnx")


def files_of(folder, name):
    return {"FP32": folder / f"{name}.onnx", **{f"INT8 for {form}": folder / f"{name}.{form}.onnx" for form in int8.FORMS}}


def session(path):
    made = runner.OnnxRuntime({"backend": "onnxruntime-cpu", "artifact": str(path), "threads": cpus(), "described": {"precision": "", "input": ""}})
    made.feed(proof.pictures(SIZE, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})["street"].fed)
    return made


def speed(folder, name):
    """Medians of turns, each a window of steps after the others have had theirs."""
    sessions = {what: session(path) for what, path in files_of(folder, name).items()}
    seconds = {what: [] for what in sessions}
    for turn in range(ROUNDS + 1):
        for what, one in sessions.items():
            samples = runner.clock_steps(one.step, STEPS)
            seconds[what] += samples if turn else []    # the first warms up
    ms = {what: 1e3 * median(samples) for what, samples in seconds.items()}
    return [{"network": name, "what": what, "ms": f"{value:.2f}", "times as fast as FP32": f"{ms['FP32'] / value:.2f}"} for what, value in ms.items()]


def kinds(folder, name):
    """Kind of layer -> milliseconds, for each file."""
    found = {}
    for what, path in files_of(folder, name).items():
        one = session(path)
        options = one.ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = one.threads, 3, True
        options.profile_file_prefix = str(folder / "profile")
        one.session = one.ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        one.binding, fed, one.fed = one.session.io_binding(), one.fed.numpy().copy(), None
        one.feed(fed)
        for _ in range(2 * STEPS):
            one.step()
        with open(one.session.end_profiling()) as file:
            for layer in layers.of_events(layers.json.load(file), STEPS):
                found.setdefault(layer["kind"], {}).setdefault(what, []).append(layer["seconds"])
    rows = [{"kind": kind, **{what: f"{1e3 * sum(by.get(what, [])):.2f} ({len(by.get(what, []))})" for what in files_of(folder, name)}}
            for kind, by in sorted(found.items(), key=lambda item: -sum(map(sum, item[1].values())))]
    total = {what: f"{1e3 * sum(sum(by.get(what, [])) for by in found.values()):.2f}" for what in files_of(folder, name)}
    return [*rows, {"kind": "all", **total}]


if __name__ == "__main__":
    main(*sys.argv[1:])
