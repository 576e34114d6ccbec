"""A summary of results -> what is read: tables for the terminal, and one page, a document, rows and values as files."""
import csv
import io
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Column, Table
from rich.text import Text

from . import __version__, files, locks
from .records import size
from .report import markdown_table, milliseconds, no_markup
from .results import Result

FORMATS = ("markdown", "csv", "json", "html")
OURS = "ours: "                     # what begins a line of ours that is one reason: it is said under the table
MANY = 10                           # columns of a table, and the width of one where there are so many
CLOCKS = {"each": "each step waited for", "overlapping": "frames overlap: ms of each from its begin to its end, FPS of all under one bracket",
          "together": "FPS and mean of all steps under one bracket; median and p99 of steps waited for one by one"}
RIGHT = ("N", "FPS", "FPS, one bracket", "ms", "mean ms", "median ms", "p99 ms")


def frames(value):
    """Frames per second."""
    return "" if value is None else f"{value:,.1f}"


def ms(value):
    return "" if value is None else milliseconds(value)


def interval(figure):
    """Of the FPS; empty where it is not known."""
    about = "about " if figure["approximate"] else ""
    return "" if figure["fps_low"] is None else f"{about}{frames(figure['fps_low'])} to {frames(figure['fps_high'])}"


def one_bracket(figure):
    """FPS of a queue of steps, beside that of steps that were waited for."""
    return figure["back_to_back_fps"] if figure["clock"] == "each" else None


def count(figure):
    return f"{figure['iterations']:,}" + (f" x {figure['processes']}" if figure["processes"] > 1 else "")


def texts(figure):
    """A figure as a row of texts."""
    bound = "" if figure["p99_bound_ms"] is None else f" (≤ {ms(figure['p99_bound_ms'])})"
    return {"": str(figure["number"]), "network": f"{figure['network']} {figure['resolution']}", "precision": figure["precision"],
            "backend": figure["backend"], "N": count(figure), "FPS": frames(figure["fps"]), "95 %": interval(figure),
            "FPS, one bracket": frames(one_bracket(figure)), "mean ms": ms(figure["mean_ms"]), "median ms": ms(figure["median_ms"]),
            "p99 ms": ms(figure["p99_ms"]) + bound, "status": figure["status"]}


def grouped(summary):
    """(what is inside the clock, as a title; notes that all have; the figures that were timed so, with their own) for each protocol and boundary."""
    figures = {figure["number"]: figure for figure in summary["figures"]}
    for group in summary["groups"]:
        members = [figures[number] for number in group["numbers"]]
        common = [note for note in members[0]["notes"] if all(note in one["notes"] for one in members)] if len(members) > 1 else []
        own = [{**one, "notes": [note for note in one["notes"] if note not in common]} for one in members]
        yield f"{group['protocol']}: {group['boundary']}; {CLOCKS[group['clock']]}", common, own


def remarks(common, figures):
    """What limits the meaning of all figures, what makes one doubtful, and what limits its own."""
    yield from (f"all: note: {note}" for note in common)
    for figure in figures:
        yield from (f"{figure['number']}: {figure['status']}: {warning}" for warning in figure["warnings"])
        yield from (f"{figure['number']}: note: {note}" for note in figure["notes"])


def table_of(figures):
    """Rows of texts, without columns that are empty in all of them."""
    rows = [texts(figure) for figure in figures]
    return [{name: text for name, text in row.items() if any(other[name] for other in rows)} for row in rows]


# ---- beside a paper


def compared(row):
    """A row of beside.compared as a row of texts."""
    limit = {who: f"{row[f'{who}percent']:.3g} %" if f"{who}percent" in row else "" for who in ("", "our_")}
    found = {"": str(row["number"]), "figure": f"{row['network']} {row['resolution']}", "paper": f"{row['printed']:g} {row['unit']}, {row['device']}",
             "of its limit": limit[""], "ours": f"{row['backend']}, {row['our_device']}", "FPS": frames(row["our_fps"]), "ms": ms(row["our_ms"]),
             "of our limit": limit["our_"], "expected ms": "", "which says": row["says"]}
    if "ratio" in row:
        ends = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
        found["which says"] = f"{row['ratio']:.3f}{ends} of the paper's FPS: {row['says']}"
    if "expected_ms" in row:
        found["expected ms"] = f"{ms(row['bracket_low_ms'])} to {ms(row['bracket_high_ms'])}; by layers {ms(row['expected_ms'])}"
    return found


def measured(part):
    """The rows that have one of ours: the others say no more than the paper's table does."""
    return [row for row in part["beside"] if row["number"] is not None]


def compared_rows(part):
    rows = [compared(row) for row in measured(part)]
    return [{name: text for name, text in row.items() if any(other[name] for other in rows)} for row in rows]


def title_of(part):
    return f"{part['paper']}, {part['table']}: {part['title']}"


# ---- terminal


def terminal(summary):
    """What is printed: a table for each protocol and boundary, then the papers'."""
    for title, common, figures in grouped(summary):
        yield Group(Text(title), drawn(table_of(figures)))
        yield from remarks(common, figures)
    for part in summary["papers"]:
        yield Group("", Text(title_of(part)))
        yield printed(part)
        yield from (row[0] for row in part["rows"] if row[0].startswith(OURS))
        yield from part["footnotes"]
        if measured(part):
            yield drawn(compared_rows(part))
        yield from part["said"]


def printed(part):
    """The paper's table: of many columns as text as wide as it needs, whatever the terminal is, so that no letter is lost."""
    first = [row[0].removesuffix(row[0].partition(OURS)[2]) for row in part["rows"]]
    wide = max(len(word) for text in first for word in text.split())
    table = Table(Column(part["headings"][0], min_width=wide), *(Column(name, overflow="fold") for name in part["headings"][1:]), box=SIMPLE_HEAD,
                  padding=0)
    for name, row in zip(first, part["rows"]):
        table.add_row(*map(Text, [name, *row[1:]]))
    if len(part["headings"]) < MANY:
        return table
    console = Console(width=MANY * len(part["headings"]), file=io.StringIO())
    console.print(table)
    return Text("\n".join(line.rstrip() for line in console.file.getvalue().splitlines()), no_wrap=True, overflow="ignore")


def drawn(rows):
    table = Table(*(Column(name, justify="right" if name in RIGHT else "left", overflow="fold") for name in rows[0]), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(text, "yellow" if text == "unstable" else "") for text in row.values()))
    return table


# ---- files


def write(summary, folder, formats=FORMATS):
    """Write the report in each of the formats into a folder; returns the paths."""
    made = {"markdown": {"report.md": markdown}, "csv": {"report.csv": lambda one: lines(one["figures"])}, "json": {"report.json": None},
            "html": {"report.html": html}}
    if summary["papers"]:
        made["csv"]["paper.csv"] = lambda one: lines([row for part in one["papers"] for row in part["beside"]])
    paths = []
    with locks.goal(Path(folder, "report")):    # all of its files are of one run
        for name, make in (pair for kind in formats or FORMATS for pair in made[kind].items()):
            paths.append(Path(folder, name))
            files.write(paths[-1], make(summary)) if make else files.write_json(paths[-1], summary)
    return paths


def markdown(summary):
    parts = ["# Speed report"]
    for title, common, figures in grouped(summary):
        parts += [f"## {no_markup(title)}", markdown_table(table_of(figures)), bullets(remarks(common, figures))]
    for part in summary["papers"]:
        parts += [f"## {no_markup(title_of(part))}", markdown_lines(part["headings"], part["rows"]), bullets(part["footnotes"])]
        parts += [measured(part) and markdown_table(compared_rows(part)), bullets(part["said"])]
    shared = summary["conditions"]["shared"]
    parts += ["## Conditions"] + [markdown_lines(["", "all figures"], shared.items())] * bool(shared)
    for figure, own in zip(summary["figures"], summary["conditions"]["each"]):
        parts += [no_markup(f"### {figure['number']}: {figure['network']} {figure['resolution']} {figure['backend']}"),
                  markdown_lines(["", "value"], {"result": figure["result"], "sha256": figure["sha256"], **own}.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def bullets(lines):
    return "\n".join(f"* {no_markup(line)}" for line in lines)


def markdown_lines(headings, rows):
    """As report.markdown_table, for headings that may be alike."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(no_markup, line)) + " |" for line in lines)


def lines(rows):
    """CSV with a line for each row, every number as it is."""
    plain = [{name: no_formula("; ".join(map(str, value)) if isinstance(value, list) else value) for name, value in row.items()
              if not isinstance(value, dict)} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in plain for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return text.getvalue()


def no_formula(value):
    """A cell of CSV that a spreadsheet does not compute: a machine can call itself =HYPERLINK(…)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def rendered(template, filters, **values):
    """A page of a template of this package; what is put into it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("rtseg_deploy"), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)


def html(summary):
    """One page that needs nothing beside it."""
    results = [Result(value["result"], value["sha256"], value) for value in summary["results"]]
    return rendered(
        "report.html", {"ms": ms, "fps": frames}, summary=summary, version=__version__, groups=list(grouped(summary)),
        interval=interval, count=count, one_bracket=one_bracket, machines=machines(summary),
        title_of=title_of, measured=measured, pictures=pictures(summary, results))


def machines(summary):
    return list(dict.fromkeys(figure["device"] for figure in summary["figures"]))


def pictures(summary, results):
    """{section: [(caption, SVG text)]}, in the order of the figures."""
    from . import plots  # with it comes numpy, which takes as long as all that a terminal shows

    alike = {}
    for result in results:
        alike.setdefault((result.network, result.resolution, result.value["protocol"], result.machine), []).append(result)
    titles = [f"{result.value['number']} {result.name}" for result in results]
    return {"distributions": [(f"{network} {size(resolution)}, {protocol}", plots.distributions(members))
                              for (network, resolution, protocol, _), members in alike.items()],
            "over_time": [(title, plots.over_time(result)) for title, result in zip(titles, results)],
            "against_size": [(f"{one['network']}, {one['protocol']}", plots.against_size(one["network"], one["lines"], one["points"]))
                             for one in summary["curves"]],
            "against_accuracy": [(f"{one['paper']}, {one['table']}", plots.against_accuracy(*points(one))) for one in summary["accuracy"]],
            "stages": [(title, plots.stages(result)) for title, result in zip(titles, results) if result.stages]}


def points(one):
    """Of a paper's figure of speed against accuracy: the paper's, its own first, and ours, with the looks of their labels."""
    theirs = sorted(one["theirs"], key=lambda point: not point["own"])
    return ([(point["method"], point["miou"], point["fps"], "label" if point["own"] else "label quiet") for point in theirs],
            [(f"#{point['number']}", point["miou"], point["fps"], "label ours") for point in one["ours"]])
