"""Data sets that the tests draw: each layout is read, and each thing that may be wrong with a file is one line that names it."""
import csv
import hashlib
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rtseg_deploy import facts, images
from rtseg_deploy.datasets import IGNORED, DataSet, Pair, dataset, truth
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts.datasets import camvid_splits, coding, evaluated, evaluations, packed
from rtseg_deploy.lists import listed, write_list

RNG = np.random.default_rng(6)
STEM = "Seq05VD_f00030"             # a frame of CamVid's test split


def picture(path, shape=(6, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*shape, 3), np.uint8)).save(path, **options)
    return path


def labels(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def png(width, height, depth, kind, pixels, before=b""):
    """A PNG file of a form that Pillow does not write."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)) + before
            + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))


@pytest.fixture
def folder(tmp_path):
    """A plain folder of one pair, a, with ids 0 to 2, 9 ignored."""
    picture(tmp_path / "images/a.png")
    labels(tmp_path / "labels/a.png", np.arange(48, dtype=np.uint8).reshape(6, 8) % 3)
    (tmp_path / "classes.csv").write_text("0,road\n1,sky\n2,tree\n9,ignored\n")
    return tmp_path


def refusal(*words, of):
    """The one line of the RtsegError that a call raises; it has the words."""
    with pytest.raises(RtsegError) as raised:
        of()
    text = f"{raised.value.what}; {raised.value.fix}"
    assert "\n" not in text and all(word in text for word in words), text
    return text


def read(folder, **how):
    data = dataset(folder, **how)
    return truth(data, data.pairs[0])


def test_indexed_camvid(tmp_path):
    ids = RNG.integers(0, 12, (7, 9), np.uint8)
    for split in ("test", "val"):
        picture(tmp_path / split / f"{split}_1.png", (7, 9))
        labels(tmp_path / f"{split}annot" / f"{split}_1.png", ids)
    assert np.array_equal(read(tmp_path), np.where(ids == 11, IGNORED, ids))
    assert [pair.name for pair in dataset(tmp_path).pairs] == ["test_1"] and dataset(tmp_path).classes.name == "camvid"
    assert dataset(tmp_path, split="val").pairs[0].name == "val_1"
    refusal("no split train", "test, val", of=lambda: dataset(tmp_path, split="train"))


def test_camvid_in_colours(tmp_path):
    rows = [row for row in facts.rows("codings.csv") if row["coding"] == "camvid-colours"]
    assert len(rows) == 32
    colours = np.array([list(map(int, row["value"].split())) for row in rows], np.uint8)[None]
    names = facts.class_sets()["camvid"].names
    wanted = [names.index(row["class"]) if row["class"] else IGNORED for row in rows]
    for image, label in ((tmp_path / "apart/701_StillsRaw_full", tmp_path / "apart/LabeledApproved_full"), (tmp_path / "flat", tmp_path / "flat")):
        picture(image / f"{STEM}.png", (1, 32))
        labels(label / f"{STEM}_L.png", colours)
    (tmp_path / "flat/label_colors.txt").write_text("64 128 64\tAnimal\n")
    for layout in ("apart", "flat"):
        assert read(tmp_path / layout).tolist() == [wanted]
        assert [pair.name for pair in dataset(tmp_path / layout).pairs] == [STEM]
    assert dict(zip((row["name"] for row in rows), wanted))["Void"] == IGNORED
    grouped = {row["name"]: row["class"] for row in rows}
    assert (grouped["Train"], grouped["LaneMkgsDriv"], grouped["TrafficLight"], grouped["Animal"]) == ("car", "road", "sign symbol", "pedestrian")
    colours[0, 5] = 1, 2, 3
    labels(tmp_path / "flat" / f"{STEM}_L.png", colours)
    refusal("row 0, column 5", "colour 1 2 3", f"{STEM}_L.png", of=lambda: read(tmp_path / "flat"))
    labels(tmp_path / "flat" / f"{STEM}_L.png", np.zeros((1, 32), np.uint8))
    refusal("of the kind L", "colours", of=lambda: read(tmp_path / "flat"))
    refusal("no image of camvid in val", of=lambda: dataset(tmp_path / "flat", split="val"))


def test_camvids_splits(shared):
    assert sorted(camvid_splits()) == sorted(path.stem for split in ("test", "val") for path in (shared / "camvid" / split).iterdir())
    assert sum(split == "test" for split in camvid_splits().values()) == 233


def test_real_camvid(shared):
    data = dataset(shared / "camvid")
    assert (data.name, len(data.pairs), len(dataset(shared / "camvid", split="val").pairs)) == ("camvid", 233, 101)
    for pair in data.pairs[::60]:
        found, raw = truth(data, pair), np.asarray(Image.open(pair.labels))
        assert set(np.unique(found)) <= {*range(11), IGNORED} and np.array_equal(found == IGNORED, raw == 11)
        assert np.array_equal(found[raw < 11], raw[raw < 11])


@pytest.mark.parametrize("ids", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, ids):
    # as helpers/labels.py has it: which of the 34 ids count, in the order of the train ids
    kept = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    values = np.array([[*range(34), 255]] if ids == "labelIds" else [[*range(19), 255]], np.uint8)
    wanted = [[kept.index(value) if value in kept else IGNORED for value in values[0]]] if ids == "labelIds" else values.tolist()
    for city, frame in (("ulm", "ulm_000010_000019"), ("aachen", "aachen_000000_000019"), ("aachen", "aachen_000000_000002")):
        picture(tmp_path / f"leftImg8bit/val/{city}/{frame}_leftImg8bit.png", values.shape)
        labels(tmp_path / f"gtFine/val/{city}/{frame}_gtFine_{ids}.png", values)
        labels(tmp_path / f"gtFine/val/{city}/{frame}_gtFine_instanceIds.png", values)
    data = dataset(tmp_path)
    assert [pair.name for pair in data.pairs] == ["aachen/aachen_000000_000002", "aachen/aachen_000000_000019", "ulm/ulm_000010_000019"]
    assert truth(data, data.pairs[0]).tolist() == wanted and len(data.classes.names) == 19
    refusal("no split train", of=lambda: dataset(tmp_path, split="train"))
    (tmp_path / f"gtFine/val/aachen/aachen_000000_000002_gtFine_{ids}.png").unlink()
    refusal("aachen_000000_000002_gtFine_", "no such file", "1 of 3", of=lambda: dataset(tmp_path))


def test_a_plain_folder_with_ids_of_every_form(folder):
    ids = np.array([[0, 1, 2, 9, 255, 0, 1, 2]] * 6, np.uint8)
    wanted = [[0, 1, 2, IGNORED, IGNORED, 0, 1, 2]] * 6
    palette, few = Image.fromarray(ids), Image.fromarray(ids % 3)
    palette.putpalette([90, 80, 70] * 256)
    few.putpalette([1, 2, 3, 200, 100, 0, 7, 7, 7])
    for image in (Image.fromarray(ids), Image.fromarray(np.where(ids == 255, 65535, ids).astype(np.uint16)), palette):
        image.save(folder / "labels/a.png")
        assert read(folder).tolist() == wanted
    assert palette.mode == "P"
    few.save(folder / "labels/a.png", bits=2)
    assert images.raw_modes(Image.open(folder / "labels/a.png")) == ["P;2"] and read(folder).tolist() == (ids % 3).tolist()


@pytest.mark.parametrize("text", [b"0,road\n7,sky\n300,tree\n", b"\xef\xbb\xbfid,name,r,g,b\r\n7,sky,1,2,3\r\n0,road,4,5,6\r\n300,tree,7,8,9\r\n\r\n"])
def test_a_class_file(folder, text):
    (folder / "classes.csv").unlink()
    (folder / "classes.txt").write_bytes(text)
    labels(folder / "labels/a.png", np.array([[0, 7, 300, 65535, 255, 0, 0, 0]] * 6, np.uint16))
    data = dataset(folder)
    assert data.classes.names == ("road", "sky", "tree") and truth(data, data.pairs[0])[0].tolist() == [0, 1, 2, IGNORED, IGNORED, 0, 0, 0]
    assert data.classes.colours == (((4, 5, 6), (1, 2, 3), (7, 8, 9)) if b"name" in text else facts.class_set("", 3).colours)


@pytest.mark.parametrize("text, words", [
    (b"0,road\n0,sky\n", "twice"), (b"0,road\n1,road\n", "twice"), (b"0,road\n1\n", "'1' is no class"), (b"-1,road\n", "'-1,road' is no class"),
    (b"0,road\n1,sky,300,0,0\n", "is no class"), (b"0,road\n70000,sky\n", "is no class"), (b"", "0 classes"), (b"0,ignored\n", "0 classes"),
    (b"0,stra\xdfe\n", "not UTF-8"), ("".join(f"{n},c{n}\n" for n in range(254)).encode(), "254 classes")])
def test_a_class_file_that_is_wrong(folder, text, words):
    (folder / "classes.csv").write_bytes(text)
    refusal("classes.csv", words, of=lambda: dataset(folder))


def test_pairs_by_a_list_with_windows_line_ends(folder):
    picture(folder / "b/B.jpg")
    labels(folder / "c/other.png", np.full((6, 8), 2, np.uint8))
    (folder / "pairs.csv").write_bytes(b"\xef\xbb\xbfimage,labels\r\nimages/a.png,labels/a.png\r\nb/B.jpg,c/other.png\r\n")
    data = dataset(folder)
    assert [pair.name for pair in data.pairs] == ["b/B", "images/a"] and (truth(data, data.pairs[0]) == 2).all()


@pytest.mark.parametrize("line, words", [
    ("images/a.png,../labels/a.png", "leaves the folder"), ("images/a.png,/etc/passwd", "leaves the folder"), ("images/a.png,c:\\a.png", "leaves the folder"),
    ("images/a.png,..\\a.png", "leaves the folder"), ("images/a.png", "IMAGE,LABELS"), ("images/no.png,labels/a.png", "no such file"),
    ("images/a.png,labels/no.png", "no such file"), ("images/a.png,labels/a.png\nimages/a.png,labels/a.png", "both called images/a")])
def test_a_list_of_pairs_that_is_wrong(folder, line, words):
    (folder / "pairs.csv").write_text(line + "\n")
    refusal(words, of=lambda: dataset(folder))


def test_the_layout_decides_or_says_what_it_looked_for(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    refusal("testannot/", "gtFine/", "classes.csv", of=lambda: dataset(empty))
    refusal("holds no cityscapes", "gtFine/", of=lambda: dataset(folder, "cityscapes"))
    refusal("'kitti'", "camvid, cityscapes, folder", of=lambda: dataset(folder, "kitti"))
    refusal("no such folder", of=lambda: dataset(folder / "nowhere"))
    refusal("no split", of=lambda: dataset(folder, split="val"))
    for name in ("leftImg8bit", "gtFine"):
        (folder / name).mkdir()
    refusal("could be cityscapes", "or folder", "--dataset", of=lambda: dataset(folder))
    assert dataset(folder, "folder").name == "folder"


def test_a_missing_label_two_images_of_one_stem_and_no_image(folder):
    picture(folder / "images/b.png")
    refusal("labels/b.png", "no such file", "1 of 2", of=lambda: dataset(folder))
    (folder / "images/b.png").rename(folder / "images/a.jpg")
    refusal("a.jpg", "a.png", "both called a", of=lambda: dataset(folder))
    for path in (folder / "images").iterdir():
        path.unlink()
    (folder / "images/._a.png").write_bytes(b"what a Mac leaves behind")
    refusal("no image of folder", of=lambda: dataset(folder))


def bomb():
    return png(20000, 20000, 8, 0, b"")


@pytest.mark.parametrize("change, words", [
    (lambda path: labels(path, np.zeros((5, 8), np.uint8)), ["is 5x8", "is 6x8"]),
    (lambda path: labels(path, np.full((6, 8), 3, np.uint8)), ["row 0, column 0", "id 3", "classes.csv"]),
    (lambda path: labels(path, np.full((6, 8), 300, np.uint16)), ["id 300"]),
    (lambda path: path.write_bytes(path.read_bytes()[:60]), ["a.png"]),
    (lambda path: labels(path, np.zeros((6, 8, 3), np.uint8)), ["RGB", "ids are expected"]),
    (lambda path: labels(path, np.zeros((6, 8, 4), np.uint8)), ["alpha"]),
    (lambda path: labels(path, np.zeros((6, 8, 2), np.uint8)), ["alpha"]),
    (lambda path: labels(path, np.zeros((6, 8), bool)), ["of the kind 1"]),
    (lambda path: path.write_bytes(png(8, 6, 2, 0, b"\0\x1b\x1b" * 6)), ["of the kind L;2"]),
    (lambda path: labels(path, np.zeros((6, 8), np.uint8), format="JPEG"), ["JPEG"]),
    (lambda path: path.write_bytes(bomb()), ["decompression bomb"]),
    (lambda path: path.write_bytes(b""), ["not an image"]),
    (lambda path: path.write_bytes(b"GIF89a"), ["a.png"]),
    (lambda path: labels(path, np.zeros((6, 8), np.uint8), exif=turned(6)), ["EXIF"])])
def test_labels_that_are_wrong(folder, change, words):
    change(folder / "labels/a.png")
    refusal("labels/a.png", *words, of=lambda: read(folder))


def turned(orientation):
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    return exif


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_an_image_that_the_camera_turned_does_not_lie_on_its_labels(folder, kind, orientation):
    """Turned by 180 degrees its size tells nothing."""
    (folder / "images/a.png").unlink()
    picture(folder / f"images/a.{kind}", exif=turned(orientation))
    refusal(f"images/a.{kind}", "EXIF", of=lambda: read(folder))
    picture(folder / f"images/a.{kind}", exif=turned(1))
    assert read(folder).shape == (6, 8)


def test_an_image_with_palette_alpha_16_bits_or_exif(tmp_path):
    path, pixels = tmp_path / "a.png", RNG.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels // 64 * 64).quantize(64).save(path)
    assert Image.open(path).mode == "P" and np.array_equal(images.read(path), pixels // 64 * 64)
    labels(path, np.dstack([pixels, np.full((6, 8), 255, np.uint8)]))
    assert np.array_equal(images.read(path), pixels)
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[3, 4] = 254
    labels(path, np.dstack([pixels, alpha]))
    refusal("transparent in places", "flatten", of=lambda: images.read(path))
    Image.fromarray(pixels).quantize(16).save(path, transparency=3)
    refusal("transparent in places", of=lambda: images.read(path))
    labels(path, np.zeros((6, 8), np.uint16))
    refusal("more than 8 bits", of=lambda: images.read(path))
    path.write_bytes(png(8, 6, 16, 2, bytes(49 * 6)))
    refusal("more than 8 bits", of=lambda: images.read(path))
    labels(path, pixels, exif=turned(6))
    assert np.array_equal(images.read(path), np.rot90(pixels, -1))
    path.write_bytes(bomb())
    refusal("decompression bomb", of=lambda: images.read(path))


def test_whatever_is_cut_off_or_changed_in_a_file_is_one_line(folder):
    image, label = folder / "images/a.png", folder / "labels/a.png"
    for path, use in ((image, lambda: images.read(image)), (label, lambda: read(folder))):
        whole = path.read_bytes()
        for length in range(0, len(whole) - 20, 3):
            path.write_bytes(whole[:length])
            refusal("a.png", of=use)
        for place in range(0, len(whole), 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:])
            try:
                use()
            except RtsegError as error:
                assert "\n" not in error.what
        path.write_bytes(whole)


def test_what_cannot_be_opened(folder):
    label = folder / "labels/a.png"
    label.unlink()
    label.mkdir()
    refusal("a.png", "no such file", of=lambda: dataset(folder))
    data = DataSet("folder", folder, None, (), ((0, 0),))
    refusal("Is a directory", of=lambda: truth(data, Pair("a", folder / "images/a.png", label)))
    refusal("No such file", of=lambda: truth(data, Pair("a", folder / "images/no.png", label)))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="whoever may read everything is refused nothing")
def test_what_may_not_be_read(folder):
    data = dataset(folder)
    for name, use in (("labels/a.png", lambda: truth(data, data.pairs[0])), ("classes.csv", lambda: dataset(folder)), ("labels", lambda: dataset(folder)),
                      ("images", lambda: dataset(folder)), (".", lambda: dataset(folder)), ("images", lambda: listed(folder / "images"))):
        mode = (folder / name).stat().st_mode
        (folder / name).chmod(0)
        try:
            refusal("Permission denied", of=use)
        finally:
            (folder / name).chmod(mode)


def test_images_of_a_folder_in_the_order_of_their_numbers(tmp_path):
    for name in ("f10.png", "f2.JPG", "f1.png", ".f3.png", "notes.txt"):
        picture(tmp_path / "frames" / name, format="PNG") if name != "notes.txt" else (tmp_path / "frames/notes.txt").write_text("")
    (tmp_path / "frames/below").mkdir()
    assert [path.name for path in listed(tmp_path / "frames")] == ["f1.png", "f2.JPG", "f10.png"]
    refusal("below has no image", of=lambda: listed(tmp_path / "frames/below"))
    refusal("nothing.txt", "No such file", of=lambda: listed(tmp_path / "nothing.txt"))


def test_a_sample_is_the_same_wherever_the_images_are(tmp_path):
    for place in ("here", "there"):
        for number in range(20):
            path = tmp_path / place / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
    drawn = [path.name for path in listed(tmp_path / "here", 5)]
    assert drawn == [path.name for path in listed(tmp_path / "there", 5)] and drawn == sorted(drawn, key=lambda name: int(name[:-4]))
    assert drawn != [path.name for path in listed(tmp_path / "here", 5, seed=1)]
    assert set(drawn) < {path.name for path in listed(tmp_path / "here", 9)}
    assert drawn == ["0.png", "1.png", "8.png", "17.png", "18.png"]  # what a calibration list has is drawn again by any version
    for count in (0, 21, -1):
        refusal("20 images", of=lambda: listed(tmp_path / "here", count))


def test_lists_of_every_form_name_the_same_images(tmp_path):
    paths = [picture(tmp_path / "frames" / name) for name in ("a, b.png", "c.png")]
    forms = {"plain.txt": "c.png\na, b.png\n", "windows.txt": "\ufeffc.png\r\n\r\na, b.png\r\n", "bare.csv": '"a, b.png"\nc.png\n',
             "named.csv": '\ufeffname\r\n"a, b.png"\r\nc.png\r\n'}
    for name, text in forms.items():
        (tmp_path / name).write_bytes(text.encode())
        assert listed(tmp_path / name, folder=tmp_path / "frames") == paths, name
    write_list(tmp_path / "list.csv", paths[::-1])
    rows = list(csv.DictReader((tmp_path / "list.csv").open(newline="")))
    assert rows == [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    windows = (tmp_path / "list.csv").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "frames/list.csv").write_bytes(windows)
    assert listed(tmp_path / "frames/list.csv") == listed(tmp_path / "list.csv", folder=tmp_path / "frames") == paths
    picture(paths[1])
    refusal("c.png", "sha256 differs", of=lambda: listed(tmp_path / "frames/list.csv"))
    refusal("one name", of=lambda: write_list(tmp_path / "list.csv", [*paths, picture(tmp_path / "other/c.png")]))


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "b/../../a.png", "C:\\a.png", "..\\a.png"])
@pytest.mark.parametrize("form", ["list.txt", "list.csv"])
def test_a_list_stays_in_its_folder(tmp_path, name, form):
    picture(tmp_path / "a.png")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / form).write_text(f"{name}\n")
    refusal(form, "leaves the folder", of=lambda: listed(tmp_path / "frames" / form))


@pytest.mark.parametrize("text, words", [(b"a.png\na.png\n", "twice"), (b"b.png\n", "no such file"), (b"\xff\xfe", "not UTF-8"), (b"", "no image")])
def test_a_list_that_is_wrong(tmp_path, text, words):
    picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes(text)
    refusal("list.txt", words, of=lambda: listed(tmp_path / "list.txt"))


def test_the_sizes_that_papers_evaluate_at():
    assert evaluated("bisenetv2-l", "cityscapes").input == (512, 1024) and evaluated("bisenetv1-r101", "cityscapes").input == (768, 1536)
    assert evaluated("DDRNet", "cityscapes").input == evaluated("sgcpnet", "cityscapes").input == (1024, 2048)
    assert evaluated("sgcpnet", "camvid").input == (720, 960) and evaluated("sgcpnet", "folder") is None and evaluated("mine", "camvid") is None
    assert {one.paper for one in evaluations()} == {figure.paper for figure in facts.papers()} and all(one.source for one in evaluations())


def test_codings_name_classes_that_are_there():
    assert all(row["source"] for row in facts.rows("codings.csv"))
    for name, classes in (("camvid-ids", 11), ("camvid-colours", 11), ("cityscapes-ids", 19), ("cityscapes-train-ids", 19)):
        values = [value for value, _ in coding(name)]
        assert {number for _, number in coding(name)} == {None, *range(classes)} and len(values) == len(set(values))
    assert packed(7) == 7 and packed(1, 2, 3) == 0x010203
