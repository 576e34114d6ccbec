"""Protocols: what is inside the clock, stage by stage, and what each refuses to time."""
import ast
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from PIL import Image

from rtseg_deploy import bench, facts, images
from rtseg_deploy.device import frames
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.measure import asked, measure
from rtseg_deploy.records import read_artifact

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)
ABOUT = {"frame": "pixels", "input": "normalised", "output": "labels", "enlarge": "bilinear", "size": [24, 32], "mean": MEAN, "std": STD}


class Session:
    """Stands for a network: keeps what it is fed, and gives what it is told to."""

    def __init__(self, result):
        self.result, self.fed, self.steps = result, [], 0

    def feed(self, array):
        self.fed.append(array)

    def step(self):
        self.steps += 1

    def output(self):
        return self.result

    def facts(self):
        return {"boundary": "network"}


def taken(pixels, result, **about):
    """(names of the stages, the labels, the session) of one step."""
    session = Session(result)
    whole = frames.Frames({"stages": {**ABOUT, **about}}, session)
    whole.feed(pixels)
    whole.step()
    return list(whole.taken(1)), whole.output(), session


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


LABELS, LOGITS, NATIVE = RNG.integers(0, 19, (1, 24, 32)).astype(np.uint8), RNG.standard_normal((1, 19, 24, 32), np.float32), \
    RNG.standard_normal((1, 19, 3, 4), np.float32)


@pytest.mark.parametrize("about, result, stages", [
    ({}, LABELS, "normalise, copy in, network, copy back"),
    ({"input": "rgb8"}, LABELS, "copy in, network, copy back"),
    ({"input": "rgb8-nchw"}, LABELS, "transpose, copy in, network, copy back"),
    ({"output": "logits"}, LOGITS, "normalise, copy in, network, copy back, labels"),
    ({"output": "native"}, NATIVE, "normalise, copy in, network, copy back, labels"),
    ({"frame": "tensor"}, LABELS, "copy in, network, copy back"),
])
def test_a_stage_is_there_where_the_graph_does_not_do_it(about, result, stages):
    assert ", ".join(taken(noise(24, 32, 3), result, **about)[0]) == stages


def test_a_frame_of_another_size_is_resized_and_its_labels_come_back_at_it():
    for output, result, last in (("labels", LABELS, "enlarge"), ("logits", LOGITS, "labels"), ("native", NATIVE, "labels")):
        names, labels, session = taken(noise(48, 96, 3), result, output=output)
        assert names[0] == "normalise" and names[-1] == last
        assert labels.shape == (1, 48, 96) and session.fed[-1].shape == (1, 3, 24, 32)


def test_the_network_sees_what_it_was_trained_to_see():
    pixels = noise(24, 32, 3)
    *_, session = taken(pixels, LABELS)
    np.testing.assert_allclose(session.fed[-1], images.normalised(pixels, {"mean": MEAN, "std": STD}), atol=2e-6)
    assert session.fed[-1].flags.c_contiguous and session.fed[-1].dtype == np.float32 and session.steps == 1
    *_, planes = taken(pixels, LABELS, input="rgb8-nchw")
    assert (planes.fed[-1][0, 1] == pixels[..., 1]).all()


def test_labels_are_repeated_and_never_mixed():
    *_, labels, _ = taken(noise(48, 64, 3), LABELS)
    assert (labels == LABELS.repeat(2, 1).repeat(2, 2)).all()


def test_an_encoded_picture_is_decoded_within_the_clock(tmp_path):
    pixels = noise(24, 32, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    names, _, session = taken(np.frombuffer((tmp_path / "x.png").read_bytes(), np.uint8), LABELS, frame="file")
    assert names[0] == "decode"
    np.testing.assert_allclose(session.fed[-1], images.normalised(pixels, {"mean": MEAN, "std": STD}), atol=2e-6)


def test_stages_add_up_to_the_step():
    whole = frames.Frames({"stages": {**ABOUT, "output": "native"}}, Session(NATIVE))
    whole.feed(noise(24, 32, 3))
    for _ in range(7):
        whole.step()
    found = whole.taken(5)
    assert all(len(seconds) == 5 for seconds in found.values())
    np.testing.assert_allclose(np.sum(list(found.values()), 0), [times[-1] - times[0] for times in whole.samples[-5:]])


def test_frames_are_written_in_python_36_with_numpy_alone():
    tree = ast.parse(Path(frames.__file__).read_text(), feature_version=(3, 6))
    assert {node.names[0].name for node in tree.body if isinstance(node, ast.Import)} == {"io", "os", "sys", "time", "numpy"}


# ---- through a real runtime


def exported(trained, path, **options):
    from rtseg_deploy.export import export
    export(trained, path, (96, 128), **options)
    return path


def ask(tmp_path, **how):
    return bench.Ask(**{"backends": ("onnxruntime-cpu",), "iterations": 10, "threads": 1, "warmup_limit": 0.2, "results": str(tmp_path / "results"), **how})


@pytest.mark.parametrize("options, names", [
    ({"output": "native"}, ["normalise", "copy in", "network", "copy back", "labels"]),
    ({"output": "labels", "input": "rgb8"}, ["copy in", "network", "copy back"]),
])
def test_end_to_end_times_each_stage_and_gives_the_labels(trained, tmp_path, monkeypatch, options, names):
    from rtseg_deploy import launch, predict
    Image.fromarray(images.resized(images.read(images.STREET), (96, 128))).save(tmp_path / "street.png")
    path, seen, labels_in = exported(trained, tmp_path / "net.onnx", **options), [], launch.labels_in
    monkeypatch.setattr(launch, "labels_in", lambda folder, job: seen.append(labels_in(folder, job)) or seen[-1])
    (_, figure), = bench.bench(path, ask(tmp_path, protocol="end-to-end", image=str(tmp_path / "street.png")))
    assert list(figure.runs[0].stages) == names
    np.testing.assert_allclose(np.sum(list(figure.runs[0].stages.values()), 0), figure.runs[0].seconds, rtol=0.2)
    assert figure.boundary.startswith("frame to labels: from an RGB image in host memory to labels of its size there: " + names[0])
    predict.predict(path, [tmp_path / "street.png"], tmp_path / "out")
    theirs = np.asarray(Image.open(tmp_path / "out/street.labels.png"))
    assert (theirs == seen[0][0]).all()
    assert figure.environment.get("labels", "").endswith(", 1 thread") == (options["output"] == "native")


def test_swiftnets_protocol_begins_with_the_networks_own_input(trained, tmp_path):
    path = exported(trained, tmp_path / "net.onnx", output="labels")
    (_, figure), = bench.bench(path, ask(tmp_path, protocol="paper-swiftnet"))
    assert list(figure.runs[0].stages) == ["copy in", "network", "copy back"] and figure.boundary.startswith("network and copies: ")


@pytest.mark.parametrize("protocol, words", [
    ("paper-synced", "paper-synced times a network with native output, and .*net.onnx has logits"),
    ("paper-swiftnet", "labels output"),
    ("paper-bisenetv2", "does not resize the image"),
    ("paper-trtexec", "no protocol is called 'paper-trtexec'"),
])
def test_what_a_protocol_does_not_time_is_refused(artifact, tmp_path, protocol, words):
    with pytest.raises(RtsegError, match=words):
        bench.bench(artifact, ask(tmp_path, protocol=protocol))


def test_decoding_is_never_timed_silently(artifact, tmp_path):
    with pytest.raises(RtsegError, match="--decode times the decoding of an image file"):
        bench.bench(artifact, ask(tmp_path, decode=True))
    (_, figure), = bench.bench(artifact, ask(tmp_path, decode=True, protocol="end-to-end", image=str(images.STREET)))
    assert list(figure.runs[0].stages)[0] == "decode" and figure.boundary.startswith("frame to labels: from an encoded picture")


def test_a_network_by_name_is_exported_as_the_protocol_times_it(tmp_path):
    (path, figure), = measure("bisenetv2", [(64, 128)], ask(tmp_path, protocol="paper-bisenetv2"), how={"network_input": (32, 64)})
    assert figure.artifact["network_input"] == (32, 64) and figure.artifact["output"] == "logits" and figure.resolution == (64, 128)
    assert json.loads(path.read_text())["protocol"] == "paper-bisenetv2"
    (_, figure), = measure("sgcpnet", [(64, 128)], ask(tmp_path, protocol="paper-unstated"))
    assert figure.artifact["output"] == "native" and "back_to_back_ms" in figure.statistics


def test_a_graph_that_resizes_the_image_is_proven_and_timed_in_pytorch_too(trained, tmp_path):
    path = exported(trained, tmp_path / "net.onnx", network_input=(48, 64))
    assert read_artifact(path).network_input == (48, 64)
    figures = bench.bench(path, ask(tmp_path, backends=("onnxruntime-cpu", "torch-eager")))
    assert figures[1][1].same_labels["onnxruntime-cpu"] > 0.999


def test_a_papers_protocol_comes_with_its_iterations():
    assert asked(None, "ddrnet", None) == bench.Ask(protocol="paper-amortised", iterations=500)
    assert asked(None, "BiSeNet V2", None).iterations == 5000 and asked(None, "SGCPNet", 20).iterations == 20
    assert asked("end-to-end", None, None).iterations is None
    for protocol, paper in (("network", "ddrnet"), (None, "icnet"), ("fast", None)):
        with pytest.raises(RtsegError):
            asked(protocol, paper, None)


def test_every_protocol_of_a_paper_is_known_and_sourced():
    for row in facts.rows("timed.csv"):
        assert facts.protocol(row["protocol"]).fixed and row["source"]
        assert row["output"] == facts.protocol(row["protocol"]).output and row["bn"] == facts.protocol(row["protocol"]).bn
    assert all(protocol.source and protocol.clock in ("each", "together", "both") for protocol in facts.protocols().values())


def test_the_command_says_protocol_boundary_and_stages(artifact, tmp_path):
    out, _ = run("bench", artifact, "--protocol", "end-to-end", "-n", 20, "--warmup", 0.2, "--threads", 1, "-o", tmp_path, status=None)
    flat = " ".join(out.split())
    assert "protocol end-to-end (each step by itself): frame to labels" in flat and "copy back ms" in flat and "labels ms" in flat
