"""Labelled images on disk -> pairs of an image and what is true of each of its pixels; and lists of images without labels.

What is taken, by the layout of the folder:
  camvid      test/ and testannot/ (so val, train), ids 0 to 10 and 11 for unlabelled; or, as published, 701_StillsRaw_full/*.png and
              LabeledApproved_full/*_L.png, or both kinds of file beside label_colors.txt, in 32 colours that are grouped to 11 classes
  cityscapes  leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png, or _labelTrainIds.png where the split has no other
  folder      images/ and labels/ with the same stems, or pairs.csv with an image and its labels in each line; and classes.csv or classes.txt
              with lines id,name or id,name,r,g,b. A class of the name "ignored" takes no part; the others, in order of their ids, are the
              network's outputs 0, 1, 2, …
Ids are in 8-bit, palette or 16-bit PNGs; 255, and 65535 of 16 bits, are ignored everywhere. Text is UTF-8, with any line ends; a header may be there.
"""
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import facts, images
from .errors import RtsegError
from .facts.datasets import camvid_splits, coding, packed
from .lists import natural, pictures, refuse_leaving, subfolders, table
from .records import size

IGNORED = 255
UNKNOWN = 254                       # in a table of ids: no class, and not ignored either


@dataclass(frozen=True)
class Pair:
    """An image and its label file; the name is unique in its data set and says where it is."""
    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class DataSet:
    name: str                       # camvid, cityscapes, folder
    folder: Path
    classes: facts.ClassSet
    pairs: tuple
    coding: tuple                   # ((value in a label file, class or None where it is ignored), …)
    coloured: bool = False          # the values are colours, as facts.datasets.packed has them
    split: str = ""


def dataset(folder, kind=None, split=None):
    """The DataSet in a folder; its kind is found by the layout, and its split is test of CamVid and val of Cityscapes. Raises RtsegError."""
    try:
        return laid_out(Path(folder), kind, split)
    except OSError as error:        # a folder that may not be entered
        raise RtsegError(f"{error.filename}: {error.strerror}") from None


def laid_out(folder, kind, split):
    if not folder.is_dir():
        raise RtsegError(f"{folder}: no such folder")
    if kind not in (None, *(layout.kind for layout in LAYOUTS)):
        raise RtsegError(f"no kind of data set is called {kind!r}", f"the known ones: {', '.join(dict.fromkeys(layout.kind for layout in LAYOUTS))}")
    candidates = [layout for layout in LAYOUTS if kind in (None, layout.kind)]
    fitting = [layout for layout in candidates if layout.fits(folder)]
    if not fitting:
        raise RtsegError(f"{folder} holds no {kind or 'data set'}: looked for {'; '.join(f'{one.kind}: {one.wanted}' for one in candidates)}")
    if len(fitting) > 1:
        raise RtsegError(f"{folder} could be {' or '.join(f'{one.kind} ({one.wanted})' for one in fitting)}",
                         "say which with --dataset, or give the folder of one alone")
    data = fitting[0].read(folder, split)
    if not data.pairs:
        raise RtsegError(f"{folder} has no image of {data.name}" + (f" in {split}" if split else ""))
    missing = [pair.labels for pair in data.pairs if not pair.labels.is_file()]
    if missing:
        raise RtsegError(f"{missing[0]}: no such file, though its image is there ({len(missing)} of {len(data.pairs)} images have no labels)")
    return data


def indexed_camvid(folder, split):
    split = chosen(split or "test", [name for name in ("test", "val", "train") if (folder / name).is_dir() and (folder / f"{name}annot").is_dir()], folder)
    return DataSet("camvid", folder, facts.class_sets()["camvid"], by_stem(folder / split, folder / f"{split}annot"), coding("camvid-ids"),
                   split=split)


def coloured_camvid(folder, split):
    split = chosen(split or "test", ["test", "val", "train"], folder)
    apart = (folder / "LabeledApproved_full").is_dir()
    labels = folder / "LabeledApproved_full" if apart else folder
    found = [path for path in pictures(folder / "701_StillsRaw_full" if apart else folder) if not path.stem.endswith("_L")]
    return DataSet("camvid", folder, facts.class_sets()["camvid"],
                   paired((path.stem, path, labels / f"{path.stem}_L.png") for path in found if camvid_splits().get(path.stem, "train") == split),
                   coding("camvid-colours"), coloured=True, split=split)


def cityscapes(folder, split):
    images_of = {path.name: path for path in subfolders(folder / "leftImg8bit")}
    split = chosen(split or "val", list(images_of), folder / "leftImg8bit")
    found = [path for city in subfolders(images_of[split]) for path in pictures(city) if path.stem.endswith("_leftImg8bit")]
    stems = {path: (path.parent.name, path.stem.removesuffix("_leftImg8bit")) for path in found}
    truths = {ids: [folder / "gtFine" / split / city / f"{stem}_gtFine_{ids}.png" for city, stem in stems.values()] for ids in ("labelIds", "labelTrainIds")}
    only_trained = any(path.is_file() for path in truths["labelTrainIds"]) and not any(path.is_file() for path in truths["labelIds"])
    pairs = paired((f"{city}/{stem}", path, truth) for (path, (city, stem)), truth in
                   zip(stems.items(), truths["labelTrainIds" if only_trained else "labelIds"]))
    return DataSet("cityscapes", folder, facts.class_sets()["cityscapes"], pairs, coding(f"cityscapes-{'train-ids' if only_trained else 'ids'}"),
                   split=split)


def plain(folder, split):
    if split:
        raise RtsegError(f"a plain folder has no split, and {split} is asked for", "give the folder of that split")
    listed_pairs = folder / "pairs.csv"
    pairs = from_csv(folder, listed_pairs) if listed_pairs.is_file() else by_stem(folder / "images", folder / "labels")
    classes, ids = own_classes(class_file(folder))
    return DataSet("folder", folder, classes, pairs, ids)


@dataclass(frozen=True)
class Layout:
    kind: str
    wanted: str                     # in words
    fits: Callable                  # whether a folder is of it
    read: Callable                  # (folder, split) -> DataSet


LAYOUTS = (
    Layout("camvid", "test/ and testannot/, or val or train", lambda f: any((f / s).is_dir() and (f / f"{s}annot").is_dir() for s in ("test", "val", "train")),
           indexed_camvid),
    Layout("camvid", "701_StillsRaw_full/ and LabeledApproved_full/, or label_colors.txt",
           lambda f: (f / "701_StillsRaw_full").is_dir() and (f / "LabeledApproved_full").is_dir() or (f / "label_colors.txt").is_file(), coloured_camvid),
    Layout("cityscapes", "leftImg8bit/ and gtFine/", lambda f: (f / "leftImg8bit").is_dir() and (f / "gtFine").is_dir(), cityscapes),
    Layout("folder", "classes.csv or classes.txt, and images/ and labels/ or pairs.csv",
           lambda f: class_file(f) is not None and ((f / "pairs.csv").is_file() or (f / "images").is_dir() and (f / "labels").is_dir()), plain),
)


def refuse_other_classes(data, classes, class_set, what):
    """Raise RtsegError where a network, of so many classes and maybe a named set of them, is not one for this data set."""
    if classes != len(data.classes.names) or data.classes.name and class_set not in ("", data.classes.name):
        of = f" ({class_set})" if class_set else ""
        raise RtsegError(f"{what} has {classes} classes{of}, and {data.name} has {len(data.classes.names)}",
                         "name the data set that it was trained for, or the checkpoint that was trained for this one")


def chosen(split, there, folder):
    if split not in there:
        raise RtsegError(f"{folder} has no split {split}", f"there are: {', '.join(there)}" if there else "")
    return split


def by_stem(image_folder, label_folder):
    return paired((path.stem, path, label_folder / f"{path.stem}.png") for path in pictures(image_folder))


def paired(rows):
    """Pairs of (name, image, labels) in natural order. Raises RtsegError where two have one name."""
    by_name = {}
    for name, image, labels in rows:
        if name in by_name:
            raise RtsegError(f"{by_name[name].image} and {image} are both called {name}", "rename one, and its labels")
        by_name[name] = Pair(name, image, labels)
    return tuple(by_name[name] for name in sorted(by_name, key=natural))


def from_csv(folder, path):
    """Pairs of a CSV file: image and labels, as paths below its folder."""
    rows = table(path)
    rows = rows[1:] if rows and rows[0][0].lower() == "image" else rows
    for row in rows:
        if len(row) < 2:
            raise RtsegError(f"{path}: {','.join(row)!r} is not an image and its labels", "each line is IMAGE,LABELS")
        for cell in row[:2]:
            refuse_leaving(cell, folder, path)
        if not os.path.isfile(folder / row[0]):
            raise RtsegError(f"{folder / row[0]}: no such file, though {path.name} lists it")
    return paired((str(Path(row[0]).with_suffix("")), folder / row[0], folder / row[1]) for row in rows)


def class_file(folder):
    """classes.csv or classes.txt of a folder, or None."""
    return next((path for path in (folder / "classes.csv", folder / "classes.txt") if path.is_file()), None)


def own_classes(path):
    """(ClassSet, coding) of a class file. Raises RtsegError."""
    rows = table(path)
    rows = rows[1:] if rows and not re.fullmatch(r"[-+.\d]+", rows[0][0]) else rows
    for row in rows:
        if len(row) not in (2, 5) or not row[1] or not all(re.fullmatch(r"\d{1,3}", cell, re.ASCII) and int(cell) < 256 for cell in row[2:]) \
                or not re.fullmatch(r"\d{1,5}", row[0], re.ASCII) or int(row[0]) > 65535:
            raise RtsegError(f"{path}: {','.join(row)!r} is no class", "each line is id,name or id,name,r,g,b")
    ids = [int(row[0]) for row in rows]
    kept = sorted((int(row[0]), row) for row in rows if row[1].lower() != "ignored")
    names = [row[1] for _, row in kept]
    if len(set(ids)) < len(ids) or len(set(names)) < len(names):
        raise RtsegError(f"{path} has an id or a name twice")
    if not 0 < len(kept) < UNKNOWN:
        raise RtsegError(f"{path} has {len(kept)} classes, and 1 to {UNKNOWN - 1} can be told apart")
    plain_colours = facts.class_set("", len(kept)).colours
    colours = tuple(tuple(map(int, row[2:])) or colour for (_, row), colour in zip(kept, plain_colours))
    classes = {number: place for place, (number, _) in enumerate(kept)}
    return facts.ClassSet("", tuple(names), colours), tuple((number, classes.get(number)) for number in ids)


def truth(data, pair):
    """H x W uint8: the class of each pixel, IGNORED where it takes no part. Raises RtsegError for whatever is wrong with the file or its image's size."""
    values = label_values(data, pair)
    found = table_of(data.coding, data.coloured)[values]
    unknown = found == UNKNOWN
    if unknown.any():
        row, column = np.unravel_index(unknown.argmax(), unknown.shape)
        value = int(values[row, column])
        said = f"colour {value >> 16} {value >> 8 & 255} {value & 255}" if data.coloured else f"id {value}"
        raise RtsegError(f"{pair.labels}: the pixel in row {row}, column {column} has the {said}, and {data.name} has no such class",
                         f"say in {class_file(data.folder).name} what it is" if data.name == "folder" else "")
    return found


def label_values(data, pair):
    """H x W: the ids, or packed colours, that the label file holds, of the size of its image and turned as that is."""
    with images.opened(pair.image) as image:
        wanted, turn = (image.height, image.width), images.orientation(image)
    with images.opened(pair.labels) as labels:
        refuse_form(pair.labels, labels, data.coloured)
        if images.orientation(labels) != 1 or turn != 1:
            raise RtsegError(f"{pair.image if turn != 1 else pair.labels} is to be turned, its EXIF says: image and labels may not lie on each other",
                             "turn the pixels themselves and remove the tag")
        if (labels.height, labels.width) != wanted:
            raise RtsegError(f"{pair.labels} is {size((labels.height, labels.width))}, and its image is {size(wanted)} (height x width)")
        if not data.coloured:
            return np.asarray(labels)
        red, green, blue = (plane.astype(np.int32) for plane in np.moveaxis(np.asarray(labels.convert("RGB")), 2, 0))
        return packed(red, green, blue)


def refuse_form(path, labels, coloured):
    """Raises RtsegError where the file cannot hold labels as they were: JPEG changes them, alpha hides some, grey of few bits is read as other ids."""
    if labels.format != "PNG":
        raise RtsegError(f"{path} is a {labels.format}, and labels are read from PNG files")
    if "A" in labels.getbands():
        raise RtsegError(f"{path} has an alpha channel, and labels have none", "save it without")
    raw = images.raw_modes(labels)[0]
    if coloured and raw != "RGB" and not raw.startswith("P"):
        raise RtsegError(f"{path} is of the kind {raw}, and colours of 8 bits are expected")
    if not coloured and raw not in ("L", "I;16B") and not raw.startswith("P"):
        raise RtsegError(f"{path} is of the kind {raw}, and ids are expected, of 8 or 16 bits or in a palette",
                         "write the class of each pixel as its value" if raw.startswith("RGB") else "")


@lru_cache(maxsize=4)
def table_of(codes, coloured):
    """Value in a label file -> class, IGNORED or UNKNOWN."""
    found = np.full(1 << (24 if coloured else 16), UNKNOWN, np.uint8)
    if not coloured:
        found[[IGNORED, 65535]] = IGNORED
    for value, name in codes:
        found[value] = IGNORED if name is None else name
    return found
