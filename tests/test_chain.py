"""verify-chain as a user meets it, and what it is made of; the faults that it is for are planted in test_sabotage.py."""
import importlib.util
import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rtseg_deploy import chain, checkpoints, demo, departures, images, launch, links, lists, passes, proof, records
from rtseg_deploy.chain import COLOURS, Ask, verify_chain
from rtseg_deploy.cli import cli
from rtseg_deploy.deployed import Deployed
from rtseg_deploy.errors import RtsegError

RESOLUTION = 96, 128


def invoked(*words):
    return CliRunner().invoke(cli, ["verify-chain", str(demo.CHECKPOINT), *map(str, words)])


@pytest.fixture
def folder_of(tmp_path):
    """A folder of one picture of pixels."""
    def made(pixels, name="street"):
        folder = tmp_path / name
        folder.mkdir()
        Image.fromarray(pixels).save(folder / f"{name}.png")
        return folder
    return made


# ---- no false alarms


@pytest.mark.parametrize("network", ["sgcpnet", "bcpnet", "ddrnet-23-slim", "bisenetv1-x39", "bisenetv2"])
def test_the_families_pass_as_they_are(network):
    report = verify_chain(checkpoints.seeded(network), (), Ask(RESOLUTION, "fp16"))
    assert report["ok"] and report["failed"] is None
    assert [(step["step"], step["ok"], step["pictures"]) for step in report["steps"]] == [(name, True, 3) for name in ("pytorch", "folded", "onnx", "fp16")]
    first, *others = report["steps"]
    assert first["max_abs"] == 0 and all(step["relative"] > 0 for step in others)


def test_an_artifact_takes_the_place_of_its_step(made_once, artifact):
    done = invoked(artifact, "--resolution", "96x128", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and [step["made"] for step in found["steps"]][1:] == ["folded in PyTorch", str(artifact)]


# ---- a failure as it is told


def test_a_failure_is_told_with_step_layer_and_picture(made_once, trained, artifact, copy_of, tmp_path):
    path = copy_of(artifact, normalisation={"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]})
    done = invoked(path, "--resolution", "96x128", "-o", tmp_path / "out")
    assert done.exit_code == 1 and "fails" in done.stdout
    last = done.stdout.splitlines()[-3:]
    assert last[0].startswith(f"first to fail: onnx ({path}): logits depart by") and last[1].startswith("where: input: looks like mean and std left out:")
    with Image.open(last[2]) as picture:
        assert picture.height == 96 and picture.width > 128


@pytest.mark.parametrize("option, value, word", [("--max-delta", "0", "logits depart"), ("--max-labels", "0", None)])
def test_thresholds_are_options(made_once, artifact, tmp_path, option, value, word):
    done = invoked(artifact, "--resolution", "96x128", "-o", tmp_path, option, value, *([] if word else ["--markdown"]))
    assert done.exit_code == (1 if word else 0) and (word or "| onnx |") in done.stdout


@pytest.mark.parametrize("changes, resolution, words", [({"classes": 19}, RESOLUTION, "has 19 classes, the checkpoint 11"),
                                                        ({}, (64, 64), "is for 96x128, not 64x64")])
def test_a_file_of_something_else_is_one_line(trained, artifact, copy_of, changes, resolution, words):
    with pytest.raises(RtsegError, match=words):
        verify_chain(trained, [copy_of(artifact, **changes)], Ask(resolution))


def test_an_engine_without_a_sidecar_is_not_loaded(trained, tmp_path):
    (tmp_path / "stray.engine").write_bytes(b"ftrt and native code")
    with pytest.raises(RtsegError, match="has no sidecar"):
        verify_chain(trained, [tmp_path / "stray.engine"], Ask(RESOLUTION))


def test_a_file_that_was_changed_is_compared_and_said(made_once, trained, artifact, copy_of):
    step = verify_chain(trained, [copy_of(artifact, sha256="0" * 64)], Ask(RESOLUTION))["steps"][-1]
    assert step["ok"] and "was changed after" in step["notes"][0]


# ---- files without a sidecar


class Theirs(torch.nn.Module):
    """Another's way to write the network: other names, no logits at full size."""

    def __init__(self, net):
        super().__init__()
        self.backend = net

    def forward(self, image):
        return self.backend(image)


def test_a_file_without_a_sidecar_is_read_as_well_as_it_can_be(made_once, trained, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Theirs(trained.module), (torch.zeros(1, 3, *RESOLUTION),), tmp_path / "theirs.onnx", dynamo=False, input_names=["image"],
                          opset_version=16)
    report = verify_chain(trained, [tmp_path / "theirs.onnx"], Ask(RESOLUTION))
    assert report["ok"] and "has no sidecar: fed as normalised, normalised by imagenet" in report["steps"][-1]["notes"][0]
    failed = verify_chain(trained, [tmp_path / "theirs.onnx"], Ask(RESOLUTION, normalisation="none"))["failed"]
    assert failed["layer"] == "input" and "mean and std left out" in failed["where"]
    with pytest.raises(RtsegError, match="free|takes"):
        verify_chain(trained, [tmp_path / "theirs.onnx"], Ask((64, 64)))


# ---- steps that are made here


def test_a_fault_of_folding_here_is_found_and_named(trained, monkeypatch):
    honest = passes.fold_back.scale_and_shift
    monkeypatch.setattr(passes.fold_back, "scale_and_shift", lambda bn: (honest(bn)[0], honest(bn)[1] * (1 if "depthwise" in bn.name else 0.9)))
    failed = verify_chain(trained, (), Ask(RESOLUTION))["failed"]
    assert (failed["step"], failed["layer"]) == ("onnx", "/net/backbone/stem/stem.0/Conv (Conv)")


def test_a_fault_of_folding_in_pytorch_is_found_and_named(trained, monkeypatch):
    from torch.nn.utils import fusion
    honest = fusion.fuse_conv_bn_eval

    def wrong(conv, bn):
        eps, bn.eps = bn.eps, 1e-3 if conv.in_channels == 72 else bn.eps
        fused, bn.eps = honest(conv, bn), eps
        return fused
    monkeypatch.setattr(fusion, "fuse_conv_bn_eval", wrong)
    failed = verify_chain(trained, (), Ask(RESOLUTION))["failed"]
    assert (failed["step"], failed["layer"]) == ("folded", "net.backbone.stages.1.0.depthwise.1 (BatchNorm2d)")


def test_calibration_on_a_black_picture_here(made_once, trained, folder_of):
    street, black = folder_of(images.read(images.STREET)), folder_of(np.zeros((*RESOLUTION, 3), np.uint8), "black")
    assert verify_chain(trained, (), Ask(RESOLUTION, "int8", images=str(street)))["ok"]
    failed = verify_chain(trained, (), Ask(RESOLUTION, "int8", images=str(street), calibration=str(black)))["failed"]
    assert failed["step"] == "int8" and "calibrated for" in failed["where"]


def test_a_step_that_cannot_be_made_fails_with_the_reason(made_once, trained, monkeypatch):
    def refuse(*arguments):
        raise RtsegError("half of it would have to stay in FP32")
    monkeypatch.setattr(chain, "halved", refuse)
    report = verify_chain(trained, (), Ask(RESOLUTION, "fp16"))
    assert report["failed"]["step"] == "fp16" and report["failed"]["why"] == ["half of it would have to stay in FP32"]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")
def test_an_engine_that_is_built_ahead_of_time_is_not_run(trained, artifact):
    *_, step = verify_chain(trained, [artifact], Ask(RESOLUTION, target="rtx-2080ti"))["steps"]
    assert step["step"] == "engine" and step["ok"] is None and "needs the device" in step["notes"][0]


@pytest.mark.parametrize("shift, ok", [(0, True), (8, False)])
def test_an_engine_is_compared_where_it_runs(made_once, trained, artifact, copy_of, monkeypatch, shift, ok):
    """On a device that is played: it labels as PyTorch does, or as if the picture were moved."""
    path = copy_of(artifact, kind="engine", target="rtx-2080ti", output="labels", versions={"tensorrt": "10.15"},
                   checks={"parity": {"ok": True}, "built": {"runtime": "tensorrt", "version": "10.15", "compute_capability": "7.5"}})
    path = path.rename(path.with_suffix(".engine"))
    records.sidecar(path.with_suffix(".onnx")).rename(records.sidecar(path))
    net = Deployed(trained.module)

    def labelled(path, engine, arrays, place, tell):
        with torch.inference_mode():
            return {name: np.roll(net.logits(torch.from_numpy(array)).argmax(1)[0].numpy().astype(np.uint8), shift, 1) for name, array in arrays.items()}
    monkeypatch.setattr(links.ondevice, "labelled", labelled)
    monkeypatch.setattr(links.verify, "why_not", lambda engine, probed: [])
    monkeypatch.setattr(launch, "probe", lambda place, tell: {})
    report = verify_chain(trained, [path], Ask(RESOLUTION))
    assert report["steps"][-1]["step"] == "engine" and report["steps"][-1]["relative"] is None and report["steps"][-1]["ok"] is ok
    assert ok or report["failed"]["where"] == "no layer of it can be seen from here"


# ---- accuracy


def test_miou_of_each_step_where_labels_exist(made_once, trained, artifact, copy_of, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    pixels = images.read(images.STREET)
    reference = links.in_pytorch("pytorch", "", trained, links.reading_of(trained, RESOLUTION))
    (answer,) = reference.answers([images.resized(pixels, RESOLUTION)])
    Image.fromarray(images.resized(pixels, RESOLUTION)).save(tmp_path / "images/street.png")
    Image.fromarray(answer.labels[0].astype(np.uint8)).save(tmp_path / "labels/street.png")
    (tmp_path / "classes.txt").write_text("".join(f"{number},class {number}\n" for number in range(11)))
    report = verify_chain(trained, [artifact], Ask(RESOLUTION, data=str(tmp_path)))
    assert [step["miou"] for step in report["steps"]] == [100, 100, 100] and report["data"] == "folder" and report["ok"]
    wrong = copy_of(artifact, normalisation={"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]})
    step = verify_chain(trained, [wrong], Ask(RESOLUTION, data=str(tmp_path)))["steps"][-1]
    assert step["delta_miou"] < -10 and any("mIoU differs" in why for why in step["why"])
    with pytest.raises(RtsegError, match="the checkpoint has 19 classes, and folder has 11"):
        verify_chain(checkpoints.seeded("sgcpnet"), (), Ask(RESOLUTION, data=str(tmp_path)))


# ---- what it is made of


def halves(margin):
    """A reference that prefers class 0 to the left, 1 to the right, by so much."""
    logits = np.zeros((1, 2, 10, 20), np.float32)
    logits[:, 0, :, :10] = logits[:, 1, :, 10:] = margin
    return links.Answer(logits, logits.argmax(1))


def test_labels_are_counted_inside_at_boundaries_and_without_ties():
    reference = halves(1.0)
    labels = reference.labels.copy()
    labels[0, 0, 0] = labels[0, 0, 9] = labels[0, 1, 10] = 7
    row = departures.departure(reference, links.Answer(None, labels), 1e-3)
    assert (row["pixels"], row["boundary"], row["differ"], row["differ_boundary"], row["beyond"], row["relative"]) == (200, 40, 3, 2, 3, None)
    labels[labels == 7] = 1 - reference.labels[labels == 7]
    assert departures.departure(reference, links.Answer(None, labels), 1e-3)["beyond"] == 3
    assert departures.departure(reference, links.Answer(None, labels), 3.0)["beyond"] == 0      # each by less than three of the logits' scale
    assert departures.departure(reference, links.Answer(None, labels[:, ::2]), 1e-3)["beyond"] == 200


def test_not_a_number_is_infinitely_far():
    reference = halves(1.0)
    found = departures.summary([departures.departure(reference, links.Answer(reference.logits * np.nan, reference.labels), 1e-3)], departures.BARS["fp16"])
    assert found["relative"] == float("inf") and departures.too_far(found, departures.BARS["fp16"])


def test_the_picture_tells_inside_from_boundaries_and_ties():
    grey = np.full((40, 60, 3), 100, np.uint8)
    differs, tied, near = np.zeros((3, 40, 60), bool)
    differs[5, 5] = differs[6, 6] = differs[7, 7] = near[6, 6] = tied[7, 7] = True
    drawn = np.asarray(chain.disagreement(grey, differs, tied, near))
    coloured = np.int32([drawn[n, n] for n in (5, 6, 7)])
    assert [np.abs(list(COLOURS.values()) - one).sum(1).argmin() for one in coloured] == [0, 1, 2] and (np.ptp(coloured, 1) > 80).all()
    assert len(set(drawn[20, 20])) == 1


def test_pictures_are_spread_evenly():
    assert lists.spread(range(10), 3) == [0, 3, 6] and lists.spread([1, 2], 5) == [1, 2]


def test_the_first_step_is_the_network_as_it_was_trained(trained):
    reading = links.reading_of(trained, RESOLUTION)
    street = proof.pictures(RESOLUTION, asdict(trained.normalisation), "rgb8")["street"]
    answer = next(links.in_pytorch("pytorch", "", trained, reading).answers([street.fed]))
    with torch.inference_mode():
        assert np.array_equal(answer.logits, Deployed(trained.module).logits(torch.from_numpy(street.normalised)).numpy())
