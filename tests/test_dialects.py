"""Public implementations' checkpoints load by themselves and give the recorded outputs, before and after folding."""
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import public
import pytest
import torch
from conftest import SHARED
from torch.nn import functional as F

from rtseg_deploy import checkpoints, saved
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export
from rtseg_deploy.models import networks

HERE = sorted((Path(__file__).parent / "dialects").glob("*.txt"))
THERE = sorted((SHARED / "dialects").glob("*.json"))

EXPECTED = {
    "bisenetv1_faceparsing": ("bisenetv1-r18", "face-parsing"), "bisenetv1_r18_coincheung": ("bisenetv1-r18", "coincheung"),
    "bisenetv1_r18_coincheung_c0422a1": ("bisenetv1-r18", "coincheung-2021"), "bisenetv1_r18_coincheung_c6d7405": ("bisenetv1-r18", "coincheung-shuffle"),
    "bisenetv1_r18_coincheung_0471e80": ("bisenetv1-r18", "coincheung-2020"), "bisenetv1_r18_torchseg": ("bisenetv1-r18", "torchseg"),
    "bisenetv1_r101_torchseg": ("bisenetv1-r101", "torchseg"), "bisenetv1_x39_speed_torchseg": ("bisenetv1-x39", "torchseg"),
    "bisenetv1_r18_mmseg": ("bisenetv1-r18", "mmsegmentation"), "bisenetv1_r50_mmseg": ("bisenetv1-r50", "mmsegmentation"),
    "bisenetv1_r101_mmseg": ("bisenetv1-r101", "mmsegmentation"), "bisenetv1_r18_sithu": ("bisenetv1-r18", "sithu"),
    "bisenetv1_r18_tramac": ("bisenetv1-r18", "tramac"), "bisenetv1_r18_oo": ("bisenetv1-r18", "ooooverflow"),
    "bisenetv2_coincheung": ("bisenetv2", "coincheung"), "bisenetv2_coincheung_c6d7405": ("bisenetv2", "coincheung-shuffle"),
    "bisenetv2_coincheung_old": ("bisenetv2", "coincheung-2020"), "bisenetv2_coincheung_old_nearest": ("bisenetv2", "coincheung-2020-nearest"),
    "bisenetv2_mmseg": ("bisenetv2", "mmsegmentation"), "bisenetv2_sithu": ("bisenetv2", "sithu"),
    "ddrnet23s_official": ("ddrnet-23-slim", "official"), "ddrnet23_official": ("ddrnet-23", "official"), "ddrnet39_official": ("ddrnet-39", "official"),
    "ddrnet23s_supergradients": ("ddrnet-23-slim", "supergradients"), "ddrnet23_supergradients": ("ddrnet-23", "supergradients"),
    "ddrnet39_supergradients": ("ddrnet-39", "supergradients"), "ddrnet23s_mmseg": ("ddrnet-23-slim", "mmsegmentation"),
    "ddrnet23_mmseg": ("ddrnet-23", "mmsegmentation"), "ddrnet23s_sithu": ("ddrnet-23-slim", "sithu"), "sgcpnet_official": ("sgcpnet", "official"),
}
CLASSES = {"bisenetv1_r101_mmseg": 171, "bisenetv1_r18_oo": 32}
ASKED = {"ddrnet23s_sithu": "sithu", "bisenetv2_coincheung_old_nearest": "coincheung-2020-nearest"}  # the same keys as the official code's
AUXILIARY = r"^(aux|conv_out16|conv_out32|heads\.[01]|seghead_extra|model\.seghead_extra|auxiliary_head|decode_head\.aux_|context(16|32)_head|supervision)"


def sampled(path, record, resolution):
    """(recorded values, function that takes the same from an output), as a specification stores them."""
    if path.suffix == ".txt":
        return np.array(record["values"]), lambda y: y.ravel()[np.linspace(0, y.size - 1, len(record["values"])).astype(int)]
    return np.load(path.with_suffix(".npz"))["{}x{}".format(*resolution)], lambda y: y


def specification(path, state):
    """(header with its outputs, what the implementation's training code would save)"""
    if path.suffix == ".txt":
        return public.read(path)[0], public.checkpoint(path)
    spec = json.loads(path.read_text())
    return spec, state.checkpoint(spec)


def outputs(header):
    for text, record in header["outputs"].items():
        yield tuple(map(int, text.split("x"))), record


def like_the_record(logits, record, enlarge):
    """Some originals enlarge to the input and some do not; every stride-th pixel is recorded."""
    if logits.shape[-2:] != tuple(record["shape"][-2:]):
        logits = F.interpolate(logits, size=record["shape"][-2:], mode="bilinear", align_corners=enlarge == "corners")
    return logits.numpy()[..., ::record["stride"], ::record["stride"]]


@pytest.mark.parametrize("path", [*HERE, *THERE], ids=lambda path: path.stem)
def test_a_public_checkpoint(path, request, tmp_path):
    """It is found by itself, also without its auxiliary heads, and gives what the original gave: in PyTorch, and folded."""
    header, value = specification(path, request.getfixturevalue("state") if path.suffix == ".json" else None)
    torch.save(value, tmp_path / "weights.pth")
    trained = checkpoints.load(tmp_path / "weights.pth", dialect=ASKED.get(path.stem))
    assert (trained.network.name, trained.dialect.name, trained.classes) == (*EXPECTED[path.stem], CLASSES.get(path.stem, 19))
    found_without_auxiliary_heads(path, value)
    equal_in_pytorch(path, header, trained)
    equal_after_folding(path, header, trained, tmp_path / "net.onnx")


def found_without_auxiliary_heads(path, value):
    state = next((inner for inner in value.values() if isinstance(inner, dict) and inner), value)
    state = {key: tensor for key, tensor in state.items() if not re.search(AUXILIARY, key)}
    fit = checkpoints.choose(checkpoints.fits(saved.tensors(state), dialect=ASKED.get(path.stem)))
    assert (fit.network.name, fit.dialect.name) == EXPECTED[path.stem]
    assert not fit.dropped or fit.dialect.name == "ooooverflow"  # which saves its backbone twice


def equal_in_pytorch(path, header, trained):
    for resolution, record in outputs(header):
        if isinstance(record, str):
            assert not trained.network.takes(resolution, trained.dialect)
            continue
        with torch.inference_mode():
            logits = like_the_record(trained.module(torch.from_numpy(public.image(*resolution))), record, trained.dialect.enlarge)
        wanted, take = sampled(path, record, resolution)
        assert np.abs(take(logits) - wanted).max() <= 1e-4 * record["std"]


def equal_after_folding(path, header, trained, goal):
    """As the network gives them, and enlarged where the original enlarges. Every size of those beside the repository, the smallest of ours."""
    sizes = sorted(outputs(header), key=lambda pair: (isinstance(pair[1], str), pair[0]))
    for resolution, record in sizes if path.suffix == ".json" else sizes[:1]:
        if isinstance(record, str):
            with pytest.raises(RtsegError, match="multiples of"):
                export(trained, goal, resolution)
            continue
        full = record["shape"][-1] == resolution[1]
        export(trained, goal, resolution, output="logits" if full else "native")
        session = onnxruntime.InferenceSession(goal, providers=["CPUExecutionProvider"])
        logits = session.run(None, {"input": public.image(*resolution)})[0][..., ::record["stride"], ::record["stride"]]
        wanted, take = sampled(path, record, resolution)
        assert np.abs(take(logits) - wanted).max() <= 1e-3 * record["std"]


def test_every_dialect_has_a_recorded_checkpoint():
    """But those whose keys and arithmetic are another's, and what a model's name alone separates."""
    recorded = set(EXPECTED.values())
    for name, network in networks().items():
        for dialect in network.dialects:
            copies = dialect.name.startswith("chenjun2hao") or (name, dialect.name) in {("ddrnet-23", "sithu"), ("bcpnet", "official")}
            assert copies or (name, dialect.name) in recorded, (name, dialect.name)


def test_the_same_keys_with_another_arithmetic_are_refused_with_the_question():
    value = public.checkpoint(Path(__file__).parent / "dialects/ddrnet23s_sithu.txt")
    with pytest.raises(RtsegError, match="trained with ydhongHIT/DDRNet or with sithu31296/semantic-segmentation") as error:
        checkpoints.choose(checkpoints.fits(saved.tensors(value)))
    assert "--dialect official or --dialect sithu" in error.value.fix
    for name in ("official", "sithu"):
        assert checkpoints.choose(checkpoints.fits(saved.tensors(value), dialect=name)).dialect.name == name
    prefixed = {f"model.{key}": tensor for key, tensor in value.items()}
    assert checkpoints.choose(checkpoints.fits(saved.tensors(prefixed))).dialect.name == "official"
    theirs = {"epoch": 3, "best_mIoU": 0.5, "state_dict": prefixed, "optimizer": {}}
    assert checkpoints.choose(checkpoints.fits(saved.tensors(theirs))).dialect.name == "chenjun2hao"
