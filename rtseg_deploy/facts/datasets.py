"""What is known of data sets: what their label files mean, which images are in which split, and at which size the papers label them."""
from dataclasses import dataclass
from functools import cache

from . import class_sets, papers, rows


@cache
def coding(name):
    """(value in a label file, class or None where it is ignored) of each row: an id, or R << 16 | G << 8 | B of a colour. See codings.csv."""
    names = class_sets()[name.partition("-")[0]].names
    return tuple((packed(*map(int, row["value"].split())), names.index(row["class"]) if row["class"] else None)
                 for row in rows("codings.csv") if row["coding"] == name)


def packed(*parts):
    """An id as it is; R, G and B as one number."""
    value = 0
    for part in parts:
        value = value << 8 | part
    return value


@cache
def camvid_splits():
    """Name of a frame, such as Seq05VD_f00030 -> val or test; every other frame is for training."""
    return {f"{row['sequence']}{frame:0{len(row['last'])}}": row["split"] for row in rows("camvid_split.csv")
            for frame in range(int(row["first"]), int(row["last"]) + 1, int(row["step"]))}


@dataclass(frozen=True)
class Evaluation:
    """At which size a paper has its networks label a data set: images of `resolution` are resized to `input`, and the labels back."""
    paper: str
    data: str
    resolution: tuple               # (height, width)
    input: tuple
    source: str


@cache
def evaluations():
    """Every Evaluation."""
    def sides(text):
        return tuple(map(int, text.split("x")))

    return [Evaluation(**{**row, "resolution": sides(row["resolution"]), "input": sides(row["input"])}) for row in rows("evaluation.csv")]


def evaluated(name, data):
    """The Evaluation of a paper, or of a network's paper, on a data set; None where no paper says: then images are labelled at their own size."""
    family = {figure.network.partition("-")[0]: figure.paper for figure in papers()}
    paper = family.get(name.partition("-")[0], name)
    return next((one for one in evaluations() if (one.paper, one.data) == (paper, data)), None)
