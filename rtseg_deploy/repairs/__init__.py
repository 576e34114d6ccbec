"""What a parser does not take, written otherwise: only what gives exactly the same, and proven to.

A rule of facts/rules.csv names its repair. A repair is f(model, parser, labels of the nodes that it is for) -> (model, [what was done:
{"nodes", "done"}, or {"nodes", "refused"} with the reason]); the model that it is given stays as it is.
"""
from .. import check, graphs, passes
from . import ends, nodes
from .lower import lower


def constants(model, parser, labels):
    """Expressions of constants become their values, Constant nodes initialisers, and an Identity between goes."""
    folded = passes.clean.constants(model)
    made = {name for node in folded.graph.node for name in node.output}
    gone = [node.name or node.output[0] for node in model.graph.node if not set(node.output) & made]
    return folded, [{"nodes": gone, "done": "computed once and stored"}] if gone else []


def rewritten(rewrite, text):
    """A repair that replaces nodes by what `rewrite` makes of each, see nodes.py, again while that helps."""
    def repair(model, parser, labels):
        model, done = copied(model), []
        while True:
            view, graph, new = graphs.view(model), model.graph, []
            for node in graph.node:
                found = rewrite(node, view) if (node.name or node.output[0]) in labels else None
                if found:
                    done.append(node.name or node.output[0])
                    graph.initializer.extend(found[1])
                new += found[0] if found else [node]
            if len(new) == len(graph.node) and all(one is two for one, two in zip(new, graph.node)):
                break
            kept = [copied(node) for node in new]
            del graph.node[:], graph.value_info[:]
            graph.node.extend(kept)
        return model, [{"nodes": done, "done": text}] if done else []
    return repair


def copied(message):
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def float_input(model, parser, labels):
    return ends.float_input(REPAIRS["cast_first"](model, parser, {node.name or node.output[0] for node in model.graph.node})[0])


def int32_output(model, parser, labels):
    return ends.int32_output(model, parser)


def lowered(model, parser, labels):
    """See lower.py; where that fails for what is not stored, again with what can be stored."""
    result, done = lower(model, parser)
    if not any("refused" in row for row in done):
        return result, done
    return lower(passes.clean.constants(model), parser)


# in the order in which one helps the next
REPAIRS = {
    "constants": constants,
    "noop": rewritten(nodes.reduced_nothing, "a reduction over no axes left out"),
    "cast_first": rewritten(nodes.cast_first, "uint8 is cast first, and moved as floats"),
    "float_input": float_input,
    "int32_output": int32_output,
    "lower": lowered,
    "pads": rewritten(nodes.padded_first, "padded by a Pad before it"),
    "globally": rewritten(nodes.pooled_by_axes, "pooled over the whole map, or over one axis at a time"),
    "as_convolution": rewritten(nodes.as_convolution, "a product with constant weights written as a 1x1 convolution"),
}


def repaired(model, parser, capability="", without=()):
    """(model, [what was done and what was not]) by every repair that a Finding names, each once; `without`: names of repairs that are left out.

    Raises RtsegError where a repair makes what is not valid ONNX.
    """
    rows, tried = [], set(without)
    while True:
        found = [one for one in check.findings(model, parser, capability) if one.repair and one.repair not in tried]
        name = min((one.repair for one in found), key=list(REPAIRS).index, default=None)
        if name is None:
            return model, rows
        tried.add(name)
        new, done = REPAIRS[name](model, parser, {one.node for one in found if one.repair == name})
        rows += [{"repair": name, **row} for row in done]
        model = passes.checked(new) if any("done" in row for row in done) else model
