"""uint8 pixels straight from the camera: the normalisation is in the graph, and right at the padded border too."""
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import SHARED, run

from rtseg_deploy import checkpoints, images
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export
from rtseg_deploy.models import networks
from rtseg_deploy.passes import scale_forward
from rtseg_deploy.records import read_artifact

RESOLUTION = 64, 96
MARGIN = 1e-3                       # labels may differ where the best two logits are this near, as a fraction of the logits' scale


def pictures():
    """Real images where they are at hand, and the drawn street."""
    real = sorted((SHARED / "camvid/test").glob("*.png"))[::60]
    return [images.resized(images.read(path), RESOLUTION) for path in [images.STREET, *real]]


def logits(path, fed):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": fed})[0]


def beginnings():
    """A network for each way in which an image is taken in: wider and deeper ones of a family take it in alike."""
    first = {}
    for name, network in networks().items():
        first.setdefault((network.build, network.variant.get("backbone", "").rstrip("0123456789"), network.variant.get("literal")), name)
    return first.values()


@pytest.mark.parametrize("name", beginnings())
def test_labels_are_those_of_the_float_path_and_the_border_exactly(name, tmp_path):
    trained = checkpoints.seeded(name, classes=11, seed=2)
    normalisation = export(trained, tmp_path / "float.onnx", RESOLUTION).normalisation
    export(trained, tmp_path / "rgb8.onnx", RESOLUTION, input="rgb8")
    for pixels in pictures():
        wanted = logits(tmp_path / "float.onnx", images.fed(pixels, "normalised", normalisation))
        found = logits(tmp_path / "rgb8.onnx", images.fed(pixels, "rgb8", normalisation))
        best = np.sort(wanted, 1)
        near = (best[:, -1] - best[:, -2]) <= MARGIN * wanted.std()
        differ = wanted.argmax(1) != found.argmax(1)
        assert differ.mean() <= 1e-4 and not (differ & ~near).any()
        border = np.ones(RESOLUTION, bool)
        border[1:-1, 1:-1] = False
        assert not differ[0][border].any()
        assert np.abs(wanted - found).max(1)[0][border].max() <= 1e-4 * wanted.std()


def test_the_scale_is_in_the_convolutions_and_the_mean_stays_for_the_border(trained, tmp_path):
    for kind, first in (("rgb8", ["Cast", "Transpose", "Unsqueeze", "Sub", "Conv"]), ("rgb8-nchw", ["Cast", "Sub", "Conv"])):
        artifact = export(trained, tmp_path / "net.onnx", RESOLUTION, input=kind, output="labels")
        model = onnx.load(tmp_path / "net.onnx")
        assert [node.op_type for node in model.graph.node[:len(first)]] == first
        assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert any("mean colour" in row["forward"] for row in artifact.checks["fold"]["scales"]["kept"])
        assert read_artifact(tmp_path / "net.onnx").input == kind


def test_a_mean_folded_across_the_padding_is_refused(trained, tmp_path, monkeypatch):
    """The planted fault: at the border zeros would then stand for black, not for the mean colour."""
    monkeypatch.setattr(scale_forward, "padded", lambda tensor: "")
    with pytest.raises(RtsegError, match="not the network that was trained"):
        export(trained, tmp_path / "net.onnx", RESOLUTION, input="rgb8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"mean": (0.406, 0.456, 0.485)}, {"std": (0.225, 0.224, 0.229)}, {"mean": (0.5, 0.5, 0.5)}])
def test_another_normalisation_in_the_graph_is_refused(trained, tmp_path, monkeypatch, change):
    from rtseg_deploy import export as module

    honest = module.deployed
    wrong = replace(trained, normalisation=replace(trained.normalisation, **change))
    monkeypatch.setattr(module, "deployed", lambda t, *rest: honest(wrong, *rest))
    with pytest.raises(RtsegError, match="not the network that was trained"):
        export(trained, tmp_path / "net.onnx", RESOLUTION, input="rgb8")


def test_every_command_takes_such_an_artifact(trained, tmp_path):
    path = tmp_path / "net.onnx"
    export(trained, path, RESOLUTION, input="rgb8")
    run("predict", path, images.STREET, "-o", tmp_path)
    assert (tmp_path / "street.overlay.png").exists()
    out, _ = run("bench", path, "-n", 4, "--warmup", 0.2, "--backend", "onnxruntime-cpu", "--backend", "torch-eager", "-o", tmp_path / "results", "--json",
                 status=None)
    for figure in json.loads(out):
        assert "rgb8 input" in figure["boundary"]
        assert all(share > 0.999 for share in figure["same_labels"].values())


def test_an_old_jetson_takes_no_uint8_and_that_is_said(trained, tmp_path):
    artifact = export(trained, tmp_path / "net.onnx", RESOLUTION, input="rgb8", opset=13)
    assert any("uint8" in warning for warning in artifact.warnings)
