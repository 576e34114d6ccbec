"""Public implementations' checkpoints load by themselves and give the recorded outputs, before and after folding."""
import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from rtseg_deploy import checkpoints
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export

DIALECTS = {"sgcpnet_official": ("sgcpnet", "official"), "bisenetv2_coincheung": ("bisenetv2", "coincheung")}


@pytest.fixture(scope="module", params=DIALECTS)
def case(request, shared, state, tmp_path_factory):
    """(spec, recorded outputs, checkpoint file, network and dialect expected)"""
    spec = json.loads((shared / f"dialects/{request.param}.json").read_text())
    path = tmp_path_factory.mktemp("dialect") / f"{request.param}.pth"
    torch.save(state.checkpoint(spec), path)
    return spec, np.load(shared / f"dialects/{request.param}.npz"), path, DIALECTS[request.param]


def resolutions(spec):
    for text, record in spec["outputs"].items():
        yield tuple(map(int, text.split("x"))), record


def like_the_record(logits, record):
    """Logits at 1/8 as the original returns them: some enlarge to the input, every stride-th pixel is recorded."""
    if logits.shape[-2:] != tuple(record["shape"][-2:]):
        logits = F.interpolate(logits, size=record["shape"][-2:], mode="bilinear", align_corners=False)
    return logits.numpy()[..., ::record["stride"], ::record["stride"]]


def test_found_by_itself_and_equal_in_pytorch(case, state):
    spec, outputs, path, expected = case
    trained = checkpoints.load(path)
    assert (trained.network.name, trained.dialect, trained.classes) == (*expected, 19)
    for resolution, record in resolutions(spec):
        if isinstance(record, str):
            continue
        with torch.inference_mode():
            logits = like_the_record(trained.module(torch.from_numpy(state.image(*resolution))), record)
        assert np.abs(logits - outputs["{}x{}".format(*resolution)]).max() <= 1e-4 * record["std"]


def test_equal_after_folding_through_onnxruntime(case, state, tmp_path):
    spec, outputs, path, _ = case
    trained = checkpoints.load(path)
    for resolution, record in resolutions(spec):
        if isinstance(record, str):
            with pytest.raises(RtsegError, match="multiples of 32"):
                export(trained, tmp_path / "net.onnx", resolution)
            continue
        export(trained, tmp_path / "net.onnx", resolution)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
        logits = session.run(None, {"input": state.image(*resolution)})[0]
        with torch.inference_mode():
            wanted = F.interpolate(trained.module(torch.from_numpy(state.image(*resolution))), size=resolution, mode="bilinear").numpy()
        assert np.abs(logits - wanted).max() <= 1e-3 * record["std"]
        if record["shape"][-1] == resolution[1]:
            assert np.abs(logits[..., ::record["stride"], ::record["stride"]] - outputs["{}x{}".format(*resolution)]).max() <= 1e-3 * record["std"]


def test_auxiliary_heads_may_be_missing(shared, state, tmp_path):
    spec = json.loads((shared / "dialects/bisenetv2_coincheung.json").read_text())
    weights = {key: value for key, value in state.checkpoint(spec).items() if not key.startswith("aux")}
    torch.save(weights, tmp_path / "weights.pth")
    assert checkpoints.load(tmp_path / "weights.pth").network.name == "bisenetv2"


def test_every_other_dialect_is_refused_with_the_nearest_ones_differences(shared, state):
    for path in sorted((shared / "dialects").glob("*.json")):
        if path.stem in DIALECTS:
            continue
        saved = state.checkpoint(json.loads(path.read_text()))
        with pytest.raises(RtsegError, match="fits no known network; the nearest is .*missing"):
            checkpoints.choose(checkpoints.fits(checkpoints.tensors(saved)))
