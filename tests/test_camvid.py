"""Accuracy on real images: the artifact labels CamVid's test set as PyTorch does, and as well as the checkpoint is known to."""
from functools import reduce
from operator import add

import numpy as np
import onnxruntime
import pytest
import torch

from rtseg_deploy import accuracy, checkpoints, datasets, images
from rtseg_deploy.deployed import deployed
from rtseg_deploy.export import export

pytestmark = pytest.mark.xdist_group("camvid")      # one worker measures
KNOWN_MIOU = 54.3878                # of the checkpoint in PyTorch, per its README


@pytest.fixture(scope="module")
def measured(shared, tmp_path_factory):
    """(mIoU in percent through ONNX Runtime, through PyTorch, share of equal labels) over the whole test set."""
    trained = checkpoints.load(shared / "checkpoints/sgcpnet_camvid.pth.tar")
    path = tmp_path_factory.mktemp("camvid") / "net.onnx"
    artifact, data = export(trained, path, (360, 480)), datasets.dataset(shared / "camvid")
    session, module = onnxruntime.InferenceSession(path), deployed(trained, "labels", 17)
    totals, equal = [[], []], 0
    for pair in data.pairs:
        x, truth = images.normalised(images.read(pair.image), artifact.normalisation), datasets.truth(data, pair)
        one = session.run(None, {"input": x})[0].argmax(1)[0]
        with torch.inference_mode():
            other = module(torch.from_numpy(x))[0].numpy()
        for total, labels in zip(totals, (one, other)):
            total.append(accuracy.counts(truth, labels, 11))
        equal += (one == other).mean()
    return *(100 * accuracy.scores(reduce(add, total), data.classes.names)["miou"] for total in totals), equal / len(data.pairs)


def test_labels_agree(measured):
    assert measured[2] >= 0.9999


def test_miou_is_pytorchs_and_the_known_one(measured):
    through_onnx, through_torch, _ = measured
    assert abs(through_onnx - through_torch) <= 0.01
    assert abs(through_torch - KNOWN_MIOU) <= 0.001


def test_pixels_straight_from_the_camera_give_the_same_labels(shared, tmp_path):
    """The float path's, on every tenth image; where they differ the two best logits are as good as equal; the border is the same."""
    trained = checkpoints.load(shared / "checkpoints/sgcpnet_camvid.pth.tar")
    normalisation = export(trained, tmp_path / "float.onnx", (360, 480)).normalisation
    export(trained, tmp_path / "rgb8.onnx", (360, 480), input="rgb8")
    through_float, through_pixels = (onnxruntime.InferenceSession(tmp_path / name) for name in ("float.onnx", "rgb8.onnx"))
    shares = []
    for file in sorted((shared / "camvid/test").glob("*.png"))[::10]:
        pixels = images.read(file)
        wanted = through_float.run(None, {"input": images.normalised(pixels, normalisation)})[0][0]
        found = through_pixels.run(None, {"input": pixels})[0][0]
        differ = wanted.argmax(0) != found.argmax(0)
        best = np.sort(wanted, 0)
        assert not (differ & (best[-1] - best[-2] > 1e-3 * wanted.std())).any()
        assert not (differ[0].any() or differ[-1].any() or differ[:, 0].any() or differ[:, -1].any())
        shares.append(1 - differ.mean())
    assert np.mean(shares) >= 0.9999
