"""Pictures: labels of the right size and meaning, overlays with a legend, and bad images."""
import json
import struct
import zlib

import numpy as np
import pytest
from conftest import run
from PIL import Image

from rtseg_deploy import demo, facts, images, predict
from rtseg_deploy.errors import RtsegError


def test_the_street_is_read_as_it_is_drawn(trained, tmp_path):
    from rtseg_deploy.export import export
    export(trained, tmp_path / "net.onnx", (360, 480), output="labels")
    ((overlay, plain),) = predict.predict(tmp_path / "net.onnx", [images.STREET], tmp_path)
    labels = np.asarray(Image.open(plain))
    assert labels.shape == (360, 480) and labels.dtype == np.uint8
    names = facts.class_sets()["camvid"].names
    for (row, column), name in {(20, 240): "sky", (340, 240): "road", (120, 95): "building", (200, 310): "car", (250, 440): "pavement",
                                (130, 440): "tree"}.items():
        assert names[labels[row, column]] == name
    assert len(np.unique(labels)) >= 9
    picture = Image.open(overlay)
    assert picture.height == 360 and picture.width > 480


def test_images_of_another_size_get_labels_of_their_own_size(artifact, tmp_path):
    Image.open(images.STREET).resize((200, 150)).save(tmp_path / "small.jpg")
    out, _ = run("predict", artifact, tmp_path / "small.jpg", images.STREET, "-o", tmp_path / "out", "--json")
    rows = json.loads(out)
    assert [Image.open(row["labels"]).size for row in rows] == [(200, 150), (480, 360)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["small.labels.png", "small.overlay.png", "street.labels.png", "street.overlay.png"]


def test_backends_label_alike(artifact, tmp_path):
    maps = []
    for backend in ("onnxruntime-cpu", "torch-eager"):
        ((_, plain),) = predict.predict(artifact, [images.STREET], tmp_path / backend, backend)
        maps.append(np.asarray(Image.open(plain)))
    assert (maps[0] == maps[1]).mean() > 0.9999


def test_the_legend_lists_what_is_there_largest_first():
    names = facts.class_sets()["cityscapes"]
    labels = np.zeros((60, 90), np.int32)
    labels[:20] = 10
    picture = np.asarray(images.overlay(np.zeros((60, 90, 3), np.uint8), labels, names))
    assert (picture[40, 10] == np.round(images.OPACITY * np.array(names.colours[0]))).all()
    swatch = picture[7:19, 90 + 11:90 + 22].reshape(-1, 3)
    assert (swatch == names.colours[0]).all(1).any()
    assert not (picture[:, 90:] == names.colours[3]).all(2).any()


def test_every_class_set_has_distinct_colours():
    for chosen in (*facts.class_sets().values(), facts.class_set("", 171)):
        assert len(set(chosen.colours)) == len(chosen.names)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_any_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.open(images.STREET).convert(mode).save(path)
    assert images.read(path).shape == (360, 480, 3)


def test_a_turned_photograph_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images.STREET).save(tmp_path / "x.jpg", exif=exif)
    assert images.read(tmp_path / "x.jpg").shape == (480, 360, 3)


def truncated(path):
    path.write_bytes(images.STREET.read_bytes()[:20_000])


def text(path):
    path.write_text("no image")


def empty(path):
    path.write_bytes(b"")


def bomb(path):
    Image.new("1", (30_000, 30_000)).save(path)


def sixteen_bits(path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


def sixteen_bits_in_colour(path):
    """Pillow writes none: a PNG of one black row."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 1, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 + 8 * 6))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("make", [truncated, text, empty, bomb, sixteen_bits, sixteen_bits_in_colour])
def test_bad_images_are_one_line_and_nothing_is_written(artifact, tmp_path, make):
    path = tmp_path / "x.png"
    make(path)
    _, err = run("predict", artifact, path, "-o", tmp_path / "out", status=1)
    assert str(path) in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_two_images_of_one_name_are_refused(artifact, tmp_path):
    with pytest.raises(RtsegError, match="would both be written"):
        predict.predict(artifact, [tmp_path / "a/x.png", tmp_path / "b/x.png"], tmp_path)


def test_the_demo_ships_what_it_needs():
    assert demo.CHECKPOINT.stat().st_size < 3e6 and images.read(images.STREET).shape == (360, 480, 3)
