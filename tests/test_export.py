"""What export writes: the graph, its sidecar, at every opset, and nothing when it is stopped."""
import collections
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, run
from PIL import Image

from rtseg_deploy import checkpoints, demo, export, files, records
from rtseg_deploy.errors import RtsegError

RESOLUTION = 96, 128


def operators(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("opset", [13, 14, 17, 18, 20, 23])
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_every_opset_is_what_it_says_and_clean(trained, tmp_path, opset, output):
    path = tmp_path / "net.onnx"
    artifact = export.export(trained, path, RESOLUTION, opset, output=output)
    model = onnx.load(path)
    assert model.opset_import[0].version == artifact.opset == opset
    assert not operators(path).keys() & {"BatchNormalization", "Identity", "Shape", "Gather", "Constant", "Slice", "Dropout"}
    values = [(t.data_type, tuple(t.dims), t.raw_data) for t in model.graph.initializer]
    assert len(values) == len(set(values))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "output"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    found = onnxruntime.InferenceSession(path).run(None, {"input": np.ones((1, 3, *RESOLUTION), np.float32)})[0]
    if output == "logits":
        assert found.shape == (1, 11, *RESOLUTION) and found.dtype == np.float32
    else:
        assert found.shape == (1, *RESOLUTION) and found.dtype == (np.int32 if opset == 13 else np.uint8)
    assert bool(artifact.warnings) == (opset >= 18)  # ReduceMean that TensorRT 8 misreads


def test_labels_are_the_argmax_of_the_logits(trained, tmp_path):
    x = np.random.default_rng(0).standard_normal((1, 3, *RESOLUTION), np.float32)
    maps = []
    for output in ("logits", "labels"):
        export.export(trained, tmp_path / output, RESOLUTION, output=output)
        maps.append(onnxruntime.InferenceSession(tmp_path / output).run(None, {"input": x})[0])
    assert (maps[0].argmax(1) == maps[1]).mean() > 0.9999


def test_more_classes_than_a_byte_holds(tmp_path):
    artifact = export.export(checkpoints.seeded("sgcpnet", classes=300), tmp_path / "net.onnx", (64, 64), output="labels")
    assert onnx.load(tmp_path / "net.onnx").graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT32
    assert artifact.class_set == ""


def test_the_sidecar_says_what_it_is(trained, artifact):
    described = records.read_artifact(artifact)
    assert described.sha256 == files.sha256(artifact)
    assert described.parent == {"file": str(demo.CHECKPOINT), "sha256": files.sha256(demo.CHECKPOINT)}
    assert (described.model, described.dialect, described.classes, described.class_set) == ("sgcpnet", "official", 11, "camvid")
    fold = described.checks["fold"]
    assert (fold["before"], fold["back"], fold["forward"], fold["kept"]) == (71, 71, 0, [])
    assert {**fold["scales"], "kept": len(fold["scales"]["kept"])} == {"before": 27, "back": 9, "forward": 0, "merged": 0, "shared": 8, "kept": 10}
    assert fold["macs"]["after"] < 0.87 * fold["macs"]["before"]
    assert described.checks["parity"]["ok"] and described.resolution == RESOLUTION
    assert {"torch", "onnx", "onnxruntime", "polygraphy"} <= described.versions.keys()
    assert described.weights_bytes == sum(np.prod(t.dims) * 4 for t in onnx.load(artifact).graph.initializer if t.data_type == 1) + sum(
        np.prod(t.dims) * 8 for t in onnx.load(artifact).graph.initializer if t.data_type == 7)


def test_fp16_keeps_float32_at_both_ends(trained, tmp_path):
    path = tmp_path / "net.onnx"
    artifact = export.export(trained, path, RESOLUTION, precision="fp16")
    model = onnx.load(path)
    kinds = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert kinds == [onnx.TensorProto.FLOAT] * 2
    assert not [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) > 4]
    assert operators(path)["Cast"] == 2
    assert artifact.checks["parity"]["bar"][0] > 1e-4 and artifact.checks["parity"]["ok"]


def test_portrait_is_a_warning(trained, tmp_path):
    artifact = export.export(trained, tmp_path / "net.onnx", (128, 96))
    assert "did you mean 96x128" in artifact.warnings[0]


@pytest.mark.parametrize("call, words", [
    (dict(resolution=(100, 96), seeded="ddrnet-23-slim"), "multiples of 8, not 100x96"),
    (dict(resolution=RESOLUTION, opset=12), "opset 12"),
    (dict(resolution=RESOLUTION, class_set="cityscapes"), "cityscapes has 19 classes, this network 11"),
    (dict(resolution=RESOLUTION, class_set="kitti"), "no class set is called 'kitti'"),
])
def test_refusals(trained, tmp_path, call, words):
    subject = checkpoints.seeded(call.pop("seeded")) if "seeded" in call else trained
    with pytest.raises(RtsegError, match=words):
        export.export(subject, tmp_path / "net.onnx", **call)
    assert not list(tmp_path.iterdir())


def start_export(tmp_path, **options):
    command = [sys.executable, "-m", "rtseg_deploy", "export", str(demo.CHECKPOINT), "-o", str(tmp_path / "net.onnx"), "--resolution", "512x1024"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, **options)


def test_an_interrupt_within_code_run_as_text_is_one_too(tmp_path):
    """`python -m` would die by the signal, with nothing to tell that from a kill."""
    (tmp_path / "planted.py").write_text("""
import click
from rtseg_deploy.terminal import Commands

@click.command(cls=Commands, invoke_without_command=True)
def cli():
    exec("raise KeyboardInterrupt")

cli([])
""")
    done = subprocess.run([sys.executable, "-m", "planted"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "interrupted" in done.stderr


@pytest.mark.parametrize("moment", ["loading", "tracing", "proving"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_any_step_it_leaves_nothing(tmp_path, moment, number):
    process = start_export(tmp_path)
    line = next(line for line in process.stderr if moment in line)
    time.sleep(0.2)
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(60) == 1, line + rest
    assert "interrupted" in rest.splitlines()[-1] and "Traceback" not in rest
    assert not list(tmp_path.iterdir())


def full_disk():
    """Run in a child: no file may grow beyond 100 kB, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def noise(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("command", ["export", "build-engine", "bench", "predict"])
def test_a_full_disk_is_one_line_and_leaves_nothing(artifact, tmp_path, command):
    words = {"export": [demo.CHECKPOINT, "-o", "out/net.onnx", "--resolution", "96x128"],
             "build-engine": [artifact, "--target", "rtx-2080ti", "-o", "out"],
             "bench": [artifact, "--backend", "null", "-n", "5000", "-o", "out"],
             "predict": [artifact, noise(tmp_path / "noise.png"), "-o", "out"]}[command]
    _, err = run(command, *words, status=1, cwd=tmp_path, preexec_fn=full_disk)
    assert "nothing half-written was left; free some space" in err.splitlines()[-1]
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def test_an_old_file_survives_a_failed_export(artifact, copy_of, monkeypatch, trained):
    path = copy_of(artifact)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        export.export(trained, path, (64, 64))
    monkeypatch.undo()
    assert path.read_bytes() == before and records.read_artifact(path)
    assert len(list(path.parent.iterdir())) == 2


def test_the_command_prints_json_for_scripts(tmp_path):
    out, err = run("export", demo.CHECKPOINT, "-o", tmp_path / "net.onnx", "--resolution", "64x96", "--json")
    assert json.loads(out)["resolution"] == [64, 96] and json.loads(out)["classes"] == 11
    assert json.loads(Path(tmp_path / "net.onnx.json").read_text()).items() <= json.loads(out).items()
    assert "proving" in err


def test_the_command_prints_a_table_for_people(tmp_path):
    out, _ = run("export", demo.CHECKPOINT, "-o", tmp_path / "net.onnx", "--resolution", "64x96", "--classes", "11")
    assert "71 before, 71 folded back, 0 folded forward, 0 kept" in out and "labels equal 100.0000%" in out
