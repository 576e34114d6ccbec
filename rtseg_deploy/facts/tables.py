"""The papers' tables, laid out as the papers have them, with what contradicts a cell as its footnotes.

tables.csv has a row for each method, size and split that a paper prints, by id. headings.csv says which of its columns stands under which
heading, and for which of the rows. misfits.csv has what does not fit, by id and column of the cell, or by the table. Numbers are as printed;
sizes are height x width, which BCPNet and SGCPNet print, where the others print width x height.
"""
import re
from dataclasses import dataclass
from functools import cache

from ..errors import RtsegError
from . import number, rows

SPEED = ("fps", "ms")
ROMAN = {roman: str(n) for n, roman in enumerate(["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"], 1)}


@dataclass(frozen=True)
class Entry:
    """What a paper prints of one method at one size, on one split, on one device; "" where it prints nothing."""
    id: str
    paper: str
    table: str
    row: int                        # of the table as printed
    section: str                    # of the table, that the row is in
    method: str
    variant: str
    parameters: str                 # in the paper's unit, as is
    gflops: str
    resolution: str
    split: str
    miou: str
    fps: str
    ms: str
    device: str                     # as the paper calls it
    own: bool                       # the method is the paper's
    figure: str                     # id of the facts.Figure that its speed is: one of its own that is printed beside two splits has one
    also: dict                      # heading -> what stands there and nowhere else


@dataclass(frozen=True)
class Cell:
    text: str
    id: str = ""                    # of the Entry that it is of
    column: str = ""                # of that
    figure: str = ""                # id of the paper's own figure of speed, where it is one
    footnotes: tuple = ()


@dataclass(frozen=True)
class PaperTable:
    paper: str
    table: str
    title: str
    headings: tuple
    rows: tuple                     # of Cells, one a heading; of a section, its name and empty ones
    notes: tuple                    # on the whole


@cache
def entries():
    """(paper, table) -> its Entries."""
    found = {}
    for row in rows("tables.csv"):
        also = dict(pair.split("=", 1) for pair in row["also"].split(";") if pair)
        entry = Entry(**{**row, "row": int(row["row"]), "own": row["own"] == "yes", "also": also})
        found.setdefault((entry.paper, entry.table), []).append(entry)
    return found


@cache
def misfits():
    """(id, column), or (table, "") -> what contradicts it, as sentences."""
    found = {}
    for row in rows("misfits.csv"):
        comment = f" ({row['comment']})" if row["comment"] else ""
        for place in row["cells"].split(";"):
            name, _, column = place.partition("/")
            found.setdefault((name, column), []).append(f"{row['paper']} {row['where']}: {row['printed']}; but {row['expected']}{comment}")
    return found


def tables():
    """Every table that is here: rows of paper, table, title, plotted (the split, where the table is speed against mIoU), note."""
    return rows("captions.csv")


def plain(name):
    """A name as nobody types it: BiSeNet V1 is bisenetv1, Table II is 2."""
    letters = "".join(re.findall("[a-z0-9]+", name.casefold())).removeprefix("table")
    return ROMAN.get(letters, letters)


def find(paper, table):
    """The row of tables() for names as people type them. Raises RtsegError listing the known ones."""
    of_paper = [row for row in tables() if plain(row["paper"]) == plain(paper)]
    if not of_paper:
        raise RtsegError(f"no paper is called {paper!r}", f"the known ones: {', '.join(dict.fromkeys(row['paper'] for row in tables()))}")
    for row in of_paper:
        if plain(row["table"]) == plain(table):
            return row
    raise RtsegError(f"no table of {of_paper[0]['paper']} is called {table!r}", f"the known ones: {', '.join(row['table'] for row in of_paper)}")


def paper_table(paper, table):
    """The PaperTable of those names, as people type them. Raises RtsegError listing the known ones."""
    caption = find(paper, table)
    key = caption["paper"], caption["table"]
    headings = [row for row in rows("headings.csv") if (row["paper"], row["table"]) == key]
    by_row = {}
    for entry in entries()[key]:
        by_row.setdefault(entry.row, []).append(entry)
    printed, section = [], ""
    for _, group in sorted(by_row.items()):
        if group[0].section != section:
            section = group[0].section
            printed.append((Cell(section), *[Cell("")] * (len(headings) - 1)))
        printed.append(tuple(cell(heading, group) for heading in headings))
    notes = [caption["note"]] * bool(caption["note"]) + misfits().get((":".join(key), ""), [])
    return PaperTable(*key, caption["title"], tuple(heading["heading"] for heading in headings), tuple(printed), tuple(notes))


def cell(heading, group):
    """What stands under a heading, of the Entries of a row."""
    wanted = [pair.split("=", 1) for pair in heading["where"].split(";") if pair]
    among = [entry for entry in group if all(getattr(entry, name) == value for name, value in wanted)]
    columns = heading["column"].split()
    notes = dict.fromkeys(note for entry in among for column in columns for note in misfits().get((entry.id, column), []))
    for entry in among:
        text = entry.also.get(heading["heading"]) if columns == ["also"] else " ".join(filter(None, (getattr(entry, column) for column in columns)))
        if text:
            return Cell(text, entry.id, heading["column"], entry.figure if columns[0] in SPEED else "", tuple(notes))
    return Cell("-")


def points(paper):
    """Speed against mIoU, as the papers' Figure 1 draws it and a table says it: rows of plain values. Raises RtsegError where there is no such table."""
    known = [row for row in tables() if row["plotted"]]
    chosen = next((row for row in known if plain(row["paper"]) == plain(paper)), None)
    if not chosen:
        raise RtsegError(f"no table of speed against mIoU is known of {paper!r}", f"of these: {', '.join(row['paper'] for row in known)}")
    return [{"method": f"{entry.method} {entry.variant}".strip(), "fps": float(entry.fps), "miou": float(entry.miou), "parameters": number(entry.parameters),
             "own": entry.own, "figure": entry.figure, "table": entry.table}
            for entry in entries()[chosen["paper"], chosen["table"]] if entry.split == chosen["plotted"] and entry.fps and entry.miou]
