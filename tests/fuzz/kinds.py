"""What a stranger's file of each kind goes through: every reader that meets it, as the commands call them."""
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rtseg_deploy.errors import RtsegError

from . import mutations, seeds


@dataclass(frozen=True)
class Kind:
    file: str                       # what the input is called in the folder
    seeds: Callable                 # () -> valid files
    mutated: Callable               # (bytes, random) -> bytes
    read: Callable                  # in the folder, of the file; raises RtsegError or nothing
    beside: Callable = lambda: None # put into the folder what the input needs
    starts: bool = False            # whether reading it starts programs

    @functools.cached_property
    def valid(self):
        return list(self.seeds())


def each(*readers):
    """All of these, whatever the others refuse; then the first refusal."""
    refused = []
    for reader in readers:
        try:
            reader()
        except RtsegError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def read_checkpoint(path):
    from rtseg_deploy import inspection

    inspection.inspect(path)


def read_onnx(path):
    from rtseg_deploy import adopt, check, facts, fix

    model = check.read(path)
    for parser in facts.parsers().values():
        check.findings(model, parser)
    targets = ["gtx-1080ti"]
    each(lambda: adopt.adopt(path, "adopted.onnx", "imagenet"), lambda: fix.fix(path, "fixed.onnx", targets))


def beside_sidecar():
    Path("net.onnx").write_bytes(b"artifact")


def read_sidecar(path):
    from rtseg_deploy import bench, deploy_config, facts, records, stream, verify

    artifact = records.read_artifact(path.removesuffix(".json"))
    probed = {"gpu": {"name": "TX2", "compute_capability": "6.2", "memory_bytes": 8 << 30}, "tensorrt": "8.2.1", "tensorrt_rtx": None}
    facts.class_set(artifact.class_set, artifact.classes)
    ask = bench.Ask()
    each(lambda: deploy_config.deploy_config("net.onnx", "triton", "served"), lambda: deploy_config.deploy_config("net.onnx", "deepstream", "served"),
         lambda: verify.why_not(artifact, probed), lambda: bench.refuse_other("net.onnx", artifact, facts.protocol("network"), ask),
         lambda: bench.picture(artifact), lambda: stream.refuse_unknown_enlarging("net.onnx", artifact), lambda: origin(artifact))


def origin(artifact):
    from rtseg_deploy import checkpoints

    if "seed" not in artifact.parent:   # what is made of a seed is a network, which takes seconds
        checkpoints.origin(artifact)


def beside_job():
    import numpy as np

    Path("net.onnx").write_bytes(next(seeds.onnx_files()))
    np.save("0.npy", np.zeros((1, 3, *seeds.RESOLUTION), np.float32))


def read_job(path):
    """A device answers every job with a result."""
    from rtseg_deploy.device import runner

    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        job = json.loads(Path(path).read_bytes())
        if max(job.get("iterations") or 0, 1000 * (job.get("warmup_limit") or 60), 30 * (job.get("threads") or 0)) > 1000:
            return                  # a job that is to take long is no hang
    status = runner.main([path, "result.json"])
    answer = json.loads(Path("result.json").read_text())
    if (status == 0) is not (answer["ok"] is True) or not answer["ok"] and not (isinstance(answer["error"], str) and isinstance(answer["fix"], str)):
        raise AssertionError(f"status {status}, and {answer}")


def read_result(path):
    from rtseg_deploy import compare, evaluate, files, results, tuned

    def answered():
        value = files.read_json(path)
        for action in ("time", "build", "infer", "probe", "label"):
            use(action, value)

    def reported():
        figure = results.read_one(Path(path))
        _ = figure.name, figure.machine, figure.device, figure.ms, figure.stages, figure.back_to_back_fps, figure.telemetry("cpu_mhz")

    Path("cache/rtseg-deploy").mkdir(parents=True, exist_ok=True)
    Path("cache/rtseg-deploy/tuned.json").write_bytes(Path(path).read_bytes())
    each(answered, reported, lambda: compare.compare(path, path), tuned.entries, lambda: evaluate.worked([], Path(path), None))


def use(action, value):
    """What the caller does with what came back of a job."""
    from rtseg_deploy import bench, launch, telemetry

    if value.get("ok") is True and launch.sound(action, value):
        if action == "time":
            figure = bench.figure(seeds.sidecar(), "net.onnx", "onnxruntime-cpu", "noise", [bench.run_of(value)], "")
            json.dumps(figure.to_json())
        if action == "probe":
            json.dumps(telemetry.read(dict(value["probe"])))


def read_plan(path):
    from rtseg_deploy import plans

    plans.read(path)


def read_archive(path):
    from rtseg_deploy import collect

    collect.collect(path, "engines", "results")


def read_image(path):
    from rtseg_deploy import images

    pixels = images.read(path)
    images.resized(pixels, (4, 4))


def beside_labels():
    Path("images").mkdir(exist_ok=True)
    Path("labels").mkdir(exist_ok=True)
    Path("images/a.png").write_bytes(seeds.label_files()[0])
    Path("classes.csv").write_text("0,road\n1,sky\n2,tree\n")


def read_labels(path):
    from rtseg_deploy import datasets

    data = datasets.dataset(".", "folder")
    each(lambda: datasets.truth(data, data.pairs[0]), lambda: datasets.label_values(dataclasses.replace(data, coloured=True), data.pairs[0]))


def beside_text():
    for name in ("1.png", "10.png"):
        Path(name).write_bytes(b"")
    Path("table.json").write_text("{}")


def read_text(path):
    from rtseg_deploy import calibration_table, datasets, evaluate, lists, records, telemetry

    def rows():
        for row in evaluate.rows_in(path):
            evaluate.counts_of(row, 3)

    found = Path(path).read_bytes()
    about = {"kind": "calibration-table", "kept": [], "sha256": hashlib.sha256(found).hexdigest(), "onnx": "x"}
    records.sidecar("table").write_text(json.dumps(about))
    Path("table").write_bytes(found)
    telemetry.rows(found.decode(errors="replace").splitlines())
    each(lambda: lists.listed(path), lambda: lists.named(Path(path), Path(".")), lambda: datasets.own_classes(Path(path)),
         lambda: datasets.from_csv(Path("."), Path(path)), lambda: calibration_table.read("table", "x"), rows)


KINDS = {
    "checkpoint": Kind("weights.pth", seeds.checkpoints, mutations.of_checkpoint, read_checkpoint),
    "onnx": Kind("theirs.onnx", seeds.onnx_files, mutations.of_protobuf, read_onnx),
    "sidecar": Kind("net.onnx.json", lambda: [seeds.as_json(seeds.sidecar(kind).to_json()) for kind in ("onnx", "engine")], mutations.of_json, read_sidecar,
                    beside_sidecar),
    "job": Kind("job.json", seeds.jobs, mutations.of_json, read_job, beside_job, starts=True),
    "result": Kind("answer.json", seeds.results, mutations.of_json, read_result),
    "plan": Kind("plan.toml", seeds.plans, mutations.of_lines, read_plan, lambda: Path("net.onnx").write_bytes(b"")),
    "bundle": Kind("results.tar.gz", seeds.archives, mutations.of_archive, read_archive),
    "image": Kind("image.png", seeds.pictures, mutations.of_png, read_image),
    "labels": Kind(os.path.join("labels", "a.png"), seeds.label_files, mutations.of_png, read_labels, beside_labels),
    "text": Kind("list.csv", seeds.texts, mutations.of_lines, read_text, beside_text),
}
