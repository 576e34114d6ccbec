"""The page of errors and the pictures on it: what is red, what is under strokes, which comes first; and that names are harmless."""
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from rtseg_deploy import accuracy, datasets, evaluate, facts, gallery
from rtseg_deploy.datasets import IGNORED

CAMVID = facts.class_sets()["camvid"]
EVIL = 'a<script>alert(1)</script>&"b #1%'
SAID = {"protocol": {"miou": "mean", "boundary_f": "within"}, "notes": ["a <note>"], "stages": {}, "waited_share": 0.0}


def case(wrong_rows):
    """(pixels, truth, labels) of 60 x 80: so many rows wrong from the top, the last ten ignored."""
    truth = np.repeat(np.arange(60, dtype=np.uint8)[:, None] // 20, 80, 1)
    labels = truth.copy()
    labels[:wrong_rows] = 8
    truth[50:] = IGNORED
    return np.random.default_rng(0).integers(90, 160, (60, 80, 3), np.uint8), truth, labels


@pytest.fixture
def page(tmp_path):
    """A function: writes the gallery of some cases, and gives its HTML."""
    def written(cases):
        total, pictures = None, []
        for name, (pixels, truth, labels) in cases.items():
            one = accuracy.counts(truth, labels, 11)
            total = total + one if total else one
            gallery.draw(tmp_path, "k", name, pixels, truth, labels, CAMVID)
            pictures.append((name, truth.shape, accuracy.scores(one, CAMVID.names)))
        data = datasets.DataSet("camvid", tmp_path, CAMVID, (), (), split="test")
        return gallery.write(tmp_path, "k", pictures, data, {**SAID, "scores": accuracy.scores(total, CAMVID.names)}, "net 60x80").read_text()
    return written


class Parsed(HTMLParser):
    """The tags that open, and the text."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.opened.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.opened if name == tag]


def test_what_is_wrong_is_red_and_what_does_not_count_is_under_strokes():
    pixels, truth, labels = case(15)
    found = gallery.errors(pixels, truth, labels).astype(int)
    red = (found[..., 0] > 1.8 * found[..., 1]) & (found[..., 0] > 1.8 * found[..., 2])
    assert red[:15].all() and not red[15:].any(), "the ignored rows are never red"
    assert (found[15:, :, 0] == found[15:, :, 1]).all() and (found[15:, :, 0] == found[15:, :, 2]).all(), "grey"
    ignored = found[50:, :, 0]
    assert ignored.max() < found[15:50, :, 0].min() and np.isclose((ignored < ignored.max() / 2).mean(), 2 / gallery.HATCH, atol=0.1)
    labels[50:] = 3
    assert (gallery.errors(pixels, truth, labels) == found).all(), "whatever is labelled there"


def test_pictures_keep_their_size_and_classes(tmp_path):
    pixels, truth, labels = case(15)
    assert not gallery.drawn(tmp_path, "k", "a/b")
    gallery.draw(tmp_path, "k", "a/b", pixels, truth, labels, CAMVID)
    assert gallery.drawn(tmp_path, "k", "a/b") and not gallery.drawn(tmp_path, "another", "a/b")
    for kind, values in (("truth", truth), ("labels", labels)):
        image = Image.open(tmp_path / gallery.file_of("k", "a/b", kind))
        assert (np.asarray(image) == values).all()
        colours = np.asarray(image.convert("RGB"))
        assert (colours[30, 0] == CAMVID.colours[values[30, 0]]).all()
    assert not np.asarray(Image.open(tmp_path / gallery.file_of("k", "a/b", "truth")).convert("RGB"))[55].any(), "ignored is black"
    assert Image.open(tmp_path / gallery.file_of("k", "a/b", "errors")).size == (80, 60) < Image.open(tmp_path / gallery.file_of("k", "a/b", "overlay")).size
    assert not list(tmp_path.rglob("*.part"))


def test_the_worst_come_first_with_their_scores(page):
    found = page({"good": case(0), "worst": case(30), "bad": case(8)})
    names = re.findall(r'<h3><span class="no">\d+</span> (\w+)</h3>', found)
    assert names == ["worst", "bad", "good"]
    assert "worst class sky (0.00 %)" in found and "100.00 %</b> mIoU, 100.00 % of pixels right" in found


def test_a_picture_without_truth_is_last_and_has_no_score(page):
    pixels, truth, labels = case(0)
    found = page({"empty": (pixels, np.full_like(truth, IGNORED), labels), "bad": case(8)})
    assert found.index(">2</span> empty") and "<b>– %</b>" in found


def test_names_are_escaped_and_links_lead_to_the_pictures(page, tmp_path):
    text = page({EVIL: case(8), "b": case(0)})
    found = Parsed(text)
    assert not found.of("script") and EVIL in "".join(found.texts) and "A &lt;note&gt;" in text
    links = [one["src"] for one in found.of("img")] + [one["href"] for one in found.of("a")]
    assert not any(re.search("[ #\"<]", link) for link in links)
    assert len(links) == 2 * (4 + 5) and all(not re.match(r"\w+:|/", link) and (tmp_path / unquote(link)).is_file() for link in links)


def test_the_page_is_for_every_reader(page):
    """Alternative texts, pictures that load as they come into sight, a phone's width, light and dark, and nothing from elsewhere."""
    text = page({"a": case(8)})
    found = Parsed(text)
    assert all(one["alt"] and one["loading"] == "lazy" and (one["width"], one["height"]) == ("80", "60") for one in found.of("img"))
    assert len({one["alt"] for one in found.of("img")}) == 4
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.of("meta") and found.of("html") == [{"lang": "en"}]
    assert "prefers-color-scheme: dark" in text and "max-width: 46rem" in text and "http" not in text
    assert "#808080" in text and "building" in text


def test_a_name_that_is_no_file_name_leaves_the_folder_nowhere(tmp_path):
    """Names are of files that are there, so this needs a data set that lies."""
    pixels, truth, labels = case(0)
    with pytest.raises(evaluate.RtsegError, match="leaves the folder"):
        gallery.draw(tmp_path / "gallery", "k", "../../x", pixels, truth, labels, CAMVID)
    assert not list(Path(tmp_path).rglob("*x*"))
