"""How right the labels of an artifact or a checkpoint are: a data set through a backend, picture by picture; killed, it goes on where it was.

NAME.jsonl has a line for each picture, its counts as integers, so that the order and the number of runs change nothing; NAME.json is what they say.
"""
import hashlib
import json
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import median

import numpy as np

from . import accuracy, datasets, files, gallery, images, launch, limits, locks, stream, tune
from .accuracy import Counts
from .errors import RtsegError, need
from .facts import datasets as known
from .lists import spread
from .measure import exported, measure, named
from .records import FORMAT, read_artifact, sidecar, size

AGAIN = "evaluate it anew with --again"


@dataclass(frozen=True)
class Ask:
    """How something is to be evaluated."""
    data: datasets.DataSet
    backend: str | None = None
    place: object = None
    save: str | None = None         # folder of the gallery
    again: bool = False
    results: str = "accuracy"
    protocol: str = "network"       # as bench.Ask: a checkpoint is exported as for it
    own: dict | None = None
    precision: str | None = None    # that the backend "auto" may compute in
    untuned: bool = False
    label: object = None            # who labels, with the arguments of `label`; that if not given


def evaluate(subject, ask, resolution=None, dialect=None, tell=launch.quiet):
    """(result file, its value) of an artifact or a checkpoint, at a resolution instead of the artifact's or the data set's. Raises RtsegError."""
    work = partial(evaluated, subject)
    if Path(subject).suffix in (".onnx", ".engine"):
        (done,) = measure(subject, [resolution] if resolution else [], ask, tell=tell, work=work)
    else:
        (done,) = of_checkpoint(subject, replace(ask, backend=ask.backend or "torch-eager"), resolution, dialect, tell, work)
    return done


def of_checkpoint(subject, ask, resolution, dialect, tell, work):
    """What work gives of its export at the size of the data set's pictures, resized to what its paper feeds the network."""
    resolution = resolution or size_of(ask.data.pairs[0].image)
    need("torch")
    tell("loading PyTorch", None)
    from . import checkpoints

    network = named(subject, dialect, None, checkpoints)
    reduced = papers_input(network.network.name, ask.data, resolution)
    return exported(lambda _: network, [resolution], {"network_input": reduced, "output": "native"}, ask, tell, work)


def size_of(path):
    """(height, width) of an image file."""
    with images.opened(path) as image:
        return image.height, image.width


def some(data, count):
    """The data set, or so many of its pairs, evenly spread."""
    if count is None or count >= len(data.pairs):
        return data
    return replace(data, pairs=tuple(spread(data.pairs, count)))


def papers_input(network, data, resolution):
    """The (height, width) that a network's paper resizes images of that size to; None where it says none."""
    found = known.evaluated(network, data.name)
    return found.input if found and found.resolution == tuple(resolution) != found.input else None


def evaluated(subject, path, ask, tell):
    """[(result file, its value)] of one artifact; it is temporary where it is not the subject itself."""
    artifact, data = read_artifact(path), ask.data
    datasets.refuse_other_classes(data, artifact.classes, artifact.class_set, path)
    stream.refuse_unknown_enlarging(path, artifact)
    (choice,) = tune.chosen(path, artifact, [ask.backend] if ask.backend else [], tell, None, ask.precision, ask.untuned, ask.place)
    backend, identity = choice.backend, identity_of(artifact, Path(path) != Path(subject), choice, ask, tell)
    key = files.key(identity)[:12]
    goal = Path(ask.results, f"{artifact.model}-{size(artifact.resolution)}-{artifact.precision}-{data.name}-{backend}-{key}.json")
    with log(goal.with_suffix(".jsonl"), ask.again, tell) as (done, add):
        todo = [pair for pair in data.pairs if pair.name not in done or ask.save and not gallery.drawn(ask.save, key, pair.name)]
        telling = counted(tell, f"{data.name}, {backend}", len(data.pairs) - len(todo), len(data.pairs))
        workers = (ask.label or label)(path, artifact, choice, todo, ask, key, add, telling) if todo else []
        described = replace(artifact, checks={name: check for name, check in artifact.checks.items() if name != "accuracy"})     # earlier ones
        value = {"format": FORMAT, "kind": "accuracy", "artifact": described.to_json(), "file": str(subject), "backend": backend, **identity["data"],
                 **summary(goal.with_suffix(".jsonl"), artifact, data, ask.save, key), **worked(workers, goal, ask)}
        value["notes"] += [f"auto chose {choice.why}"] if choice.why else []
        files.write_json(goal, value)
    if Path(path) == Path(subject):
        note_in_sidecar(path, value, goal)
    return [(goal, value)]


def identity_of(artifact, temporary, choice, ask, tell):
    """All that decides what the rows are. What was exported for this has other bytes each time, and is known by what it was made of."""
    origin = {name: value for name, value in artifact.parent.items() if name != "file"}
    made_of = [origin, artifact.model, artifact.dialect, artifact.network_input] if temporary else artifact.sha256
    fed = [artifact.resolution, artifact.precision, artifact.input, artifact.normalisation, artifact.output, artifact.enlarge]
    data = {"name": ask.data.name, "split": ask.data.split, "pictures": len(ask.data.pairs), "digest": digest(ask.data, tell)}
    settings = {"settings": choice.settings} if choice.settings else {}     # they may decide how a sum is rounded
    return {"artifact": [made_of, fed], "format": FORMAT, "backend": choice.backend, "on": ask.place.name if ask.place else "", "data": {"data": data},
            **settings}


def digest(data, tell):
    """The sha256 of a data set: of every file, and of what the values in its labels mean."""
    found = hashlib.sha256(json.dumps([data.classes.names, data.coding]).encode())
    for number, pair in enumerate(data.pairs):
        tell("hashing the pictures", number / len(data.pairs))
        found.update(f"{pair.name} {files.sha256(pair.image)} {files.sha256(pair.labels)}\n".encode())
    return found.hexdigest()


@contextmanager
def log(path, again, tell=launch.quiet):
    """(names of the pictures whose rows are there, function that adds a row); what was torn when its writer was killed, or the power went, is dropped."""
    files.folder(path.parent)
    with locks.goal(path, tell), open(path, "ab+") as file:
        if again:
            file.truncate(0)
        file.seek(0)
        file.truncate(sum(map(len, takewhile(ended, file))))

        def add(row):
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
        yield {row["name"] for row in rows_in(path)}, add


def ended(line):
    """Whether all of a row came to the disk: of a power that went there may be zeros."""
    return line.endswith(b"\n") and b"\0" not in line


def rows_in(path):
    """The rows of a log, each picture's once. Raises RtsegError."""
    seen = set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line, parse_int=limits.whole)
            except (ValueError, RecursionError):
                row = None
            if not whole(row):
                raise RtsegError(f"{path} is damaged in line {number}", AGAIN)
            if row["name"] not in seen:
                yield row
            seen.add(row["name"])


def whole(row):
    """Whether it is a row as `label` writes it, but for the number of classes."""
    if not launch.has(row, {"name": str, "size": list, "confusion": list, "boundary": list, "seconds": dict, "decode": float, "waited": float}):
        return False
    lists = [row["size"], *row["confusion"], *row["boundary"]]
    return (all(isinstance(one, list) and all(type(value) is int and 0 <= value <= limits.PIXELS for value in one) for one in lists) and len(row["size"]) == 2
            and all(len(one) == 3 for one in row["confusion"]) and all(isinstance(spent, float) for spent in row["seconds"].values()))


def label(path, artifact, choice, pairs, ask, key, add, tell):
    """Label these pictures, add a row for each, and draw them where that is asked for; returns the workers' results."""
    def take(one):
        pair = pairs[one.number]
        truth = datasets.truth(ask.data, pair)
        found = accuracy.counts(truth, one.labels, artifact.classes)
        if ask.save:
            gallery.draw(ask.save, key, pair.name, images.read(pair.image), truth, one.labels, ask.data.classes)
        add({"name": pair.name, "size": one.labels.shape, "confusion": [[int(t), int(p), int(found.confusion[t, p])] for t, p in
             zip(*found.confusion.nonzero())], "boundary": found.boundary.tolist(),
             **{name: one.row[name] for name in ("seconds", "decode", "waited")}})
        tell(None, one.number + 1)

    return stream.pictures(path, artifact, choice.backend, [pair.image for pair in pairs], take, ask.place, tell, ask.own, choice.settings)


def counted(tell, title, before, total):
    """A tell for the worker's steps, and for the number of pictures that are done: it says how many there are and how long the rest takes."""
    done, begin = 0, None

    def told(step, count):
        nonlocal done, begin
        if step is None:
            done, begin = count, begin or time.monotonic()      # the first one's time is the start of the worker
        rest = (time.monotonic() - begin) / (done - 1) * (total - before - done) if done > 1 else None
        tell(f"{title}: {before + done} of {total} pictures" + (f", {clock(rest)} left" if rest is not None else ""), (before + done) / total)
    return told


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def counts_of(row, classes):
    confusion = np.zeros((classes, classes), np.int64)
    for truth, found, pixels in row["confusion"]:
        if max(truth, found) >= classes:
            raise RtsegError(f"the row of {row['name']} counts a class that is none", AGAIN)
        confusion[truth, found] = pixels
    if [len(counts) for counts in row["boundary"]] != [4] * classes:
        raise RtsegError(f"the row of {row['name']} is of other classes", AGAIN)
    return Counts(confusion, np.array(row["boundary"], np.int64))


def summary(path, artifact, data, save, key):
    """What the rows of a log say; the gallery's page is written where there is one."""
    names, total, sizes, seconds, waited, pictures = data.classes.names, None, Counter(), {}, [], []
    for row in rows_in(path):
        one = counts_of(row, artifact.classes)
        total = total + one if total else one
        sizes[tuple(row["size"])] += 1
        waited.append((row["waited"], sum(row["seconds"].values())))
        for stage, spent in {"decode": row["decode"], **row["seconds"]}.items():
            seconds.setdefault(stage, []).append(spent)
        if save:
            pictures.append((row["name"], row["size"], accuracy.scores(one, names)))
    scores = accuracy.scores(total, names)
    said = {"scores": scores, "protocol": protocol(artifact, sizes, data), "notes": notes(artifact, data, sizes),
            "stages": {stage: median(spent) for stage, spent in seconds.items()}, "waited_share": share_waited(waited[1:])}
    if save:
        gallery.write(save, key, pictures, data, said, f"{artifact.model} {size(artifact.resolution)} {artifact.precision}")
    return said


def share_waited(pairs):
    """Share of the time that went by until the next picture was there, of what its stages took and that; the first one's is the start."""
    waited, worked = (sum(times) for times in zip(*pairs)) if pairs else (0.0, 0.0)
    return waited / (waited + worked) if pairs else None


def protocol(artifact, sizes, data):
    """At which sizes, and by which rules; see accuracy.py."""
    return {"pictures": {size(one): count for one, count in sizes.items()}, "artifact": size(artifact.resolution),
            "network_input": size(artifact.network_input),
            "ignored": f"what {data.name} does not label", "miou": "mean over the classes that are in the truth or among the labels, all pictures together",
            "boundary_f": f"within {100 * accuracy.TOLERANCE:.2f} % of the diagonal"}


def notes(artifact, data, sizes):
    paper = known.evaluated(artifact.model, data.name)
    other = {one: count for one, count in sizes.items() if one != artifact.resolution}
    back = "labels repeated" if artifact.output == "labels" else "logits enlarged"
    rows = [(other, f"{sum(other.values())} of {sum(sizes.values())} pictures are not {size(artifact.resolution)}, such as {size(next(iter(other), (0, 0)))}: "
             f"resized to it, and their {back} back"),
            (artifact.network_input != artifact.resolution, f"the graph resizes the picture to {size(artifact.network_input)} first, and the logits back"),
            (paper and (paper.resolution, paper.input) != (artifact.resolution, artifact.network_input),
             paper and f"its paper labels pictures of {size(paper.resolution)}, and feeds the network {size(paper.input)}"),
            ("seed" in artifact.parent, "random weights: the labels mean nothing")]
    return [text for applies, text in rows if applies]


def worked(workers, goal, ask):
    """What the workers tell of themselves; where none had to run, what the last ones told."""
    if workers:
        return {"on": ask.place.name if ask.place else "", "memory_bytes": max(one["memory_bytes"] for one in workers),
                "environment": workers[-1]["environment"]}
    earlier = files.read_json(goal) if goal.is_file() else {}
    return {name: earlier.get(name) for name in ("on", "memory_bytes", "environment")}


def note_in_sidecar(path, value, goal):
    """Put what was found beside what was proven."""
    with locks.goal(path):
        noted(path, value, goal)


def noted(path, value, goal):
    described = files.read_json(sidecar(path))
    if described["sha256"] != value["artifact"]["sha256"]:
        return                      # it has been made anew since
    data = value["data"]
    name = ", ".join(filter(None, (f"{data['name']} {data['split']}".strip(), f"{data['pictures']} pictures", value["backend"], value["on"])))
    found = {part: value["scores"][part] for part in ("miou", "miou_all", "pixel_accuracy", "boundary_f", "pixels")}
    described["checks"].setdefault("accuracy", {})[name] = {**found, "digest": data["digest"], "result": goal.name}
    files.write_json(sidecar(path), described)


def rows(value):
    """Rows of plain values for a table: a class each, and the mean."""
    scores = value["scores"]
    found = [{"class": name, "IoU %": percent(iou), "boundary F %": percent(scores["boundary"][name])} for name, iou in scores["iou"].items()]
    return [*found, {"class": "mean", "IoU %": percent(scores["miou"]), "boundary F %": percent(scores["boundary_f"])}]


def percent(fraction):
    return "" if fraction is None else f"{100 * fraction:.2f}"


def remarks(path, value):
    """Lines under the table."""
    scores, data = value["scores"], value["data"]
    yield (f"mIoU {percent(scores['miou'])} % ({percent(scores['miou_all'])} % over all {len(scores['iou'])} classes), pixel accuracy "
           f"{percent(scores['pixel_accuracy'])} %, of {scores['pixels']:,} pixels in {data['pictures']} pictures of {data['name']} {data['split']}")
    times = ", ".join(f"{stage} {1e3 * seconds:.1f}" for stage, seconds in value["stages"].items())
    yield f"median ms: {times}; the network waited for pictures {percent(value['waited_share']) or 0} % of its time"
    if value["memory_bytes"]:
        yield f"the worker took {value['memory_bytes'] / 2**20:,.0f} MiB at most"
    yield from (f"note: {note}" for note in value["notes"])
    yield str(path)
