"""The chain from PyTorch to an engine, each link held against the first on the same pictures; of the first that fails, where it departs.

Steps that are made here are made without the proofs of export and build-engine in the way: a fault is to be found, and named, here.
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from . import accuracy, backends, build, calibrate, datasets, facts, files, fp16, images, int8, launch, links, passes, proof, suspects
from .departures import BOUNDARY, bar_of, departure, maps, summary, too_far
from .errors import RtsegError
from .export import export, refuse_size
from .lists import listed, spread
from .passes import to_fp16
from .records import FORMAT, PRECISIONS, read_artifact, sidecar, size

STEPS = ("pytorch", "folded", "onnx", "fp16", "int8", "backend", "engine")
AT_A_TIME = 16                      # pictures: of one job on a device
DEFAULT_COUNT = 32
COLOURS = {"inside of objects": (230, 30, 30), "at boundaries": (255, 190, 0), "ties": (70, 130, 255)}
INK = 0.75                          # of those colours over the picture


@dataclass(frozen=True)
class Shot:
    """A picture that is compared."""
    name: str
    read: Callable                  # () -> H x W x 3 uint8 RGB, of its own size
    truth: Callable | None = None   # () -> its labels, of its own size
    seen: bool = True               # such as a camera sees: noise is nothing that INT8 is calibrated for


@dataclass(frozen=True)
class Ask:
    """What a chain is asked to be; see the options of `rtseg-deploy verify-chain`."""
    resolution: tuple
    precision: str = ""             # fp32, fp16, int8: the last that is made here; "" makes what no named file stands for
    target: str = ""
    backends: tuple = ()            # that run the FP32 file, a step each
    data: str = ""
    dataset: str = ""
    split: str = ""
    images: str = ""
    calibration: str = ""           # images; those that are compared if not given
    count: int = DEFAULT_COUNT
    normalisation: str = ""         # of files without a sidecar
    folder: str = ""                # where the picture of a failure goes
    bars: tuple = ()                # ((field of departures.Bar, what is asked for instead), …)
    place: object = None            # the device, see ssh.place


def verify_chain(trained, named=(), ask=None, tell=launch.quiet):
    """The report of a chain: {"ok", "steps": [...], "failed": the first that fails, with where and picture, or None}. Raises RtsegError.

    named: files that are checked in place of the steps that they are, or besides.
    """
    refuse_size(trained, ask.resolution)
    shots, data = pictures(trained, ask)
    with files.scratch() as made:
        chain = linked(trained, named, ask, shots, Path(made), tell)
        rows, scores, refused = compared(chain, shots, data, ask, tell)
        steps = [told(link, *found, ask) for link, *found in zip(chain, rows, scores, refused)]
        for step in steps:
            if step["miou"] is not None and steps[0]["miou"] is not None:
                step["delta_miou"] = step["miou"] - steps[0]["miou"]
            step["why"] += too_far(step, bar(step["precision"], ask)) if step["pictures"] else []
            step["ok"] = None if step["not_run"] else not step["why"]
        number = next((number for number, step in enumerate(steps) if step["ok"] is False), None)
        failed = None if number is None else blamed(trained, chain, steps, number, shots, ask, tell)
    return {"format": FORMAT, "kind": "chain", "ok": failed is None, "network": trained.network.name, "checkpoint": trained.parent,
            "resolution": list(ask.resolution), "pictures": len(shots), "data": data.name if data else None, "steps": steps, "failed": failed}


def bar(precision, ask):
    return bar_of(precision, **dict(ask.bars))


# ---- pictures


def pictures(trained, ask):
    """([Shot], DataSet or None)."""
    if ask.data:
        data = datasets.dataset(ask.data, ask.dataset or None, ask.split or None)
        datasets.refuse_other_classes(data, trained.classes, "", "the checkpoint")
        return [Shot(pair.name, lambda pair=pair: images.read(pair.image), lambda pair=pair: datasets.truth(data, pair))
                for pair in spread(data.pairs, ask.count)], data
    if ask.images:
        return [Shot(path.name, lambda path=path: images.read(path)) for path in spread(listed(ask.images), ask.count)], None
    drawn = proof.pictures(ask.resolution, asdict(trained.normalisation), "rgb8")
    return [Shot(name, lambda pixels=picture.fed: pixels, seen=name == "street") for name, picture in drawn.items()], None


def pixels_of(shot, ask):
    return images.resized(shot.read(), ask.resolution)


# ---- links


def linked(trained, named, ask, shots, folder, tell):
    """The links, in order: those of PyTorch, then each step as it is named, or else as it is made here."""
    given = [links.of_file(path, trained, ask.resolution, ask.normalisation or None, ask.place, tell) for path in named]
    inner = {link.reading.network_input for link in given} or {tuple(ask.resolution)}
    if len(inner) > 1:
        raise RtsegError(f"the files resize a picture to {' and '.join(map(size, sorted(inner)))} first", "verify them one by one")
    reading = links.reading_of(trained, ask.resolution, *inner)
    tell("folding in PyTorch and tracing", None)
    found = [links.in_pytorch("pytorch", "the checkpoint", trained, reading), attempted("folded", "folded in PyTorch", "fp32", reading,
                                                                                        lambda: links.folded(trained, reading))]
    there = {link.step for link in given}
    last = PRECISIONS.index(ask.precision or "fp32")
    wanted = [precision for precision in PRECISIONS[:last + 1] if links.step_of(precision) not in there]
    found += made_here(trained, reading, wanted, ask, shots, tell)
    for name in ask.backends:
        found.append(attempted("backend", f"by {name}", backends.computes("fp32", name), reading,
                               lambda name=name: links.by_backend(exported(trained, named, reading, ask, folder, tell), name)))
    if ask.target and "engine" not in there:
        found.append(attempted("engine", f"for {ask.target}", ask.precision or "fp32", reading,
                               lambda: engine(trained, named, reading, ask, folder, tell)))
    return sorted([*found, *given], key=lambda link: STEPS.index(link.step))


def attempted(step, how, precision, reading, make):
    """The Link that is made, or one that says why there is none."""
    try:
        return make()
    except RtsegError as error:
        def answers(pictures, error=error):
            raise RtsegError(error.what, error.fix)
            yield
        return links.Link(step, how, precision, reading, answers)


def made_here(trained, reading, wanted, ask, shots, tell):
    """Links of the graphs that this package makes, of those precisions."""
    reading = replace(reading, target=ask.target, opset=facts.target(ask.target).opset if ask.target else reading.opset)
    graph = []

    def folded():
        graph[:] = graph or [links.traced(trained, reading)[1]]
        return graph[0]

    def quantised():
        tell("calibrating", None)
        return int8.quantised(folded(), feeds(calibrating(ask, shots), reading))

    make = {"fp32": (folded, "traced and folded here"), "fp16": (lambda: halved(folded(), trained, reading), "converted here, simulated"),
            "int8": (quantised, f"calibrated here on {'its own pictures' if not ask.calibration else ask.calibration}")}
    return [attempted(links.step_of(precision), how, precision, reading,
                      lambda model=model, how=how, precision=precision: links.of_graph(links.step_of(precision), how, model(), precision, reading))
            for precision, (model, how) in make.items() if precision in wanted]


def halved(model, trained, reading):
    """The FP16 graph of an FP32 one, whatever it is worth; what FP16 cannot hold stays in FP32."""
    inputs = proof.pictures(reading.resolution, asdict(trained.normalisation), reading.input)
    return passes.checked(to_fp16.run(model, list(fp16.beyond_range(model, inputs))))


def calibrating(ask, shots):
    """The pixels that INT8 is calibrated on, one picture at a time."""
    if not ask.calibration:
        return (pixels_of(shot, ask) for shot in shots if shot.seen)
    return (images.resized(images.read(path), ask.resolution) for path in spread(listed(ask.calibration), ask.count))


def feeds(pictures, reading):
    return (images.fed(pixels, reading.input, reading.normalisation) for pixels in pictures)


def given(named, precision):
    """The first file with a sidecar of that precision; None where none is named."""
    return next((path for path in named if sidecar(path).is_file() and of_kind(read_artifact(path), precision)), None)


def exported(trained, named, reading, ask, folder, tell):
    """The FP32 file that is named, or that is exported here, once."""
    path = given(named, "fp32") or folder / f"{trained.network.name}.native.onnx"
    if not sidecar(path).is_file():
        export(trained, path, ask.resolution, output="native", tell=tell,
               network_input=reading.network_input if reading.network_input != reading.resolution else None)
    return path


def engine(trained, named, reading, ask, folder, tell):
    """The Link of an engine that is built for this: of the FP32 file that is named, or of what is exported here."""
    precision, target = ask.precision or "fp32", facts.target(ask.target)
    takes = "int8" if precision == "int8" else "fp32"
    source = given(named, takes)
    how = f"built for {ask.target} from {source or 'what is exported here'}"
    if source is None:
        source = folder / f"{trained.network.name}.onnx"
        export(trained, source, ask.resolution, output="labels", tell=tell, target=ask.target,
               network_input=reading.network_input if reading.network_input != reading.resolution else None)
        if takes == "int8":
            if not (ask.calibration or ask.images):
                raise RtsegError("an INT8 engine needs pictures that it is calibrated on", "--calibration DIR|LIST")
            source, _ = calibrate.calibrate(source, ask.calibration or ask.images, tell=tell)
    path, _ = build.build_engine(source, ask.target, precision == "fp16", folder / "engines", tell, place=ask.place)
    if ask.place is None and target.ahead_of_time:
        return links.Link("engine", how, precision, reading, None, notes=(f"built for {target.device.name}, not run here: that needs the device",))
    return replace(links.of_file(path, trained, ask.resolution, None, ask.place, tell), made=how)


def of_kind(artifact, precision):
    return artifact.kind == "onnx" and artifact.precision == precision


# ---- comparison


def compared(chain, shots, data, ask, tell):
    """(rows of each link's departures, its mIoU in percent or None, why it gives nothing or "")."""
    rows, refused, totals = [[] for _ in chain], [""] * len(chain), [None] * len(chain)
    remaining = iter(enumerate(shots))
    while chunk := list(islice(remaining, AT_A_TIME)):
        pictures = [pixels_of(shot, ask) for _, shot in chunk]
        streams = [guarded(link, pictures, refused, number) for number, link in enumerate(chain)]
        for (number, shot), reference, *answers in zip(chunk, *streams):
            tell(f"picture {number + 1} of {len(shots)}: {shot.name}", number / len(shots))
            truth = shot.truth() if data else None
            for place, (link, answer) in enumerate(zip(chain, (reference, *answers))):
                if answer is not None and (shot.seen or link.precision != "int8"):
                    rows[place].append({"shot": number, **departure(reference, answer, bar(link.precision, ask).margin)})
                    totals[place] = counted(totals[place], truth, answer.labels, reference, data)
    if refused[0]:
        raise RtsegError(refused[0])
    names = data.classes.names if data else ()
    return rows, [None if total is None else 100 * accuracy.scores(total, names)["miou"] for total in totals], refused


def guarded(link, pictures, refused, number):
    """An answer for each picture; None from where a link fails, and why is kept."""
    done = 0
    if link.answers and not refused[number]:
        try:
            for answer in link.answers(pictures):
                yield answer
                done += 1
        except RtsegError as error:
            refused[number] = error.what
    yield from (None for _ in pictures[done:])


def counted(total, truth, labels, reference, data):
    """The accuracy.Counts with one picture more; None where labels are none of the network's."""
    if truth is None or labels.shape != reference.labels.shape or not 0 <= labels.min() <= labels.max() < len(data.classes.names):
        return total
    found = accuracy.counts(truth, images.repeated(labels[0], truth.shape), len(data.classes.names))
    return found if total is None else total + found


def told(link, rows, miou, refused, ask):
    """A step of the report, as yet without a verdict."""
    found = summary(rows, bar(link.precision, ask)) if rows else dict.fromkeys(("max_abs", "relative", "inside", "boundary", "beyond", "worst"))
    return {"step": link.step, "made": link.made, "precision": link.precision, "pictures": len(rows), **found, "miou": miou, "delta_miou": None,
            "bar": asdict(bar(link.precision, ask)), "why": [refused] if refused else [], "not_run": link.answers is None, "notes": list(link.notes)}


# ---- the first that fails


def blamed(trained, chain, steps, number, shots, ask, tell):
    """What is said of the step that fails first: where it departs, and the picture of where it disagrees."""
    link, step = chain[number], steps[number]
    tell(f"looking for where {step['step']} departs", None)
    if not step["pictures"]:
        return {"step": step["step"], "made": step["made"], "why": step["why"], "layer": "", "where": "", "picture": None}
    shot = shots[step["worst"]]
    pixels, limits = pixels_of(shot, ask), bar(link.precision, ask)
    try:
        found = suspects.suspect(link, chain[0], trained, pixels, limits)
    except RtsegError as error:     # the network's own graph cannot be made, or this one not be run again
        found = suspects.Suspect("", error.what)
    picture = drawn(chain[0], link, shot, pixels, limits, ask.folder) if ask.folder else None
    return {"step": step["step"], "made": step["made"], "why": step["why"], "layer": found.layer, "where": found.why, "picture": picture and str(picture)}


def drawn(first, link, shot, pixels, limits, folder):
    """Write the picture of where labels differ; returns its path."""
    reference, answer = (next(iter(one.answers([pixels]))) for one in (first, link))
    path = Path(folder, f"{link.step}.{Path(shot.name).stem}.png")
    with files.replacing(path) as temporary:
        disagreement(pixels, *maps(reference, answer.labels, limits.margin, BOUNDARY)).save(temporary, format="PNG")
    return path


def disagreement(pixels, differs, tied, near):
    """The picture in grey, and in colours where labels differ, with a legend."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32) * 0.6 + 60
    found = np.repeat(grey[:, :, None], 3, 2).astype(np.uint8)
    where = dict(zip(COLOURS, (differs & ~tied & ~near, differs & ~tied & near, differs & tied)))
    for name, mask in where.items():
        found[mask] = (INK * np.float32(COLOURS[name]) + (1 - INK) * grey[mask][:, None]).round()
    rows = [(f"differ{', but are' if name == 'ties' else ''} {name}  {mask.mean():.1%}", COLOURS[name]) for name, mask in where.items()]
    return images.beside(Image.fromarray(found), images.legend(rows, len(found)))
