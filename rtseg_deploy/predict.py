"""Images -> labels -> pictures that a person can look at."""
from pathlib import Path

from . import facts, images, stream, tune
from .errors import RtsegError
from .lists import listed
from .records import read_artifact


def predict(path, paths, folder, backend=None, place=None, tell=lambda step, done: None, untuned=False):
    """Label images with an artifact; writes <stem>.overlay.png and <stem>.labels.png for each as it goes. Returns [(overlay, labels)].

    An image of another size is resized (bilinear) to the artifact's, and its logits back, or its labels (nearest).
    Raises RtsegError where an image cannot be read: those before it are written.
    """
    artifact = read_artifact(path)
    choice, = tune.chosen(path, artifact, [backend] if backend else [], tell, untuned=untuned, place=place)
    refuse_same_names(paths)
    names, done = facts.class_set(artifact.class_set, artifact.classes), []

    def take(one):
        image = paths[one.number]
        done.append(images.save(images.read(image), one.labels, names, Path(folder, Path(image).stem)))

    def told(step, share):
        tell(f"{step}: {len(done)} of {len(paths)} images" if len(paths) > 1 else step, len(done) / len(paths))

    stream.pictures(path, artifact, choice.backend, paths, take, place, told, settings=choice.settings)
    return done


def images_of(words):
    """Image files that are named, and those of folders that are. Raises RtsegError where there is none of a name."""
    found = []
    for word in words:
        if Path(word).is_dir():
            found += listed(word)
        elif Path(word).is_file():
            found.append(word)
        else:
            raise RtsegError(f"{word}: no such file")
    return found


def refuse_same_names(paths):
    seen = {}
    for image in paths:
        other = seen.setdefault(Path(image).stem, image)
        if other != image:
            raise RtsegError(f"{other} and {image} would both be written as {Path(image).stem}", "label them one after another, with two -o")
