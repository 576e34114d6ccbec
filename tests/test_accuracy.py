"""Accuracy against implementations that share nothing with ours, on data sets that the tests draw and on random labels."""
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rtseg_deploy import accuracy
from rtseg_deploy.accuracy import counts, edges, near, scores
from rtseg_deploy.datasets import IGNORED, dataset, truth
from rtseg_deploy.errors import RtsegError

NAMES = tuple("abcdefghijklmnopqrs")


@st.composite
def labelled(draw):
    """(truth, labels, classes): blobs and noise, ignored pixels, classes that are absent from either."""
    height, width, classes = draw(st.integers(1, 14)), draw(st.integers(1, 14)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    of_truth, of_labels = rng.integers(1, classes + 1, 2)
    coarse = draw(st.integers(1, 5))
    enlarged = np.kron(rng.integers(0, of_truth, (height, width)), np.ones((coarse, coarse), int))[:height, :width].astype(np.uint8)
    labels = np.where(rng.random((height, width)) < draw(st.sampled_from([0, 0.1, 1])), rng.integers(0, of_labels, (height, width)), enlarged)
    return np.where(rng.random((height, width)) < draw(st.sampled_from([0, 0.3, 1])), IGNORED, enlarged).astype(np.uint8), labels.astype(np.uint8), classes


def independent(true, labels, classes):
    """(miou over present classes, miou over all, pixel accuracy) by scikit-learn, from lists of pixels."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn (extra dev) is not installed")
    kept = true != IGNORED
    true, labels = true[kept], labels[kept]
    present = sorted({*true.tolist(), *labels.tolist()})
    each = metrics.jaccard_score(true, labels, labels=present, average=None, zero_division=0)
    return each.mean(), each.sum() / classes, metrics.accuracy_score(true, labels)


@given(labelled())
def test_miou_and_pixel_accuracy_are_scikit_learns(case):
    true, labels, classes = case
    found = scores(counts(true, labels, classes), NAMES[:classes])
    if (true == IGNORED).all():
        assert found["miou"] is found["miou_all"] is found["pixel_accuracy"] is found["boundary_f"] is None and found["pixels"] == 0
        return
    wanted = independent(true, labels, classes)
    assert np.allclose([found["miou"], found["miou_all"], found["pixel_accuracy"]], wanted, rtol=0, atol=1e-9)


def slow_edges(one, row, column):
    """Whether a pixel has a neighbour of another class, read off the definition."""
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    inside = [one[r, c] for r, c in around if 0 <= r < one.shape[0] and 0 <= c < one.shape[1]]
    return one[row, column] != IGNORED and any(other not in (one[row, column], IGNORED) for other in inside)


def close_by(points, others, tolerance):
    return sum(any((r - y) ** 2 + (c - x) ** 2 <= tolerance ** 2 for y, x in others) for r, c in points)


def slow_boundary(true, labels, classes, tolerance):
    labels = np.where(true == IGNORED, IGNORED, labels)
    points = [[(r, c, one[r, c]) for r in range(one.shape[0]) for c in range(one.shape[1]) if slow_edges(one, r, c)] for one in (labels, true)]
    rows = []
    for number in range(classes):
        mine, theirs = ([(r, c) for r, c, of in side if of == number] for side in points)
        rows.append([len(mine), close_by(mine, theirs, tolerance), len(theirs), close_by(theirs, mine, tolerance)])
    return rows


@given(labelled(), st.sampled_from([0, 1, 2, 3, 5, 2.5]))
def test_boundaries_are_what_the_definition_says(case, tolerance):
    true, labels, classes = case
    assert counts(true, labels, classes, tolerance).boundary.tolist() == slow_boundary(true, labels, classes, tolerance)


@given(labelled(), st.integers(0, 6))
def test_near_is_what_the_definition_says(case, radius):
    true = case[0]
    points = [(r, c) for r, c in np.ndindex(true.shape) if slow_edges(true, r, c)]
    assert edges(true).sum() == len(points) and all(edges(true)[point] for point in points)
    wanted = [any((r - y) ** 2 + (c - x) ** 2 <= radius ** 2 for y, x in points) for r, c in np.ndindex(true.shape)]
    assert near(true, radius).ravel().tolist() == wanted


@given(st.lists(labelled(), min_size=1, max_size=4))
def test_counts_of_images_add_up(cases):
    """In any order: what is interrupted and resumed gives the same."""
    classes = max(case[2] for case in cases)
    one_by_one = [counts(true, labels, classes, 2) for true, labels, _ in cases]
    forward, backward = sum(one_by_one[1:], one_by_one[0]), sum(one_by_one[-2::-1], one_by_one[-1])
    assert scores(forward, NAMES[:classes]) == scores(backward, NAMES[:classes])
    flat = [np.concatenate([case[side].ravel() for case in cases]) for side in (0, 1)]
    assert np.array_equal(forward.confusion, counts(flat[0][None], flat[1][None], classes).confusion)
    assert forward.confusion.dtype == forward.boundary.dtype == np.int64


def test_scores_by_hand():
    true = np.array([[0, 0, 1, 1], [0, 0, 1, IGNORED]], np.uint8)
    found = scores(counts(true, np.array([[0, 0, 0, 1], [0, 0, 1, 2]], np.uint8), 4, 0), NAMES[:4])
    # a: TP 4, FP 1; b: TP 2, FN 1; c is only where nothing counts; d is nowhere
    assert found["iou"] == {"a": 4 / 5, "b": 2 / 3, "c": None, "d": None}
    assert found["miou"] == (4 / 5 + 2 / 3) / 2 and found["miou_all"] == (4 / 5 + 2 / 3) / 4 and found["pixel_accuracy"] == 6 / 7 and found["pixels"] == 7
    # boundary, labelled: a at (0, 2) and (1, 1), b at (0, 3) and (1, 2); true: a at (0, 1) and (1, 1), b at (0, 2) and (1, 2)
    assert found["boundary"] == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert found["boundary_f"] == 0.5


def test_a_class_that_is_labelled_and_not_there_counts_as_0():
    """In Cityscapes' mean, which leaves out what is in neither; SegNet's has 0 for both."""
    true, labels = np.zeros((2, 4), np.uint8), np.array([[0, 0, 0, 0], [0, 0, 2, 2]], np.uint8)
    found = scores(counts(true, labels, 4), NAMES[:4])
    assert found["iou"] == {"a": 6 / 8, "b": None, "c": 0, "d": None} and found["miou"] == 6 / 16 and found["miou_all"] == 6 / 32
    assert found["boundary"] == {"a": 0, "b": None, "c": 0, "d": None}


def test_what_is_ignored_takes_no_part():
    rng = np.random.default_rng(1)
    true = np.kron(rng.integers(0, 4, (6, 6)), np.ones((5, 5), int)).astype(np.uint8)
    labels = np.roll(true, 1, 1)
    hidden = true == 3
    true[hidden] = IGNORED
    first = counts(true, labels, 5)
    labels[hidden] = rng.integers(0, 5, hidden.sum())
    second = counts(true, labels, 5)
    assert np.array_equal(first.confusion, second.confusion) and np.array_equal(first.boundary, second.boundary)
    assert counts(np.where(true == 1, 1, IGNORED), labels, 5).boundary[:, 2].tolist() == [0] * 5, "a boundary with what is ignored is none"


def test_the_tolerance_is_three_quarters_of_a_percent_of_the_diagonal():
    """At 360x480 that is 4.5 pixels, rounded to 5; at 1024x2048 17."""
    for shape, reach in (((360, 480), 5), ((1024, 2048), 17), ((8, 8), 1)):
        true = np.zeros(shape, np.uint8)
        true[:, shape[1] // 2:] = 1
        for shift, good in ((reach, True), (reach + 1, False)):
            labels = np.zeros(shape, np.uint8)
            labels[:, shape[1] // 2 + shift:] = 1
            assert (scores(counts(true, labels, 2), "ab")["boundary_f"] == 1) is good, (shape, shift)


@pytest.mark.parametrize("true, labels, words", [
    (np.zeros((4, 6)), np.zeros((6, 4)), "labels are 6x4, and the truth 4x6"), (np.zeros((4, 6)), np.full((4, 6), 3), "a label is 3, and there are 3 classes"),
    (np.full((4, 6), IGNORED), np.full((4, 6), IGNORED), "a label is 255"), (np.full((4, 6), 3), np.zeros((4, 6)), "the truth has a class")])
def test_labels_that_cannot_be_compared(true, labels, words):
    with pytest.raises(RtsegError, match=re.escape(words)):
        counts(true.astype(np.uint8), labels.astype(np.uint8), 3)
    with pytest.raises(RtsegError, match="a label is -1"):
        counts(np.zeros((2, 2), np.uint8), np.full((2, 2), -1), 3)


def drawn(rng, shape, classes):
    """A truth with a class absent and a labelling of it that is wrong in places, with another class that is nowhere true."""
    true = np.kron(rng.integers(0, classes - 2, (5, 6)), np.ones((9, 9), int))[:shape[0], :shape[1]]
    wrong = rng.random(shape) < 0.2
    return true, np.where(wrong, rng.integers(0, classes - 1, shape), true).astype(np.uint8)


def cityscapes_format(folder, name, ids, rng):
    kept = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])
    ignored = np.array([*(n for n in range(34) if n not in kept), 255])
    raw = np.where(ids == IGNORED, rng.choice(ignored, ids.shape), kept[np.minimum(ids, 18)])
    return folder / f"leftImg8bit/val/ulm/{name}_leftImg8bit.png", folder / f"gtFine/val/ulm/{name}_gtFine_labelIds.png", raw.astype(np.uint8)


def camvid_format(folder, name, ids, rng):
    return folder / f"test/{name}.png", folder / f"testannot/{name}.png", np.where(ids == IGNORED, 11, ids).astype(np.uint8)


def sixteen_bits(folder, name, ids, rng):
    folder.mkdir(exist_ok=True)
    (folder / "classes.csv").write_text("".join(f"{1000 + 7 * n},c{n}\r\n" for n in range(13)))
    return folder / f"images/{name}.png", folder / f"labels/{name}.png", np.where(ids == IGNORED, 65535, 1000 + 7 * ids).astype(np.uint16)


@pytest.mark.parametrize("form, classes", [(cityscapes_format, 19), (camvid_format, 11), (sixteen_bits, 13)])
def test_whole_data_sets_against_scikit_learn(tmp_path, form, classes):
    """Through the files: ignored pixels, absent classes, odd sizes, ids of 8 and 16 bits."""
    rng, wanted, total = np.random.default_rng(classes), [[], []], None
    labels_of = {}
    for number, shape in enumerate([(37, 53), (45, 31), (1, 7), (40, 54)]):
        true, labels = drawn(rng, shape, classes)
        true = np.where(rng.random(shape) < 0.1 if number else np.ones(shape, bool), IGNORED, true)
        image, label, raw = form(tmp_path / "data", f"f{number}", true, rng)
        for path, array in ((image, np.zeros((*shape, 3), np.uint8)), (label, raw)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        labels_of[f"f{number}"] = labels
        for side, one in zip(wanted, (true, labels)):
            side.append(one.ravel())
    data = dataset(tmp_path / "data")
    for pair in data.pairs:
        one = counts(truth(data, pair), labels_of[pair.name.split("/")[-1]], len(data.classes.names))
        total = total + one if total else one
    found = scores(total, data.classes.names)
    wanted = independent(*map(np.concatenate, wanted), classes)
    assert np.allclose([found["miou"], found["miou_all"], found["pixel_accuracy"]], wanted, rtol=0, atol=1e-9)
    assert found["miou"] > found["miou_all"] and list(found["iou"].values()).count(None) == 1 and list(found["iou"].values()).count(0) == 1


def test_counting_is_quick_enough_to_be_beside_a_network():
    """On an idle core it takes 5 ms at 360x480 and 60 ms at 1024x2048; the bound is only against another order."""
    rng = np.random.default_rng(0)
    true = np.kron(rng.integers(0, 19, (32, 64)), np.ones((32, 32), int)).astype(np.uint8)
    labels = np.roll(true, 3, 1)
    times = []
    for _ in range(3):
        start = time.process_time()
        accuracy.counts(true, labels, 19)
        times.append(time.process_time() - start)
    assert min(times) < 1
