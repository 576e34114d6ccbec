"""What is written for Triton and DeepStream, read as they read it; and what they would serve wrongly is refused."""
import configparser
import json

import numpy as np
import onnx
import pytest
from conftest import run
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from rtseg_deploy import facts, images, records, remarks
from rtseg_deploy.deploy_config import deploy_config
from rtseg_deploy.errors import RtsegError

BUILT = {"runtime": "tensorrt", "version": "8.6.1", "compute_capability": "6.1"}
NONE = {"mean": [0.1, 0.2, 0.3], "std": [0.25, 0.25, 0.25]}


def engine(artifact, copy_of, built=BUILT, tensors=None, **changes):
    checks = records.read_artifact(artifact).checks
    checks = {**checks, "built": built, "tensors": {**checks["tensors"], **(tensors or {})}}
    return copy_of(artifact, **{"kind": "engine", "target": "gtx-1080ti", "checks": checks, **changes})


def model_config():
    """As much of Triton's ModelConfig (triton-inference-server/common, model_config.proto) as is written here."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_UINT8", 2), ("TYPE_INT32", 8), ("TYPE_INT64", 9), ("TYPE_FP16", 10), ("TYPE_FP32", 11)):
        kinds.value.add(name=name, number=number)
    tensor = file.message_type.add(name="Tensor")
    for name, number, kind, label in (("name", 1, 9, 1), ("data_type", 2, 14, 1), ("dims", 3, 3, 3)):
        tensor.field.add(name=name, number=number, type=kind, label=label, **({"type_name": ".inference.DataType"} if kind == 14 else {}))
    config = file.message_type.add(name="ModelConfig")
    for name, number, kind, label in (("name", 1, 9, 1), ("platform", 2, 9, 1), ("max_batch_size", 4, 5, 1), ("input", 5, 11, 3), ("output", 6, 11, 3)):
        config.field.add(name=name, number=number, type=kind, label=label, **({"type_name": ".inference.Tensor"} if kind == 11 else {}))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


def side(kind, *shape):
    return {"name": "output", "type": kind, "shape": list(shape)}


@pytest.mark.parametrize("tensors, kinds, dims", [
    ({}, (11, 11), ([1, 3, 96, 128], [1, 11, 96, 128])),
    ({"input": {"name": "input", "type": "UINT8", "shape": [96, 128, 3]}, "output": side("UINT8", 1, 96, 128)}, (2, 2), ([96, 128, 3], [1, 96, 128])),
    ({"output": side("INT32", 1, 96, 128)}, (11, 8), ([1, 3, 96, 128], [1, 96, 128]))])
def test_tritons_repository(artifact, copy_of, tmp_path, tensors, kinds, dims):
    path = engine(artifact, copy_of, tensors=tensors)
    deploy_config(path, "triton", tmp_path / "repository")
    config = text_format.Parse((tmp_path / "repository/sgcpnet/config.pbtxt").read_text(), model_config())
    assert (config.name, config.platform, config.max_batch_size) == ("sgcpnet", "tensorrt_plan", 0)
    (fed,), (given,) = config.input, config.output
    assert (fed.name, given.name) == ("input", "output")
    assert (fed.data_type, given.data_type) == kinds and (list(fed.dims), list(given.dims)) == dims
    assert (tmp_path / "repository/sgcpnet/1/model.plan").read_bytes() == path.read_bytes()


def test_the_engine_is_linked_where_it_can_be_and_again_when_it_is_there(artifact, copy_of, tmp_path):
    path = engine(artifact, copy_of)
    for _ in range(2):
        deploy_config(path, "triton", tmp_path / "repository")
        plan = tmp_path / "repository/sgcpnet/1/model.plan"
        assert plan.samefile(path)
        assert sorted(p.name for p in plan.parent.iterdir()) == ["model.plan"]


def test_deepstreams_configuration_feeds_what_the_network_was_trained_to_see(artifact, copy_of, tmp_path):
    path = engine(artifact, copy_of, normalisation=NONE, precision="fp16")
    deploy_config(path, "deepstream", tmp_path / "ds")
    parser = configparser.ConfigParser()
    parser.read(tmp_path / "ds/nvinfer.txt")
    found = dict(parser["property"])
    assert (found["network-type"], found["network-mode"], found["model-color-format"], found["batch-size"]) == ("2", "2", "0", "1")
    assert (found["infer-dims"], found["num-detected-classes"], found["output-blob-names"]) == ("3;96;128", "11", "output")
    assert float(found["segmentation-threshold"]) == 0
    pixels = np.random.default_rng(5).integers(0, 256, (96, 128, 3), np.uint8)
    offsets = np.float32(found["offsets"].split(";")).reshape(3, 1, 1)
    fed = np.float32(found["net-scale-factor"]) * (pixels.transpose(2, 0, 1).astype(np.float32) - offsets)
    assert np.abs(fed - images.normalised(pixels, NONE)[0]).max() <= 1e-6
    folder = tmp_path / "ds"
    assert (folder / found["model-engine-file"]).samefile(path)
    assert (folder / found["labelfile-path"]).read_text().splitlines() == list(facts.class_sets()["camvid"].names)


RTX = {"runtime": "tensorrt_rtx", "version": "1.7.1.116", "compute_capability": "7.5"}


@pytest.mark.parametrize("server, changes, reason, fix", [
    ("triton", {"kind": "onnx"}, "is no engine", "build-engine"),
    ("triton", {"built": RTX}, "engine of TensorRT-RTX", "on the device"),
    ("deepstream", {"built": RTX}, "engine of TensorRT-RTX", "on the device"),
    ("triton", {"tensors": {"output": side("FLOAT16", 1, 11, 96, 128)}}, "output is FLOAT16", "again"),
    ("deepstream", {}, "scales R, G and B by one number", "--input rgb8-nchw"),
    ("deepstream", {"normalisation": NONE, "input": "rgb8"}, "feeds float32", "--input rgb8-nchw"),
    ("deepstream", {"normalisation": NONE, "input": "rgb8-nchw"}, "feeds float32", "--for triton"),
    ("deepstream", {"normalisation": NONE, "output": "labels"}, "gives labels", "--output logits")])
def test_what_would_be_served_wrongly_is_refused_and_nothing_is_written(artifact, copy_of, tmp_path, server, changes, reason, fix):
    path = engine(artifact, copy_of, **changes)
    with pytest.raises(RtsegError, match=reason) as error:
        deploy_config(path, server, tmp_path / "out")
    assert fix in error.value.fix and not (tmp_path / "out").exists()


def test_an_older_sidecar_is_told(artifact, copy_of, tmp_path):
    with pytest.raises(RtsegError, match="neither what built it"):
        deploy_config(copy_of(artifact, kind="engine"), "triton", tmp_path / "out")


def test_the_command(artifact, copy_of, tmp_path):
    out, err = run("deploy-config", engine(artifact, copy_of, normalisation=NONE), "--for", "deepstream", "-o", tmp_path / "ds", "--json")
    assert all(name in out for name in ("net.onnx", "labels.txt", "nvinfer.txt")) and json.loads(out)["notes"][0] in err


def test_the_sidecar_says_what_goes_in_and_comes_out(artifact):
    assert records.read_artifact(artifact).checks["tensors"] == remarks.bindings(onnx.load(artifact)) == {
        "input": {"name": "input", "type": "FLOAT", "shape": [1, 3, 96, 128]}, "output": {"name": "output", "type": "FLOAT", "shape": [1, 11, 96, 128]}}


LINES = "\n[property]\ncustom-lib-path=/tmp/evil.so\n"


MORE = "would be more than a value in a configuration"


@pytest.mark.parametrize("changes, said", [
    ({"built": {**BUILT, "version": f"8.6.1{LINES}"}}, MORE), ({"built": {**BUILT, "compute_capability": f"6.1{LINES}"}}, MORE),
    ({"tensors": {"output": {**side("FLOAT", 1, 11, 96, 128), "name": 'o" } ] backend: "python" x [ { name: "o'}}}, MORE),
    ({"tensors": {"input": {"name": "input", "type": "FLOAT", "shape": [1, 3, 96, '128"] backend: "python']}}}, "is damaged"),
    ({"name": f"net{LINES}.engine"}, MORE)])
@pytest.mark.parametrize("server", ["triton", "deepstream"])
def test_a_sidecar_adds_no_line_to_a_configuration(artifact, copy_of, tmp_path, changes, said, server):
    name = changes.get("name")
    path = engine(artifact, copy_of, normalisation=NONE, **{key: value for key, value in changes.items() if key != "name"})
    if name:
        goal = path.with_name(name.replace("/", "_"))
        path.rename(goal)
        records.sidecar(path).rename(records.sidecar(goal))
        path = goal
    with pytest.raises(RtsegError, match=said):
        deploy_config(path, server, tmp_path / "deploy")
    assert not (tmp_path / "deploy").exists()
