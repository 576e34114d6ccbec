"""Plans: the papers' 78 figures are their rows, and what would be run wrongly is refused with the row and the fix."""
import re

import pytest
from conftest import ROOT

from rtseg_deploy import facts, plans
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts import tables

PLANS = sorted((ROOT / "engines").glob("*.toml"))
NO_GPU = {"gpu": {"error": "no CUDA driver"}}
ROW = 'network = "sgcpnet", resolution = "360x480"'


@pytest.fixture(scope="module")
def read():
    """Name of a plan -> Plan."""
    return {path.stem: plans.read(path) for path in PLANS}


@pytest.fixture
def write(tmp_path):
    """The path of a plan with that text."""
    def written(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path
    return written


def refused(path):
    """What and fix of the refusal, as one text."""
    with pytest.raises(RtsegError) as caught:
        plans.read(path)
    assert "\n" not in caught.value.what + caught.value.fix and caught.value.fix
    return f"{caught.value.what}; {caught.value.fix}"


# ---- the papers


def test_each_figure_of_the_papers_is_in_its_tables_plan_and_in_no_other(read):
    found = [(name, row.figure) for name, plan in read.items() for row in plan.rows if row.figure]
    expected = []
    for figure in facts.speeds().values():
        expected.append((f"{figure.paper.lower()}-table-{tables.plain(figure.table)}", figure.id))
    assert sorted(found) == sorted(expected) and len(found) == 78


def test_a_row_is_timed_as_its_paper_timed(read):
    for row in (row for plan in read.values() for row in plan.rows if row.figure):
        figure = facts.speeds()[row.figure]
        how = facts.timed(figure.paper, figure.table)
        assert (row.network, row.resolution, row.input, row.device) == (figure.network, figure.resolution, figure.input, figure.device)
        assert (row.protocol, row.bn, row.output, str(row.classes)) == (how["protocol"], how["bn"], how["output"], how["classes"]), row
        assert str(row.iterations) == how["iterations"] or row.device.startswith("Xeon") and row.iterations == 500
        assert row.precision == "fp32"


def test_resizing_is_timed_where_the_paper_timed_it(read):
    two, one = read["bisenetv2-table-7"].rows[0], read["bisenetv1-table-6"].rows[0]
    assert (two.exported, two.reduced) == ((1024, 2048), (512, 1024))
    assert (one.exported, one.reduced, one.resolution) == ((768, 1536), None, (1024, 2048))
    assert all(row.exported == row.input and not row.reduced for row in read["sgcpnet-table-2"].rows)


def test_figure_10_has_both_networks_in_both_precisions_and_no_figure(read):
    rows = read["bisenetv2-figure-10"].rows
    assert {(row.network, row.precision) for row in rows} == {(n, p) for n in ("bisenetv2", "bisenetv2-l") for p in ("fp32", "fp16")}
    assert {row.device for row in rows} == {"Jetson TX2"} and not any(row.figure for row in rows)


def test_names_of_plans_are_those_of_their_files_and_titles_say_which_table(read):
    for name, plan in read.items():
        assert plan.name == name and re.match(r"\w+, (Table|Figure) \w+: .+", plan.title)


# ---- a plan of one's own


def test_the_readme_shows_a_plan_that_is_read(tmp_path):
    text = (ROOT / "engines/README.md").read_text()
    for name in ("weights.pth", "net.onnx"):
        (tmp_path / name).touch()
    path = tmp_path / "own.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    plan = plans.read(path)
    figure, reduced, checkpoint, artifact = plan.rows
    assert (plan.name, plan.title, figure.device) == ("own", "Ours beside the paper's", "GTX 1080 Ti")
    assert (reduced.reduced, reduced.exported, checkpoint.input, checkpoint.classes) == ((512, 1024), (1024, 2048), (360, 480), None)
    assert (artifact.subject, artifact.iterations, artifact.output, artifact.reduced) == (str(tmp_path / "net.onnx"), 5000, None, None)
    told = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert told == set(plans.KINDS)
    assert set(re.findall(r"^\| `(\w+)` \*", text, re.MULTILINE)) == set(plans.OWN["artifact"])


def test_what_stands_above_the_rows_holds_unless_a_row_says_otherwise(write):
    plan = plans.read(write(f'iterations = 500\nnetwork = "bcpnet"\noutput = "native"\nrow = [{{ {ROW} }}, {{ resolution = "64x64", iterations = 7 }}]'))
    assert [(row.network, row.iterations, row.output) for row in plan.rows] == [("sgcpnet", 500, "native"), ("bcpnet", 7, "native")]


@pytest.mark.parametrize("text, said", [
    ("", "has no rows to time"),
    ("row = 3", "has no rows to time"),
    ("title = 3\nrow = [{}]", "has no rows to time"),
    ("row = [", "is not a plan"),
    ('rows = [{}]\nrow = [{}]', "above the rows: no key is called 'rows'; the known ones: figure, network"),
    (f'row = [{{ {ROW}, resolutoin = "1x1" }}]', "row 1: no key is called 'resolutoin'"),
    (f'row = [{{ {ROW}, iterations = "9" }}]', "row 1: iterations is '9'; write a number"),
    (f'row = [{{ {ROW}, iterations = true }}]', "row 1: iterations is True; write a number"),
    (f'row = [{{ {ROW}, iterations = 0 }}]', "iterations go from 1 to 100000"),
    (f'row = [{{ {ROW}, protocol = "paper" }}]', "protocol is 'paper'; the known ones: network, paper-amortised"),
    (f'row = [{{ {ROW}, device = "GTX 1080" }}]', "device is 'GTX 1080'; the known ones: GTX TITAN X"),
    (f'row = [{{ {ROW}, precision = "int8" }}]', "precision is 'int8'; the known ones: fp32, fp16"),
    ('row = [{ network = "sgcpnot", resolution = "1x1" }]', "row 1: no network is called 'sgcpnot'; the known ones: "),
    ('row = [{ network = "sgcpnet" }]', "row 1: sgcpnet has no size of its own"),
    ('row = [{ network = "sgcpnet", resolution = "360" }]', "row 1: resolution is '360'; write HEIGHTxWIDTH"),
    ('row = [{ network = "ddrnet-39", resolution = "713x713" }]', "row 1: ddrnet-39 takes heights and widths that are multiples of 8, not 713x713"),
    ('row = [{ resolution = "713x713" }]', "row 1 names nothing to time"),
    (f'row = [{{ {ROW}, artifact = "a.onnx" }}]', "row 1 names network and artifact to time"),
    ('row = [{ artifact = "a.onnx", bn = "kept" }]', "row 1: its artifact says bn itself"),
    ('row = [{ artifact = "a.onnx" }]', "a.onnx: no such file"),
    ('row = [{ artifact = "../a.onnx" }]', "row 1: ../a.onnx leaves the folder"),
    ('row = [{ checkpoint = "/dev/null", resolution = "360x480" }]', "row 1: /dev/null leaves the folder"),
    (f'row = [{{ {ROW} }}, {{ {ROW} }}]', "row 2 says what an earlier row says"),
    (f'row = [{{ {ROW}, figure = "SGCPNet:Table II:9" }}]', "row 1: no figure of speed has the id 'SGCPNet:Table II:9'"),
    (f'row = [{{ {ROW}, figure = "SGCPNet:Table II:0217" }}]', "row 1: SGCPNet:Table II:0217 is of device GTX 1080 Ti"),
    (f'device = "GTX 1080 Ti"\nrow = [{{ {ROW}, figure = "SGCPNet:Table II:0218" }}]', "SGCPNet:Table II:0218 is of resolution 360x640"),
    (f'device = "GTX 1080 Ti"\nfigure = "SGCPNet:Table II:0217"\nrow = [{{ {ROW} }}, {{ {ROW}, iterations = 5 }}]', "row 2 says what an earlier row says"),
])
def test_what_would_be_run_wrongly_is_refused(write, text, said):
    assert said in refused(write(text))


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RtsegError, match="No such file"):
        plans.read(tmp_path / "none.toml")


# ---- what a machine can run


@pytest.mark.parametrize("device, machine, why", [
    ("GTX 1080 Ti", NO_GPU, "needs a GTX 1080 Ti: this machine has no GPU"),
    ("RTX 2080 Ti", NO_GPU, "needs an RTX 2080 Ti: this machine has no GPU"),
    ("GTX 1080 Ti", {"gpu": {"name": "NVIDIA H200"}}, ""),
    ("Xeon Silver 4210", NO_GPU, ""),
    ("", NO_GPU, ""),
])
def test_a_row_says_what_it_needs_that_a_machine_has_not(device, machine, why):
    assert plans.feasible(plans.Row(device=device), machine) == why
