"""Image file -> pixels -> the network's input; labels -> pictures that a person can look at."""
import os
import struct
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from . import files, limits
from .errors import RtsegError, first_line

STREET = Path(__file__).with_name("samples") / "street.png"
FORMATS = ("PNG", "JPEG", "MPO", "BMP", "TIFF", "WEBP", "PPM", "GIF")    # Pillow reads some by programs of their own: no others
# what Pillow raises of damaged files
# AssertionError: of a palette that is not there
BROKEN = (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError, EOFError, struct.error, zlib.error)
# Of many pixels Pillow warns, limits refuses. For good: a block without warnings is the whole process's, and pictures are read by threads
warnings.filterwarnings("ignore", module="PIL")
OPACITY = 0.55                      # of the classes' colours over the image


def normalised(pixels, normalisation):
    """H x W x 3 uint8 RGB -> 1 x 3 x H x W float32 as the network was trained to see it; normalisation has mean and std."""
    mean, std = (np.asarray(normalisation[key], np.float32) for key in ("mean", "std"))
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None])


def fed(pixels, kind, normalisation):
    """H x W x 3 uint8 RGB -> what an artifact with that kind of input takes (records.Artifact.input)."""
    if kind == "normalised":
        return normalised(pixels, normalisation)
    return np.array(pixels if kind == "rgb8" else pixels.transpose(2, 0, 1)[None], order="C")


ORIENTATION = 0x0112                # EXIF's tag


@contextmanager
def opened(path):
    """The image in a file as Pillow has it, not decoded yet; what fails of it in the block is said in one line. Raises RtsegError."""
    try:
        with limits.memory(path):
            if os.stat(path).st_size > limits.IMAGE_BYTES:
                limits.refuse(path, f"is larger than the {limits.amount(limits.IMAGE_BYTES)} that an image can have")
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > limits.PIXELS:
                    limits.refuse(path, f"has {image.width} x {image.height} pixels, more than the {limits.PIXELS:,} that are taken", "make it smaller")
                yield image
    except (UnidentifiedImageError, Image.DecompressionBombError, *BROKEN) as error:
        raise RtsegError(f"{path} is not an image that can be read: {first_line(error)}") from None
    except OSError as error:
        raise RtsegError(f"{path}: {error.strerror or 'the image is truncated'}") from None


def raw_modes(image):
    """What the file holds, in Pillow's words: of a colour PNG with 16 bits it would give 8, and grey of 2 or 4 bits it spreads over 0 to 255."""
    return [str(tile[-1]) for tile in getattr(image, "tile", ())]


def orientation(image):
    """How the camera says that the image is to be turned: 1 is not at all. Decodes nothing: a PNG's EXIF behind its pixels is not seen."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
        return 1
    return image.getexif().get(ORIENTATION, 1)


def read(path):
    """H x W x 3 uint8 RGB, turned as the camera says; a palette is looked up, and alpha dropped where it hides nothing. Raises RtsegError."""
    with opened(path) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;") or any(";16" in mode for mode in raw_modes(image)):
            raise RtsegError(f"{path} has more than 8 bits a channel, which would be cut off", "convert it to 8 bits first")
        turned = ImageOps.exif_transpose(image)
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            if turned.getextrema()[3][0] < 255:
                raise RtsegError(f"{path} is transparent in places: the colours below are not what is seen", "flatten it onto a background first")
        return np.asarray(turned.convert("RGB"))


def resized(pixels, resolution):
    """Pixels at (height, width), bilinear."""
    height, width = resolution
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def repeated(labels, resolution):
    """H x W labels at (height, width): each pixel takes the nearest one, for labels are never interpolated."""
    height, width = resolution
    return np.asarray(Image.fromarray(labels.astype(np.int32)).resize((width, height), Image.Resampling.NEAREST))


def save(pixels, labels, names, stem):
    """Write the label map at the image's size, and the overlay with its legend; returns both paths."""
    labels = repeated(labels, pixels.shape[:2])
    paths = stem.with_name(stem.name + ".overlay.png"), stem.with_name(stem.name + ".labels.png")
    plain = Image.fromarray(labels.astype(np.uint8 if len(names.names) < 256 else np.uint16))
    for path, image in zip(paths, (overlay(pixels, labels, names), plain)):
        with files.replacing(path) as temporary:
            image.save(temporary, format="PNG")
    return paths


def overlay(pixels, labels, names):
    """The image under its classes' colours, with a legend of the classes that are in it, largest first."""
    found, counts = np.unique(labels, return_counts=True)
    rows = [(f"{names.names[c]}  {n / labels.size:.1%}", names.colours[c]) for n, c in sorted(zip(counts, found), reverse=True)]
    return beside(Image.fromarray(blended(pixels, labels, names)), legend(rows, pixels.shape[0]))


def blended(pixels, labels, names):
    """H x W x 3 uint8: the image under its classes' colours."""
    table = (OPACITY * np.asarray(names.colours, np.float32)).take(labels, 0)
    return (table + np.float32(1 - OPACITY) * pixels).round().astype(np.uint8)


def legend(rows, height):
    """A white column of that height or more: a swatch and a text for each row (text, colour)."""
    letter = max(11, height // 30)
    font = ImageFont.load_default(letter)
    texts = [text for text, _ in rows]
    column = Image.new("RGB", (int(max(map(font.getlength, texts))) + 4 * letter, max(height, int(letter * (1.7 * len(rows) + 1)))), "white")
    draw = ImageDraw.Draw(column)
    for number, (text, colour) in enumerate(rows):
        top = int(letter * (1.7 * number + 0.7))
        draw.rectangle([letter, top, 2 * letter, top + letter], fill=colour, outline="black")
        draw.text((int(2.7 * letter), top + letter / 2), text, fill="black", font=font, anchor="lm")
    return column


def beside(left, right):
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet
