"""A paper's table with our figures beside it: the limit of each device, and what could be expected of ours where it is another one.

On the same device there is a ratio: the same card, other software. Of another device a ratio of figures says nothing. It gets two expectations
from the paper's t_A on its device A, for the device B that measured, with peaks P and bandwidths B of data sheets:
    without layers      t_A P_A / P_B and t_A B_A / B_B: a bracket, for what is bound by one or by the other
    over the layers     t_A T_B / T_A: T is the optimistic end of estimate.py, and T_A / t_A the efficiency that is carried over
Nothing passes or fails on them: an efficiency is no utilisation where Winograd's algorithm applies, it is not the same on two devices for a
network that is bound by launches, and the clocks are those of data sheets.
"""
from functools import cache

from . import estimate, facts, tables
from .errors import RtsegError
from .facts.tables import paper_table, plain, points
from .facts.tables import tables as known
from .models import networks
from .records import size
from .report import milliseconds

INSIDE, FASTER, SLOWER = "inside the bracket", "faster than the bracket", "slower than the bracket"
SCALED = ("expected: a scaled expectation, not a measurement: the paper's time by the two devices' peaks and bandwidths (the bracket), and by the limits of "
          "the network's layers on both; clocks are those of data sheets, Winograd's algorithm and launches make it wrong either way; nothing passes or "
          "fails on it")
LIMIT = "limit: the optimistic end of rtseg-deploy estimate, from data sheets; a percentage of it is limit / time"


def of_paper(results, paper, table=None, tell=lambda step, done: None):
    """A part for the table of that name, or for each of the paper's that has speeds of its own. Raises RtsegError listing the known ones.

    results: those of a summary, each with its number.
    """
    names = [table] if table else list(dict.fromkeys(figure.table for figure in facts.speeds().values() if plain(figure.paper) == plain(paper)))
    return [part(results, paper_table(paper, name), tell) for name in names or [""]]


def part(results, table, tell):
    """The table as the paper has it with ours in it, and a row for each figure and each result that is of it."""
    named = dict.fromkeys(cell.figure for row in table.rows for cell in row if cell.figure)
    found = {figure: [result for result in results if alike(result, figure) and is_of(result, figure)]
             for figure in map(facts.speeds().get, named)}
    used = [result for members in found.values() for result in members]
    ours = {figure.id: "\n".join(short(result, figure) for result in members) for figure, members in found.items() if members}
    headings, rows, footnotes = tables.laid_out(table, ours, {figure.id: needs(figure.device) for figure in found})
    beside = [row for figure, members in found.items() for row in compared(figure, members, tell)]
    said = whose(used) + [LIMIT] * bool(used)
    said += [SCALED] * any("expected_ms" in row for row in beside)
    said += dict.fromkeys(left_out(results, found))
    said += dict.fromkeys(note for row in beside for note in row["notes"])
    return {"paper": table.paper, "table": table.table, "title": table.title, "headings": headings, "rows": rows, "footnotes": footnotes, "said": said,
            "beside": beside}


def needs(device):
    return f"needs {'an' if device[0] in 'RH' else 'a'} {device}"


def short(result, figure):
    """Ours, in the unit that the paper prints, of what, the number of the figure that it is, and whether that is to be believed."""
    value = f"{result.statistics['fps']:,.1f}" if figure.fps else milliseconds(result.ms)
    return f"{value} {result.value['backend']} #{result.value['number']}{'' if result.value['status'] == 'stable' else ', ' + result.value['status']}"


def whose(results):
    """What the numbers in a table are: where each was measured, and with what."""
    found = {}
    for result in results:
        how = f"{result.value['backend']}{'' if result.computed == 'fp32' else ' ' + result.computed} on {result.machine}"
        found.setdefault(how, []).append(f"#{result.value['number']}")
    return [f"ours: {how}: {', '.join(dict.fromkeys(numbers))}" for how, numbers in found.items()]


# ---- which result is of which figure


def is_of(result, figure):
    """Whether it timed the paper's network at the paper's size: for this figure by name, or the paper's way, BatchNorm aside."""
    how = facts.timed(figure.paper, figure.table)
    same = result.network == figure.network and result.resolution == seen(figure, how) and result.network_input == figure.input
    return same and (result.value["figure"] == figure.id or not departures(result, how, ("protocol", "precision")))


def alike(result, figure):
    """Whether both are of a GPU, or both of a processor: a figure of the other kind is not beside it, unless it was made for it."""
    return result.value["figure"] == figure.id or bool(result.runs[0]["device_seconds"]) == bool(facts.devices()[figure.device].compute_capability)


def left_out(results, found):
    """Which results are of the paper's network at its size and not in the table, and why."""
    used = {result.value["number"] for members in found.values() for result in members}
    for figure in found:
        how = facts.timed(figure.paper, figure.table)
        for result in results:
            same = result.network == figure.network and result.resolution == seen(figure, how) and alike(result, figure)
            if same and result.value["number"] not in used:
                yield f"#{result.value['number']} is not in it: {', '.join(departures(result, how)) or 'another input of the network'}"


def seen(figure, how):
    """(height, width) of the image that what is timed begins with."""
    return figure.resolution if how["output"] == "logits" else figure.input


def departures(result, how, names=("protocol", "precision", "BatchNorm")):
    """In what it was not timed the paper's way; an empty list where it was."""
    ours = {"protocol": result.value["protocol"], "BatchNorm": result.value["bn"], "precision": result.computed}
    theirs = {"protocol": how["protocol"], "BatchNorm": how["bn"], "precision": "fp32"}
    return [f"{name} {ours[name]} instead of {theirs[name]}" for name in names if ours[name] != theirs[name]]


# ---- the comparison


def compared(figure, members, tell):
    """A row for each result; one that says what is missing where there is none. Times are milliseconds, ends None where they are not known."""
    device, precise = facts.devices()[figure.device], "fp32"
    theirs = 1e3 / figure.fps if figure.fps else figure.ms
    row = {"figure": figure.id, "network": figure.network, "resolution": size(figure.input), "device": figure.device, "printed": figure.fps or figure.ms,
           "unit": "FPS" if figure.fps else "ms", "ms": theirs}
    if not members:
        return [{**row, "number": None, "says": f"{tables.NOT_MEASURED}: {needs(figure.device)}", "notes": []}]
    tell(f"counting {figure.network} at {size(figure.input)}", None)
    try:
        layers = estimate.layers_of_figure(figure)
    except RtsegError as error:     # what only measures has no PyTorch
        return [{**row, **measured(result), "says": "", "notes": [f"no limits: {error.what}"]} for result in members]
    best = estimate.milliseconds(estimate.optimistic(layers, device, precise))
    row.update(limit_ms=best, percent=100 * best / theirs)
    return [{**row, **measured(result), **against(result, figure, theirs, best, layers)} for result in members]


def measured(result):
    """What ours is."""
    timed = result.statistics
    return {"number": result.value["number"], "our_device": result.machine, "backend": result.value["backend"], "our_precision": result.precision,
            "our_status": result.value["status"], "our_fps": timed["fps"], "our_fps_low": timed.get("fps_low"), "our_fps_high": timed.get("fps_high"),
            "our_ms": result.ms}


def against(result, figure, theirs, best, layers):
    """The limit of ours, and either the ratio to the paper's (the same device) or what could be expected of ours (another)."""
    how, ours = facts.timed(figure.paper, figure.table), result.ms
    notes = [f"#{result.value['number']}: {one}" for one in departures(result, how)]
    notes += [f"{figure.device}: BEATS its limit, see rtseg-deploy estimate --papers"] * (best > theirs)
    if not result.device or result.precision not in estimate.BYTES:
        unknown = f"{result.precision}: its" if result.device else f"{result.machine}: its"
        return {"says": "", "notes": [*notes, f"{unknown} peaks are not known here, so there is no limit and nothing that could be expected of it"]}
    limit = limit_of(result, result.device.name)
    found = {} if limit is None else {"our_limit_ms": limit, "our_percent": 100 * limit / ours}
    if result.device.name == figure.device:
        low, high = (end and end * theirs / 1e3 for end in (result.statistics.get("fps_low"), result.statistics.get("fps_high")))
        same = "card" if result.device.compute_capability else "processor"
        return {**found, "ratio": theirs / ours, "ratio_low": low, "ratio_high": high, "says": f"same {same}, other software", "notes": notes}
    return {**found, **expected(figure, result, theirs, best, ours, layers), "notes": notes}


def expected(figure, result, theirs, best, ours, layers):
    """What could be expected of ours on another device than the paper's; see above."""
    a, b, precision = facts.devices()[figure.device], result.device, result.precision
    peak = b.fp16_tflops if precision == "fp16" else b.fp32_tflops
    low, high = sorted((theirs * a.fp32_tflops / peak, theirs * a.bandwidth_gbs / b.bandwidth_gbs))
    there = estimate.milliseconds(estimate.optimistic(layers, b, precision))
    return {"bracket_low_ms": low, "bracket_high_ms": high, "efficiency": best / theirs, "expected_ms": there * theirs / best,
            "says": FASTER if ours < low else SLOWER if ours > high else INSIDE}


def limit_of(result, device):
    """Milliseconds below which no result like it can come on that device; None for a network that is not of the registry, and without facts: BF16, INT8."""
    if result.network not in networks() or result.computed != result.precision or result.precision not in estimate.BYTES:
        return None
    reduced = result.network_input if result.network_input != result.resolution else None
    return counted(result.network, result.resolution, "logits" if result.value["artifact"]["output"] == "logits" else "native", result.precision,
                   result.value["artifact"]["classes"], reduced, device)


@cache
def counted(network, resolution, output, precision, classes, reduced, device):
    layers = estimate.of_network(network, resolution, output, precision, classes, reduced)
    return estimate.milliseconds(estimate.optimistic(layers, facts.devices()[device], precision))


# ---- speed against accuracy


def accuracy(results, asked=None):
    """A row for the paper that is asked for, or for each that has figures of ours: its points and ours. mIoU is always the paper's."""
    found = []
    for paper in [asked] if asked else dict.fromkeys(row["paper"] for row in known()):
        try:
            theirs = points(paper)
        except RtsegError:          # it has no such table
            continue
        own = [(point, facts.speeds()[point["figure"]]) for point in theirs if point["figure"]]
        ours = [{"method": point["method"], "miou": point["miou"], "fps": result.statistics["fps"], "number": result.value["number"],
                 "backend": result.value["backend"], "device": result.machine} for point, figure in own for result in results if is_of(result, figure)]
        if ours or asked:
            found.append({"paper": facts.speeds()[own[0][0]["figure"]].paper, "table": theirs[0]["table"], "theirs": theirs, "ours": ours})
    return found
