"""FP16 that holds: what overflows or vanishes is found on a simulation, as few nodes as possible stay in FP32, and the rest is as near as FP16 can be."""
import importlib.util
import io
import json
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
from conftest import run
from onnx import numpy_helper, parser
from PIL import Image
from rich.console import Console
from test_backends import shaken
from test_precision import PICTURES, chain

from rtseg_deploy import backends, build, checkpoints, fp16, passes, proof, ranges, records, report
from rtseg_deploy.device.runner import JobError
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export
from rtseg_deploy.passes import to_fp16

FAMILIES = {"sgcpnet": (32, 64), "bcpnet": (32, 64), "ddrnet-23-slim": (64, 128), "bisenetv1-x39": (64, 64), "bisenetv2": (64, 96)}
rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")


def parsed(body, shape="4", result="y", **weights):
    """A model of one input and one output of that shape; weights by their names."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g (float[{shape}] input) => (float[{shape}] {result}) {{ {body} }}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model)


def rounded(model, x):
    return proof.session(fp16.simulated(passes.checked(to_fp16.run(model)))).run(None, {"input": x})[0]


# ---- ranges


def test_ranges_are_those_of_all_pictures():
    model = parsed("a = Relu(input) y = Mul(a, k)", k=1e-9)
    found = ranges.ranges(model, iter([np.float32([1, 2, -3, 0]), np.float32([-9, 0, 70, 4])]))
    assert found["a"] == ranges.Range(0, 70, 70, 1, 4, 4, at=1) and found["a"].tiny == 0
    assert (found["y"].nonzero, found["y"].held) == (4, 1) and found["y"].tiny == 0.75 and found["y"].smallest == np.float32(1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 5, ranges.BLOCK + 3])
def test_what_is_not_finite_is_told_wherever_it_is(value, where):
    values = np.ones(2 * ranges.BLOCK, np.float32)
    values[where] = value
    for found in (ranges.of(values, 7), ranges.of(values, 7) | ranges.of(np.float32([9]), 8), ranges.of(np.float32([0]), 6) | ranges.of(values, 7)):
        assert not found.largest <= 1e30 and found.at == 7


@pytest.mark.parametrize("value, lost", [(2.0 ** -25, 1), (2.0 ** -25 * (1 + 2.0 ** -20), 0), (2.0 ** -24, 0), (1e-40, 1), (0.0, 0)])
def test_what_fp16_makes_zero_is_what_numpy_makes_zero(value, lost):
    array = np.float32([value])
    assert ranges.of(array).tiny == lost == float(array[0] != 0 and np.float16(array[0]) == 0)


def test_tensors_are_asked_for_in_groups_and_one_input_is_held(monkeypatch):
    monkeypatch.setattr(ranges, "GROUP", 40)
    alive = []

    def feeds():
        for number in range(5):
            array = np.full(4, number, np.float32)
            alive.append(weakref.ref(array))
            yield array
            del array
            assert sum(one() is not None for one in alive) <= 1
    model = parsed("a = Relu(input) b = Neg(a) c = Relu(b) y = Abs(b)")
    assert ranges.grouped(model) == [["a", "b"], ["c", "y"]]
    assert {name: held.largest for name, held in ranges.ranges(model, feeds()).items()} == {"a": 4, "b": 4, "c": 0, "y": 4}


# ---- the simulation


def test_what_fp16_cannot_hold_becomes_infinite_or_zero_and_sums_are_in_fp32():
    assert rounded(parsed("a = Mul(input, k) y = Sigmoid(a)", k=2.0), np.float32([35000, -35000, 30000, 0])).tolist() == [1, 0, 1, 0.5]
    assert rounded(parsed("y = Mul(input, k)", k=2.0), np.float32([35000, -35000, 5e-9, 3e-8])).tolist() == [np.inf, -np.inf, 0, 2.0 ** -23]
    total = parsed("y = MatMul(input, k)", "1,4", k=[[1, 0, 0, 0]] * 4)
    assert rounded(total, np.float32([[2048, 1, 1, 2]]))[0, 0] == 2052, "in FP16 2048 + 1 is 2048"
    assert rounded(parsed("y = Mul(input, k)", k=1 + 2.0 ** -12), np.float32([4096, 1, 1, 1])).tolist() == [4096, 1, 1, 1], "weights are rounded too"


def test_onnx_runtime_by_itself_rounds_otherwise():
    """The reason for the simulation: on a CPU it computes FP16 graphs in FP32."""
    model = parsed("a = Mul(input, k) y = Mul(a, l)", k=2.0, l=0.5)
    x = np.float32([35000, 1, 1, 1])
    assert np.isinf(rounded(model, x)[0])
    assert np.isfinite(proof.session(to_fp16.run(model)).run(None, {"input": x})[0]).all()


def test_every_result_is_rounded_as_numpy_rounds_it():
    rng = np.random.default_rng(3)
    factors, x = rng.uniform(0.5, 1.9, 12).astype(np.float32), rng.standard_normal((1, 4, 5, 6)).astype(np.float32)
    expected = x.astype(np.float16)
    for factor in factors:
        expected = np.maximum(expected * np.float16(factor), np.float16(0))
    assert (rounded(chain(*factors), x) == expected).all()


# ---- what stays

REST = " r1 = Neg(y)" + "".join(f" r{n} = Neg(r{n - 1})" for n in range(2, 9))      # less than half of a graph stays


@pytest.mark.parametrize("body, weights, kept", [
    ("a = Mul(input, k) y = Clip(a, z, s)", {"k": 6e4, "z": 0.0, "s": 6.0}, []),                      # of infinity it makes 6, too
    ("a = Mul(input, k) y = Mul(a, d)", {"k": 6e4, "d": 1e-5}, ["a", "y"]),
    ("a = Mul(input, k) b = Relu(a) c = Clip(b, z, s) y = Mul(c, d)", {"k": 6e4, "z": 0.0, "s": 1e5, "d": 1e-5}, ["a", "b", "c", "y"]),
    ("a = Mul(input, k) b = Mul(a, d) c = Sigmoid(a) y = Add(b, c)", {"k": 6e4, "d": 1e-5}, ["a", "b"]),    # Sigmoid may read infinity
    ("a = Mul(input, t) y = Mul(a, k)", {"t": 1e-8, "k": 6e4}, ["a", "y"]),                           # underflow: of a all is lost
    ("a = Mul(input, t) y = Add(a, input)", {"t": 1e-8}, []),                                         # it is lost, and nothing is
])
def test_no_node_stays_without_need(body, weights, kept):
    model = parsed(body + REST, "1,4,5,6", "r8", **weights)
    found = fp16.beyond_range(model, PICTURES)
    assert list(found) == kept
    logits = proof.logits(model)
    fp16.convert(model, lambda picture: logits(picture.fed), PICTURES, kept)
    for name in kept:
        with pytest.raises(RtsegError, match="departs|cannot hold|FP16 ends"):
            fp16.convert(model, lambda picture: logits(picture.fed), PICTURES, [other for other in kept if other != name])


def test_a_picture_of_the_users_own_tells_what_the_proofs_do_not():
    model = parsed("a = Mul(input, k) y = Mul(a, d)" + REST, "1,4,5,6", "r8", k=100.0, d=0.01)
    bright = 1e3 * np.abs(PICTURES["noise"].fed)
    assert fp16.beyond_range(model, PICTURES) == {}
    found = fp16.beyond_range(model, {**PICTURES, "bright.png": proof.Picture(bright, bright)})
    assert found["a"] == {"why": "overflow", "tensor": "a", "largest": pytest.approx(100 * bright.max()), "on": "bright.png"}


def test_photographs_are_read_when_they_are_asked_for(tmp_path):
    normalisation = {"mean": [0.5] * 3, "std": [0.5] * 3}
    for name, value in (("a/1.png", 255), ("b/1.png", 0), ("b/2.png", 0)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((9, 7, 3), value, np.uint8)).save(tmp_path / name)
    made = proof.pictures((40, 50), normalisation, paths=[tmp_path / "a/1.png", tmp_path / "b/2.png"])
    assert list(made) == ["noise", "street", "extremes", "1.png", "2.png"] and len(made) == 5
    assert (made["1.png"].fed == 1).all() and made["1.png"].fed.shape == (1, 3, 40, 50) and made["1.png"] is not made["1.png"]
    (tmp_path / "b/2.png").write_bytes(b"no image")
    with pytest.raises(RtsegError, match="2.png is not an image"):
        dict(made)
    made = proof.pictures((40, 50), normalisation, paths=[tmp_path / "a/1.png", tmp_path / "b/1.png"])
    assert (made[str(tmp_path / "b/1.png")].fed == -1).all() and len(made) == 5


# ---- in each family


def scaled(model, factors):
    """A copy of a model with initialisers multiplied."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in factors:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factors[tensor.name]), tensor.name))
    return copy


def pairs(model):
    """Each (convolution, Relu, convolution), read by the next alone: what the first is multiplied by the last can be divided by."""
    makers, readers = {name: node for node in model.graph.node for name in node.output}, {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = [(makers[relu.input[0]], relu, readers[relu.output[0]][0]) for relu in model.graph.node if relu.op_type == "Relu"
             and len(readers[relu.input[0]]) == len(readers[relu.output[0]]) == 1 and relu.input[0] in makers]
    return [nodes for nodes in found if nodes[0].op_type == nodes[2].op_type == "Conv"]


def planted(model, nodes, factor):
    """The same function, with what passes between the nodes of a pair that many times as large."""
    before, _, after = nodes
    return scaled(model, {**dict.fromkeys(before.input[1:], factor), after.input[1]: 1 / factor})


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(path, model, the proof's pictures) of a network with random weights."""
    path = tmp_path_factory.mktemp(request.param) / "net.onnx"
    described = export(checkpoints.seeded(request.param), path, FAMILIES[request.param])
    return path, onnx.load(path), proof.pictures(described.resolution, described.normalisation)


def test_the_families_hold_by_themselves(family):
    _, model, inputs = family
    assert fp16.beyond_range(model, inputs) == {}


@rtx
def test_a_planted_overflow_is_found_and_repaired_with_no_node_too_many(family, tmp_path):
    path, model, inputs = family
    nodes = pairs(model)[0]
    loud = planted(model, nodes, 2.0 ** 24)
    held = ranges.ranges(loud, (picture.fed for picture in inputs.values()))
    assert {name for name, one in held.items() if one.largest > to_fp16.LARGEST} == {nodes[0].output[0], nodes[1].output[0]}
    kept = fp16.beyond_range(loud, inputs)
    assert list(kept) == [node.name for node in nodes]
    assert {row["tensor"] for row in kept.values()} <= {nodes[0].output[0], nodes[1].output[0]} and {row["why"] for row in kept.values()} == {"overflow"}
    without_each_the_proof_fails(loud, inputs, list(kept))
    records.write_model(tmp_path / "loud.onnx", loud, records.read_artifact(path))
    _, engine = build.build_engine(tmp_path / "loud.onnx", "rtx-2080ti", True, tmp_path)
    assert engine.checks["kept_fp32"] == kept and engine.checks["layers"]["fp32_names"] == list(kept) and engine.checks["layers"]["fp16"] > 50
    assert all(row["labels_equal"] + row["ties"] > 0.99 for row in engine.checks["parity"]["inputs"].values())


def test_a_planted_underflow_is_found_and_repaired_with_no_node_too_many(tmp_path):
    """In a network whose labels depend on the picture: with the weights that it begins with they hardly do."""
    network = checkpoints.seeded("ddrnet-23-slim")
    shaken(network.module)
    described = export(network, tmp_path / "net.onnx", (64, 96))
    model, inputs = onnx.load(tmp_path / "net.onnx"), proof.pictures(described.resolution, described.normalisation)
    nodes = pairs(model)[-1]
    room = to_fp16.LARGEST / ranges.weights(model)[nodes[2].input[1]].largest      # so that the weights that make up for it do not overflow
    faint = planted(model, nodes, 2.0 ** -np.floor(np.log2(room)))
    kept = fp16.beyond_range(faint, inputs)
    assert kept and set(kept) <= {node.name for node in nodes} and {row["why"] for row in kept.values()} == {"underflow"}
    without_each_the_proof_fails(faint, inputs, list(kept))


def test_an_underflow_that_an_overflowing_weight_makes_up_for(artifact):
    described, model = records.read_artifact(artifact), onnx.load(artifact)
    nodes, inputs = pairs(model)[1], proof.pictures(described.resolution, described.normalisation)
    faint = planted(model, nodes, 2.0 ** -28)
    kept = fp16.beyond_range(faint, inputs)
    assert [(name, row["why"]) for name, row in kept.items()] == list(zip([node.name for node in nodes], ["underflow", "underflow", "overflow"]))
    assert kept[nodes[2].name]["tensor"] == nodes[2].input[1] and kept[nodes[2].name]["on"] is None
    without_each_the_proof_fails(faint, inputs, list(kept))


def without_each_the_proof_fails(model, inputs, kept):
    logits = proof.logits(model)
    fp16.convert(model, lambda picture: logits(picture.fed), inputs, kept)
    for name in kept:
        with pytest.raises(RtsegError):
            fp16.convert(model, lambda picture: logits(picture.fed), inputs, [other for other in kept if other != name])


# ---- where it goes


LOUD = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.5))))
    net[0].weight.data *= 2.0 ** 20
    net[0].bias.data *= 2.0 ** 20
    net[2].weight.data *= 2.0 ** -20
    return net.eval()
"""


@pytest.fixture
def loud(tmp_path):
    """Arguments of an export of a network that overflows in FP16, and the folder to do it in."""
    (tmp_path / "loud.py").write_text(LOUD)
    return ["export", "--model", "loud:build", "-o", "net.onnx", "--resolution", "32x48"], tmp_path


def test_export_repairs_what_overflows_and_says_so(loud):
    command, folder = loud
    out, _ = run(*command, "--precision", "fp16", cwd=folder)
    kept = records.read_artifact(folder / "net.onnx").checks["kept_fp32"]
    assert len(kept) == 3 and {row["why"] for row in kept.values()} == {"overflow"} and all(f"kept in FP32, {name}: /" in out for name in kept)
    half = onnx.load(folder / "net.onnx")
    assert {t.data_type for t in half.graph.initializer} == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_images_are_for_fp16(loud):
    command, folder = loud
    assert "--precision fp16" in run(*command, "--images", ".", cwd=folder, status=2)[1]
    run(*command, cwd=folder)
    assert "--fp16" in run("build-engine", "net.onnx", "--target", "rtx-2080ti", "--images", ".", cwd=folder, status=2)[1]


def test_export_reads_real_images_and_the_proof_has_them(loud):
    pytest.importorskip("rtseg_deploy.datasets")
    command, folder = loud
    (folder / "frames").mkdir()
    for number in range(3):
        Image.fromarray(np.full((32, 48, 3), 80 * number, np.uint8)).save(folder / f"frames/{number}.png")
    out, _ = run(*command, "--precision", "fp16", "--images", "frames", "--count", 2, "--json", cwd=folder)
    inputs = json.loads(out)["checks"]["parity"]["inputs"]
    assert len(inputs) == 5 and {"noise", "street", "extremes"} < set(inputs)


# ---- the backend that labels as FP16 does


@pytest.fixture(scope="module")
def half(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    return path, export(trained, path, (96, 128), precision="fp16", output="labels")


def opened(path, artifact, action="infer"):
    return backends.open_session({"backend": "simulated-fp16", "action": action, "artifact": str(path), "described": artifact.to_json(), "threads": 1})


def test_the_backend_labels_as_the_simulation_does(half):
    path, artifact = half
    x = proof.pictures(artifact.resolution, artifact.normalisation)["street"].fed
    session = opened(path, artifact)
    session.feed(x)
    session.step()
    expected = proof.session(fp16.simulated(onnx.load(path))).run(None, {"input": x})[0]
    assert (session.output() == expected).all() and session.output().dtype == np.uint8 and "simulation" in session.facts()["note"]


def test_predict_takes_it(half, tmp_path):
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(tmp_path / "black.png")
    run("predict", half[0], tmp_path / "black.png", "--backend", "simulated-fp16", "-o", tmp_path)
    assert (tmp_path / "black.labels.png").is_file()


def test_a_simulation_is_not_timed_and_fp32_is_not_simulated(half, artifact, tmp_path):
    err = run("bench", half[0], "--backend", "simulated-fp16", "-n", 10, "-o", tmp_path, status=1)[1]
    assert "at no speed of its own" in err.splitlines()[-1] and not list(tmp_path.rglob("*.json"))
    with pytest.raises(JobError, match="takes FP16 files"):
        opened(artifact, records.read_artifact(artifact))


def test_of_many_pictures_the_worst_has_a_row(half):
    _, artifact = half
    rows = artifact.checks["parity"]["inputs"]
    many = {**rows, **{f"{number}.png": rows["noise"] for number in range(9)}}
    shown = rich_text(replace(artifact, checks={**artifact.checks, "parity": {**artifact.checks["parity"], "inputs": many}}))
    assert f"worst of 12: {artifact.checks['parity']['worst']}" in shown and "3.png" not in shown
    assert "parity, street" in rich_text(artifact)


def rich_text(artifact):
    console = Console(width=160, file=io.StringIO())
    console.print(report.artifact_table("net.onnx", artifact))
    return console.file.getvalue()
