"""Every network at every size of its paper: the plan, a row, and going on after an interruption."""
import json

import pytest
from conftest import run

from rtseg_deploy import facts, matrix
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.models import networks

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def test_the_plan_is_every_figure_of_the_papers():
    rows = matrix.plan()
    assert len(set(rows)) == len(rows)
    assert {name for name, _ in rows} == set(networks())
    for figure in facts.papers():
        assert (figure.network, figure.input) in rows
        assert (figure.network, figure.resolution) in rows or not (figure.fps or figure.ms)
    assert ("bisenetv2", (512, 1024)) in rows and ("bcpnet", (1080, 1920)) in rows


def test_a_row_is_exported_proven_and_compiled_and_not_done_twice(tmp_path, monkeypatch):
    rows = matrix.plan(["sgcpnet-bk", "ddrnet-23-slim-ppm"], [(64, 128)])
    done = matrix.matrix(rows, "rtx-2080ti", tmp_path)
    for row in done:
        assert row["parity"]["ok"] and row["engines"]["fp16"]["layers"]["fp16"] > 50 and "failed" not in row
    assert done[1]["fold"]["kept"] and all(kept["back"] and kept["forward"] for kept in done[1]["fold"]["kept"])
    monkeypatch.setattr(matrix, "made", lambda *a: pytest.fail("done again"))
    assert matrix.matrix(rows, "rtx-2080ti", tmp_path) == json.loads(json.dumps(done))
    assert [row["network"] for row in matrix.table(done)] == ["sgcpnet-bk", "ddrnet-23-slim-ppm"]


def test_an_interruption_keeps_what_is_done(tmp_path, monkeypatch):
    rows = [("a", (64, 64)), ("b", (64, 64)), ("c", (64, 64))]
    calls = []

    def made(name, *rest):
        calls.append(name)
        if name == "b" and calls.count("b") == 1:
            raise KeyboardInterrupt
        return {"format": matrix.FORMAT, "network": name}

    monkeypatch.setattr(matrix, "made", made)
    with pytest.raises(KeyboardInterrupt):
        matrix.matrix(rows, "rtx-2080ti", tmp_path)
    assert len(matrix.matrix(rows, "rtx-2080ti", tmp_path)) == 3 and calls == ["a", "b", "b", "c"]


def test_a_failure_is_a_row_and_is_tried_again(tmp_path, monkeypatch):
    def refuse(*a, **k):
        raise RtsegError("the compiler is tired", "let it rest")

    with monkeypatch.context() as patch:
        patch.setattr(matrix, "build_engine", refuse)
        (row,) = matrix.matrix([("sgcpnet-bk", (64, 64))], "rtx-2080ti", tmp_path)
        assert row["failed"] == "the compiler is tired; let it rest" and row["parity"]["ok"]
    (row,) = matrix.matrix([("sgcpnet-bk", (64, 64))], "rtx-2080ti", tmp_path)
    assert "failed" not in row


def test_the_command(tmp_path):
    out, err = run("matrix", "--network", "sgcpnet-bk", "--resolution", "64x96", "-o", tmp_path, "--markdown")
    assert "| sgcpnet-bk | 64x96 |" in out and "1 of 1: sgcpnet-bk 64x96" in err
    assert "no network is called" in run("matrix", "--network", "nonet", "-o", tmp_path, status=1)[1]
