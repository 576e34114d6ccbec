"""The commands on results that are there: what they list, show, follow over time, remove and write."""
import csv
import json
import os

import pytest
from click.testing import CliRunner
from conftest import ROOT, script
from test_archive import MIOU, put, value

from rtseg_deploy import archive, prune, results
from rtseg_deploy.cli import cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two networks, one of them three times on one machine and once on another, and how right it is."""
    goal = tmp_path / "results"
    for day, factor in ((1, 1.0), (2, 1.1), (3, 1.1)):
        put(goal / f"sgcpnet-{day}.json", slowed(value(when=f"2026-11-0{day}T10:00:00Z"), factor))
    put(goal / "there/sgcpnet.json", value(when="2026-11-02T12:00:00Z", device="Xeon", status="unstable"))
    put(goal / "there/ddrnet.json", value("ddrnet-39", when="2026-10-01T10:00:00Z", device="Xeon"))
    put(goal / "accuracy.json", MIOU)
    put(goal / "sidecar.onnx.json", {"kind": "onnx"})
    return goal


def slowed(found, factor):
    run, statistics = found["runs"][0], found["statistics"]
    run["seconds"] = [factor * one for one in run["seconds"]]
    return {**found, "statistics": {name: number / factor if name.startswith("fps") else number * factor if name.endswith("_ms") and name != "process_means_ms"
                                    else number for name, number in statistics.items()}}


def told(*words, status=0):
    done = CliRunner().invoke(cli, ["results", *map(str, words)])
    assert done.exit_code == status, done.output
    return done.stdout


def listed(*words):
    return json.loads(told("list", *words, "--json"))


def names(rows):
    return [os.path.basename(row["file"]) for row in rows]


def test_it_lists_the_newest_first(folder):
    rows = listed(folder)
    assert names(rows) == ["accuracy.json", "sgcpnet-3.json", "sgcpnet.json", "sgcpnet-2.json", "sgcpnet-1.json", "ddrnet.json"]
    assert rows[1]["fps"] == results.read_one(folder / "sgcpnet-3.json").statistics["fps"] and rows[0]["miou"] == 0.5 and rows[0]["fps"] is None
    assert names(listed(folder, "-n", 2)) == ["accuracy.json", "sgcpnet-3.json"]
    done = CliRunner().invoke(cli, ["results", "list", str(folder), "-n", "2"])
    assert "camvid test" in done.stdout and "50.00" in done.stdout and done.stderr.endswith("2 of 6 results\n")
    assert "left out" in done.stderr and "sidecar.onnx.json is no result\n" in done.stderr
    assert told("list", folder, "--markdown").startswith("| id | time, UTC | network |")


@pytest.mark.parametrize("words, found", [
    (["--network", "ddr*"], ["ddrnet.json"]), (["--network", "ddr*", "--kind", "accuracy"], []), (["--kind", "accuracy"], ["accuracy.json"]),
    (["--device", "Xe*", "--status", "unstable"], ["sgcpnet.json"]), (["--resolution", "360x480"], []), (["--precision", "fp16"], []),
    (["--since", "2026-11-02T11", "--until", "2026-11-03"], ["sgcpnet-3.json", "sgcpnet.json"]), (["--until", "2026-10"], ["ddrnet.json"]),
    (["--network", "ddr*", "--network", "sgcpnet", "--since", "2026-11-03", "--resolution", "512x1024", "--backend", "onnx*"],
     ["accuracy.json", "sgcpnet-3.json"]), (["--figure", "none", "--protocol", "network"], [])])
def test_it_filters(folder, words, found):
    assert names(listed(folder, *words)) == found


@pytest.mark.parametrize("words", [["list", "--since", "yesterday"], ["list", "--until", "2026-1"], ["prune", "--older-than", "soon"], ["prune"],
                                   ["list", "--resolution", "1024"]])
def test_what_cannot_be_meant_is_status_2(folder, words):
    told(*words[:1], folder, *words[1:], status=2)


def test_nothing_fits_is_no_failure(folder):
    assert not listed(folder, "--network", "unet") and not told("list", folder, "--network", "unet")


def test_it_shows_one_by_its_id_or_its_file(folder):
    row, = listed(folder, "--network", "ddr*")
    for name in (row["id"], row["sha256"], row["file"]):
        out = told("show", name, folder)
        assert "ddrnet-39 512x1024" in out and "mad ms" in out and "AMD" not in out and "Xeon" in out and row["file"] in out.replace("\n", "")
    assert "seconds" not in json.loads(told("show", row["id"], folder, "--json"))["runs"][0]
    accuracy = told("show", folder / "accuracy.json")
    assert "sky" in accuracy and "AMD EPYC" in accuracy and "note: random weights" in accuracy
    assert "no results" in CliRunner().invoke(cli, ["results", "show", "abcd", str(folder)]).output
    assert CliRunner().invoke(cli, ["results", "show", str(folder / "sidecar.onnx.json")]).exit_code == 1


def test_a_trend_is_of_each_machine_and_says_what_else_changed(folder):
    changed = value(when="2026-11-04T10:00:00Z")
    changed["runs"][0]["environment"]["onnxruntime"] = "1.32.0"
    put(folder / "sgcpnet-4.json", changed)
    put(folder / "copy.json", (folder / "sgcpnet-3.json").read_text())
    one, = json.loads(told("trend", folder, "--network", "sgcpnet", "--json"))
    changes = [point["change"] and (point["change"]["verdict"], list(point["change"]["varied"])) for point in one["points"]]
    assert changes == [None, ("slower", []), ("none", []), ("faster", ["onnxruntime"]), None]
    assert [point["device"] for point in one["points"]] == ["AMD EPYC"] * 4 + ["Xeon"]
    assert one["points"][1]["change"]["low"] < 1.1 < one["points"][1]["change"]["high"]
    out = told("trend", folder, "--network", "sgcpnet", "-n", 1)
    assert "onnxruntime 1.31.1 → 1.32.0" in out and "faster" in out and "slower" not in out
    assert [point["device"] for point in json.loads(told("trend", folder, "--network", "sgcpnet", "-n", 1, "--json"))[0]["points"]] == ["AMD EPYC", "Xeon"]
    assert "| device | time, UTC |" in told("trend", folder, "--markdown")


def test_a_trend_says_of_each_what_it_cannot_be_compared_with(tmp_path):
    """Also of what came after a figure without an interval."""
    for day in (1, 2, 3):
        found = value(when=f"2026-11-0{day}T10:00:00Z")
        if day == 2:
            found["runs"][0]["seconds"] = [sum(found["runs"][0]["seconds"]) / len(found["runs"][0]["seconds"])] * 5
        put(tmp_path / f"{day}.json", found)
    one, = json.loads(told("trend", tmp_path, "--json"))
    assert ["has no interval" in point["why"] for point in one["points"]] == [False, True, True]


def test_a_trend_of_too_much_says_how_to_choose(tmp_path):
    for number in range(9):
        put(tmp_path / f"{number}.json", value(f"net-{number}"))
    done = CliRunner().invoke(cli, ["results", "trend", str(tmp_path)])
    assert done.exit_code == 1 and "9 configurations fit, and 8 at most are shown at once; choose: one of 9 networks" in done.stderr


# ---- what is removed


def left(folder):
    return sorted(path.name for path in folder.rglob("*.json"))


def test_it_removes_what_fits_and_only_with_yes(folder):
    before = left(folder)
    assert "sgcpnet-1.json" in "".join(names(json.loads(told("prune", folder, "--keep", 1, "--json")))) and left(folder) == before
    told("prune", folder, "--keep", 1, "--yes")
    assert left(folder) == ["accuracy.json", "ddrnet.json", "sgcpnet-3.json", "sgcpnet.json", "sidecar.onnx.json"]
    told("prune", folder, "--status", "unstable", "--keep", 1, "--yes")
    assert "sgcpnet.json" in left(folder)
    told("prune", folder, "--status", "unstable", "--yes")
    assert left(folder) == ["accuracy.json", "ddrnet.json", "sgcpnet-3.json", "sidecar.onnx.json"]
    told("prune", folder, "--older-than", "99999d", "--yes")
    assert "ddrnet.json" in left(folder)
    told("prune", folder, "--kind", "accuracy", "--kind", "benchmark", "--yes")
    assert left(folder) == ["sidecar.onnx.json"]


def test_what_is_kept_is_the_newest_of_all_and_not_of_what_fits(tmp_path):
    put(tmp_path / "a/old.json", value(when="2026-11-01T10:00:00Z", status="unstable"))
    put(tmp_path / "a/older.json", value(when="2026-10-01T10:00:00Z"))
    put(tmp_path / "a/new.json", value(when="2026-11-02T10:00:00Z"))
    told("prune", tmp_path / "a", "--status", "unstable", "--keep", 1, "--yes")
    assert left(tmp_path / "a") == ["new.json", "older.json"]


def test_what_says_no_time_is_never_old(folder):
    put(folder / "timeless.json", value(when="once"))
    told("prune", folder, "--until", "9999", "--keep", 1, "--yes")
    told("prune", folder, "--keep", 1, "--yes")
    told("prune", folder, "--older-than", "0d", "--yes")
    assert left(folder) == ["sidecar.onnx.json", "timeless.json"]


@pytest.mark.parametrize("swap", ["changed", "linked", "folder linked"])
def test_what_is_another_file_meanwhile_stays(folder, tmp_path, swap):
    row, = archive.rows(folder, archive.Wanted(network=("ddr*",)))[0]
    path, outside = folder / "there/ddrnet.json", tmp_path / "outside"
    if swap == "changed":
        put(path, value("changed"))
    elif swap == "linked":
        path.rename(put(outside / "x", "").parent / "ddrnet.json")
        path.symlink_to(outside / "ddrnet.json")
    else:
        path.parent.rename(outside)
        path.parent.symlink_to(outside)
    assert not prune.remove(str(folder), row) and path.is_file() and path.resolve().is_file()
    assert prune.remove(str(folder), archive.rows(folder, archive.Wanted(since="2026-11-03", kind=("benchmark",)))[0][0])


# ---- for another program


def test_csv_has_every_number_as_it_is(folder, tmp_path):
    told("export", folder, "-o", tmp_path / "all.csv")
    with open(tmp_path / "all.csv") as file:
        rows = list(csv.DictReader(file))
    assert [{name: "" if text is None else str(text) for name, text in row.items()} for row in listed(folder)] == rows


def test_parquet_has_too(folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    told("export", folder, "-o", tmp_path / "all.parquet")
    assert parquet.read_table(tmp_path / "all.parquet").to_pylist() == listed(folder)
    told("export", folder, "-o", tmp_path / "right.parquet", "--kind", "accuracy")
    assert parquet.read_schema(tmp_path / "right.parquet").equals(parquet.read_schema(tmp_path / "all.parquet"))


@pytest.mark.parametrize("words, message", [(["-o", "all.xlsx"], "neither .csv nor .parquet"), (["-o", "all.csv", "--network", "unet"], "nothing to write")])
def test_what_cannot_be_written_is_one_line(folder, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in CliRunner().invoke(cli, ["results", "export", str(folder), *words]).output and not list(tmp_path.glob("all.*"))


def test_the_benchmarks_files_are_results(folder, tmp_path):
    measured = script(ROOT / "benchmarks/results.py")
    measured.fill(tmp_path / "many", json.loads((folder / "sgcpnet-1.json").read_text()), 200)
    rows, total = archive.rows(tmp_path / "many")
    assert total == 200 and len({row["device"] for row in rows}) == 10 and len({(row["network"], row["resolution"]) for row in rows}) == 20
