"""Calibration, whole: images in, an INT8 artifact out; what costs too much stays in FP32; bad images are refused.

The network is small and drawn by a seed. One layer of it is planted: its input has a channel 10000 times larger than the others, which its weights
hardly look at, so one scale for all leaves nothing of the others.
"""
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import run
from onnx import helper, numpy_helper
from PIL import Image

from rtseg_deploy import calibrate as calibration
from rtseg_deploy import calibration_table, datasets, files, images, int8, lists, proof, records
from rtseg_deploy.calibrate import Ask, calibrate
from rtseg_deploy.errors import RtsegError

SIZE, CLASSES, LOUD = (32, 48), 4, 1e4
PLANTED = "c3"


def network(planted=LOUD):
    """x -> c1 Relu c2 Relu (loud) c3 Relu c4 Relu c5 -> logits, and a gate of one pixel on the way."""
    rng = np.random.default_rng(5)
    weights, nodes = [], []

    def convolution(name, source, inputs, outputs, kernel, scale=None):
        value = rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32) / np.float32(np.sqrt(inputs) * kernel)
        value = value if scale is None else value * np.float32(scale)
        weights.extend([numpy_helper.from_array(value, f"{name}.weight"),
                        numpy_helper.from_array(rng.standard_normal(outputs).astype(np.float32) / 4, f"{name}.bias")])
        nodes.append(helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}_out"], name, pads=[kernel // 2] * 4))
        return f"{name}_out"

    def relu(source):
        nodes.append(helper.make_node("Relu", [source], [f"{source}_r"], f"{source}_relu"))
        return f"{source}_r"

    loud = np.ones(8)
    loud[0] = planted
    x = relu(convolution("c1", "input", 3, 8, 3))
    x = relu(convolution("c2", x, 8, 8, 1, loud[:, None, None, None]))
    x = relu(convolution(PLANTED, x, 8, 8, 3, 1 / loud[None, :, None, None] ** 1.5))
    nodes.append(helper.make_node("ReduceMean", [x], ["mean"], "mean_of", axes=[2, 3], keepdims=1))
    nodes.append(helper.make_node("Sigmoid", [convolution("gate", "mean", 8, 8, 1)], ["gate_s"], "gate_sigmoid"))
    nodes.append(helper.make_node("Mul", [x, "gate_s"], ["gated"], "gated_by"))
    convolution("c5", relu(convolution("c4", "gated", 8, 8, 3)), 8, CLASSES, 1)
    nodes[-1].output[0] = "output"
    weights[-1] = numpy_helper.from_array(np.float32([-0.4, 0.25, -0.24, -0.19]), "c5.bias")     # each class is somewhere
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", 1, [1, 3, *SIZE])],
                              [helper.make_tensor_value_info("output", 1, [1, CLASSES, *SIZE])], weights)
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(scope="module")
def ground(tmp_path_factory, artifact):
    """A folder with the network, and pictures with FP32's own labels as truth: 12 crops of the street, of different light."""
    folder = tmp_path_factory.mktemp("ground")
    described = records.read_artifact(artifact)
    records.write_model(folder / "net.onnx", network(), replace(described, classes=CLASSES, class_set="", resolution=SIZE, network_input=SIZE, model="small"))
    street, logits = images.read(images.STREET), proof.logits(network())
    for name in ("images", "labels"):
        (folder / "data" / name).mkdir(parents=True)
    for number in range(12):
        crop = street[number * 5:number * 5 + 3 * SIZE[0]:3, number * 9:number * 9 + 3 * SIZE[1]:3] * (0.6 + 0.03 * number)
        Image.fromarray(crop.astype(np.uint8)).save(folder / f"data/images/{number}.png")
        labels = logits(images.normalised(crop.astype(np.uint8), described.normalisation)).argmax(1)[0].astype(np.uint8)
        Image.fromarray(labels).save(folder / f"data/labels/{number}.png")
    (folder / "data/classes.txt").write_text("".join(f"{number},class {number}\n" for number in range(CLASSES)))
    return folder


@pytest.fixture(scope="module")
def made(ground, tmp_path_factory):
    """(path, Artifact, folder) of one calibration with labels and a table."""
    folder = tmp_path_factory.mktemp("made")
    path, artifact = calibrate(ground / "net.onnx", ground / "data/images", folder / "net.int8.onnx",
                               Ask(count=8, data=str(ground / "data"), max_drop=10, table=str(folder / "net.table")))
    return path, artifact, folder


def test_the_artifact_says_what_it_is(made, ground):
    path, artifact, _ = made
    assert records.read_artifact(path) == artifact and artifact.precision == "int8" and artifact.kind == "onnx"
    model, about = onnx.load(path), artifact.checks["int8"]
    assert artifact.parent["sha256"] == files.sha256(ground / "net.onnx") and artifact.opset >= 13
    assert artifact.weights_bytes == sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer) < 0.6 * records.read_artifact(
        ground / "net.onnx").weights_bytes
    assert artifact.checks["parity"]["ok"] and "street" in artifact.checks["parity"]["inputs"] and len(artifact.checks["parity"]["inputs"]) == 4
    assert about["in_int8"] == len(int8.in_int8(model)) == 2 and about["method"] == "percentile" and about["for"] == "tensorrt"


def test_what_costs_too_much_stays_and_nothing_else(made):
    about = made[1].checks["int8"]
    assert about["kept"] == ["c1", PLANTED, "c5"]
    assert {row["layer"]: row["why"] for row in about["layers"]} == {"c1": "an end", "c2": "", PLANTED: "cost", "c4": "", "c5": "an end"}
    costs = {row["layer"]: row["cost"] for row in about["layers"]}
    assert costs[PLANTED] > 10 * max(cost for layer, cost in costs.items() if layer != PLANTED)
    assert about["loss"] <= about["most"] == 10 and about["loss_unit"] == "points of mIoU"


def test_the_list_finds_the_same_images_again(made, ground, tmp_path):
    path, artifact, folder = made
    listing = folder / "net.int8.images.csv"
    about = artifact.checks["int8"]
    assert about["list"] == listing.name and about["list_sha256"] == files.sha256(listing)
    chosen = lists.listed(listing, folder=ground / "data/images")
    assert chosen == lists.listed(ground / "data/images", 8, 0) and len(chosen) == 8
    _, again = calibrate(ground / "net.onnx", listing, tmp_path / "again.onnx", Ask(folder=str(ground / "data/images"), data=str(ground / "data"), max_drop=10))
    assert again.sha256 == artifact.sha256, "the same list gives the same bytes"
    _, other = calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "other.onnx", Ask(count=8, seed=1, data=str(ground / "data"), max_drop=10))
    assert other.sha256 != artifact.sha256 and other.checks["int8"]["list_sha256"] != about["list_sha256"]


def test_the_table_has_every_tensor_and_what_stays(made, ground):
    path, artifact, folder = made
    text, kept = calibration_table.read(folder / "net.table", files.sha256(ground / "net.onnx"))
    model = network()
    assert set(calibration_table.scales(text)) == {"input", *(name for node in model.graph.node for name in node.output)}
    assert kept == artifact.checks["int8"]["kept"]
    feeds = [images.normalised(images.read(image), artifact.normalisation) for image in lists.listed(ground / "data/images", 8, 0)]
    peak = max(float(np.abs(feed).max()) for feed in feeds)
    assert calibration_table.scales(text)["input"] == pytest.approx(peak / 127, rel=0.02), "the scale is a peak, but for one value in 10000, by 127"


def test_without_labels_it_is_judged_by_those_that_change(ground, tmp_path):
    _, artifact = calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "net.onnx", Ask(count=8))
    about = artifact.checks["int8"]
    assert PLANTED in about["kept"] and about["loss_unit"] == "share of labels" and about["loss"] <= calibration.MAX_CHANGED
    assert not [line for line in artifact.warnings if "judge" in line]
    _, every = calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "every.onnx", Ask(count=12))
    assert [line for line in every.warnings if "no image was left to judge by" in line]


def test_labels_that_may_all_change_still_leave_the_proof(ground, tmp_path):
    _, artifact = calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "net.onnx", Ask(count=8, data=str(ground / "data"), max_drop=100))
    assert artifact.checks["int8"]["kept"] == ["c1", PLANTED, "c5"] and artifact.checks["parity"]["ok"]


def test_a_form_for_onnxruntime(ground, tmp_path):
    records.write_model(tmp_path / "even.onnx", network(1), replace(records.read_artifact(ground / "net.onnx"), sha256=""))
    path, artifact = calibrate(tmp_path / "even.onnx", ground / "data/images", tmp_path / "net.onnx", Ask(count=8, form="onnxruntime"))
    about = artifact.checks["int8"]
    assert about["for"] == "onnxruntime" and about["kept"] == ["c1", "c5"] and about["in_int8"] == 3
    assert not any(node.op_type == "Relu" and node.input[0] == "c4_out" for node in onnx.load(path).graph.node)


def test_a_network_that_int8_costs_too_much_is_not_written(ground, tmp_path):
    with pytest.raises(RtsegError, match="with half of the layers in FP32"):
        calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "net.onnx", Ask(count=8, data=str(ground / "data"), max_drop=0.0))
    assert not list(tmp_path.iterdir())


# ---- images that nothing can be learnt from


def plain(folder, *colours):
    folder.mkdir(exist_ok=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", SIZE[::-1], colour).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("colours, words", [(["black"] * 3, "show nothing"), (["black"], "show nothing"), (["red", "lime", "blue"], "show nothing")])
def test_images_of_one_colour_are_refused(ground, tmp_path, colours, words):
    with pytest.raises(RtsegError, match=words):
        calibrate(ground / "net.onnx", plain(tmp_path / "flat", *colours), tmp_path / "net.onnx")


def test_the_same_image_many_times_is_refused(ground, tmp_path):
    (tmp_path / "same").mkdir()
    for number in range(3):
        (tmp_path / f"same/{number}.png").write_bytes((ground / "data/images/3.png").read_bytes())
    with pytest.raises(RtsegError, match="all 3 images to calibrate with are the same"):
        calibrate(ground / "net.onnx", tmp_path / "same", tmp_path / "net.onnx")


def test_few_images_and_flat_ones_among_others_are_warned_of(ground, tmp_path):
    folder = plain(tmp_path / "few", "black")
    for number in range(3):
        (folder / f"s{number}.png").write_bytes((ground / f"data/images/{number}.png").read_bytes())
    chosen, left, warnings = calibration.images_of(folder, Ask())
    assert len(chosen) == 4 and not left and len(warnings) == 3
    assert "1 of 4 images" in warnings[0] and "4 different images" in warnings[1] and "judge" in warnings[2]


def test_ranges_that_a_street_goes_far_beyond_are_refused(ground, tmp_path):
    """Of images so dark that nothing but their noise is seen."""
    rng = np.random.default_rng(1)
    (tmp_path / "dark").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(110, 125, (*SIZE, 3), np.uint8)).save(tmp_path / f"dark/{number}.png")
    with pytest.raises(RtsegError, match="a street goes .* times beyond the ranges"):
        calibrate(ground / "net.onnx", tmp_path / "dark", tmp_path / "net.onnx")


def test_it_starts_from_fp32(made, tmp_path):
    with pytest.raises(RtsegError, match="is in INT8, and INT8 is made of an FP32 ONNX file"):
        calibrate(made[0], tmp_path)


@pytest.mark.parametrize("goal, table", [("net.onnx", None), ("other.onnx", "net.onnx")])
def test_the_original_stays(ground, goal, table):
    with pytest.raises(RtsegError, match="would be overwritten"):
        calibrate(ground / "net.onnx", ground / "data/images", ground / goal, Ask(table=table and str(ground / table)))


def test_all_labelled_images_calibrated_with_leave_none_to_judge(ground, tmp_path):
    with pytest.raises(RtsegError, match="none is left to judge by"):
        calibrate(ground / "net.onnx", ground / "data/images", tmp_path / "net.onnx", Ask(count=12, data=str(ground / "data")))


def test_a_data_set_of_other_classes_is_none_to_judge_by(ground, tmp_path):
    data = shutil.copytree(ground / "data", tmp_path / "data")
    with open(data / "classes.csv", "a") as file:
        file.write("200,another\n")
    with pytest.raises(RtsegError, match=r"the network has \d+ classes, and folder has \d+"):
        calibrate(ground / "net.onnx", data / "images", tmp_path / "net.onnx", Ask(count=8, data=str(data)))
    assert not (tmp_path / "net.onnx").exists()


# ---- the parts


@pytest.mark.parametrize("enough", range(9))
def test_the_fewest_are_found(enough):
    tries = []

    def holds(count):
        tries.append(count)
        return count >= enough
    assert calibration.fewest(7, holds) == (enough if enough <= 7 else None) and len(tries) <= 5


def test_miou_is_the_data_sets(ground):
    data = datasets.dataset(ground / "data")
    described = records.read_artifact(ground / "net.onnx")

    def fed(image):
        return images.normalised(images.read(image), described.normalisation)
    exact, shifted = (lambda x: proof.logits(network())(x)), (lambda x: np.roll(proof.logits(network())(x), 1, axis=1))
    assert calibration.miou(exact, fed, data, data.pairs) == 100.0
    assert calibration.miou(shifted, fed, data, data.pairs) == 0.0
    assert calibration.miou(lambda x: exact(x).repeat(2, 2).repeat(2, 3), fed, data, data.pairs) == 100.0, "by the nearest label"


# ---- the command


def test_the_command_tells_and_writes(ground, tmp_path):
    out, err = run("calibrate", ground / "net.onnx", "--images", ground / "data/images", "--count", 8, "--data", ground / "data", "--max-drop", 10,
                   "-o", tmp_path / "net.int8.onnx", "--json")
    told = json.loads(out)
    assert told["precision"] == "int8" and told["checks"]["int8"]["kept"] == ["c1", PLANTED, "c5"] and "trying layer" in err
    assert {path.name for path in tmp_path.iterdir()} == {"net.int8.onnx", "net.int8.onnx.json", "net.int8.images.csv"}
    for more, words in ((["-o", "net.engine"], "does not end in .onnx"), (["--method", "best"], "best"), (["--count", 99], "12 images, and 99")):
        _, err = run("calibrate", ground / "net.onnx", "--images", ground / "data/images", *more, status=None, cwd=tmp_path)
        assert words in err.splitlines()[-1]


def test_its_layers_are_timed(made):
    out, _ = run("bench", made[0], "--profile", "--json", "-n", 5)
    kinds = [row["kind"] for row in json.loads(out)[0]["rows"]]
    assert any("Linear" in kind for kind in kinds)


def test_the_list_in_the_repository_is_camvids_validation_set(shared):
    from conftest import ROOT
    found = lists.listed(ROOT / "calib/camvid-val.csv", folder=shared / "camvid/val")
    assert found == lists.listed(shared / "camvid/val") and len(found) == 101
