"""How far a link of a chain is from the first one, on one picture and on all of them, and whether that is too far.

The bars were set by planting faults, see docs/chain.md.
"""
from dataclasses import dataclass, fields, replace

import numpy as np

from . import accuracy, proof


@dataclass(frozen=True)
class Bar:
    """What a link may depart by."""
    delta: float                    # of a logit, as a fraction of the logits' standard deviation in the picture
    labels: float                   # share of a picture's labels that differ, ties left out
    margin: float                   # of the logits' scale: where the first link prefers its label by less it is a tie
    drop: float                     # points of mIoU, up or down


BARS = {"fp32": Bar(1e-4, 1e-4, 1e-3, 0.01), "fp16": Bar(5e-2, 1e-3, 1e-2, 0.05), "bf16": Bar(0.5, 1e-2, 5e-2, 0.3), "int8": Bar(3.0, 3e-2, 1e-1, 0.5)}
BOUNDARY = 2                        # pixels to either side of where labels of the first link meet; accuracy.edges is the first of them


def bar_of(precision, **asked):
    """The bar of a precision, with what was asked for instead."""
    return replace(BARS[precision], **{field.name: asked[field.name] for field in fields(Bar) if asked.get(field.name) is not None})


def maps(reference, labels, margin, boundary=BOUNDARY):
    """(where labels differ, where that is a tie, where a boundary is): bool H x W each. labels: 1 x H x W of an Answer."""
    wanted = reference.labels
    if labels.shape != wanted.shape:
        return np.ones(wanted.shape[1:], bool), np.zeros(wanted.shape[1:], bool), accuracy.near(wanted[0], boundary - 1)
    differs = labels != wanted
    tied = differs & proof.tied(reference.logits, labels, margin * scale_of(reference))
    return differs[0], tied[0], accuracy.near(wanted[0], boundary - 1)


def scale_of(reference):
    return max(float(reference.logits.std()), 1e-12)


def departure(reference, answer, margin, boundary=BOUNDARY):
    """A row of plain numbers: of logits (None where there are none), and counts of pixels: all, at boundaries, and those of each that differ."""
    differs, tied, edge = maps(reference, answer.labels, margin, boundary)
    largest = None if answer.logits is None else float(np.abs(reference.logits - answer.logits).max())
    if largest is not None and not np.isfinite(largest):    # not a number compares as nothing
        largest = float("inf")
    return {"max_abs": largest, "relative": None if largest is None else largest / scale_of(reference), "pixels": differs.size,
            "boundary": int(edge.sum()), "differ": int(differs.sum()), "differ_boundary": int((differs & edge).sum()), "beyond": int((differs & ~tied).sum())}


def worst(rows, bar):
    """The number of the row that goes furthest beyond the bar, or comes nearest to it."""
    def excess(row):
        return max((row["relative"] or 0.0) / max(bar.delta, 1e-12), row["beyond"] / row["pixels"] / max(bar.labels, 1e-12))
    return max(range(len(rows)), key=lambda number: excess(rows[number]))


def summary(rows, bar):
    """Of all pictures: the largest departures, and shares of labels that differ inside of objects, at boundaries, and beyond the margin."""
    def total(name):
        return sum(row[name] for row in rows)

    def largest(name):
        return None if any(row[name] is None for row in rows) else max(row[name] for row in rows)
    inside = total("pixels") - total("boundary")
    return {"max_abs": largest("max_abs"), "relative": largest("relative"),
            "inside": (total("differ") - total("differ_boundary")) / max(inside, 1), "boundary": total("differ_boundary") / max(total("boundary"), 1),
            "beyond": total("beyond") / total("pixels"), "worst_beyond": max(row["beyond"] / row["pixels"] for row in rows), "worst": worst(rows, bar)}


def too_far(found, bar):
    """Why a link's summary is beyond the bar: a list of words, empty where it is not."""
    wrong = []
    if found["relative"] is not None and not found["relative"] <= bar.delta:
        wrong.append(f"logits depart by {found['relative']:.2g} of their scale, at most {bar.delta:g}")
    if found["worst_beyond"] > bar.labels:
        wrong.append(f"{found['worst_beyond']:.3%} of a picture's labels differ, at most {bar.labels:g}")
    if found.get("delta_miou") is not None and abs(found["delta_miou"]) > bar.drop:
        wrong.append(f"mIoU differs by {found['delta_miou']:+.3f} points, at most {bar.drop:g}")
    return wrong
