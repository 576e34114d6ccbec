"""Accuracy on real images: the artifact labels CamVid's test set as PyTorch does, and as well as the checkpoint is known to."""
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from rtseg_deploy import checkpoints, images
from rtseg_deploy.deployed import deployed
from rtseg_deploy.export import export

KNOWN_MIOU = 54.3878                # of the checkpoint in PyTorch, per its README
CLASSES, IGNORED = 11, 11


def miou(confusion):
    hits = np.diag(confusion)
    return 100 * (hits / (confusion.sum(0) + confusion.sum(1) - hits)).mean()


def add(confusion, truth, labels):
    valid = truth != IGNORED
    confusion += np.bincount(truth[valid].astype(int) * CLASSES + labels[valid], minlength=CLASSES ** 2).reshape(CLASSES, CLASSES)


@pytest.fixture(scope="module")
def measured(shared, tmp_path_factory):
    """(confusion through ONNX Runtime, confusion through PyTorch, share of equal labels) over the whole test set."""
    trained = checkpoints.load(shared / "checkpoints/sgcpnet_camvid.pth.tar")
    path = tmp_path_factory.mktemp("camvid") / "net.onnx"
    artifact = export(trained, path, (360, 480))
    session, module = onnxruntime.InferenceSession(path), deployed(trained, "labels", 17)
    confusions, equal, files = [np.zeros((CLASSES, CLASSES), np.int64) for _ in range(2)], 0, sorted((shared / "camvid/test").glob("*.png"))
    for file in files:
        x = images.normalised(images.read(file), artifact.normalisation)
        truth = np.asarray(Image.open(shared / "camvid/testannot" / file.name))
        one = session.run(None, {"input": x})[0].argmax(1)[0]
        with torch.inference_mode():
            other = module(torch.from_numpy(x))[0].numpy()
        add(confusions[0], truth, one)
        add(confusions[1], truth, other)
        equal += (one == other).mean()
    return *confusions, equal / len(files)


def test_labels_agree(measured):
    assert measured[2] >= 0.9999


def test_miou_is_pytorchs_and_the_known_one(measured):
    through_onnx, through_torch = miou(measured[0]), miou(measured[1])
    assert abs(through_onnx - through_torch) <= 0.01
    assert abs(through_onnx - KNOWN_MIOU) <= 0.1
