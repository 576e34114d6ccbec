"""Files of a folder, in an order that people expect, and lists of images by name."""
import csv
import hashlib
import io
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from . import files, limits
from .errors import RtsegError, first_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


def natural(name):
    """Sorts frame 2 before frame 10."""
    # every other part is digits; there are some that int does not take, and numbers that are too long for it
    return [part if place % 2 == 0 else (len(digits := part.lstrip("0")), digits) for place, part in enumerate(re.split(r"([0-9]+)", str(name)))]


def entries(folder):
    """What is in a folder and not hidden, in natural order. Raises RtsegError."""
    try:
        return sorted((path for path in Path(folder).iterdir() if not path.name.startswith(".")), key=lambda path: natural(path.name))
    except OSError as error:
        raise RtsegError(f"{folder}: {error.strerror}") from None


def pictures(folder):
    """Images of a folder by their names, not of folders in it."""
    return [path for path in entries(folder) if path.suffix.lower() in SUFFIXES]


def subfolders(folder):
    return [path for path in entries(folder) if path.is_dir()]


def refuse_leaving(name, folder, where):
    """Raise RtsegError for a name in a file, at `where`, that leads out of a folder: neither's rules may be evaded on the other's machine."""
    if any(kind(name).is_absolute() or ".." in kind(name).parts for kind in (PurePosixPath, PureWindowsPath)):
        raise RtsegError(f"{where}: {name} leaves the folder {folder}", "name files below it")


def table(path):
    """Cells of each line of a CSV file that is not empty. Raises RtsegError."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(limits.text(path), newline=""), strict=True)]
    except csv.Error as error:
        raise RtsegError(f"{path} is not CSV: {first_line(error)}") from None
    return [row for row in rows if any(row)]


def listed(source, count=None, seed=0, folder=None):
    """Paths of the images of a folder, or of a list, in natural order; of them `count`, the same for the same names and seed.

    A list has a name a line, or is a CSV file with the names in its first column and maybe their sha256 in the second, which is then checked.
    The names are of `folder`, or of the folder that the list is in. Raises RtsegError.
    """
    source = Path(source)
    hashes = dict.fromkeys(pictures(source), "") if os.path.isdir(source) else named(source, Path(folder or source.parent))
    if not hashes:
        raise RtsegError(f"{source} has no image" + (f" ({', '.join(sorted(SUFFIXES))})" if os.path.isdir(source) else ""))
    found = sorted(hashes, key=natural)
    if count is not None:
        if not 0 < count <= len(found):
            raise RtsegError(f"{source} has {len(found)} images, and {count} are asked for", f"ask for 1 to {len(found)}")
        drawn = set(sorted(found, key=lambda path: hashlib.sha256(f"{seed} {path.name}".encode()).digest())[:count])
        found = [path for path in found if path in drawn]
    for path in found:
        if hashes[path] and files.sha256(path) != hashes[path]:
            raise RtsegError(f"{path} is not the file that {source} lists: its sha256 differs")
    return found


def named(path, folder):
    """Path -> sha256 or "" of the lines of a list. Raises RtsegError."""
    rows = table(path) if path.suffix.lower() == ".csv" else [[line.strip()] for line in limits.text(path).splitlines() if line.strip()]
    rows = rows[1:] if rows and rows[0][0].lower() in ("name", "image") else rows
    found = {}
    for name, *rest in rows:
        refuse_leaving(name, folder, path)
        one = folder / name
        if one in found:
            raise RtsegError(f"{path} lists {name} twice")
        if not os.path.isfile(one):  # Path.is_file fails where a folder may not be entered
            raise RtsegError(f"{one}: no such file, though {path} lists it")
        found[one] = rest[0].lower() if rest else ""
    return found


def write_list(path, chosen_images):
    """Write a CSV file of name and sha256 of each image, from which `listed` finds them again wherever their folder is. Raises RtsegError."""
    by_name = {Path(image).name: image for image in chosen_images}
    if len(by_name) < len(chosen_images):
        raise RtsegError("two images of the list have one name", "rename one: a list has no folders")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["name", "sha256"])
    rows.writerows([name, files.sha256(by_name[name])] for name in sorted(by_name, key=natural))
    files.write(path, text.getvalue())


def spread(items, count):
    """So many of them, or all, from the first to the last in even steps: neighbours are often of one scene."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]
