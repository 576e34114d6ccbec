"""A device at the other end of ssh, whole: probed, built on, compared, timed, verified. Its TensorRT, CUDA and clock are fakes; the rest is real.

The fake's labels are the largest channel of the image; so are those of the network here, whatever its weights' precision.
"""
import json
import sys
from pathlib import Path

import host_cuda
import numpy as np
import onnx
import pytest
from conftest import run
from PIL import Image
from remote import Server, needs_sshd

from rtseg_deploy import facts

pytestmark = [needs_sshd, pytest.mark.xdist_group("ssh")]
FAKES = Path(__file__).resolve().parent / "fakes"
NET = """
import torch
from torch import nn
def build():
    net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.5))))
    for layer in net[::2]:
        layer.weight.data[:] = torch.eye(3)[:, :, None, None]
        layer.bias.data[:] = 0
    return net.eval()
"""
CHIPS = {"8.2": "NVIDIA Tegra X2, 6.2", "8.6": "NVIDIA GeForce GTX 1080 Ti, 6.1", "10.13": "NVIDIA GeForce RTX 2080 Ti, 7.5", "11.1": "NVIDIA H200, 9.0"}
TARGETS = {"8.2": "jetson-tx2", "8.6": "gtx-1080ti", "10.13": "rtx-2080ti", "11.1": "h200"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("net"), "labels")


def exported(folder, output, net=NET):
    """The network's ONNX file."""
    (folder / "echo.py").write_text(net)
    (folder / "nets").mkdir()
    (folder / "nets/echo.py").write_text(net)
    run("export", "--model", "nets.echo:build", "-o", "net.onnx", "--resolution", "32x48", "--opset", 13, "--output", output,
        "--normalisation", "none", cwd=folder)
    return folder / "net.onnx"


@pytest.fixture
def device(server, network, tmp_path):
    """A function: what --on takes for a device with that TensorRT, and the command line in its environment."""
    compiler = host_cuda.nvcc_in(tmp_path / "bin")

    def made(version, network=network, chip=None, cuda="", **graph):
        graph_of = onnx.load(network).graph
        layers = [[node.name, "INT32" if node.op_type in ("ArgMax", "Cast") else "FLOAT"] for node in graph_of.node]
        out = ["INT32", [1, 32, 48]] if graph_of.node[-1].op_type == "Cast" else ["FLOAT", [1, 3, 32, 48]]
        tensors = [["input", True, "FLOAT", [1, 3, 32, 48]], ["output", False, *out]]
        python = tmp_path / f"python-{version}"
        python.write_text("\n".join([
            "#!/bin/sh", f"export PATH={compiler}:$PATH XDG_CACHE_HOME={tmp_path}/cache",
            f"export FAKE_TENSORRT={version} FAKE_GPU='{chip or CHIPS[version]}' FAKE_CUDA={cuda} PYTHONPATH={FAKES}",
            f"export FAKE_GRAPH='{json.dumps({'layers': layers, 'tensors': tensors, **graph})}'", f'exec {sys.executable} {FAKES}/drive.py "$@"', ""]))
        python.chmod(0o755)
        return server.url(python)

    def there(*arguments, **options):
        return run(*arguments, environment=server.environment, cwd=tmp_path, **options)
    made.run, made.convolutions = there, [node.name for node in onnx.load(network).graph.node if node.op_type == "Conv"]
    return made


def build(device, network, url, target, *more, status=0):
    out, err = device.run("build-engine", network, "--target", target, "--on", url, "--json", *more, status=status)
    return json.loads(out) if status == 0 else err


@pytest.mark.parametrize("version", CHIPS)
def test_every_target_is_built_on_compared_timed_and_verified(device, network, version, tmp_path):
    url, target = device(version), TARGETS[version]
    engine = build(device, network, url, target)
    built = engine["checks"]["built"]
    assert built["runtime"] == "tensorrt" and built["compute_capability"] == facts.target(target).compute_capability and built["gpu"] in CHIPS[version]
    assert engine["checks"]["run_on_device"]["ok"] and all(row["labels_equal"] == 1 for row in engine["checks"]["run_on_device"]["inputs"].values())
    out, _ = device.run("bench", engine["file"], "--on", url, "-n", 50, "--json", *(["--cuda-graph"] if version == "8.6" else []), status=None)
    (row,) = json.loads(out)
    figures, written = row["statistics"], json.loads((tmp_path / row["result"]).read_text())
    assert figures["device_median_ms"] == pytest.approx(1000 / 1024, rel=0.15) and figures["enqueue_median_ms"] < figures["device_median_ms"]
    assert figures["back_to_back_ms"] <= figures["mean_ms"]
    assert len(written["runs"][0]["device_seconds"]) == len(written["runs"][0]["enqueue_seconds"]) == 50
    assert row["backend"] == "tensorrt" and row["iterations"] == 50 and row["statistics"]["median_ms"] == pytest.approx(1000 / 1024, rel=0.2)
    out, _ = device.run("verify", engine["file"], "--on", url)
    assert "loads" in out
    out, _ = device.run("eval", engine["file"], "--data", largest_channels(tmp_path / "data"), "--on", url, "--json")
    found = json.loads(out)
    assert found["scores"]["miou"] == found["scores"]["pixel_accuracy"] == 1 and (found["backend"], found["on"]) == ("tensorrt", "127.0.0.1")


def test_frames_go_there_and_labels_come_back_stage_by_stage_and_overlapping(device, tmp_path):
    network = exported(tmp_path, "logits")
    url = device("10.13", network)
    engine = build(device, network, url, "rtx-2080ti")
    out, _ = device.run("bench", engine["file"], "--on", url, "-n", 30, "--protocol", "end-to-end", "--json", status=None)
    (row,) = json.loads(out)
    told = json.loads((tmp_path / row["result"]).read_text())["runs"][0]
    assert list(told["stages"]) == ["copy in", "normalise", "network", "labels", "copy back"] and told["environment"]["labels"].startswith("CUDA, nvcc")
    out, _ = device.run("bench", engine["file"], "--on", url, "-n", 30, "--protocol", "streaming", "--cuda-graph", "--json", status=None)
    (row,) = json.loads(out)
    assert row["statistics"]["fps"] == pytest.approx(1e3 / row["statistics"]["back_to_back_ms"])
    assert row["statistics"]["mean_ms"] > 1.5 * row["statistics"]["back_to_back_ms"] and row["boundary"].endswith("copies beside the computation")


def largest_channels(folder):
    """A data set whose classes are what the network here finds."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.csv").write_text("0,red\n1,green\n2,blue\n")
    for number in range(3):
        pixels = rng.integers(0, 256, (32, 48, 3), np.uint8)
        truth = pixels.argmax(2).astype(np.uint8)
        best = np.sort(pixels, 2)
        truth[best[..., 2] == best[..., 1]] = 255       # a tie
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        Image.fromarray(truth).save(folder / f"labels/{number}.png")
    return folder


def test_the_timing_cache_comes_back_and_goes_there_again(device, network, tmp_path):
    url = device("8.6")
    build(device, network, url, "gtx-1080ti")
    (cache,) = (tmp_path / "engines/gtx-1080ti").glob("*.timing-cache")
    first = cache.read_bytes()
    assert "1080-Ti" in cache.name and "8.6.1" in cache.name
    build(device, network, url, "gtx-1080ti")
    assert len(cache.read_bytes()) > len(first) and cache.read_bytes().startswith(first)


def test_a_pascal_is_built_with_both_tactic_settings_and_the_faster_stays(device, network):
    engine = build(device, network, device("8.6", seconds={"default": 1 / 512, "external": 1 / 1024}), "gtx-1080ti")
    assert engine["checks"]["tactics"]["chosen"] == "external" and engine["checks"]["tactics"]["default"] > engine["checks"]["tactics"]["external"]
    assert build(device, network, device("10.13"), "rtx-2080ti")["checks"].get("tactics") is None


@pytest.mark.parametrize("version, which", [("8.2", [1]), ("10.13", [0, 3])])
def test_layers_that_fp16_breaks_are_found_on_the_device_and_stay(device, network, version, which):
    loud = [device.convolutions[number] for number in which]
    engine = build(device, network, device(version, overflows=loud), TARGETS[version], "--fp16")
    assert list(engine["checks"]["kept_fp32"]) == loud and engine["checks"]["run_on_device"]["ok"]
    assert engine["checks"]["layers"]["fp16"] > 0 and set(loud) <= set(engine["checks"]["layers"]["fp32_names"])


def test_what_overflows_by_its_range_is_built_in_fp32_at_once(device, server, tmp_path):
    """What passes between the first two convolutions is beyond FP16; the labels stay what they are."""
    network = exported(tmp_path, "labels", NET.replace("    return", "    net[0].weight.data *= 2.0 ** 20\n    net[2].weight.data *= 2.0 ** -20\n    return"))
    engine = build(device, network, device("8.6", network), "gtx-1080ti", "--fp16")
    kept, nodes = engine["checks"]["kept_fp32"], [node.name for node in onnx.load(network).graph.node]
    assert list(kept) == nodes[:3] and {row["why"] for row in kept.values()} == {"overflow"}
    assert engine["checks"]["layers"]["fp32_names"] == nodes[:3] and engine["checks"]["layers"]["fp16"] > 0 and engine["checks"]["run_on_device"]["ok"]


def test_logits_that_overflow_are_a_reason_to_search(device, server, tmp_path):
    network = exported(tmp_path, "logits")
    url = device("8.6", network, overflows=device.convolutions[2:3])
    assert build(device, network, url, "gtx-1080ti", "--fp16")["checks"]["kept_fp32"] == {device.convolutions[2]: {"why": "found on the device"}}


def test_fp16_that_holds_needs_one_build(device, network):
    engine = build(device, network, device("8.6"), "gtx-1080ti", "--fp16")
    assert not engine["checks"].get("kept_fp32") and engine["checks"]["layers"]["fp32"] == 0


def test_an_fp32_engine_with_other_labels_is_refused(device, network, tmp_path):
    tensors = [["input", True, "FLOAT", [1, 3, 32, 48]], ["output", False, "INT32", [1, 3, 32, 48]]]
    err = build(device, network, device("8.6", tensors=tensors), "gtx-1080ti", status=1)
    assert "labels" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.engine*"))


@pytest.mark.parametrize("version, chip, target, words", [
    ("8.6", "NVIDIA GeForce GTX 1080 Ti, 6.1", "jetson-tx2", ["compute capability 6.1", "has 6.2"]),
    ("10.13", "NVIDIA GeForce GTX 1080 Ti, 6.1", "gtx-1080ti", ["TensorRT 10.", "8.6"]),
    ("8.6", "NVIDIA Tegra X2, 6.2", "jetson-tx2", ["TensorRT 8.6", "8.2"]),
])
def test_a_device_that_is_not_the_target_is_refused_with_both_values(device, network, version, chip, target, words, tmp_path):
    err = build(device, network, device(version, chip=chip), target, status=1)
    assert all(word in err for word in words) and not list(tmp_path.rglob("*.engine*"))


def test_no_gpu_there(device, network):
    err = build(device, network, device("8.6", cuda="none"), "gtx-1080ti", status=1)
    assert "no CUDA-capable device" in err and "127.0.0.1" in err


def test_a_full_gpu_names_the_workspace_to_try(device, network):
    err = build(device, network, device("8.6", cuda="full"), "gtx-1080ti", status=1)
    assert "out of memory" in err and "--workspace 256" in err


def test_an_engine_of_another_gpu_or_tensorrt_is_told_before_it_is_read(device, network):
    engine = build(device, network, device("8.6"), "gtx-1080ti")
    for url, words in ((device("8.2"), "8.2.1"), (device("10.13"), "7.5")):
        out, _ = device.run("verify", engine["file"], "--on", url, status=1)
        assert "does not load" in out and words in out
        err = device.run("bench", engine["file"], "--on", url, "-n", 10, status=1)[1]
        assert "build it" in err


def test_a_missing_synchronisation_there_gives_no_figure(device, network, tmp_path):
    engine = build(device, network, device("10.13"), "rtx-2080ti")
    err = device.run("bench", engine["file"], "--on", device("10.13", cuda="unsynchronised"), "-n", 50, "-o", tmp_path / "results", status=1)[1]
    assert "did not wait for the device" in err and not (tmp_path / "results").exists()
