"""Comparing two results: planted differences, conditions that differ, and files that are none."""
import copy
import json

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, script

from rtseg_deploy import compare, files
from rtseg_deploy.cli import cli
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import FORMAT

coverage = script(ROOT / "docs/coverage.py")


def result(*runs, **changes):
    """A result file's object; runs: the seconds of each process."""
    environment = {"time": "2026-01-01T00:00:00Z", "load": 0.5, "python": "3.11.7", "cpu": "AMD EPYC", "cpus": 2, "threads": 2, "governor": None,
                   "gpu": {}, "onnxruntime": "1.31.1"}
    artifact = {"model": "sgcpnet", "classes": 11, "precision": "fp32", "input": "normalised", "output": "logits", "sha256": "a" * 64}
    value = {"format": FORMAT, "kind": "benchmark", "artifact": artifact, "backend": "onnxruntime-cpu", "resolution": [360, 480], "input": "noise, seed 0",
             "protocol": "network", "boundary": "the network alone", "bn": "folded", "iterations": 500, "status": "stable", "warnings": [],
             "runs": [{"seconds": list(map(float, one)), "back_to_back_seconds": float(sum(one)), "environment": dict(environment)} for one in runs]}
    return changed(value, **changes)


def changed(value, **changes):
    """With values at paths such as artifact__model or environment__threads, the latter in each process."""
    value = copy.deepcopy(value)
    for path, new in changes.items():
        *outer, last = path.split("__")
        for place in [run["environment"] for run in value["runs"]] if outer == ["environment"] else [value[outer[0]] if outer else value]:
            place[last] = new
    return value


def series(seed, factor=1.0, count=500, phi=0.5, many=1):
    return 0.010 * factor * coverage.series(np.random.default_rng(seed), many, count, phi)


def compared(tmp_path, a, b, vary=()):
    for name, value in (("a", a), ("b", b)):
        files.write_json(tmp_path / f"{name}.json", value)
    return compare.compare(tmp_path / "a.json", tmp_path / "b.json", vary)


def test_planted_differences_between_two_processes():
    """600 pairs of processes for each difference; a share of 5 % has a standard error of 0.9 %."""
    shown = {1: [], 1.01: [], 1.03: []}
    for count, phi in ((500, 0), (500, 0.5), (500, 0.9), (1000, 0.5)):
        for a, b in zip(series(1, 1, count, phi, 150), series(2, 1, count, phi, 150)):
            for factor, found in shown.items():
                low, _, high, _ = compare.interval(result(a), result(b * factor))
                found.append((low > 1, high < 1))
    shares = {factor: np.mean(found, axis=0) for factor, found in shown.items()}
    assert shares[1].sum() < 0.06
    assert shares[1.01][0] > 0.5 and shares[1.01][1] < 0.005
    assert shares[1.03][0] > 0.97 and shares[1.03][1] == 0


def test_planted_differences_between_several_processes():
    """Five of each, whose own means differ by half a percent: 100 pairs, of which the steps alone would call half different."""
    shown = {}
    for factor in (1, 1.01, 1.03):
        rng, found = np.random.default_rng(0), []
        for seed in range(100):
            runs = series(seed, 1, 500, 0, 10) * (1 + 0.005 * rng.standard_normal((10, 1)))
            found.append(compare.interval(result(*runs[:5]), result(*runs[5:] * factor)))
        shown[factor] = np.mean([low > 1 for low, *_ in found]), np.mean([high < 1 for _, _, high, _ in found])
    assert sum(shown[1]) < 0.1 and shown[1.01][0] > 0.5 and shown[1.03][0] == 1
    assert shown[1.01][1] < 0.02


def test_it_says_so_in_words(tmp_path):
    slower = compared(tmp_path, result(*series(0, many=5)), result(*series(1, 1.03, many=5)))
    assert slower.says.startswith("B is slower than A: +") and slower.verdict == "slower" and slower.low < slower.ratio < slower.high
    assert slower.by == "the means of 5 and 5 processes" and slower.notes == ()
    faster = compared(tmp_path, result(*series(0)), result(*series(1, 0.5)))
    assert faster.says.startswith("B is faster than A: −") and faster.by == "blocks of one process' steps" and "--processes 5" in faster.notes[0]
    same = compared(tmp_path, result(*series(0)), result(*series(0)))
    assert same.says.startswith("no difference shown between A and B: +0.0 % time an image (95 %: −") and same.ratio == 1


def test_backwards_it_is_the_inverse(tmp_path):
    a, b = result(*series(0, many=3)), result(*series(1, 1.2, many=4))
    there, back = compared(tmp_path, a, b), compared(tmp_path, b, a)
    assert (back.low, back.ratio, back.high) == pytest.approx((1 / there.high, 1 / there.ratio, 1 / there.low))


CHANGES = {"network": dict(artifact__model="bisenetv2"), "classes": dict(artifact__classes=19), "resolution": dict(resolution=[512, 1024]),
           "precision": dict(artifact__precision="fp16"), "input": dict(artifact__input="rgb8"), "fed": dict(input="street.png"),
           "output": dict(artifact__output="labels"), "protocol": dict(protocol="paper-synced"), "boundary": dict(boundary="copies as well"),
           "bn": dict(bn="kept"), "backend": dict(backend="torch-eager"), "threads": dict(environment__threads=1),
           "python": dict(environment__python="3.12.1"), "onnxruntime": dict(environment__onnxruntime="1.20.0"),
           "governor": dict(environment__governor="powersave")}


@pytest.mark.parametrize("condition", CHANGES)
def test_conditions_that_differ_are_refused_with_both_values(tmp_path, condition):
    a, b = result(*series(0)), result(*series(1), **CHANGES[condition])
    with pytest.raises(RtsegError) as refused:
        compared(tmp_path, a, b)
    one, other = (compare.conditions(value).get(condition) for value in (a, b))
    assert refused.value.what == f"the conditions differ: {condition}: {one} and {other}" and refused.value.fix.endswith(f" --vary {condition}")
    assert compared(tmp_path, a, b, [condition]).varied == {condition: [one, other]}


def test_time_and_load_are_no_conditions(tmp_path):
    assert compared(tmp_path, result(*series(0)), result(*series(1), environment__time="2027", environment__load=3.0)).varied == {}


def test_a_backends_own_facts_differ_with_it(tmp_path):
    eager = result(*series(1), backend="torch-eager", environment__torch="2.13.0", environment__layout="channels_last")
    for run in eager["runs"]:
        del run["environment"]["onnxruntime"]
    assert compared(tmp_path, result(*series(0)), eager, ["backend"]).varied == {"backend": ["onnxruntime-cpu", "torch-eager"]}
    with pytest.raises(RtsegError, match="threads: 2 and 1"):
        compared(tmp_path, result(*series(0)), changed(eager, environment__threads=1), ["backend"])


@pytest.mark.parametrize("there", [dict(environment__cpu="Xeon Silver 4210"), dict(environment__gpu={"name": "NVIDIA H200"}), dict(environment__model="TX2")])
@pytest.mark.parametrize("vary", [[], ["cpu", "device", "gpu"]])
def test_two_devices_are_never_compared(tmp_path, there, vary):
    with pytest.raises(RtsegError, match="measured on AMD EPYC and B on .*: a ratio of two devices' times"):
        compared(tmp_path, result(*series(0)), result(*series(1), **there), vary)


def test_a_condition_that_there_is_not(tmp_path):
    with pytest.raises(RtsegError, match="no condition is called colour") as refused:
        compared(tmp_path, result(*series(0)), result(*series(1)), ["colour"])
    assert "precision" in refused.value.fix and "onnxruntime" in refused.value.fix


def test_one_bracket_around_all_steps_needs_processes(tmp_path):
    """Its steps' own times, ten times the bracket's here, are not what was timed."""
    together = [result(*series(seed, 1.1**seed, many=3), protocol="paper-amortised") for seed in range(2)]
    for one in together:
        for run in one["runs"]:
            run["seconds"] = [10 * value for value in run["seconds"]]
    found = compared(tmp_path, *together)
    assert found.a_ms == pytest.approx(10, rel=0.02) and found.verdict == "slower"
    with pytest.raises(RtsegError, match="has no interval"):
        compared(tmp_path, *(changed(one, runs=one["runs"][:1]) for one in together))


def test_a_few_steps_have_no_interval(tmp_path):
    with pytest.raises(RtsegError, match="has no interval"):
        compared(tmp_path, result([0.01] * 5), result([0.01] * 5))
    assert compared(tmp_path, result([0.01] * 50), result([0.01] * 50)).verdict == "none"


def one_run(seconds, together=0.0):
    return [{"seconds": seconds, "back_to_back_seconds": together, "environment": {}}]


@pytest.mark.parametrize("damage", [
    dict(kind="artifact"), dict(format=1), dict(runs=[]), dict(runs=[{}]), dict(runs=None), dict(artifact={}), dict(resolution="360x480"),
    dict(warnings=["drift"]), dict(protocol="own"), dict(protocol="paper-amortised", runs=one_run([0.01])),
    *(dict(runs=one_run(seconds)) for seconds in ([], [0.01, "x"], [0.0], [float("nan")], None))])
def test_what_is_no_result_is_one_line(tmp_path, damage):
    with pytest.raises(RtsegError, match="b.json is (damaged|not a result file)"):
        compared(tmp_path, result(*series(0)), result(*series(1), **damage))


def test_the_command(tmp_path):
    for name, value in (("a", result(*series(0))), ("b", result(*series(1, 1.1), bn="kept"))):
        files.write_json(tmp_path / name, value)
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 1 and refused.output == "rtseg-deploy: the conditions differ: bn: folded and kept; if that is what is compared: --vary bn\n"
    told = CliRunner().invoke(cli, [*words, "--vary", "bn"])
    assert told.exit_code == 0 and "bn: folded and kept" in told.output and "B is slower than A: +" in told.output
    found = json.loads(CliRunner().invoke(cli, [*words, "--vary", "bn", "--json"]).output)
    assert found["verdict"] == "slower" and found["ratio"] == pytest.approx(1.1, rel=0.02) and found["varied"] == {"bn": ["folded", "kept"]}


@pytest.mark.parametrize("status", ["unstable", "incomplete"])
def test_an_unstable_result_is_exit_status_3(tmp_path, status):
    warnings = [{"flag": "drift", "says": "+3.1% from the first to the last"}]
    for name, value in (("a", result(*series(0))), ("b", result(*series(1), status=status, warnings=warnings))):
        files.write_json(tmp_path / name, value)
    told = CliRunner().invoke(cli, ["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    assert told.exit_code == 3 and f"unstable: B is {status}; drift: +3.1%" in told.output and "no difference shown" in told.output
