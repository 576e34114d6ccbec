"""Holding results against a baseline: planted slowness, with the interval deciding; what is not compared, and that it is said."""
import json

import numpy as np
import pytest
from click.testing import CliRunner
from test_compare import changed, result, series

from rtseg_deploy import baseline, files
from rtseg_deploy.cli import cli

APART = np.array([[0.98], [1.02]])  # two processes whose means differ: their interval is wide


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def whole(*runs, **changes):
    """With what the archive wants of a result beside what a comparison does."""
    value = result(*runs, **changes)
    fps = value["iterations"] and 1 / (sum(sum(run["seconds"]) / len(run["seconds"]) for run in value["runs"]) / len(value["runs"]))
    value["artifact"]["network_input"] = value["resolution"]
    for run in value["runs"]:
        run.update(warmup_seconds=[], warmup_converged=True, device_seconds=[], enqueue_seconds=[], stages={}, minor_faults=0, empty_seconds=0.0,
                   began=1.0, ended=2.0, telemetry=[])
    return {"file": "net.onnx", "same_labels": {}, "figure": "", "notes": [], **value,
            "statistics": {"fps": fps, **dict.fromkeys(("mean_ms", "median_ms", "p90_ms", "p99_ms"), 1e3 / fps)}}


def folders(tmp_path, old, new):
    """Results by name, in a baseline and in a folder of now."""
    for folder, values in (("baseline", old), ("now", new)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, value in values.items():
            files.write_json(tmp_path / folder / f"{name}.json", value)
    return ["compare", "--baseline", str(tmp_path / "baseline"), str(tmp_path / "now"), "--fail-if-slower", "3%"]


def told(words, status):
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == status, done.output
    return done


PLANTED = {"2 % slower, surely": (series(1, 1.02, many=5), "within", 0), "5 % slower, surely": (series(1, 1.05, many=5), "too slow", 1),
           "2 % slower, perhaps": (series(1, 1.02, many=2) * APART, "undecided", 0),
           "5 % slower, perhaps": (series(1, 1.05, many=2) * APART, "undecided", 0), "the same": (series(1, many=5), "within", 0),
           "half": (series(1, 0.5, many=5), "within", 0), "twice": (series(1, 2, many=2) * APART, "too slow", 1)}


@pytest.mark.parametrize("case", PLANTED)
def test_the_interval_decides(tmp_path, case):
    runs, verdict, status = PLANTED[case]
    words = folders(tmp_path, {"a": whole(*series(0, many=5))}, {"b": whole(*runs)})
    found = json.loads(told([*words, "--json"], status).stdout)
    assert [one["held"] for one in found["held"]] == [verdict] and found["limit"] == 0.03 and not found["left_out"]
    one = found["held"][0]
    assert one["low"] < one["ratio"] < one["high"] and (one["low"] > 1.03) == (verdict == "too slow") and (one["high"] <= 1.03) == (verdict == "within")
    told([*words, "--strict"], 3 if verdict == "undecided" else status)
    assert verdict in told([*words, "--markdown"], status).stdout.splitlines()[2] and verdict in told(words, status).stdout


def test_one_that_is_too_slow_among_many_fails(tmp_path):
    sizes = [[256, 512], [360, 480], [512, 1024]]
    old = {str(side): whole(*series(0, many=5), resolution=[side, other]) for side, other in sizes}
    new = {str(side): whole(*series(1, 1.05 if side == 360 else 1, many=5), resolution=[side, other]) for side, other in sizes}
    found = json.loads(told([*folders(tmp_path, old, new), "--json"], 1).stdout)["held"]
    assert {one["name"].split()[1]: one["held"] for one in found} == {"256x512": "within", "360x480": "too slow", "512x1024": "within"}


def test_the_newest_of_equal_conditions_counts(tmp_path):
    """The newest of the baseline has one thread, and is slow."""
    def on(day, *runs, **how):
        return whole(*runs, environment__time=f"2026-01-0{day}T00:00:00Z", **how)

    old = {"old": on(1, *series(0, 2, many=5)), "new": on(2, *series(0, many=5)), "other": on(3, *series(0, 3, many=5), environment__threads=1)}
    new = {"old": on(4, *series(1, many=5)), "new": on(5, *series(1, 1.1, many=5))}
    found, = json.loads(told([*folders(tmp_path, old, new), "--json"], 1).stdout)["held"]
    assert found["a"].endswith("baseline/new.json") and found["b"].endswith("now/new.json") and found["ratio"] == pytest.approx(1.1, rel=0.02)


def test_what_is_not_compared_is_said_and_no_failure(tmp_path):
    same = whole(*series(0, many=3))
    old = {"same": same, "there": whole(*series(0, many=3), resolution=[256, 512]), "threads": whole(*series(0), bn="kept"),
           "device": whole(*series(0), input="street.png"), "bracket": whole([0.01] * 5, artifact__output="labels")}
    new = {"same": same, "here": whole(*series(0, 9, many=3), resolution=[1024, 2048]), "threads": whole(*series(0, 9), bn="kept", environment__threads=1),
           "device": whole(*series(0, 9), input="street.png", environment__cpu="Xeon"), "bracket": whole([0.09] * 5, artifact__output="labels")}
    words = folders(tmp_path, old, new)
    (tmp_path / "now/broken.json").write_text("{")
    found = json.loads(told([*words, "--json"], 0).stdout)
    lines = "\n".join(found["left_out"])
    assert len(found["held"]) == 1 and len(found["left_out"]) == 6
    assert "256x512" in lines and "1024x2048" in lines and "the conditions differ: threads: 2 and 1" in lines and "on Xeon: not in" in lines
    assert "fewer than 20 steps, has no interval" in lines
    assert told([*words, "--strict"], 3).stderr.count("warning: ") == 7
    assert len(json.loads(told([*words, "--vary", "threads", "--json"], 1).stdout)["held"]) == 2


def test_unstable_results_are_compared_and_said(tmp_path):
    words = folders(tmp_path, {"a": whole(*series(0, many=3))}, {"a": whole(*series(1, many=3), status="unstable")})
    assert "unstable" in told(words, 0).stdout
    told([*words, "--strict"], 3)


def test_files_are_held_too(tmp_path):
    words = folders(tmp_path, {"a": whole(*series(0, many=3))}, {"a": whole(*series(1, many=3)), "slow": whole(*series(1, 2, many=3))})
    told([*words[:3], str(tmp_path / "now/a.json"), *words[4:]], 0)
    told([*words[:3], str(tmp_path / "now/slow.json"), *words[4:]], 1)


@pytest.mark.parametrize("old, new", [({}, {}), ({"a": 1}, {}), ({}, {"a": 1}), ({"a": dict(bn="kept")}, {"a": dict(bn="folded")})])
def test_nothing_to_compare_is_a_failure(tmp_path, old, new):
    """A check that checks nothing does not pass."""
    made = [{name: whole(*series(0), **(how if isinstance(how, dict) else {})) for name, how in side.items()} for side in (old, new)]
    assert "nothing can be compared with" in told(folders(tmp_path, *made), 1).stderr


@pytest.mark.parametrize("words", [["a", "--baseline", "b"], ["a", "--fail-if-slower", "3%"], ["a"], ["a", "b", "a"], ["a", "b", "--strict"],
                                   ["a", "--baseline", "b", "--fail-if-slower", "0.03"], ["a", "--baseline", "b", "--fail-if-slower", "fast"]])
def test_what_cannot_be_meant_is_status_2(tmp_path, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        files.write_json(tmp_path / name, changed(result(*series(0))))
    told(["compare", *words], 2)


def test_of_names_that_may_vary_those_count_that_a_result_has(tmp_path):
    folders(tmp_path, {"a": whole(*series(0))}, {"a": whole(*series(1), environment__onnxruntime="1.32.0")})
    found, left = baseline.held(tmp_path / "baseline", [tmp_path / "now"], 0.5, ("torch", "onnxruntime"))
    assert len(found) == 1 and not left
