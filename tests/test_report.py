"""The report: what it reads and refuses, that its pages say what its JSON says, what it draws, and what it makes of a paper's figures."""
import copy
import csv
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner
from conftest import run
from hypothesis import given, settings
from hypothesis import strategies as st

from rtseg_deploy import beside, facts, page, plots, results, summary, svg
from rtseg_deploy.cli import cli
from rtseg_deploy.errors import RtsegError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    """(the folder that a report was written to, what it printed)."""
    goal = tmp_path_factory.mktemp("report")
    done = CliRunner().invoke(cli, ["report", str(folder), "-o", str(goal), "--paper", "sgcpnet", "--table", "vi"])
    assert done.exit_code == 0, done.output
    return goal, done.stdout


def written(folder, **values):
    """Results of files with these values."""
    folder.mkdir(exist_ok=True)
    synthetic.write(folder, values)
    return results.read([folder], pytest.fail)


# ---- what it reads


def test_int8_is_in_it(tmp_path):
    """Also for a paper's figure, on a card whose peaks in FP32 are known."""
    made = {name: synthetic.result("sgcpnet-avg3", gpu=True, backend="tensorrt", precision="int8", figure="SGCPNet:Table VI:0301", machine=name, iterations=30)
            for name in ("NVIDIA GeForce RTX 2080 Ti", "NVIDIA GeForce GTX 1080 Ti")}
    found = summary.summary(written(tmp_path, **made), "sgcpnet", "vi")
    rows = [row for part in found["papers"] for row in part["beside"] if row["number"]]
    assert len(rows) == 2 and all(row["our_precision"] == "int8" and "our_limit_ms" not in row and "int8: its peaks" in row["notes"][-1] for row in rows)


def test_a_folder_is_read_once_and_what_is_foreign_is_a_line_each(folder, tmp_path):
    good = json.loads((folder / "gpu-small.json").read_text())
    wrong = {"foreign.json": '{"kind": "onnx"}', "list.json": "[]", "cut.json": json.dumps(good)[:-9], "old.json": json.dumps({**good, "format": 2}),
             "empty.json": json.dumps({**good, "runs": []}), "less.json": json.dumps({name: good[name] for name in good if name != "protocol"}),
             "infinite.json": json.dumps({**good, "statistics": {**good["statistics"], "mean_ms": math.inf}})}
    for name, text in wrong.items():
        (tmp_path / name).write_text(text)
    for name in ("good.json", "twice.json"):
        (tmp_path / name).write_text(json.dumps(good))
    said = []
    assert len(results.read([tmp_path, tmp_path / "good.json"], said.append)) == 1
    assert [line.partition(".json")[0].rpartition("/")[2] for line in said] == sorted(name[:-5] for name in wrong)
    assert all(line.startswith("left out: ") and "\n" not in line for line in said)
    assert "it has no protocol" in " ".join(said) and "is of format 2" in " ".join(said)
    for name in ("good.json", "twice.json"):
        (tmp_path / name).unlink()
    with pytest.raises(RtsegError, match="no result of bench"):
        results.read([tmp_path], said.append)


def test_a_figure_that_its_samples_do_not_give_is_refused(tmp_path):
    value = synthetic.result(iterations=60)
    value["statistics"]["fps"] *= 1.001
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(RtsegError, match="its samples give"):
        results.read_one(tmp_path / "a.json")


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ():
        yield from places(inner, (*path, name))


SMALL = synthetic.result(iterations=8, gpu=True, stages={"network": 1.0})
SMALL["runs"][0]["telemetry"], SMALL["runs"][0]["warmup_seconds"] = SMALL["runs"][0]["telemetry"][:3], [0.03] * 3


@settings(max_examples=60)
@given(st.sampled_from([path for path in places(SMALL) if path]),
       st.sampled_from([None, "", "x", "<b>", -1, 0, 1.5, math.nan, math.inf, True, [], [0], {}, {"a": 1}]))
def test_any_damage_is_one_line_or_a_report(tmp_path_factory, path, bad):
    value = copy.deepcopy(SMALL)
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = bad
    file = tmp_path_factory.mktemp("damaged") / "a.json"
    file.write_text(json.dumps(value))
    try:
        found = summary.summary([results.read_one(file)])
    except RtsegError as error:
        assert "\n" not in error.what
        return
    page.html(found), page.markdown(found), list(page.terminal(found))


# ---- that its pages say what its JSON says


class Figures(HTMLParser):
    """The <data> of a page, and the texts of the cells of a paper's table."""

    def __init__(self, text):
        super().__init__()
        self.data, self.cells, self.open, self.printed = [], [], None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "data":
            self.data.append([json.loads(attributes["value"]), ""])
            self.open = self.data[-1]
        elif tag == "table":
            self.printed = attributes["class"] == "printed"
        elif tag == "td" and self.printed:
            self.cells.append("")

    def handle_endtag(self, tag):
        if tag == "data":
            self.open = None
        elif tag == "table":
            self.printed = False

    def handle_data(self, text):
        if self.open:
            self.open[1] += text
        if self.printed and self.cells:
            self.cells[-1] += text


def test_the_pages_figures_are_the_jsons(report):
    found, seen = json.loads((report[0] / "report.json").read_text()), Figures((report[0] / "report.html").read_text())
    expected = []
    for figure in found["figures"]:
        queued = figure["back_to_back_fps"] if figure["clock"] == "each" else None
        expected += [(value, f"{value:,.1f}") for value in (figure["fps"], queued) if value is not None]
        expected += [(figure[name], page.ms(figure[name])) for name in ("mean_ms", "median_ms", "p99_ms", "p99_bound_ms")]
    assert [tuple(pair) for pair in seen.data[:len(expected)]] == expected
    beside_paper = [row for row in found["papers"][0]["beside"] if row["number"]]
    values = [value for value, _ in seen.data[len(expected):]]
    assert len(beside_paper) == 5 and values.count(beside_paper[0]["our_fps"]) == 1 and values.count(beside_paper[0]["ratio"]) == 1
    assert all(row["our_ms"] in values and row["printed"] in values for row in beside_paper)
    assert [text.strip() for text in seen.cells] == [text for row in found["papers"][0]["rows"] for text in row]


def test_the_json_holds_every_sample_and_the_hash_of_its_file(report, folder):
    found = json.loads((report[0] / "report.json").read_text())
    assert len(found["results"]) == len(found["figures"]) == len(list(folder.iterdir()))
    for figure, result in zip(found["figures"], found["results"]):
        path = folder / figure["result"].rpartition("/")[2]
        assert result["runs"] == json.loads(path.read_text())["runs"] and figure["sha256"] == result["sha256"] == results.files.sha256(path)
        assert figure["fps"] == json.loads(path.read_text())["statistics"]["fps"]


def test_rows_and_document_hold_the_same(report):
    found = json.loads((report[0] / "report.json").read_text())
    rows = list(csv.DictReader((report[0] / "report.csv").open()))
    assert [float(row["fps"]) for row in rows] == [figure["fps"] for figure in found["figures"]]
    assert [float(row["our_fps"]) for row in csv.DictReader((report[0] / "paper.csv").open()) if row["our_fps"]] == [
        row["our_fps"] for row in found["papers"][0]["beside"] if row["number"]]
    document = (report[0] / "report.md").read_text()
    assert all(f"| {figure['number']} | {figure['network']} {figure['resolution']} |" in document for figure in found["figures"])
    assert all(figure["sha256"] in document and all(warning in document for warning in figure["warnings"]) for figure in found["figures"])


def test_no_group_mixes_what_is_inside_the_clock(report):
    found = json.loads((report[0] / "report.json").read_text())
    groups = {number: group for group in found["groups"] for number in group["numbers"]}
    assert len(found["groups"]) == 4 and sorted(groups) == [figure["number"] for figure in found["figures"]]
    for figure in found["figures"]:
        assert all(groups[figure["number"]][name] == figure[name] for name in ("protocol", "boundary", "clock"))
        assert f"{figure['protocol']}: {figure['boundary']}" in report[1]


def test_the_page_needs_nothing_beside_it_and_every_picture_says_what_it_shows(report):
    text = (report[0] / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img|iframe)|url\(|@import|\ssrc=", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    drawn = [ElementTree.fromstring(one) for one in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(drawn) > 30 and text.count("<figcaption>") == len(drawn)
    names = [one.attrib["aria-labelledby"] for one in drawn]
    assert len(set(names)) == len(names)
    for one in drawn:
        title, description = one.find(f"{SVG}title"), one.find(f"{SVG}desc")
        assert one.attrib["role"] == "img" and title.text and len(description.text) > 20
        assert one.attrib["aria-labelledby"] == f"{title.attrib['id']} {description.attrib['id']}"
        assert not any({"fill", "stroke", "style"} & set(part.attrib) for part in one.iter())      # colours are the page's alone


def test_names_are_no_markup(tmp_path):
    value = synthetic.result("<b>net</b>|", iterations=8, machine="<script>alert(1)</script>", warnings=[("drift", "<i>drift</i>")])
    found = summary.summary(written(tmp_path, one=value))
    text = page.html(found)
    assert "<script" not in text and "<b>net" not in text and "<i>drift" not in text and "&lt;i&gt;drift" in text
    assert "&lt;b>net&lt;/b>\\|" in page.markdown(found) and "<script" not in page.markdown(found)


def test_one_bracket_is_not_called_a_mean_of_steps(tmp_path):
    amortised, each = written(tmp_path, a=synthetic.result(iterations=50, gpu=True, protocol="paper-amortised"), b=synthetic.result(iterations=50, gpu=True))
    assert (amortised.clock, each.clock) == ("together", "each") and amortised.ms == pytest.approx(amortised.statistics["mean_ms"])
    assert amortised.ms < amortised.statistics["median_ms"]
    titles = [title for title, *_ in page.grouped(summary.summary([amortised, each]))]
    assert titles[0].endswith("FPS and mean of all steps under one bracket; median and p99 of steps waited for one by one")
    assert titles[1].endswith("each step waited for")


def test_what_differs_between_figures_is_said_of_each(tmp_path):
    found = summary.summary(written(tmp_path, a=synthetic.result(iterations=20, seed=1), b=synthetic.result("bcpnet", iterations=20, bn="folded")))
    assert found["conditions"]["shared"]["cpu"] == "AMD EPYC 7B13" and [one["BatchNorm"] for one in found["conditions"]["each"]] == ["folded", "kept"]
    assert "BatchNorm" not in found["conditions"]["shared"] and "cpu" not in found["conditions"]["each"][0]


def test_a_gpu_is_said_part_by_part_and_no_environment_twice(tmp_path):
    value = synthetic.result(iterations=9, gpu=True)
    value["runs"][0]["environment"] = {**synthetic.GPU, "environment": synthetic.GPU, "messages": ["one", "two"], "l4t": None}
    (one,) = summary.summary(written(tmp_path, a=value))["conditions"]["each"]
    assert one["gpu name"] == "NVIDIA GeForce GTX 1080 Ti" and one["gpu driver"] == "535.129.03" and one["messages"] == "one, two"
    assert not any(name.startswith("environment") or name == "l4t" for name in one)


def test_what_was_sampled_is_said_with_its_unit(tmp_path):
    (one,) = summary.summary(written(tmp_path, a=synthetic.result(iterations=200, ms=50, gpu=True, throttled=True)))["conditions"]["each"]
    assert one["GPU clock, MHz"].startswith("13") and one["GPU clock, MHz"].endswith("1582") and one["throttled by"] == "temperature (software)"
    assert not any(name in one for name in ("t", "energy_j"))


# ---- the command


def test_the_command_writes_what_it_is_asked_for(folder, tmp_path):
    out, _ = run("report", folder / "hot.json", "-o", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["report.csv", "report.html", "report.json", "report.md"]
    assert "2: unstable" not in out and "1: unstable: drift: +11.6 %" in out
    run("report", folder / "hot.json", "-o", tmp_path / "one", "--format", "html")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["report.html"]
    assert json.loads(run("report", folder / "hot.json", "--json")[0])["figures"][0]["status"] == "unstable"
    assert run("report", folder / "hot.json", "--markdown")[0].startswith("# Speed report")


@pytest.mark.parametrize("words, status, message", [
    ([], 2, "Missing argument"), (["nothing.json"], 2, "does not exist"), (["."], 1, "no result of bench is in ."),
    (["hot.json", "--table", "II"], 2, "name that too"), (["hot.json", "--format", "html"], 2, "add -o"),
    (["hot.json", "--paper", "unet"], 1, "no paper is called 'unet'"), (["hot.json", "--paper", "ddrnet", "--table", "99"], 1, "no table of DDRNet")])
def test_what_cannot_be_reported_is_one_line(words, status, message, folder, tmp_path):
    where = tmp_path if words == ["."] else folder
    out, err = run("report", *words, status=status, cwd=where)
    assert not out and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("rtseg-deploy: ")


# ---- beside a paper


DDRNET = "DDRNet:Table V:0351"


def compared(tmp_path, paper, table, **values):
    """The rows of the paper's table that have one of ours, and the part."""
    (one,) = summary.summary(written(tmp_path, **values), paper, table)["papers"]
    return page.measured(one), one


def slim(**changes):
    return synthetic.result(**{**dict(network="ddrnet-23-slim", resolution=(1024, 2048), backend="tensorrt", ms=1.5, iterations=40, gpu=True, output="logits",
                                      protocol="paper-amortised", noise=0.001, spikes=0), **changes})


def figure_of(paper, table, network):
    return next(one for one in facts.speeds().values() if (one.paper, one.table, one.network) == (paper, table, network))


def test_another_devices_figure_is_no_ratio_but_a_bracket(tmp_path):
    (row,), _ = compared(tmp_path, "ddrnet", "V", one=slim(machine="NVIDIA H200"))
    assert not {"ratio", "ratio_low"} & set(row)
    a, b, theirs = facts.devices()["RTX 2080 Ti"], facts.devices()["H200"], 1e3 / 108.8
    assert row["bracket_low_ms"] == pytest.approx(theirs * a.bandwidth_gbs / b.bandwidth_gbs) == pytest.approx(1.18, abs=0.005)
    assert row["bracket_high_ms"] == pytest.approx(theirs * a.fp32_tflops / b.fp32_tflops) == pytest.approx(1.85, abs=0.005)
    assert row["expected_ms"] == pytest.approx(theirs * row["our_limit_ms"] / row["limit_ms"])       # both of the same layers: their efficiency is carried over
    assert row["efficiency"] == pytest.approx(row["limit_ms"] / theirs) and row["percent"] == pytest.approx(100 * row["efficiency"])
    assert row["says"] == "inside the bracket"


@pytest.mark.parametrize("ms, says", [(1.0, "faster than the bracket"), (1.6, "inside the bracket"), (2.5, "slower than the bracket")])
def test_it_says_where_ours_lies(ms, says, tmp_path):
    (row,), part = compared(tmp_path, "ddrnet", "V", one=slim(machine="NVIDIA H200", ms=ms))
    assert row["says"] == says and any("nothing passes or fails on it" in line for line in part["said"])


def test_fp16_on_another_device_is_expected_at_its_fp16_peak(tmp_path):
    figure = figure_of("DDRNet", "Table V", "ddrnet-23-slim")
    (row,), part = compared(tmp_path, "ddrnet", "V", one=slim(machine="NVIDIA H200", precision="fp16", figure=figure.id))
    assert row["bracket_low_ms"] == pytest.approx(1e3 / 108.8 * 13.45 / 989.5) and "#1: precision fp16 instead of fp32" in part["said"]


def test_the_same_device_is_a_ratio_with_an_interval(tmp_path):
    (row,), part = compared(tmp_path, "ddrnet", "V", one=slim(machine="NVIDIA GeForce RTX 2080 Ti", ms=10.0, processes=3, protocol="paper-amortised"))
    assert row["ratio"] == pytest.approx(row["our_fps"] / 108.8) and row["says"] == "same card, other software"
    assert "expected_ms" not in row and not any("nothing passes" in line for line in part["said"])
    (row,), _ = compared(tmp_path / "each", "sgcpnet", "III", one=synthetic.result(resolution=(1024, 2048), gpu=True, iterations=60, ms=9.0))
    assert row["ratio_low"] < row["ratio"] < row["ratio_high"] and row["ratio_low"] == pytest.approx(row["our_fps_low"] / 103.7)


@pytest.mark.parametrize("said, name", [
    ("NVIDIA GeForce GTX 1080 Ti", "GTX 1080 Ti"), ("NVIDIA TITAN Xp", "TITAN Xp"), ("NVIDIA GeForce GTX TITAN X", "GTX TITAN X"),
    ("NVIDIA TITAN X (Pascal)", None), ("NVIDIA GeForce GTX 1080", None), ("NVIDIA H200 NVL", None), ("NVIDIA H200", "H200"),
    ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti")])
def test_a_device_is_known_by_its_whole_name(said, name, tmp_path):
    (result,) = written(tmp_path, one=synthetic.result(iterations=4, gpu=True, machine=said))
    assert (result.device and result.device.name) == name


def test_a_processor_is_known_by_its_whole_name(tmp_path):
    (result,) = written(tmp_path, one=synthetic.result(iterations=4, machine="Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz"))
    assert result.device.name == "Xeon Silver 4210" and result.machine.startswith("Intel")


def test_a_device_that_is_not_known_has_no_limit_and_no_bracket(tmp_path):
    (row,), part = compared(tmp_path, "sgcpnet", "V", one=synthetic.result(iterations=40))
    assert not {"ratio", "expected_ms", "our_limit_ms"} & set(row) and row["says"] == ""
    assert any(line.startswith("AMD EPYC 7B13: its peaks are not known here") for line in part["said"])


def test_of_the_same_processor_too_only_the_software_is_another(tmp_path):
    (row,), _ = compared(tmp_path, "sgcpnet", "V", one=synthetic.result(iterations=40, ms=140, machine="Intel(R) Xeon(R) Silver 4210 CPU @ 2.20GHz"))
    assert row["says"] == "same processor, other software" and row["ratio"] == pytest.approx(151 / row["our_ms"]) and row["our_percent"] < 100


def test_a_limit_is_of_the_device_that_measured(tmp_path):
    (row,), _ = compared(tmp_path, "sgcpnet", "VI", one=synthetic.result(iterations=40, gpu=True, ms=2.9))
    assert row["device"] == "GTX 1080 Ti" and row["our_limit_ms"] == pytest.approx(row["limit_ms"])
    assert row["our_percent"] == pytest.approx(100 * row["limit_ms"] / row["our_ms"])


def test_what_was_not_measured_says_what_it_needs(tmp_path):
    rows, part = compared(tmp_path, "sgcpnet", "II", one=synthetic.result(iterations=20))
    assert not rows and part["rows"][-1][0] == "ours: not measured here: needs a GTX 1080 Ti" and len(part["beside"]) == 8
    assert any("731.3" in cell for row in part["rows"] for cell in row) and part["footnotes"]
    assert beside.needs("RTX 2080 Ti") == "needs an RTX 2080 Ti"


@pytest.mark.parametrize("changes, why", [
    (dict(protocol="network"), "protocol network instead of paper-unstated"), (dict(precision="fp16"), "precision fp16 instead of fp32")])
def test_what_was_not_timed_the_papers_way_is_not_in_its_table_and_that_is_said(changes, why, tmp_path):
    rows, part = compared(tmp_path, "sgcpnet", "V", one=synthetic.result(iterations=20, **changes))
    assert not rows and any(line.startswith("#1 is not in it: ") and why in line for line in part["said"])
    figure = next(row["figure"] for row in part["beside"] if row["resolution"] == "512x1024")
    (row,), part = compared(tmp_path / "named", "sgcpnet", "V", one=synthetic.result(iterations=20, figure=figure, **changes))
    assert row["figure"] == figure and f"#1: {why}" in part["said"]


@pytest.mark.parametrize("other", [dict(network="bcpnet"), dict(resolution=(360, 480)), dict(network_input=(256, 512))])
def test_another_network_or_size_is_never_in_it_whatever_its_file_says(other, tmp_path):
    figure = figure_of("SGCPNet", "Table V", "sgcpnet")
    rows, _ = compared(tmp_path, "sgcpnet", "V", one=synthetic.result(**{**dict(iterations=20, resolution=figure.input, figure=figure.id), **other}))
    assert not rows


def test_a_resized_image_is_known_by_both_sizes(tmp_path):
    value = synthetic.result("bisenetv2", (1024, 2048), "tensorrt", 6.0, 40, gpu=True, protocol="paper-bisenetv2", output="logits", network_input=(512, 1024))
    rows, _ = compared(tmp_path, "bisenetv2", "7", one=value)
    assert [row["printed"] for row in rows] == [156]
    value["resolution"] = value["artifact"]["resolution"] = value["artifact"]["network_input"]
    assert not compared(tmp_path, "bisenetv2", "7", one=value)[0]


def test_accuracy_is_the_papers_and_speed_is_ours(tmp_path):
    (one,) = summary.summary(written(tmp_path, one=synthetic.result(resolution=(1024, 2048), iterations=20)))["accuracy"]
    (ours,) = one["ours"]
    theirs = next(point for point in one["theirs"] if point["own"] and point["fps"] == 103.7)
    assert one["paper"] == "SGCPNet" and ours["miou"] == theirs["miou"] and ours["fps"] == pytest.approx(14.7, rel=2) and ours["fps"] != theirs["fps"]


# ---- what is drawn


def drawn(text):
    return ElementTree.fromstring(text)


def looks(root, look):
    return [part for part in root.iter() if look in part.attrib.get("class", "").split()]


def numbered(found):
    return [results.Result("", "", value) for value in found["results"]]


def test_every_sample_is_drawn_however_far_away(tmp_path):
    value = synthetic.result(iterations=300, spikes=0, noise=0.01)
    value["runs"][0]["seconds"][7] = 9.9
    value["statistics"] = synthetic.summed_up(value["runs"], value["protocol"])
    result = numbered(summary.summary(written(tmp_path, one=value)))
    strokes = looks(drawn(plots.distributions(result)), "rug")[0].attrib["d"].split("M")[1:]
    places = [float(stroke.split()[0]) for stroke in strokes]
    assert max(places) > svg.WIDTH - 60 and sorted(places)[-2] < 120         # the far one alone at the right, the rest together
    points = looks(drawn(plots.over_time(result[0])), "dots")[-1].attrib["d"].split("M")[1:]
    heights = sorted(float(point.split()[1].partition("h")[0]) for point in points)
    assert heights[0] < 40 and heights[1] > 100 and len(points) > 200


def test_the_histogram_counts_every_sample_and_marks_its_percentiles(tmp_path):
    result = numbered(summary.summary(written(tmp_path, one=synthetic.result(iterations=400, spikes=0))))
    root = drawn(plots.distributions(result))
    marks = [float(part.attrib["x1"]) for part in looks(root, "mark")]
    ms = 1e3 * np.asarray(result[0].seconds)
    axis = svg.around(ms, 8, plots.RIGHT, plots.wide(ms, 2))
    assert marks == [axis(value) for value in np.percentile(ms, (50, 90, 99))] == sorted(marks)


def test_a_run_has_its_warm_up_its_processes_and_its_throttling(tmp_path):
    (result,) = numbered(summary.summary(written(tmp_path, one=synthetic.result(ms=10, iterations=100, gpu=True, processes=3, throttled=True))))
    root = drawn(plots.over_time(result))
    throttled = sum(bool(row.get("throttled_by")) and row["t"] <= one["ended"] for one in result.runs for row in one["telemetry"])
    assert len(looks(root, "warm")) == 3 and len(looks(root, "between")) == 2 and len(looks(root, "alarm")) == throttled > 0
    assert len(looks(root, "track")) == 3 * 4          # GPU clock, temperature, power, other processes; of each process by itself
    names = [part.text for part in looks(root, "tick")]
    assert {"GPU clock, MHz", "temperature, °C", "seconds, 3 processes one after the other"} <= set(names)
    for part in looks(root, "track"):
        assert all(plots.LEFT - 1 <= float(pair.split()[0]) <= plots.RIGHT + 1 for pair in part.attrib["d"][1:].split("L"))


def test_stages_add_up_to_the_bar(tmp_path):
    (result,) = numbered(summary.summary(written(tmp_path, one=synthetic.result(iterations=50, protocol="end-to-end", stages=synthetic.STAGES))))
    root = drawn(plots.stages(result))
    bars = [part for part in looks(root, "stage") if part.attrib["height"] == "24"]
    texts = [part.text for part in root.iter(f"{SVG}text")]
    assert len(bars) == 7 and texts[::3] == list(synthetic.STAGES) and sum(float(text.rstrip("%")) for text in texts[2::3]) == pytest.approx(100, abs=0.4)
    network, decode = (float(bars[list(synthetic.STAGES).index(name)].attrib["width"]) + 1 for name in ("network", "decode"))
    assert network / decode == pytest.approx(5.4 / 6.0, rel=0.06)


def test_a_panel_is_of_one_network_and_protocol_with_the_papers_own_figures(tmp_path):
    found = summary.summary(written(tmp_path, a=synthetic.result(iterations=9), b=synthetic.result(iterations=9, resolution=(360, 480), ms=5),
                                    c=synthetic.result(iterations=9, protocol="end-to-end", ms=70), d=synthetic.result(iterations=9, backend="openvino")))
    (curve,) = found["curves"]          # one point of end-to-end, which no paper timed, is no curve
    assert curve["protocol"] == "paper-unstated" and set(curve["lines"]) == {"onnxruntime-cpu", "openvino"}
    assert [pixels for pixels, _ in curve["lines"]["onnxruntime-cpu"]] == [0.1728, 0.524288]
    assert (2.097152, 665.0) in curve["points"]["Xeon Silver 4210"] and "RTX 2080 Ti" not in curve["points"]
    root = drawn(plots.against_size("sgcpnet", curve["lines"], curve["points"]))
    assert len(looks(root, "full")) == 3 and len(looks(root, "hollow")) == sum(map(len, curve["points"].values()))


@given(st.floats(1e-3, 1e5), st.floats(1.001, 1e6), st.booleans())
def test_ticks_are_few_and_within_their_axis(low, factor, log):
    axis = svg.around([low, low * factor], 0, 300, log)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 14 and all(-0.2 <= axis(tick) <= 300.2 for tick in ticks) and sorted(set(ticks)) == ticks
    assert 0 <= axis(low) < axis(low * factor) <= 300 or factor < 1.01


def test_labels_keep_clear_of_one_another():
    root, points = svg.picture(300, "", ""), [(150 + 3 * n, 150 + 2 * n) for n in range(12)]
    labels = svg.Labels(root, 0, 360, 0, 300, points)
    for x, y in points:
        labels.put(x, y, "a network", "label")
    boxes = labels.taken[len(points):]
    assert sum(svg.overlap(one, other) > 0 for n, one in enumerate(boxes) for other in boxes[:n]) <= 1
    assert all(left >= 0 and right <= 360 for left, right, _, _ in boxes)
