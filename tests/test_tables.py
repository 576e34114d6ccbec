"""The papers' tables as facts: each cell of the records is there, the other way round too, and footnotes stand at cells that are there."""
import json
import re
from collections import Counter

import pytest

from rtseg_deploy import facts
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts import tables
from rtseg_deploy.tables import laid_out

NUMBERS = {"parameters": "params_m", "gflops": "gflops", "miou": "miou", "fps": "fps", "ms": "ms"}
LEFT_OUT = {("BiSeNetV2", "Table 1")}  # of stages, not of networks
EVERY = [entry for group in tables.entries().values() for entry in group]
PRINTED = {(row["paper"], row["table"]): tables.paper_table(row["paper"], row["table"]) for row in tables.tables()}


@pytest.fixture(scope="module")
def records(shared):
    return json.loads((shared / "facts/paper_tables.json").read_text())


def speed_cells(table):
    return [cell for row in table.rows for cell in row if cell.figure]


# ---- complete


def test_every_record_is_an_entry_and_every_entry_a_record(records):
    wanted = {record["id"]: record for record in records["records"]
              if record["table"].startswith("Table") and (record["paper"], record["table"]) not in LEFT_OUT}
    assert set(wanted) == {entry.id for entry in EVERY} and len(EVERY) == len(wanted)
    for entry in EVERY:
        record = wanted[entry.id]
        assert (entry.paper, entry.table, entry.own) == (record["paper"], record["table"], record["is_own_method"])
        assert {name: facts.number(getattr(entry, name)) for name in NUMBERS} == {name: record[theirs] for name, theirs in NUMBERS.items()}, entry
        assert entry.resolution == (record["resolution"] or "") and entry.method.rstrip("*") == record["method"].rstrip("*")
        assert entry.split == re.sub(r"test .*", "test", record["split"] or "")


def test_what_an_entry_says_stands_in_its_row():
    for key, printed in PRINTED.items():
        lines = [[cell.text for cell in row] for row in printed.rows if row[1].text]  # without the names of sections
        assert len(lines) == max(entry.row for entry in tables.entries()[key])
        for entry in tables.entries()[key]:
            line = lines[entry.row - 1]
            named = [name for name in (entry.method, entry.variant) if any(name and name in text for text in line)]
            assert named or any(entry.method in heading for heading in printed.headings) or entry.own, entry
            said = [getattr(entry, column) for column in NUMBERS if getattr(entry, column)] + list(entry.also.values())
            assert set(said) <= set(line), entry


def test_each_speed_of_an_entry_has_a_cell_of_its_own():
    """Of a figure beside two splits the first: the other has the same row."""
    for key, printed in PRINTED.items():
        by_row = Counter((entry.row, column, getattr(entry, column), entry.resolution, entry.device)
                         for entry in tables.entries()[key] for column in tables.SPEED if getattr(entry, column))
        assert len(by_row) == sum(cell.column in tables.SPEED for row in printed.rows for cell in row)


def test_every_target_is_a_figure_and_every_speed_of_ones_own_is_one(records):
    targets = {target["record_ids"][0]: target for target in records["own_speed_targets"]}
    assert set(targets) == set(facts.speeds()) and len(targets) == 78
    by_id = {entry.id: entry for entry in EVERY}
    for name, figure in facts.speeds().items():
        target, entry = targets[name], by_id[name]
        assert (figure.fps, figure.ms) == (target["fps"], target["ms"]) == (facts.number(entry.fps), facts.number(entry.ms))
        assert (figure.paper, figure.table) == (entry.paper, entry.table)
        assert {other.id for other in EVERY if other.figure == name} == set(target["record_ids"])
    assert {entry.figure for entry in EVERY if entry.own and (entry.fps or entry.ms)} == set(targets)
    assert {cell.figure for printed in PRINTED.values() for cell in speed_cells(printed)} == set(targets)
    assert {figure.id for figure in facts.papers()} <= set(by_id)


def test_every_misfit_is_there_and_bears_on_a_cell_that_is_there(records):
    rows = facts.rows("misfits.csv")
    assert Counter((row["kind"], row["paper"]) for row in rows) == Counter((row["kind"], row["paper"]) for row in records["misfits"])
    places = {place for row in rows for place in row["cells"].split(";")}
    of_cells = {f"{entry.id}/{column}" for entry in EVERY for column in ("method", "device", *NUMBERS) if getattr(entry, column)}
    assert places <= of_cells | {":".join(key) for key in PRINTED}


def test_every_misfit_is_shown():
    shown = {note for printed in PRINTED.values() for row in printed.rows for cell in row for note in cell.footnotes}
    shown |= {note for printed in PRINTED.values() for note in printed.notes}
    assert {note for notes in tables.misfits().values() for note in notes} <= shown
    assert len({note for notes in tables.misfits().values() for note in notes}) == 52


# ---- laid out


def test_a_table_of_method_by_size_is_as_the_paper_has_it():
    printed = tables.paper_table("sgcpnet", "II")
    assert len(printed.headings) == 2 + 2 * 8 and len(printed.rows) == 3 + 23
    sfnet = next(row for row in printed.rows if row[0].text == "SFNet-Res18")
    filled = {heading: cell.text for heading, cell in zip(printed.headings, sfnet) if cell.text != "-"}
    assert filled == {"Method": "SFNet-Res18", "Params M": "13.5", "360x480 FPS": "45.2", "1024x1024 GFLOPs": "246.5", "1024x2048 FPS": "22"}
    assert [row[0].text for row in printed.rows if not row[1].text] == ["Large size", "Medium size", "Small size"]
    assert [cell.figure for cell in printed.rows[-1] if cell.figure] == [f"SGCPNet:Table II:{n:04}" for n in range(217, 225)]


def test_a_figure_beside_two_splits_is_one_cell_and_beside_two_blocks_two():
    (slim,) = [row for row in tables.paper_table("DDRNet", "V").rows if row[0].text == "DDRNet-23-Slim"]
    assert [cell.text for cell in slim[:4]] == ["DDRNet-23-Slim", "77.8", "77.4", "108.8"]
    assert slim[3].figure == "DDRNet:Table V:0349" and any("102 FPS" in note for note in slim[3].footnotes)
    assert Counter(cell.figure for cell in speed_cells(tables.paper_table("SGCPNet", "V"))) == {"SGCPNet:Table V:0270": 2, "SGCPNet:Table V:0271": 2}


@pytest.mark.parametrize("paper, table, found", [("sgcpnet", "2", ("SGCPNet", "Table II")), ("SGCPNet", "table ii", ("SGCPNet", "Table II")),
                                                 ("BiSeNet V1", "Table 5", ("BiSeNetV1", "Table 5")), ("bisenet-v2", "5A", ("BiSeNetV2", "Table 5a")),
                                                 ("ddrnet", "10", ("DDRNet", "Table X"))])
def test_tables_are_found_by_what_people_type(paper, table, found):
    row = tables.find(paper, table)
    assert (row["paper"], row["table"]) == found


def test_what_is_not_known_is_answered_with_what_is():
    with pytest.raises(RtsegError) as caught:
        tables.paper_table("pidnet", "1")
    assert "BCPNet, BiSeNetV1, SGCPNet, DDRNet, BiSeNetV2" in caught.value.fix
    with pytest.raises(RtsegError) as caught:
        tables.paper_table("ddrnet", "I")
    assert caught.value.fix == "the known ones: " + ", ".join(f"Table {n}" for n in ["III", "V", "VI", "VII", "VIII", "IX", "X"])


def test_speed_against_miou_is_of_one_split_and_has_the_papers_own():
    points = {point["method"]: point for point in tables.points("ddrnet")}
    assert len(points) == 26 and points["DDRNet-39"] == {"method": "DDRNet-39", "fps": 22.7, "miou": 80.4, "parameters": 32.3, "own": True,
                                                        "figure": "DDRNet:Table V:0353", "table": "Table V"}
    assert {point["table"] for point in tables.points("BiSeNetV2")} == {"Table 7"}
    with pytest.raises(RtsegError, match="speed against mIoU"):
        tables.points("bcpnet")


# ---- with ours


def test_ours_stands_beside_the_only_speed_of_a_row():
    why = dict.fromkeys(facts.speeds(), "needs an RTX 2080 Ti")
    headings, rows, footnotes = laid_out(tables.paper_table("DDRNet", "V"), {"DDRNet:Table V:0349": "99.0"}, why)
    place = headings.index("FPS, ours")
    ours = {row[0]: row[place] for row in rows if row[place]}
    assert ours == {"DDRNet-23-Slim": "99.0", "DDRNet-23": "not measured here: needs an RTX 2080 Ti", "DDRNet-39": "not measured here: needs an RTX 2080 Ti"}
    assert headings[place - 1] == "FPS" and {len(row) for row in rows} == {len(headings)}
    slim = next(row for row in rows if row[0] == "DDRNet-23-Slim")
    marks = re.findall(r"\[\d+\]", slim[place - 1])
    assert slim[place - 1].startswith("108.8 [") and any(note.startswith(marks[-1]) and "102 FPS" in note for note in footnotes)


def test_ours_stands_in_a_line_of_its_own_below_many_speeds():
    table, missing = tables.paper_table("SGCPNet", "II"), dict.fromkeys(facts.speeds(), "needs a GTX 1080 Ti")
    headings, rows, footnotes = laid_out(table, {}, missing)
    assert headings == list(table.headings) and rows[-1] == ["ours: not measured here: needs a GTX 1080 Ti", *[""] * 17]
    assert len(rows) == len(table.rows) + 1 and not any("needs a GTX" in note for note in footnotes)
    _, rows, footnotes = laid_out(table, {"SGCPNet:Table II:0219": "301"}, missing)
    assert (rows[-1][0], rows[-1][headings.index("512x1024 FPS")], rows[-1][headings.index("512x1024 GFLOPs")]) == ("ours", "301", "")
    mark = re.fullmatch(r"not measured here (\[\d+\])", rows[-1][headings.index("360x480 FPS")])[1]
    assert f"{mark} needs a GTX 1080 Ti" in footnotes


def test_of_fps_and_milliseconds_ours_is_beside_the_fps():
    headings, rows, _ = laid_out(tables.paper_table("BCPNet", "2"), {"BCPNet:Table 2:0047": "301"}, {})
    assert rows[-1][headings.index("512x1024 FPS")] == "301" and rows[-1][headings.index("512x1024 ms")] == ""


def test_nothing_of_a_table_is_lost_when_ours_is_added():
    for table in PRINTED.values():
        headings, rows, footnotes = laid_out(table, {}, {})
        kept = [n for n, heading in enumerate(headings) if not heading.endswith(", ours")]
        lines = [[row[n] for n in kept] for row in rows if not row[0].startswith("ours")]
        assert [[re.sub(r"( \[\d+\])+$", "", text) for text in line] for line in lines] == [[cell.text for cell in row] for row in table.rows]
        wanted = {note for row in table.rows for cell in row for note in cell.footnotes} | set(table.notes)
        assert {re.sub(r"^\[\d+\] ", "", note) for note in footnotes} == wanted
