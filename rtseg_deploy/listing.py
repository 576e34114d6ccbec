"""Lists of what is known, as rows of plain values: for the terminal, a document or a script."""
from . import facts, models
from .complexity import FLOPS, PARAMETERS, complexity, operations
from .errors import need
from .records import size

CLOSE = 0.01                        # a difference beyond it needs a reason


def networks(resolution, tell):
    """Every network at (height, width)."""
    return [network_row(network, resolution, tell) for network in models.networks().values()]


def network_row(network, resolution, tell):
    tell(f"counting {network.name}", None)
    count = complexity(network, resolution)
    macs, every = (round(count[name] / 1e9, 3) if count[name] else "size not taken" for name in ("macs", "all_macs"))
    weights, activations = (round(count[name] / 2**20, 1) if count[name] else "" for name in ("weights_bytes", "activation_bytes"))
    owners = list(dict.fromkeys(dialect.source.partition("/")[0] for dialect in network.dialects))
    return {"network": network.name, "parameters": count["parameters"], "GMACs": macs, "of all operations": every, "weights MiB": weights,
            "activations MiB": activations, "at": size(resolution), "logits at": f"1/{network.stride}", "sizes": grid(network.multiple),
            "checkpoints of": owners, "paper": network.paper, "note": network.note}


def grid(multiple):
    return f"multiples of {multiple}" if multiple > 1 else "any"


def dialects():
    """Every implementation of every network whose checkpoints load."""
    return [dialect_row(network, dialect) for network in models.networks().values() for dialect in network.dialects]


def dialect_row(network, dialect):
    arithmetic = ", ".join(f"{name} {getattr(value, '__name__', value)}" for name, value in dialect.variant.items())
    note = "only when asked for" if dialect.asked else f"with {dialect.beside} beside the weights" if dialect.beside else ""
    itself = dialect.variant.get("shuffle") or dialect.variant.get("form")
    return {"network": network.name, "dialect": dialect.name, "source": dialect.source, "arithmetic": arithmetic,
            "enlarged": "by itself" if itself else {"corners": "corners aligned"}.get(dialect.enlarge, dialect.enlarge),
            "sizes": grid(network.grid(dialect)), "note": note}


def papers(tell):
    """Every network at every input of its paper: true counts, the same in the paper's way, the paper's figure, the difference."""
    found = {}
    for figure in facts.papers():
        found.setdefault((figure.network, figure.paper, figure.input), []).append(figure)
    return [paper_row(*key, figures, tell) for key, figures in found.items()]


def paper_row(name, paper, resolution, figures, tell):
    tell(f"counting {name} at {size(resolution)}", None)
    torch = need("torch")
    with torch.device("meta"):
        module = models.find(name).module(19).eval()
    found = operations(module, resolution)
    way = facts.counting()[paper]
    parameters = sum(p.numel() for p in module.parameters())
    ours = {"parameters": PARAMETERS[way["parameters_as"]](parameters), "gflops": FLOPS[way["gflops_as"]](found)}
    row = {"network": name, "paper": f"{paper} {', '.join(dict.fromkeys(f.table.removeprefix('Table ') for f in figures))}", "input": size(resolution),
           "parameters": parameters, "GMACs": round(FLOPS["10^9 MACs"](found), 3)}
    reasons = []
    for column, heading, unit in (("parameters", "M", way["parameters_as"]), ("gflops", "GFLOPs", way["gflops_as"])):
        same = figures if column == "gflops" else [f for f in facts.papers() if (f.network, f.paper) == (name, paper)]  # any size has the same weights
        theirs = next((getattr(f, column) for f in same if getattr(f, column)), None)
        row.update({f"its {heading}": theirs or "", f"our {heading}": float(f"{ours[column]:.4g}") if theirs else "", f"{heading} as": unit if theirs else "",
                    f"Δ {heading} %": f"{100 * (ours[column] / theirs - 1):+.2f}" if theirs else ""})
        if theirs and abs(ours[column] / theirs - 1) > CLOSE:
            reasons.append(facts.differences().get((name, column), "?"))
    return {**row, "reason": "; ".join(dict.fromkeys(reasons))}
