"""Pictures, a video or a camera -> labels, taken while they are made: device/labelling.py makes them, here and on a device.

What is on this machine goes through one worker, which waits for whoever takes its results. To a device pictures go in parts, decoded here: its
Pillow may be an old one, or none, and another decoder of JPEG gives other pixels.
"""
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import images, launch
from .device.labelling import FRAME, LABELS, ROWS
from .errors import RtsegError

HELD = 4                            # results that a worker here is ahead of whoever takes them
PART_PICTURES, PART_BYTES = 32, 1 << 26     # what goes to a device at a time, at most
ROW = {"read": float, "decode": float, "waited": float, "held": float, "seconds": dict}


@dataclass(frozen=True)
class Labelled:
    """One picture."""
    number: int                     # from 0
    labels: np.ndarray              # H x W, of the picture's own size
    row: dict                       # see device/labelling.py
    frame: np.ndarray | None        # H x W x 3 uint8 RGB, of a video or a camera


def around(artifact, frame):
    """What device/frames.py is to do around an artifact; frame: see there."""
    return {"frame": frame, "input": artifact.input, "output": artifact.output, "enlarge": artifact.enlarge or "bilinear", "size": list(artifact.resolution),
            **artifact.normalisation}


def refuse_unknown_enlarging(path, artifact):
    if artifact.output == "native" and not artifact.enlarge:
        raise RtsegError(f"nothing says how the logits of {path} are enlarged to the image's size",
                         "export its checkpoint instead, or enlarge them in the file that is adopted")


def pictures(path, artifact, backend, paths, take, place=None, tell=launch.quiet, own=None, settings=None):
    """Label image files; take(Labelled) gets each as it is made. Returns the workers' results. Raises RtsegError where one cannot be read."""
    results = []
    for first, called, sources in parts(paths) if place else [(0, paths, {})]:
        given = {"files": list(sources) or [str(Path(one).resolve()) for one in paths], "called": list(map(str, called))}
        job = asked(path, artifact, backend, given, own, None if place else HELD, settings)
        made = (*(LABELS % number for number in range(len(called))), ROWS)
        job = replace(job, files={**job.files, **sources}, results=made)
        with launch.ran(job, place, tell, taker(take, first)) as (result, _):
            results.append(result)
    return results


def parts(paths):
    """(number of the first, paths, file name -> pixels as an .npy file) of as many pictures as go to a device at a time."""
    first, sources = 0, {}
    for number, path in enumerate(paths, 1):
        sources[f"{number - first - 1:06d}.npy"] = launch.saved(images.read(path))
        if number == len(paths) or len(sources) == PART_PICTURES or sum(map(len, sources.values())) >= PART_BYTES:
            yield first, paths[first:number], sources
            first, sources = number, {}


def frames(path, artifact, backend, given, take, tell=launch.quiet, settings=None):
    """Label {"video": path} or {"camera": number}, with a "limit" where not all; as `pictures`, on this machine."""
    with launch.ran(asked(path, artifact, backend, given, None, HELD, settings), None, tell, taker(take, 0)) as (result, _):
        return result


def asked(path, artifact, backend, given, own, held, settings=None):
    return launch.on_backend("label", path, artifact, backend, [], own=own, stages=around(artifact, "pixels"), pictures=given, held=held, settings=settings)


def taker(take, first):
    """A function of the job's folder that takes what is new there, and removes it."""
    offset, number = 0, 0

    def taken(folder):
        nonlocal offset, number
        if not (folder / ROWS).is_file():
            return
        with open(folder / ROWS, "rb") as rows:
            rows.seek(offset)
            for line in rows:
                if not line.endswith(b"\n"):
                    return
                take(Labelled(first + number, launch.labels(folder / (LABELS % number)), row(line), frame(folder / (FRAME % number))))
                (folder / (LABELS % number)).unlink()
                (folder / (FRAME % number)).unlink(missing_ok=True)
                offset, number = offset + len(line), number + 1
    return taken


def frame(path):
    return np.load(path) if path.is_file() else None


def row(line):
    """A line of a device, which may answer anything."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not launch.has(found, ROW) or not all(isinstance(seconds, float) for seconds in found["seconds"].values()):
        raise RtsegError("what came back of a picture's stages is no row of them", "run it again")
    return found
