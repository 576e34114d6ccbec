"""FP32 artifact and images -> INT8 artifact: ranges measured, the layers that cost too much kept in FP32, and proven on pictures that it was not made from."""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import accuracy, calibration_table, datasets, files, graphs, images, int8, locks, proof
from .errors import RtsegError
from .lists import listed, spread, write_list
from .records import read_artifact, write_model
from .remarks import versions, weights_bytes

COUNT = 32                          # images to calibrate with
FEW = 8                             # fewer than that are warned of
TRIED = 4                           # held-out pictures on which each layer by itself is tried
HELD = 64                           # held-out pictures that decide
SHOWN = 3                           # of those, how many the parity report has beside the street
FLAT = 2.0                          # levels of 255: the standard deviation, in each channel, of an image that shows nothing
BEYOND = 1.5                        # times the ranges: how far the street may go; by good ranges 0.9 to 1.1, of a white image 1.6 to 2, of a grey one 1.6 to 8
MAX_DROP = 0.5                      # points of mIoU
MAX_CHANGED = 0.02                  # share of labels, where there is no truth: 0.5 to 0.9 % change where SGCPNet loses 0.3 points


@dataclass(frozen=True)
class Ask:
    """How to calibrate."""
    count: int | None = None        # of the images; COUNT, or all where there are fewer
    seed: int = 0
    folder: str | None = None       # that the names of a list are of, if not the list's own
    method: str = "percentile"
    form: str = "tensorrt"          # whom it is for: int8.FORMS
    data: str | None = None         # a data set with labels to judge by
    split: str | None = None
    max_drop: float = MAX_DROP
    table: str | None = None        # where a calibration table for weakly typed TensorRT goes


@dataclass(frozen=True)
class Judge:
    """How much worse a graph labels than the FP32 one, on pictures that were not calibrated with."""
    unit: str
    most: float
    pictures: list
    loss: Callable                  # model -> how much


def calibrate(path, source, goal=None, ask=Ask(), tell=lambda step, done: None):
    """Write the INT8 artifact of an FP32 one, its sidecar and the list of images; returns (path, Artifact).

    source: a folder or a list of images, see lists.listed. Raises RtsegError, with nothing written, for images that nothing can be learnt
    from and for a network that INT8 costs too much.
    """
    artifact = read_artifact(path)
    refuse_other(path, artifact)
    goal = Path(goal or Path(path).with_suffix(".int8.onnx"))
    if Path(path).resolve() in {Path(made).resolve() for made in (goal, ask.table) if made}:
        raise RtsegError(f"{path} would be overwritten", "choose another name")
    with locks.goal(goal, tell), locks.machine(False, tell):
        return goal, calibrated(path, artifact, source, goal, ask, tell)


def calibrated(path, artifact, source, goal, ask, tell):
    """The Artifact of `calibrate`, written."""
    chosen, others, warnings = images_of(source, ask)
    model = graphs.whole(path, artifact.sha256)

    def fed(image):
        return images.fed(images.resized(images.read(image), artifact.resolution), artifact.input, artifact.normalisation)

    tell("measuring ranges", 0.05)
    data = int8.measured(model, map(fed, chosen), ask.method, ask.form)
    street = proof.pictures(artifact.resolution, artifact.normalisation, artifact.input)["street"]
    refuse_narrow(int8.beyond(model, data, street.fed))
    judge = judged(artifact, model, fed, others or chosen, chosen, ask)
    shown = {"street": street, **{Path(image).name: proof.Picture(fed(image), None) for image in spread(judge.pictures, SHOWN)}}
    costs = costs_of(model, data, [fed(image) for image in spread(judge.pictures, TRIED)], ask.form, tell)
    kept, lost, parity = searched(model, data, costs, judge, shown, ask.form, tell)
    made = int8.paired(model, data, kept, ask.form)

    listing = goal.with_suffix(".images.csv")
    write_list(listing, chosen)
    about = {"for": ask.form, "method": ask.method, "images": len(chosen), "seed": ask.seed, "list": listing.name, "list_sha256": files.sha256(listing),
             "kept": kept, "layers": rows_of(model, costs, kept), "in_int8": len(int8.in_int8(made)), "loss": lost, "loss_unit": judge.unit, "most": judge.most}
    if ask.table:
        tell("measuring ranges of every tensor", 0.97)
        every = int8.measured(model, map(fed, chosen), ask.method, every=True)
        calibration_table.write(ask.table, int8.peaks(every), artifact.sha256, kept=kept, method=ask.method, list_sha256=about["list_sha256"])
    return write_model(goal, made, replace(
        artifact, precision="int8", sha256="", weights_bytes=weights_bytes(made), parent={"file": str(path), "sha256": artifact.sha256},
        checks={**artifact.checks, "parity": parity, "int8": about}, versions={**artifact.versions, **versions()}, warnings=artifact.warnings + warnings))


def refuse_other(path, artifact):
    if artifact.kind != "onnx" or artifact.precision != "fp32":
        raise RtsegError(f"{path} is {'an engine' if artifact.kind == 'engine' else 'in ' + artifact.precision.upper()}, and INT8 is made of an FP32 ONNX file",
                         "export the checkpoint without --precision")


def images_of(source, ask):
    """(images to calibrate with, the others, warnings). Raises RtsegError for those that nothing can be learnt from."""
    every = listed(source, folder=ask.folder)
    chosen = listed(source, ask.count or min(COUNT, len(every)), ask.seed, ask.folder)
    different = {files.sha256(image) for image in chosen}
    flat = [image for image in chosen if images.read(image).std((0, 1)).max() < FLAT]
    if len(flat) > len(chosen) / 2:
        raise RtsegError(f"{flat[0]} and {len(flat) - 1} more of {len(chosen)} images to calibrate with show nothing: one colour all over",
                         "give images of what the network is to see")
    if len(different) == 1 and len(chosen) > 1:
        raise RtsegError(f"all {len(chosen)} images to calibrate with are the same", "give different ones")
    warnings = [f"{len(flat)} of {len(chosen)} images to calibrate with show nothing, such as {flat[0]}"] if flat else []
    if len(different) < FEW:
        warnings.append(f"calibrated with {len(different)} different images; ranges of fewer than {FEW} may not hold for others")
    left = [image for image in every if image not in set(chosen)]
    if not (left or ask.data):
        warnings.append("no image was left to judge by: it was judged by those that it was calibrated with")
    return chosen, left, tuple(warnings)


def refuse_narrow(beyond):
    """Raise RtsegError where a real picture does not fit in the ranges."""
    if not beyond <= BEYOND:
        raise RtsegError(f"a street goes {beyond:.1f} times beyond the ranges that these images gave, so most of it would be cut off (at most {BEYOND:g})",
                         "calibrate with images of what the network is to see")


def judged(artifact, model, fed, held, chosen, ask):
    """The Judge: by truth where there is some, else by how many labels change."""
    reference = proof.logits(model)
    if ask.data:
        data, used = datasets.dataset(ask.data, split=ask.split), {files.sha256(image) for image in chosen}
        datasets.refuse_other_classes(data, artifact.classes, artifact.class_set, "the network")
        pairs = spread([pair for pair in data.pairs if files.sha256(pair.image) not in used], HELD)
        if not pairs:
            raise RtsegError(f"all images of {ask.data} were calibrated with, and none is left to judge by", "calibrate with fewer: --count")
        best = miou(reference, fed, data, pairs)
        return Judge("points of mIoU", ask.max_drop, [pair.image for pair in pairs], lambda made: best - miou(proof.logits(made), fed, data, pairs))
    held = spread(held, HELD)
    wanted = [reference(fed(image)).argmax(1).astype(np.uint16) for image in held]

    def changed(made):
        logits = proof.logits(made)
        return float(np.mean([(logits(fed(image)).argmax(1) != labels).mean() for image, labels in zip(held, wanted)]))
    return Judge("share of labels", MAX_CHANGED, held, changed)


def miou(logits, fed, data, pairs):
    """Points of mIoU on labelled pairs; where the network labels another size than the truth's, by the nearest label."""
    names, total = data.classes.names, None
    for pair in pairs:
        truth, (found,) = datasets.truth(data, pair), logits(fed(pair.image)).argmax(1)
        one = accuracy.counts(truth, images.repeated(found, truth.shape), len(names))
        total = total + one if total else one
    return 100 * accuracy.scores(total, names)["miou"]


def searched(model, data, costs, judge, shown, form, tell):
    """(names of the layers that stay in FP32, what the others lose together, parity on the pictures shown). Raises RtsegError where most would have to stay."""
    ends, reference, tried = int8.ends(model), proof.logits(model), {}
    order = sorted((name for name in costs if name not in ends), key=lambda name: -costs[name])

    def holds(count):
        tell(f"judging with {len(ends) + count} layers in FP32", 0.7 + 0.02 * len(tried))
        made = int8.paired(model, data, [*ends, *order[:count]], form)
        tried[count] = judge.loss(made), proof.against(made, lambda picture: reference(picture.fed), shown, "int8")
        return tried[count][0] <= judge.most and tried[count][1]["ok"]

    count = fewest(len(order) // 2, holds)
    if count is None:
        lost, parity = tried[max(tried)]
        if lost <= judge.most:
            proof.refuse(parity, "with half of its layers in FP32 the INT8 graph is still too far from FP32")
        raise RtsegError(f"INT8 loses {tried[0][0]:.3g} {judge.unit}, and {lost:.3g} with half of the layers in FP32 (at most {judge.most:g})",
                         "use FP16, or calibrate with more images or another --method")
    return [name for name in costs if name in {*ends, *order[:count]}], *tried[count]


def rows_of(model, costs, kept):
    """What each layer costs, and why it stays in FP32, if it does."""
    ends = int8.ends(model)
    return [{"layer": name, "cost": float(f"{cost:.3g}"), "why": "an end" if name in ends else "cost" if name in kept else ""} for name, cost in costs.items()]


def costs_of(model, data, feeds, form, tell):
    """Layer -> mean squared difference of the logits, as a fraction of their variance, where it alone is in INT8."""
    names, reference, found = int8.layers(model), proof.logits(model), {}
    wanted = [reference(fed) for fed in feeds]
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    for number, name in enumerate(names):
        tell(f"trying layer {number + 1} of {len(names)}", 0.1 + 0.6 * number / len(names))
        logits = proof.logits(int8.paired(model, data, [other for other in convolutions if other != name], form))
        found[name] = float(np.mean([((logits(fed) - want) ** 2).mean() / max(want.var(), 1e-12) for fed, want in zip(feeds, wanted)]))
    return found


def fewest(most, holds):
    """The least of 0 to `most` for which holds(count), by bisection; None where not even `most` does. More are assumed never to make it worse."""
    if holds(0):
        return 0
    if not (most and holds(most)):
        return None
    fails, enough = 0, most
    while enough - fails > 1:
        middle = (fails + enough) // 2
        if holds(middle):
            enough = middle
        else:
            fails = middle
    return enough


def layer_rows(about):
    """Rows of a table: each layer, what it costs by itself, and whether it stays in FP32."""
    return [{"layer": row["layer"], "cost": f"{row['cost']:.1e}", "kept in FP32": row["why"]} for row in about["layers"]]


def summary(about):
    return (f"{about['in_int8']} convolutions in INT8 for {about['for']}, ranges by {about['method']} of {about['images']} images ({about['list']}); "
            f"it loses {about['loss']:.3g} {about['loss_unit']} (at most {about['most']:g})")
