"""Tables of what is known: (headings, rows of plain values), for the terminal, a document or a script."""
from . import facts, models
from .complexity import FLOPS, PARAMETERS, complexity, operations
from .errors import need
from .records import size

CLOSE = 0.01                        # a difference beyond it needs a reason


def networks(resolution, tell):
    """Every network at (height, width)."""
    headings = ["network", "parameters", f"GMACs at {size(resolution)}", "of all operations", "weights MiB", "activations MiB", "logits at", "sizes",
                "implementations", "paper", "note"]
    rows = []
    for network in models.networks().values():
        tell(f"counting {network.name}", None)
        count = complexity(network, resolution)
        giga = [round(count[name] / 1e9, 3) if count[name] else "size not taken" for name in ("macs", "all_macs")]
        mib = [round(count[name] / 2**20, 1) if count[name] else "" for name in ("weights_bytes", "activation_bytes")]
        rows.append([network.name, count["parameters"], *giga, *mib, f"1/{network.stride}", grid(network.multiple), len(network.dialects), network.paper, network.note])
    return headings, rows


def grid(multiple):
    return f"multiples of {multiple}" if multiple > 1 else "any"


def dialects():
    """Every implementation of every network whose checkpoints load."""
    headings = ["network", "dialect", "source", "arithmetic", "enlarged", "sizes", "note"]
    rows = []
    for network in models.networks().values():
        for dialect in network.dialects:
            arithmetic = ", ".join(f"{name} {getattr(value, '__name__', value)}" for name, value in dialect.variant.items())
            note = "only when asked for" if dialect.asked else f"where {dialect.beside} is saved beside the weights" if dialect.beside else ""
            enlarged = "bilinear, corners aligned" if dialect.enlarge == "corners" else "bilinear"
            if dialect.variant.get("shuffle") or dialect.name == "ooooverflow":
                enlarged = "by the network itself"
            rows.append([network.name, dialect.name, dialect.source, arithmetic, enlarged, grid(network.grid(dialect)), note])
    return headings, rows


def papers(tell):
    """Every network that a paper prints parameters or FLOPs of: true counts, the same in the paper's way, the paper's figure, the difference."""
    headings = ["network", "table", "input", "parameters", "as the paper counts", "paper", "difference %", "GMACs", "as the paper counts ", "paper ",
                "difference % ", "reason"]
    torch = need("torch")
    printed = {}
    for figure in facts.papers():
        if figure.parameters or figure.gflops:
            key = figure.network, figure.paper, figure.input
            known = printed.setdefault(key, {"tables": [], "parameters": None, "gflops": None})
            known["tables"] = list(dict.fromkeys([*known["tables"], figure.table.removeprefix("Table ")]))
            known["parameters"] = known["parameters"] or figure.parameters
            known["gflops"] = known["gflops"] or figure.gflops
    rows = []
    for (name, paper, resolution), known in printed.items():
        tell(f"counting {name} at {size(resolution)}", None)
        with torch.device("meta"):
            module = models.find(name).module(19).eval()
        found = operations(module, resolution)
        counted = {"parameters": sum(p.numel() for p in module.parameters()), "gflops": round(FLOPS["10^9 MACs"](found), 3)}
        way = facts.counting()[paper]
        theirs = {"parameters": PARAMETERS[way["parameters_as"]](counted["parameters"]), "gflops": FLOPS[way["gflops_as"]](found)}
        cells, reasons = [], []
        for column in ("parameters", "gflops"):
            cells += compared(counted[column], theirs[column], known[column], way[f"{column}_as"])
            if known[column] and abs(theirs[column] / known[column] - 1) > CLOSE:
                reasons.append(facts.differences().get((name, column), "?"))
        rows.append([name, f"{paper} {', '.join(known['tables'])}", size(resolution), *cells, "; ".join(reasons)])
    return headings, rows


def compared(count, theirs, printed, unit):
    """[true count, in the paper's unit, the paper's figure, difference in %]; the last three empty where the paper prints none."""
    if not printed:
        return [count, "", "", ""]
    return [count, f"{theirs:.4g} {unit}", printed, f"{100 * (theirs / printed - 1):+.2f}"]
