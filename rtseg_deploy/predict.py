"""Images -> labels -> pictures that a person can look at."""
from pathlib import Path

from . import backends, facts, images, launch
from .errors import RtsegError
from .records import read_artifact


def predict(path, paths, folder, backend=None, place=None, tell=lambda step, done: None):
    """Label images with an artifact; writes <stem>.overlay.png and <stem>.labels.png for each. Returns [(overlay, labels)].

    An image of another size is resized (bilinear) to the artifact's, and its labels back (nearest).
    Raises RtsegError, with nothing written, where an image cannot be read.
    """
    artifact = read_artifact(path)
    backend, = backends.chosen(artifact, [backend] if backend else [])
    refuse_same_names(paths)
    pictures = [images.read(image) for image in paths]
    arrays = [images.fed(images.resized(pixels, artifact.resolution), artifact.input, artifact.normalisation) for pixels in pictures]
    job = launch.on_backend("infer", path, artifact, backend, arrays)
    with launch.ran(job, place, tell) as (_, made):
        labels = launch.labels_in(made, job)
    if any(found is None for found in labels):
        raise RtsegError(f"backend {backend} computes no labels", "use another --backend")
    names = facts.class_set(artifact.class_set, artifact.classes)
    return [images.save(pixels, found, names, Path(folder, Path(image).stem)) for image, pixels, found in zip(paths, pictures, labels)]


def refuse_same_names(paths):
    seen = {}
    for image in paths:
        other = seen.setdefault(Path(image).stem, image)
        if other != image:
            raise RtsegError(f"{other} and {image} would both be written as {Path(image).stem}.labels.png", "label them one after another, with two -o")
