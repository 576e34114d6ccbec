"""Pictures of where labels are wrong, the worst first, on one page beside them."""
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from . import __version__, files, images
from .datasets import IGNORED
from .errors import RtsegError
from .page import rendered

WRONG = (225, 20, 20)
HATCH = 6                           # pixels from stroke to stroke, over what is ignored
QUALITY = {"quality": 90, "subsampling": 0}     # a JPEG that halves its colours smears red over its neighbours
FILES = {"picture": "picture.jpg", "overlay": "overlay.jpg", "truth": "truth.png", "labels": "labels.png", "errors": "errors.jpg"}


def file_of(key, name, kind):
    """Where a picture of an evaluation lies in the gallery's folder: another one's are never taken for it."""
    return f"pictures/{key}/{name}.{FILES[kind]}"


def drawn(folder, key, name):
    """Whether all pictures of one are there: the last one is written last."""
    return Path(folder, file_of(key, name, list(FILES)[-1])).is_file()


def draw(folder, key, name, pixels, truth, labels, classes):
    """Write the pictures of one image: H x W x 3, and its truth and labels, H x W. key: of the evaluation."""
    made = {"picture": Image.fromarray(pixels), "overlay": images.overlay(pixels, labels, classes), "truth": coloured(truth, classes),
            "labels": coloured(labels, classes), "errors": Image.fromarray(errors(pixels, truth, labels))}
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise RtsegError(f"the picture called {name} leaves the folder {folder}", "give it another name")
    for kind, picture in made.items():
        path = Path(folder, file_of(key, name, kind))
        with files.replacing(path) as temporary:
            picture.save(temporary, **({"format": "PNG"} if path.suffix == ".png" else {"format": "JPEG", **QUALITY}))


def coloured(labels, classes):
    """An image of class ids in the classes' colours; ignored ones are black."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([part for colour in classes.colours for part in colour] + [0] * 3 * (256 - len(classes.colours)))
    return image


def errors(pixels, truth, labels):
    """H x W x 3: the image in grey, wrong pixels red, those that do not count dark under strokes."""
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, 2) * 0.7 + 60
    ignored, wrong = truth == IGNORED, (truth != IGNORED) & (truth != labels)
    grey[wrong] = 0.25 * grey[wrong] + 0.75 * np.array(WRONG)
    rows, columns = np.indices(truth.shape, sparse=True)
    grey[ignored] *= np.where((rows + columns) % HATCH < 2, 0.25, 0.6)[ignored][:, None]
    return grey.astype(np.uint8)


def write(folder, key, pictures, data, said, title):
    """index.html of pictures that are drawn: [(name, (height, width), its scores)]. said: the scores, protocol and notes of all; returns its path."""
    path = Path(folder, "index.html")
    files.write(path, rendered("gallery.html", {"percent": percent}, pictures=sorted((row(key, one) for one in pictures), key=lambda one: one["order"]),
                               classes=classes(said["scores"], data.classes), data=data, title=title, version=__version__, **said))
    return path


def row(key, picture):
    """What the page says of an image. The order: by its mIoU over the classes that are in it, the worst first; without any truth last."""
    name, (height, width), scores = picture
    present = {one: iou for one, iou in scores["iou"].items() if iou is not None}
    worst = min(present, key=present.get, default="")
    links = {kind: quote(file_of(key, name, kind)) for kind in FILES}
    return {"name": name, "height": height, "width": width, "files": links, "miou": scores["miou"], "accuracy": scores["pixel_accuracy"], "worst": worst,
            "worst_iou": present.get(worst), "order": (scores["miou"] is None, scores["miou"] or 0, name)}


def classes(scores, names):
    """A row for each class: its name, colour, IoU and boundary score."""
    return [{"name": name, "colour": "#" + bytes(colour).hex(), "iou": scores["iou"][name], "boundary": scores["boundary"][name]}
            for name, colour in zip(names.names, names.colours)]


def percent(fraction):
    return "–" if fraction is None else f"{100 * fraction:.2f}"
