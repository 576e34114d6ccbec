"""How far labels are true: intersection over union, pixel accuracy and how well boundaries lie, from counts that add up over images.

IoU of a class is TP / (TP + FP + FN) over all pixels of all images together; pixels whose truth is ignored take no part, whatever was labelled.
  miou       mean over the classes that are in the truth or among the labels: Cityscapes' script leaves out a class where TP + FP + FN is 0
             (mcordts/cityscapesScripts evalPixelLevelSemanticLabeling.py, getIouScoreForLabel and getScoreAverage)
  miou_all   mean over all classes, absent ones as 0: SegNet's script divides by their number (alexgkendall/SegNet-Tutorial compute_test_results.m)
The boundary score is Csurka et al.'s (BMVC 2013, "What is a good evaluation measure for semantic segmentation?"), with these choices:
  boundary   of a class: its pixels with a neighbour above, below, left or right of another class; neither the image's border nor ignored
             pixels make one, and where the truth is ignored the labels are taken as ignored too
  near       a boundary pixel of the class at most `tolerance` away, Euclidean: 0.75 % of the diagonal, rounded (half up, at least 1)
  F          2 P R / (P + R): P the share of labelled boundary pixels near a true one, R that of true ones near a labelled one. The pixels are
             summed over all images before P and R are taken, where Csurka et al. take F of each image and DAVIS of each object: sums can be
             added up, and an image with little boundary counts little. A class whose boundary is on one side only has 0; on neither, None.
"""
from dataclasses import dataclass
from math import hypot

import numpy as np

from .datasets import IGNORED
from .errors import RtsegError
from .records import size

TOLERANCE = 3 / 400                 # of the diagonal, as Csurka et al. have it


@dataclass(frozen=True, eq=False)
class Counts:
    confusion: np.ndarray           # classes x classes, int64: [truth, label]
    boundary: np.ndarray            # classes x 4, int64: boundary pixels labelled, of them near a true one, true ones, of them near a labelled one

    def __add__(self, other):
        return Counts(self.confusion + other.confusion, self.boundary + other.boundary)


def counts(truth, labels, classes, tolerance=None):
    """Counts of one image: truth, H x W with IGNORED, against labels, H x W; tolerance in pixels. Raises RtsegError."""
    if truth.shape != labels.shape:
        raise RtsegError(f"labels are {size(labels.shape)}, and the truth {size(truth.shape)}: labels are never resized here")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise RtsegError(f"a label is {labels.max() if labels.min() >= 0 else labels.min()}, and there are {classes} classes")
    # a row for each value that the truth may have: ignored pixels need no mask
    table = np.bincount(np.ravel(truth).astype(np.intp) * classes + np.ravel(labels), minlength=(IGNORED + 1) * classes).reshape(-1, classes)
    if table[classes:IGNORED].any():
        raise RtsegError(f"the truth has a class that is not one of {classes}")
    return Counts(table[:classes].astype(np.int64), boundary(truth, labels, classes, tolerance))


def scores(counts, names):
    """What the counts say, as fractions: see the module's text; None where there is nothing to take a fraction of."""
    hits, union = np.diag(counts.confusion), counts.confusion.sum(0) + counts.confusion.sum(1) - np.diag(counts.confusion)
    iou = [share(*pair) for pair in zip(hits, union)]
    total = int(counts.confusion.sum())
    boundaries = [f_score(*row) for row in counts.boundary]
    return {"miou": mean(iou), "miou_all": float(sum(filter(None, iou)) / len(iou)) if total else None, "iou": dict(zip(names, iou)),
            "pixel_accuracy": share(hits.sum(), total), "boundary_f": mean(boundaries), "boundary": dict(zip(names, boundaries)), "pixels": total}


def share(part, whole):
    return float(part / whole) if whole else None


def mean(values):
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def f_score(labelled, labelled_near, true, true_near):
    if not labelled and not true:
        return None
    precision, recall = share(labelled_near, labelled) or 0, share(true_near, true) or 0
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def edges(truth):
    """bool, H x W: pixels with a neighbour above, below, left or right of another class, where neither is ignored."""
    found = np.zeros(truth.shape, bool)
    kept = truth != IGNORED
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (truth[here] != truth[there]) & kept[here] & kept[there]
        found[here] |= differ
        found[there] |= differ
    return found


def near(truth, radius):
    """bool, H x W: pixels at most `radius` away from one of edges(truth), Euclidean."""
    height, width = truth.shape
    reach = int(radius)
    # how many edges lie left of a column; the margins are wide enough for every shift below
    before = np.zeros((height + 2 * reach, width + 2 * reach + 1), np.int32)
    before[reach:reach + height, reach + 1:reach + 1 + width] = edges(truth)
    before = before.cumsum(1, dtype=np.int32)
    found = np.zeros(truth.shape, bool)
    for row, half in disc(radius):
        rows = before[reach + row:reach + row + height]
        found |= rows[:, reach + half + 1:reach + half + 1 + width] > rows[:, reach - half:reach - half + width]
    return found


def disc(radius):
    """(row, how far it goes to each side) of each row of a disc, from the middle outward."""
    return [(row, int((radius ** 2 - row ** 2) ** 0.5)) for row in sorted(range(-int(radius), int(radius) + 1), key=abs)]


def boundary(truth, labels, classes, tolerance=None):
    """Counts.boundary of one image."""
    tolerance = max(1, int(TOLERANCE * hypot(*truth.shape) + 0.5)) if tolerance is None else tolerance
    labels = np.where(truth == IGNORED, IGNORED, labels)
    margin = int(tolerance)
    height, width = (side + 2 * margin for side in truth.shape)
    places, numbers = [], []
    for one in (labels, truth):
        rows, columns = np.nonzero(edges(one))
        number = one[rows, columns].astype(np.int64)
        place = (number * height + rows + margin) * width + columns + margin  # each class has a sheet of its own, with margins
        order = np.argsort(place, kind="stable")
        places.append(place[order])
        numbers.append(number[order])
    columns = []
    for here, there, number in ((places[0], places[1], numbers[0]), (places[1], places[0], numbers[1])):
        met = beside(here, there, width, tolerance)
        columns += [np.bincount(number, minlength=classes), np.bincount(number[met], minlength=classes)]
    return np.stack(columns, 1).astype(np.int64)


def beside(places, others, width, tolerance):
    """Which of the places, sorted numbers of pixels in rows of that width, have one of the others at most `tolerance` away."""
    found, left = np.zeros(len(places), bool), np.arange(len(places))
    ended = np.append(others, np.iinfo(np.int64).max)
    for row, half in disc(tolerance):
        first = places[left] + row * width - half
        met = ended[np.searchsorted(others, first)] <= first + 2 * half
        found[left[met]] = True
        left = left[~met]
    return found
