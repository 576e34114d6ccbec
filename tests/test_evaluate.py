"""How right labels are, over a drawn CamVid: as an own count has it, killed and gone on, and what is refused."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import ROOT, run
from PIL import Image
from remote import Server, needs_sshd

from rtseg_deploy import datasets, demo, evaluate, facts, images, launch, locks, ssh
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import read_artifact, sidecar

PICTURES = 24


def draw(folder, count=PICTURES, size=(96, 128)):
    """The street, shifted and darkened, and labels that are sometimes those of its rows."""
    rng, street = np.random.default_rng(0), images.resized(images.read(images.STREET), size)
    for name in ("test", "testannot"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        pixels = (np.roll(street, rng.integers(-20, 20), 1) * rng.uniform(0.5, 1)).astype(np.uint8)
        truth = np.repeat(np.linspace(0, 11.99, size[0]).astype(np.uint8)[:, None], size[1], 1)       # 11: unlabelled
        truth[:, :size[1] // 3] = rng.integers(0, 12)
        Image.fromarray(pixels).save(folder / f"test/f{number:03d}.png")
        Image.fromarray(truth).save(folder / f"testannot/f{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("camvid"))


@pytest.fixture
def mine(artifact, copy_of):
    """A copy of the artifact, whose sidecar may be written to."""
    return copy_of(artifact)


def evaluated(path, folder, tmp_path, **how):
    data, tell = evaluate.some(datasets.dataset(folder), how.pop("count", None)), how.pop("tell", launch.quiet)
    return evaluate.evaluate(path, evaluate.Ask(data, results=str(tmp_path / "accuracy"), **how), tell=tell)


def by_hand(path, folder, normalisation):
    """The confusion over the folder, pixel accuracy and mIoU, without anything of evaluate.py and accuracy.py."""
    session, confusion = onnxruntime.InferenceSession(path), np.zeros((11, 12), int)
    for image in sorted((folder / "test").iterdir()):
        found = session.run(None, {"input": images.normalised(np.asarray(Image.open(image)), normalisation)})[0][0].argmax(0)
        np.add.at(confusion, (found, np.asarray(Image.open(folder / "testannot" / image.name))), 1)
    counted = confusion[:, :11]
    hits = np.diag(counted)
    union = counted.sum(0) + counted.sum(1) - hits
    return hits.sum() / counted.sum(), (hits[union > 0] / union[union > 0]).mean()


def test_the_figures_are_those_of_an_own_count_and_go_into_the_sidecar(mine, camvid, tmp_path):
    path, value = evaluated(mine, camvid, tmp_path)
    right, miou = by_hand(mine, camvid, read_artifact(mine).normalisation)
    assert abs(value["scores"]["pixel_accuracy"] - right) < 1e-3 and abs(value["scores"]["miou"] - miou) < 1e-3
    assert json.loads(path.read_text()) == json.loads(json.dumps(value)) and value["kind"] == "accuracy"
    assert value["data"]["split"] == "test" and value["data"]["pictures"] == PICTURES and value["protocol"]["pictures"] == {"96x128": PICTURES}
    assert 0 <= value["waited_share"] < 1 and value["memory_bytes"] > 1 << 20 and {"decode", "network", "labels"} <= set(value["stages"])
    (name, summary), = json.loads(sidecar(mine).read_text())["checks"]["accuracy"].items()
    assert name == f"camvid test, {PICTURES} pictures, onnxruntime-cpu" and summary["miou"] == value["scores"]["miou"] and summary["result"] == path.name
    assert read_artifact(mine).checks["accuracy"][name] == summary


def start(*arguments, cwd):
    return subprocess.Popen([sys.executable, "-m", "rtseg_deploy", "eval", *map(str, arguments)], cwd=cwd, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)


def rows_of(folder):
    return [line for path in folder.glob("accuracy/*.jsonl") for line in path.read_bytes().splitlines()]


def test_killed_at_any_moment_it_goes_on_and_gives_the_same(mine, camvid, tmp_path):
    rng, seen = random.Random(0), []
    for least in sorted(rng.sample(range(1, PICTURES - 4), 3)):
        process = start(mine, "--data", camvid, cwd=tmp_path)
        while process.poll() is None and len(rows_of(tmp_path)) < least:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(len(rows_of(tmp_path)))
    assert seen == sorted(seen) and 1 <= seen[0] < PICTURES, seen
    with open(next(tmp_path.glob("accuracy/*.jsonl")), "ab") as file:
        file.write(b'{"name":"f0')        # as when the disk had only that much of it
    out, _ = run("eval", mine, "--data", camvid, "--json", cwd=tmp_path)
    _, whole = evaluated(mine, camvid, tmp_path / "other")
    assert json.loads(out)["scores"] == whole["scores"] and len(rows_of(tmp_path)) == PICTURES


def test_what_is_there_is_not_labelled_again_unless_asked(mine, camvid, tmp_path, monkeypatch):
    _, first = evaluated(mine, camvid, tmp_path)
    labelled = []
    pictures = evaluate.stream.pictures
    monkeypatch.setattr(evaluate.stream, "pictures", lambda *arguments: labelled.append(len(arguments[3])) or pictures(*arguments))
    _, second = evaluated(mine, camvid, tmp_path)
    assert not labelled and second == first
    _, third = evaluated(mine, camvid, tmp_path, again=True)
    assert labelled == [PICTURES] and third["scores"] == first["scores"]


def test_a_gallery_is_drawn_to_its_end(mine, camvid, tmp_path):
    """Counts that are there without their pictures, as of a run without --save or one that was killed between the two, are drawn and not counted twice."""
    save, _ = tmp_path / "gallery", evaluated(mine, camvid, tmp_path)
    _, first = evaluated(mine, camvid, tmp_path, save=str(save))
    (drawn,) = (save / "pictures").iterdir()
    assert len(list(drawn.iterdir())) == 5 * PICTURES and (save / "index.html").is_file()
    for number in (3, 7):
        (drawn / f"f{number:03d}.errors.jpg").unlink()
    (save / "index.html").unlink()
    _, second = evaluated(mine, camvid, tmp_path, save=str(save))
    assert len(list(drawn.iterdir())) == 5 * PICTURES and second["scores"] == first["scores"] and (save / "index.html").is_file()
    assert len(rows_of(tmp_path)) == 2 * PICTURES + 2


def test_another_backend_another_count_and_other_labels_are_other_figures(mine, camvid, tmp_path):
    pytest.importorskip("openvino")
    own = shutil.copytree(camvid, tmp_path / "own")
    found = [evaluated(mine, camvid, tmp_path)[0], evaluated(mine, camvid, tmp_path, count=5)[0]]
    found += [evaluated(mine, camvid, tmp_path, count=5, backend="openvino")[0]]
    (own / "testannot/f000.png").write_bytes((own / "testannot/f000.png").read_bytes() + b" ")
    assert len({*found, evaluated(mine, own, tmp_path)[0]}) == 4
    assert len(read_artifact(mine).checks["accuracy"]) == 3, "one for each backend and number of pictures"


def test_counts_of_other_pictures_labels_or_statistics_are_never_taken(mine, camvid, tmp_path):
    """Each under the same names: an image that is darker, another label file, a sidecar with another normalisation."""
    own, found, save = shutil.copytree(camvid, tmp_path / "own"), [evaluated(mine, camvid, tmp_path)], tmp_path / "gallery"
    first = own / "test/f000.png"
    Image.fromarray(np.asarray(Image.open(first)) // 4).save(first)
    found.append(evaluated(mine, own, tmp_path, save=str(save)))
    shutil.copy(own / "testannot/f002.png", own / "testannot/f001.png")
    found.append(evaluated(mine, own, tmp_path))
    described = json.loads(sidecar(mine).read_text())
    described["normalisation"]["mean"] = [0.1, 0.1, 0.1]
    sidecar(mine).write_text(json.dumps(described))
    found.append(evaluated(mine, own, tmp_path, save=str(save)))
    assert len({path for path, _ in found}) == 4 and len({value["scores"]["miou"] for _, value in found}) == 4
    assert len(list((save / "pictures").iterdir())) == 2, "each has its own pictures"


def test_a_damaged_line_is_said(mine, camvid, tmp_path):
    evaluated(mine, camvid, tmp_path, count=3)
    path, = tmp_path.glob("accuracy/*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(RtsegError, match="damaged in line 2"):
        evaluated(mine, camvid, tmp_path, count=3)


def test_two_evaluations_do_not_write_one_file(mine, camvid, tmp_path):
    evaluated(mine, camvid, tmp_path, count=3)
    def waits(step, done):
        if step.startswith("waiting for another run that writes"):
            raise LookupError

    with locks.goal(next(tmp_path.glob("accuracy/*.jsonl"))), pytest.raises(LookupError):
        evaluated(mine, camvid, tmp_path, tell=waits, count=3)


def test_a_checkpoint_is_evaluated_at_the_size_of_the_pictures(mine, camvid, tmp_path):
    out, err = run("eval", demo.CHECKPOINT, "--data", camvid, "--count", 3, "--json", cwd=tmp_path)
    found, here = json.loads(out), evaluated(mine, camvid, tmp_path, count=3)[1]
    assert found["backend"] == "torch-eager" and found["artifact"]["resolution"] == [96, 128] and "of 3 pictures" in err
    assert abs(found["scores"]["miou"] - here["scores"]["miou"]) < 1e-3
    assert not Path(f"{demo.CHECKPOINT}.json").exists() and [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["accuracy"]


def test_a_network_is_fed_what_its_paper_feeds_it():
    def of(name, data, resolution):
        return evaluate.papers_input(name, datasets.DataSet(data, Path(), facts.class_sets()[data], (), ()), resolution)

    assert of("bisenetv2", "cityscapes", (1024, 2048)) == (512, 1024) and of("bisenetv1-r18", "cityscapes", (1024, 2048)) == (768, 1536)
    assert of("sgcpnet", "cityscapes", (1024, 2048)) is None and of("bisenetv2", "camvid", (720, 960)) is None
    assert of("bisenetv2", "cityscapes", (512, 1024)) is None, "these are no pictures of that size"


def test_pictures_of_another_size_are_resized_and_that_is_said(mine, tmp_path):
    folder = draw(tmp_path / "large", 3, (97, 131))
    out, _ = run("eval", mine, "--data", folder, cwd=tmp_path)
    assert "note: 3 of 3 pictures are not 96x128, such as 97x131: resized to it, and their logits enlarged back" in " ".join(out.split())
    assert "mIoU" in out and "pedestrian" in out and "boundary F" in out
    assert "note: its paper labels pictures of 720x960, and feeds the network 720x960" in out


def test_a_sample_is_spread_over_the_set(camvid):
    data = datasets.dataset(camvid)
    assert [pair.name for pair in evaluate.some(data, 4).pairs] == ["f000", "f006", "f012", "f018"]
    assert evaluate.some(data, PICTURES + 1) is data


def test_another_number_of_classes_is_one_line(artifact, copy_of, camvid, tmp_path):
    path = copy_of(artifact, classes=19, class_set="")
    _, err = run("eval", path, "--data", camvid, cwd=tmp_path, status=1)
    assert "has 19 classes, and camvid has 11" in err.splitlines()[-1]
    _, err = run("eval", copy_of(artifact, class_set="cityscapes"), "--data", camvid, cwd=tmp_path, status=1)
    assert "11 classes (cityscapes), and camvid has 11" in err.splitlines()[-1] and not rows_of(tmp_path)


@pytest.mark.parametrize("name", ["test", "testannot"])
def test_a_damaged_file_is_one_line_and_mended_it_is_another_data_set(mine, tmp_path, name):
    folder = draw(tmp_path / "data", 6)
    path = folder / name / "f003.png"
    good = path.read_bytes()
    path.write_bytes(good[:len(good) // 2])
    _, err = run("eval", mine, "--data", folder, cwd=tmp_path, status=1)
    assert "f003.png" in err.splitlines()[-1] and "truncated" in err.splitlines()[-1] and len(rows_of(tmp_path)) == 3
    path.write_bytes(good)
    out, _ = run("eval", mine, "--data", folder, "--markdown", cwd=tmp_path)
    assert len(rows_of(tmp_path)) == 3 + 6 and out.startswith("| class | IoU % | boundary F % |\n| --- |")


@needs_sshd
@pytest.mark.xdist_group("ssh")
def test_on_a_device_it_gives_the_same(mine, camvid, tmp_path, monkeypatch):
    """In three parts, whose pictures are not mixed up."""
    server = Server(tmp_path)
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(evaluate.stream, "PART_PICTURES", 2)
        here, there = (evaluated(mine, camvid, tmp_path, count=5, place=ssh.place(url))[1] for url in (None, server.url()))
        assert there["scores"] == here["scores"] and there["on"] == "127.0.0.1" and here["on"] == ""
        assert [name for name in server.left() if "/kernels-" not in name] == ["cache/rtseg-deploy/busy"]      # and what it compiled, for the next time
    finally:
        server.stop()
