"""Where a link of a chain goes wrong: at the input, after the logits, or at a node, each seen by trying it or by holding graphs beside one another."""
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch

from . import differences, graphs, images, links, original, own, proof, ranges
from .departures import departure, summary, too_far
from .passes import to_fp16

BETTER = 3                          # times nearer than the right input a wrong one must come to what was found
CERTAIN = 1e-3                      # of the logits' scale, or of the labels: what comes so near is it
BEYOND = 1.5                        # times its calibrated range, from which a tensor is clipped so that it shows
ROUNDED = {"fp32": differences.SAME, "fp16": 2e-3, "int8": 2e-3}     # what precision alone does to weights, of their largest magnitude
DEPARTS = 1.0                       # of a tensor's scale, at most: with a bar for INT8 nothing would depart
AXES = {0: "the images", 2: "the height", 3: "the width"}


@dataclass(frozen=True)
class Suspect:
    layer: str                      # a node, a module, "input", or "" where it is not known
    why: str


UNSEEN = Suspect("", "no layer of it can be seen from here")


def suspect(link, first, trained, pixels, bar):
    """Where a link that failed departs from the first one, on the picture where it is worst."""
    reference, answer = (next(iter(one.answers([pixels]))) for one in (first, link))
    found = summary([departure(reference, answer, bar.margin)], bar)
    if link.reading.output == "labels" and answer.logits is not None:
        of_logits = departure(reference, replace(answer, labels=answer.logits.argmax(1)), bar.margin)
        if not too_far(summary([of_logits], bar), bar):
            return after_logits(link.model)
    if link.net is not None:
        return in_modules(first.net, link.net, images.normalised(pixels, first.reading.normalisation), bar) or UNSEEN
    own_graphs = () if link.model is None else links.traced(trained, link.reading)
    fed = images.fed(pixels, link.reading.input, link.reading.normalisation)
    looked = (lambda: not_finite(own_graphs[1], link, fed), lambda: differing(*own_graphs, link, behind=True),
              lambda: at_input(link, first, pixels, answer, found, bar), lambda: outside(link, reference, trained, pixels, bar),
              lambda: clipped(own_graphs[1], link.model, fed), lambda: differing(*own_graphs, link), lambda: departing(*own_graphs, link, trained, fed, bar))
    return next(filter(None, (look() for look in (looked if link.model else looked[2:3]))), UNSEEN)


# ---- the input


def hypotheses(normalisation):
    """What is fed by mistake -> f(H x W x 3 in 0..1) that feeds it."""
    mean, std = (np.float32(normalisation[key]) for key in ("mean", "std"))
    wrong = {"mean and std in the order BGR": lambda x: (x - mean[::-1]) / std[::-1], "mean and std left out": lambda x: x,
             "mean left out": lambda x: x / std, "std left out": lambda x: x - mean, "std applied before mean": lambda x: x / std - mean,
             "pixels not divided by 255": lambda x: (255 * x - mean) / std, "pixels of 0 to 255, not normalised": lambda x: 255 * x,
             "normalised twice": lambda x: ((x - mean) / std - mean) / std, "scaled to -1 to 1": lambda x: 2 * x - 1}
    others = {name: tuple(np.float32(part) for part in (one.mean, one.std)) for name, one in own.NORMALISATIONS.items() if name != "none"}
    wrong.update({f"normalised by {name}": lambda x, m=m, s=s: (x - m) / s for name, (m, s) in others.items() if not (np.array_equal(m, mean))})
    flipped = {f"BGR for RGB, and {name}": lambda x, feed=feed: feed(x[..., ::-1]) for name, feed in wrong.items()}
    return {"BGR for RGB": lambda x: (x[..., ::-1] - mean) / std, **wrong, **flipped}


def at_input(link, first, pixels, answer, found, bar):
    """The Suspect of a wrong input, where one makes the first link give what this one gave."""
    tried, by = {}, "beyond" if answer.logits is None else "relative"
    for name, feed in hypotheses(first.reading.normalisation).items():
        x = np.ascontiguousarray(feed(pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None], np.float32)
        with torch.inference_mode():
            logits = first.net.logits(torch.from_numpy(x)).numpy()
        tried[name] = summary([departure(links.Answer(logits, logits.argmax(1)), answer, bar.margin)], bar)
        if tried[name][by] <= CERTAIN:
            break
    best = min(tried, key=lambda name: tried[name][by])
    if too_far(tried[best], bar) or not BETTER * tried[best][by] <= found[by]:
        return None
    how = f"{tried[best][by]:.1%} of the labels differ" if by == "beyond" else f"to {tried[best][by]:.1g} of their scale"
    return Suspect("input", f"looks like {best}: PyTorch fed so gives the same ({how})")


# ---- after the logits


def after_logits(model):
    """The node that makes other labels of right logits."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node, after = makers.get(model.graph.output[0].name), []
    while node is not None and node.op_type in original.KEEPS_CLASSES:
        after.append(node)
        node = makers.get(node.input[0])
    if node is None or node.op_type != "ArgMax":
        return Suspect(model.graph.output[0].name, "its labels do not come from an ArgMax")
    axis = graphs.attribute(node, "axis", 0) % 4
    if axis in AXES:
        return at(node, f"the largest is looked for over axis {axis}, {AXES[axis]}; classes are axis 1")
    resized = next((one for one in after if one.op_type in ("Resize", "Upsample")), None)
    if resized is None:
        return at(after[0] if after else node, "its labels are not the largest of its logits, which are right")
    mode = graphs.attribute(resized, "mode", "nearest")
    return at(resized, "labels are enlarged, and not the logits" if mode == "nearest" else
              f"labels are enlarged by interpolation (mode {mode}): between two classes it makes a third")


def at(node, why):
    return Suspect(f"{differences.named(node)} ({node.op_type})", why)


def outside(link, reference, trained, pixels, bar):
    """The Suspect of native logits that are enlarged otherwise than the network was trained with."""
    meant = trained.dialect.enlarge
    if link.reading.output != "native" or link.reading.enlarge == meant:
        return None
    right = links.of_graph(link.step, link.made, link.model, link.precision, replace(link.reading, enlarge=meant))
    row = departure(reference, next(right.answers([pixels])), bar.margin)
    return None if too_far(summary([row], bar), bar) else Suspect("output", f"its logits are enlarged by {link.reading.enlarge}, and were trained with {meant}")


# ---- the network


def in_modules(reference, net, x, bar):
    """The first leaf of a module that departs from the same one of another; convolutions that hold their BatchNorm are not compared, what follows is."""
    one, other = proof.results_of(reference, x), proof.results_of(net, x)
    for path, result in one.items():
        before, after = reference.get_submodule(path), net.get_submodule(path)
        changed = isinstance(before, torch.nn.Conv2d) and not torch.equal(before.weight, after.weight)
        if not changed and not np.abs(result - other[path]).max() <= bar.delta * max(float(result.std()), 1e-12):
            return Suspect(f"{path} ({type(before).__name__})", "its result is the first that departs")
    return None


def differing(raw, model, link, behind=False):
    """The first node that is not as in the network's own graph, folded or not. behind: only one that a fault of the input cannot explain."""
    for wanted in (model, raw):
        found = differences.difference(wanted, link.model, ROUNDED[link.precision])
        if found and not (behind and at_front(link.model, found.node)):
            return Suspect(f"{found.node} ({found.op})", "; ".join(filter(None, [found.words, epsilon_of(raw, link.model, found.node)])))
    return None


def at_front(model, name):
    """Whether there is no convolution before a node."""
    makers = {tensor: node for node in model.graph.node for tensor in node.output}
    before = [next(node for node in model.graph.node if differences.named(node) == name)]
    while before:
        before = [makers[tensor] for node in before for tensor in node.input if tensor in makers]
        if any(node.op_type == "Conv" for node in before):
            return False
    return True


def epsilon_of(raw, model, name):
    """Whether the weights of a node are those of another epsilon, in words."""
    view = graphs.view(model)
    node = next(one for one in view.nodes if differences.named(one) == name)
    weight = view.value(graphs.given(node, 1)) if node.op_type == "Conv" else None
    found = None if weight is None else differences.epsilon(raw, name, weight)
    return f"folded with a BatchNorm epsilon of {found[0]:.2g}, and the network has {found[1]:.2g}" if found and abs(found[0] / found[1] - 1) > 0.5 else ""


def departing(raw, model, link, trained, fed, bar):
    """The first tensor that departs from the one of that name, or the first module whose tensor does."""
    most, run = min(bar.delta, DEPARTS), onnx.shape_inference.infer_shapes(link.run)
    for wanted in (raw, model):
        name = proof.first_departure(wanted, run, fed, most)
        if name:
            return at(maker(name, link), "its result is the first that departs")
    path = proof.first_departure_from_torch(links.module_of(trained, link.reading), run, fed, most)
    return Suspect(path, "its result is the first that departs") if path else None


def maker(name, link):
    """The node of a link's graph that makes a tensor; a simulation has more nodes than the graph."""
    return next(node for model in (link.model, link.run) for node in model.graph.node if name in node.output)


def not_finite(model, link, fed):
    """The first node of an FP16 graph, as simulated, that gives no finite number; `model` is what it should be, in FP32."""
    for name, found in ranges.ranges(link.run, [fed]).items() if link.precision == "fp16" else ():
        if not np.isfinite(found.largest):
            peak = ranges.ranges(model, [fed]).get(name)
            known = f"; in the network itself it reaches {peak.largest:.3g}" if peak else ""
            return at(maker(name, link), f"beyond FP16, which ends at {to_fp16.LARGEST:.0f}{known}")
    return None


def clipped(model, quantised, fed):
    """The tensor that goes furthest beyond the range that it was calibrated for; `model` is the same in FP32."""
    view, made = graphs.view(quantised), {name: node for node in model.graph.node for name in node.output}
    reached = {name: (found.low, found.high) for name, found in ranges.ranges(model, [fed]).items()}
    if fed.dtype == np.float32:
        reached["input"] = float(fed.min()), float(fed.max())
    kept = {node.input[0]: ends for node in view.nodes if node.op_type == "QuantizeLinear" and node.input[0] in reached and (ends := kept_by(node, view))}
    times = {name: max(beyond(-reached[name][0], -low), beyond(reached[name][1], high)) for name, (low, high) in kept.items()}
    over = [name for name in times if times[name] > BEYOND]
    if not over:
        return None
    name = max(over, key=times.get)
    why = (f"calibrated for {kept[name][0]:.3g} to {kept[name][1]:.3g}, and reaches {reached[name][0]:.3g} to {reached[name][1]:.3g}; "
           f"{len(over) - 1} of the other {len(times) - 1} tensors leave their range, too")
    return Suspect("input", why) if name == "input" else at(made[name], why)


def beyond(end, most):
    """How many times as far as `most` a range goes to one side."""
    return 0.0 if end <= 0 else end / max(most, 1e-30)


def kept_by(node, view):
    """The (lowest, highest) that a QuantizeLinear keeps, of one scale; None where there is one a channel."""
    scale, zero = (view.value(graphs.given(node, number)) for number in (1, 2))
    if scale is None or scale.size != 1:
        return None
    zero = np.uint8(0) if zero is None else zero
    kept = np.iinfo(zero.dtype)
    return tuple(float(scale.item()) * (end - int(zero.item())) for end in (kept.min, kept.max))
