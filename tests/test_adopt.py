"""Files from elsewhere: what is taken in, every refusal, that it is proven, and that the other commands accept it."""
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn
from torch.nn import functional as F

from rtseg_deploy import adopt as adopting
from rtseg_deploy import bench, checkpoints, demo, files, images, limits, records
from rtseg_deploy.adopt import adopt
from rtseg_deploy.backends import torch_eager
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.passes import fold_back

RESOLUTION = 64, 96


class Tiny(nn.Module):
    """A segmentation network of five classes; end: what becomes of its logits, which are at half the input's size."""

    def __init__(self, end, begin=lambda x: x):
        super().__init__()
        self.begin, self.end = begin, end
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8),
                                  nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))

    def forward(self, x):
        return self.end(self.body(self.begin(x)), x)


def enlarged(y, x):
    return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)


def labels(keepdim, kind=torch.int64):
    return lambda y, x: enlarged(y, x).argmax(1, keepdim).to(kind)


@pytest.fixture
def tiny(tmp_path):
    """Write a Tiny network as someone else would; returns the path."""
    def write(end=enlarged, opset=17, free=(), names=("image", "scores"), sides=(1, 3, *RESOLUTION), begin=lambda x: x, kind=torch.float32):
        torch.manual_seed(5)
        net = Tiny(end, begin)
        for module in net.body:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.weight.data, module.bias.data):
                    tensor.normal_()
                module.running_var.uniform_(0.1, 2)
        path = tmp_path / "their net.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(net.eval(), (torch.zeros(sides, dtype=kind),), path, dynamo=False, opset_version=opset, input_names=names[:1],
                              output_names=names[1:], dynamic_axes={names[0]: {axis: f"side{axis}" for axis in free}} if free else None,
                              training=torch.onnx.TrainingMode.PRESERVE)
        return path
    return write


@pytest.fixture
def goal(tmp_path):
    return tmp_path / "out" / "net.onnx"


def checked(source, goal, **options):
    """(artifact, model), after both files are shown to give the same labels for the street."""
    artifact = adopt(source, goal, "imagenet", **options)
    assert records.read_artifact(goal).sha256 == artifact.sha256 == files.sha256(goal)
    model = onnx.load(goal)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["input", "output"]
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert all(dim.dim_value > 0 for value in (*model.graph.input, *model.graph.output, *model.graph.value_info) for dim in value.type.tensor_type.shape.dim)
    fed = images.fed(images.resized(images.read(images.STREET), artifact.resolution), artifact.input, artifact.normalisation)
    before, after = onnxruntime.InferenceSession(source), onnxruntime.InferenceSession(goal)
    theirs, ours = before.run(None, {before.get_inputs()[0].name: fed})[0], after.run(None, {"input": fed})[0]
    if artifact.output != "labels":
        theirs, ours = theirs.argmax(1), ours.argmax(1)
    assert (theirs.ravel() == ours.ravel()).mean() > 0.999 and len(np.unique(ours)) > 1
    return artifact, model


def test_logits_at_a_fixed_size(tiny, goal):
    source = tiny()
    artifact, model = checked(source, goal)
    assert (artifact.model, artifact.dialect, artifact.kind, artifact.precision, artifact.opset) == ("their-net", "adopted", "onnx", "fp32", 17)
    assert (artifact.input, artifact.output, artifact.classes, artifact.class_set, artifact.resolution) == ("normalised", "logits", 5, "", RESOLUTION)
    assert artifact.parent == {"file": str(source), "sha256": files.sha256(source)} and not artifact.warnings
    assert artifact.checks["fold"]["before"] == artifact.checks["fold"]["back"] == 2 and artifact.checks["parity"]["ok"]
    assert max(row["relative"] for row in artifact.checks["parity"]["inputs"].values()) < 1e-5
    assert "torch" not in artifact.versions and artifact.weights_bytes == sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    assert sorted(path.name for path in goal.parent.iterdir()) == ["net.onnx", "net.onnx.json"]


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 20])
@pytest.mark.parametrize("free", [(), (0,), (0, 2, 3)])
def test_every_opset_and_free_sides(tiny, goal, opset, free):
    resolution = (96, 160) if 2 in free else None
    artifact, _ = checked(tiny(opset=opset, free=free), goal, resolution=resolution)
    assert artifact.resolution == (resolution or RESOLUTION) and artifact.opset == max(opset, 13)
    assert bool(artifact.warnings) == (opset < 13) and all(f"opset {opset}, converted to 13" in text for text in artifact.warnings)


@pytest.mark.parametrize("end, output, kind", [
    (lambda y, x: y, "native", TensorProto.FLOAT), (lambda y, x: enlarged(y, x).softmax(1), "logits", TensorProto.FLOAT),
    (labels(False), "labels", TensorProto.UINT8), (labels(True), "labels", TensorProto.UINT8), (labels(False, torch.int32), "labels", TensorProto.INT32),
    (labels(True, torch.int32), "labels", TensorProto.UINT8), (labels(True, torch.uint8), "labels", TensorProto.UINT8),
    (lambda y, x: labels(False)(y, x).squeeze(0), "labels", TensorProto.UINT8)])
def test_every_kind_of_output(tiny, goal, end, output, kind):
    artifact, model = checked(tiny(end), goal)
    value = model.graph.output[0].type.tensor_type
    assert (artifact.output, artifact.classes, value.elem_type) == (output, 5, kind)
    assert output != "labels" or [dim.dim_value for dim in value.shape.dim] == [1, *RESOLUTION]
    assert artifact.checks["parity"]["inputs"]["street"]["relative"] < 1e-4
    assert bool(artifact.warnings) == any(node.op_type == "Softmax" for node in model.graph.node)
    casts = [node.op_type for node in model.graph.node][-2:]
    assert "Cast" not in casts[:-1], "uint8 comes last, or TensorRT does not read it"


def test_labels_for_an_old_parser_are_int32(tiny, goal):
    _, model = checked(tiny(labels(True, torch.uint8), opset=13), goal)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.INT32


def resized_labels(y, x):
    return F.interpolate(y.argmax(1, keepdim=True).float(), x.shape[-2:], mode="nearest").long()


@pytest.mark.parametrize("end", [resized_labels, lambda y, x: labels(False)(y, x)[0]])
def test_labels_without_logits_to_compare_are_compared_themselves(tiny, goal, end):
    artifact, _ = checked(tiny(end), goal)
    assert artifact.classes == 5 and artifact.checks["parity"]["inputs"]["noise"] == {"max_abs": None, "relative": None, "labels_equal": 1.0}
    assert "they alone were compared" in artifact.warnings[0]


def test_labels_of_an_unknown_number_of_classes(tiny, goal):
    source = tiny(lambda y, x: enlarged(y, x).topk(1, 1)[1])
    with pytest.raises(RtsegError, match="of how many classes") as error:
        adopt(source, goal, "imagenet")
    assert "--classes camvid" in error.value.fix
    assert checked(source, goal, class_set="camvid")[0].class_set == "camvid"
    assert checked(source, goal, class_set="5")[0].classes == 5
    with pytest.raises(RtsegError, match="labels from . to ., and 3 classes"):
        adopt(source, goal, "imagenet", class_set="3")


@pytest.mark.parametrize("kind, sides, begin", [
    ("rgb8", (*RESOLUTION, 3), lambda x: x.float().permute(2, 0, 1)[None] / 255), ("rgb8-nchw", (1, 3, *RESOLUTION), lambda x: x.float() / 255)])
def test_pixels_as_they_are(tiny, goal, kind, sides, begin):
    artifact, _ = checked(tiny(lambda y, x: F.interpolate(y, RESOLUTION, mode="bilinear"), sides=sides, begin=begin, kind=torch.uint8), goal)
    assert (artifact.input, artifact.output) == (kind, "logits")


@pytest.mark.parametrize("names", [("output", "input"), ("x", "output"), ("input", "y")])
def test_names_that_are_taken(tiny, goal, names):
    checked(tiny(names=names), goal)


GRAPH = """<ir_version: 8, opset_import: ["": 17{imports}]> g (float[1,3,H,W] image) => (float[1,4,H,W] y) {{ {body} }}"""
WEIGHT = np.random.default_rng(3).standard_normal((4, 3, 1, 1)).astype(np.float32)


def plain(body="y = Conv(image, w)", imports="", **weights):
    model = parser.parse_model(GRAPH.format(body=body, imports=imports))
    for name, value in {"w": WEIGHT, **weights}.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def saved(model, tmp_path):
    path = tmp_path / "theirs.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def test_inner_tensors_may_have_our_names(tmp_path, goal):
    body = "output = Conv(image, input) input_ = Relu(output) y = Neg(input_)"
    checked(saved(plain(body, input=WEIGHT), tmp_path), goal, resolution=RESOLUTION)


def test_initialisers_listed_as_inputs_are_no_inputs(tmp_path, goal):
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, WEIGHT.shape))
    _, adopted = checked(saved(model, tmp_path), goal, resolution=RESOLUTION)
    assert len(adopted.graph.input) == 1


def test_the_domain_may_be_written_out(tmp_path, goal):
    model = plain()
    model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    _, adopted = checked(saved(model, tmp_path), goal, resolution=RESOLUTION)
    assert [(entry.domain, entry.version) for entry in adopted.opset_import] == [("", 17)]


def test_a_branch_that_is_never_taken_goes(tmp_path, goal):
    """Its graphs are renamed with the rest: one of them stores a tensor with our name."""
    made = plain("c = Constant<value = bool {1}>() " + IF.format("input"), input=WEIGHT)
    _, adopted = checked(saved(made, tmp_path), goal, resolution=RESOLUTION)
    assert [node.op_type for node in adopted.graph.node] == ["Conv"]


def elsewhere(model):
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../secret")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def with_function(model):
    made = parser.parse_function('<opset_import: ["": 17], domain: "local"> Twice (a) => (b) { b = Add(a, a) }')
    model.functions.append(made)


def side(tensor, axis, value):
    return lambda model: setattr(getattr(model.graph, tensor)[0].type.tensor_type.shape.dim[axis], "dim_value", value)


def element(tensor, kind):
    return lambda model: setattr(getattr(model.graph, tensor)[0].type.tensor_type, "elem_type", kind)


def another(what):
    value = helper.make_tensor_value_info("w2" if what == "input" else "image", TensorProto.FLOAT, [1, 3, 64, 96])
    return lambda model: getattr(model.graph, what).append(value)


def opset(version):
    return lambda model: setattr(model.opset_import[0], "version", version)


IF = ("y = If (c) <then_branch = a () => (float[1,4,H,W] p) {{ p = Conv(image, {}) }}, "
      "else_branch = b () => (float[1,4,H,W] q) {{ r = Conv(image, w) q = Neg(r) }}>")
BY_IMAGE = "z = Constant<value = float {0.0}>() m = ReduceMax<keepdims = 0>(image) c = Greater(m, z) "
LOOP = ("n = Constant<value = int64 {2}>() c = Constant<value = bool {1}>() k = Conv(image, w) "
        "y = Loop(n, c, k) <body = b (int64 i, bool d, float[1,4,H,W] s) => (bool e, float[1,4,H,W] t) { e = Identity(d) t = Neg(s) }>")
HALF = "h = Cast<to = 10>(image) k = Cast<to = 10>(w) c = Conv(h, k) y = Cast<to = 1>(c)"
REFUSALS = {
    "external data": ((), elsewhere, "keeps the tensor w in another file", "onnx.save"),
    "custom operator": (("y = com.acme.Magic(image, w)", ', "com.acme": 1'), None, r"y \(Magic\) is an operator of com.acme", "custom"),
    "local function": ((), with_function, "functions of its own, such as Twice", "inline_local_functions"),
    "branch": ((BY_IMAGE + IF.format("w"),), None, "an If .*holds graphs within .* the image decides", "without branches"),
    "loop": ((LOOP,), None, r"y \(Loop\) holds a graph within", "without loops"),
    "custom operator in a branch": ((BY_IMAGE + IF.format("w").replace("= Neg", "= com.acme.Magic"), ', "com.acme": 1'), None,
                                    "operator of com.acme", "custom"),
    "quantised": (("s = Constant<value = float {0.1}>() q = QuantizeLinear(w, s) r = DequantizeLinear(q, s) y = Conv(image, r)",), None, "quantised", "FP32"),
    "fp16 inside": ((HALF,), None, "is float16", "build-engine --fp16"),
    "fp16 input": ((), element("input", TensorProto.FLOAT16), "image is float16", "build-engine --fp16"),
    "fp16 output": ((), element("output", TensorProto.FLOAT16), "y is float16", "build-engine --fp16"),
    "two inputs": ((), another("input"), "has 2 inputs: image, w2", "extract_model"),
    "two outputs": ((), another("output"), "has 2 outputs: y, image", "extract_model"),
    "batch 8": ((), side("input", 0, 8), r"image is float32 8x3x\?x\?", "one image"),
    "four channels": ((), side("input", 1, 4), r"image is float32 1x4x\?x\?", "one image"),
    "int32 input": ((), element("input", TensorProto.INT32), r"image is int32 1x3x\?x\?", "uint8 HxWx3"),
    "no shape": ((), lambda model: model.graph.input[0].type.tensor_type.ClearField("shape"), "not valid ONNX", "export it again"),
    "huge": ((), side("input", 3, 20000), "64x20000", "smaller"),
    "another size": ((), side("input", 3, 128), r"takes \?x128, not 64x96", "--resolution"),
    "new opset": ((), opset(26), "is of opset 26, and 23 is the newest", "13 to 23"),
    "unknown operator": (("y = Magic(image, w)",), None, "not valid ONNX: ", "export it again"),
    "one channel": (("z = Constant<value_ints = [0]>() o = Constant<value_ints = [1]>() c = Conv(image, w) y = Slice(c, z, o, o)",), None,
                    "1 channels, and a label", "classes"),
    "channels last": (("c = Conv(image, w) y = Transpose<perm = [0, 2, 3, 1]>(c)",), None, "no classes x height x width", "1 x classes"),
    "too large": (("s = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>() c = Conv(image, w) y = Resize(c, , s)",), None,
                  "1x4x128x192: no classes", "1 x classes"),
    "one vector": (("c = Conv(image, w) y = Flatten(c)",), None, "1x24576 for an image of 64x96", "1 x classes"),
    "cannot run": (("s = Constant<value_ints = [1, 4, 7, 7]>() c = Conv(image, w) y = Reshape(c, s)",), None, "ONNX Runtime cannot run", "--resolution"),
    "no network": (("z = Neg(image)",), lambda model: setattr(model.graph.output[0], "name", "image"), "gives back image as it is", "the network"),
    "no weights": (("y = Concat<axis = 1>(image, image)",), lambda model: model.graph.ClearField("initializer"), "holds no weights", "with its weights"),
    "free shapes": (("c = Conv(image, w) n = NonZero(c) k = ReduceSum<keepdims = 0>(n) f = Cast<to = 1>(k) y = Add(c, f)",), None,
                    r"the shape of n \(NonZero\) is not known", "fixed size"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(tmp_path, goal, name, capfd):
    arguments, change, what, fix = REFUSALS[name]
    model = plain(*arguments)
    if change:
        change(model)
    with pytest.raises(RtsegError, match=what) as error:
        adopt(saved(model, tmp_path), goal, "imagenet", RESOLUTION if name != "huge" else (64, 20000))
    assert fix in error.value.fix and "\n" not in error.value.what and not capfd.readouterr().err
    assert not goal.parent.exists()


@pytest.mark.parametrize("content", [b"", plain().SerializeToString().replace(b"Conv", b"C\xffnv"), b"not a model at all", plain().SerializeToString()[:-40]])
def test_files_that_are_none(tmp_path, goal, content):
    with pytest.raises(RtsegError, match="theirs.onnx is (truncated or not an ONNX file|not valid ONNX)"):
        adopt(saved(content, tmp_path), goal, "imagenet")


def test_a_checkpoint_is_none(goal):
    with pytest.raises(RtsegError, match="truncated or not an ONNX file"):
        adopt(demo.CHECKPOINT, goal, "imagenet")


def test_files_larger_than_any_network(tmp_path, goal, monkeypatch):
    monkeypatch.setattr(limits, "ONNX_BYTES", 100)
    with pytest.raises(RtsegError, match="larger than the 0 MiB that are taken"):
        adopt(saved(plain(), tmp_path), goal, "imagenet", RESOLUTION)


@pytest.mark.parametrize("options, words", [
    (dict(resolution=None), "height or width of image is free"), (dict(normalisation="theirs"), "no normalisation is called 'theirs'"),
    (dict(class_set="cityscapes"), "cityscapes has 19 classes, this network 4"), (dict(class_set="7"), "--classes 7, but .* has 4"),
    (dict(class_set="kitti"), "no class set is called 'kitti'")])
def test_refused_options(tmp_path, goal, options, words):
    with pytest.raises(RtsegError, match=words):
        adopt(saved(plain(), tmp_path), goal, **{"normalisation": "imagenet", "resolution": RESOLUTION, **options})
    assert not goal.parent.exists()


def test_an_old_opset_that_cannot_be_converted(tiny, goal, monkeypatch):
    def fail(model, opset):
        raise adopting.version_converter.ConvertError("no adapter")
    monkeypatch.setattr(adopting.version_converter, "convert_version", fail)
    with pytest.raises(RtsegError, match="opset 11, which cannot be converted: no adapter"):
        adopt(tiny(opset=11), goal, "imagenet")


@pytest.mark.parametrize("end", [enlarged, labels(False), resized_labels])
def test_a_wrong_fold_is_seen_and_named(tiny, goal, monkeypatch, end):
    sound = fold_back.scale_and_shift
    monkeypatch.setattr(fold_back, "scale_and_shift", lambda bn: (sound(bn)[0] * 1.1, sound(bn)[1]))
    with pytest.raises(RtsegError, match=r"the first tensor that departs is /body/body\.1/BatchNormalization_output_0 \(on the"):
        adopt(tiny(end), goal, "imagenet")
    assert not goal.parent.exists()


def test_the_demo_network_comes_back(trained, artifact, tmp_path, goal):
    """What export wrote is a file from elsewhere as well: nothing is left to fold, and nothing is changed."""
    adopted, _ = checked(artifact, goal)
    assert (adopted.classes, adopted.class_set, adopted.checks["fold"]["before"]) == (11, "camvid", 0)
    assert max(row["relative"] for row in adopted.checks["parity"]["inputs"].values()) < 1e-6
    street = images.STREET
    for path, folder in ((artifact, "exported"), (goal, "adopted")):
        run("predict", path, street, "-o", tmp_path / folder)
    name = f"{street.stem}.labels.png"
    assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "adopted" / name).read_bytes()


def test_no_pytorch_network_behind_it(tmp_path, goal):
    adopted = adopt(saved(plain(), tmp_path), goal, "imagenet", RESOLUTION)
    with pytest.raises(RtsegError, match="adopted from the ONNX file .*theirs.onnx: there is no PyTorch network"):
        checkpoints.origin(adopted)
    assert torch_eager.unavailable() is None
    _, err = run("bench", goal, "--backend", "torch-eager", "-n", "3", "-o", tmp_path / "results", status=1)
    assert "there is no PyTorch network behind it; time it with --backend onnxruntime-cpu" in err.splitlines()[-1]


def test_the_command_without_pytorch(tiny, goal):
    """In a process in which torch cannot be imported."""
    source, script = tiny(labels(False)), "import sys; sys.modules['torch'] = None; from rtseg_deploy.cli import main; main()"
    words = ["adopt", str(source), "-o", str(goal), "--normalisation", "cityscapes", "--json"]
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    described = json.loads(result.stdout)
    assert described["output"] == "labels" and described["normalisation"]["mean"] == [0.3257, 0.369, 0.3223]
    assert json.loads(Path(f"{goal}.json").read_text()).items() <= described.items()


@pytest.mark.parametrize("end", [enlarged, resized_labels])
def test_the_commands_take_it(tiny, tmp_path, goal, end):
    pytest.importorskip("tensorrt_rtx")
    source = tiny(end, opset=11, free=(0, 2, 3))
    out, err = run("adopt", source, "-o", goal, "--normalisation", "imagenet", "--resolution", "64x96")
    assert "2 before, 2 folded back" in out and re.search("warning: written for opset 11", err)
    run("predict", goal, images.STREET, "-o", tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    run("bench", goal, "-n", "3", "--backend", "null", "-o", tmp_path / "results")
    (_, figure), = bench.bench(goal, bench.Ask(iterations=3, threads=1, warmup_limit=0.2, results=tmp_path / "results"))
    assert figure.artifact["dialect"] == "adopted" and len(figure.runs[0].seconds) == 3
    out, _ = run("build-engine", goal, "--target", "rtx-2080ti", "-o", tmp_path / "engines", "--json")
    assert json.loads(out)["parent"] == {"file": str(goal), "sha256": files.sha256(goal)}
    if end is enlarged:
        out, _ = run("build-engine", goal, "--target", "rtx-2080ti", "--fp16", "-o", tmp_path / "engines", "--json")
        assert json.loads(out)["checks"]["layers"]["fp16"]
