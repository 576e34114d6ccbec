"""What SECURITY.md promises: its table names the tests that prove it; and the attacks on the commands that have no other home."""
import ast
import contextlib
import csv
import gzip
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import onnx
import pytest
import synthetic
import torch
from click.testing import CliRunner
from conftest import ROOT, at_most
from onnx import TensorProto, helper
from test_cli import draw_camvid

from rtseg_deploy import checkpoints, demo, files, images, launch, page, records, results, summary
from rtseg_deploy.cli import cli
from rtseg_deploy.errors import RtsegError

PAGE = (ROOT / "SECURITY.md").read_text()
STREET = str(images.STREET)


# ---- the document


def test_each_attack_has_a_test_that_is_there():
    """A row of the table has one or more, as file::test."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "tests/" in line]
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", PAGE)
    assert len(rows) >= 20 and all("`tests/" in row.split("|")[-2] for row in rows) and len(named) >= len(rows)
    for file in {file for file, _ in named}:
        there = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert {test for other, test in named if other == file} <= there, file


def test_the_table_has_every_attack_that_is_to_be_in_it():
    for what in ("pickle", "ONNX external data", "members of an archive", "plan", "sidecar", "names of jobs", "lists", "checkpoint", "an ONNX file", "image",
                 "gzip", "nesting", "swapped", "bundle", "ssh", "escape"):
        assert any(what in line for line in PAGE.splitlines() if line.startswith("| ")), what


# ---- engines


def nothing_runs(monkeypatch):
    """But a probe, which reads no file of the user's."""
    run_here = launch.Here.run

    def run(self, job, folder, tell):
        if job.request["action"] != "probe":
            raise AssertionError(f"a worker was started for {job.request['action']}")
        run_here(self, job, folder, tell)
    monkeypatch.setattr(launch.Here, "run", run)


def refusal(*words):
    """The one line with which a command ends."""
    done = CliRunner().invoke(cli, [str(word) for word in words])
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 1 and last.startswith("rtseg-deploy: ") and not isinstance(done.exception, AssertionError), done.output
    assert [line for line in done.stderr.splitlines() if not line.startswith("  ")] == [last]
    return last


WITH_ENGINES = {"verify": ["verify", "E"], "verify there": ["verify", "E", "--on", "ssh://nobody@device"], "bench": ["bench", "E"],
                "bench there": ["bench", "E", "--on", "ssh://nobody@device"], "profile": ["bench", "E", "--profile"], "plan": ["bench", "plan.toml"],
                "predict": ["predict", "E", STREET, "-o", "out"], "eval": ["eval", "E", "--data", "camvid"], "tune": ["tune", "E"],
                "deploy-config": ["deploy-config", "E", "--for", "triton", "-o", "out"], "bundle": ["bundle", "E", "--target", "jetson-tx2", "-o", "b.tar.gz"],
                "verify-chain": ["verify-chain", str(demo.CHECKPOINT), "E", "--resolution", "96x128"]}


@pytest.fixture
def engine(artifact, copy_of, tmp_path, monkeypatch):
    """An engine by its sidecar, with a plan and a data set beside it."""
    monkeypatch.chdir(tmp_path)
    path = copy_of(artifact, kind="engine", target="gtx-1080ti", checks={**records.read_artifact(artifact).checks, "bytes": 1}).rename(tmp_path / "E.engine")
    (tmp_path / "net.onnx.json").rename(tmp_path / "E.engine.json")
    draw_camvid(tmp_path / "camvid", {"test": 1})
    (tmp_path / "plan.toml").write_text('row = [{ artifact = "E.engine" }]')
    return path


@pytest.mark.parametrize("fault, words", [
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "was changed after it was made"),
    (lambda path: records.sidecar(path).unlink(), "has no sidecar"),
    (lambda path: records.sidecar(path).write_text("[" * 200_000), "nested")], ids=["swapped", "stray", "nested"])
@pytest.mark.parametrize("command", WITH_ENGINES)
def test_no_command_loads_an_engine_that_is_not_as_its_sidecar_says(engine, monkeypatch, command, fault, words):
    nothing_runs(monkeypatch)
    fault(engine)
    assert words in refusal(*("E.engine" if word == "E" else word for word in WITH_ENGINES[command]))


# ---- ONNX files that read others


def elsewhere(model, where):
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    onnx.external_data_helper.set_external_data(tensor, where)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def sparse(model, where):
    values = TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1], raw_data=bytes(4))
    onnx.external_data_helper.set_external_data(values, where)
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [0]), [4]))


def context(model, where):
    model.graph.node.append(helper.make_node("EPContext", ["input"], ["e"], domain="com.microsoft", embed_mode=0, ep_cache_context=where))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def forged(path, goal, change):
    """An artifact with a sidecar that is right about it."""
    model = onnx.load(path)
    change(model)
    goal.write_bytes(model.SerializeToString())
    described = json.loads(records.sidecar(path).read_text())
    records.sidecar(goal).write_text(json.dumps({**described, "sha256": files.sha256(goal)}))
    return goal


ONNX_COMMANDS = [["bench", "--backend", "onnxruntime-cpu"], ["bench", "--backend", "torch-eager"], ["predict", STREET, "-o", "out"], ["tune"],
                 ["build-engine", "--target", "rtx-2080ti"], ["eval", "--data", "camvid"], ["bundle", "--target", "rtx-2080ti", "-o", "b.tar.gz"],
                 ["calibrate", "--images", "camvid/test"], ["verify-chain", str(demo.CHECKPOINT), "--resolution", "96x128"]]


@pytest.mark.parametrize("change, words", [
    (lambda model: elsewhere(model, "../secret"), "in another file"), (lambda model: sparse(model, "/etc/passwd"), "in another file"),
    (lambda model: context(model, "../engine"), "is an operator of com.microsoft")], ids=["external", "sparse", "engine"])
@pytest.mark.parametrize("command", ONNX_COMMANDS, ids=lambda words: "-".join(words[:3:2]).replace("/", "")[:30])
def test_no_command_lets_an_onnx_file_read_another(artifact, tmp_path, monkeypatch, command, change, words):
    monkeypatch.chdir(tmp_path)
    draw_camvid(tmp_path / "camvid", {"test": 1})
    nothing_runs(monkeypatch)
    path = forged(artifact, tmp_path / "net.onnx", change)
    name, *rest = command
    place = 1 if name == "verify-chain" else 0
    assert words in refusal(name, *rest[:place], path, *rest[place:])


@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "other"])
def test_the_checkpoint_that_a_sidecar_names_is_a_plain_file_of_that_hash(artifact, copy_of, tmp_path, what):
    (tmp_path / "other").write_bytes(b"a secret")
    os.mkfifo(tmp_path / "pipe")
    path = copy_of(artifact, parent={"file": str(tmp_path / what), "sha256": "ab" * 32})
    with pytest.raises(RtsegError, match="no such file|is not the checkpoint"):
        checkpoints.origin(records.read_artifact(path))


@pytest.mark.parametrize("field, value", [("model", "../evil"), ("model", "/evil"), ("model", ".."), ("model", "a\nb"), ("kind", "../x"),
                                          ("precision", "../x")])
def test_no_name_in_a_sidecar_leads_out_of_a_folder(artifact, copy_of, field, value):
    with pytest.raises(RtsegError, match="is damaged"):
        records.read_artifact(copy_of(artifact, **{field: value}))


def test_pipes_and_devices_among_results_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    synthetic.write(tmp_path, {"one": synthetic.result(iterations=8)})
    assert [Path(one.file).name for one in results.read([tmp_path], print)] == ["one.json"]


# ---- bombs


def stretched(path):
    """A checkpoint of one number that calls itself 4 TiB."""
    state = dict(torch.load(demo.CHECKPOINT, weights_only=True)["segmenter"])
    torch.save({**state, next(iter(state)): torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def deflated(path):
    """A checkpoint whose archive says that 4 TiB are in it."""
    torch.save({"weight": torch.zeros(4)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02", data.index(b"data/0"))
    data[at + 20:at + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(data)


def endless(path):
    """An ONNX file that makes a tensor of 4 TiB."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["big"], value=value), helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
             helper.make_node("Add", ["input", "sum"], ["output"])]
    sides = [1, 3, 96, 128]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, sides)],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, sides)],
                              [helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 40])])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def picture(path, side):
    """A PNG that says that it has so many pixels on each side."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b""))


def archive(path, size):
    entry = tarfile.TarInfo("a/result.json")
    entry.size = size
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(entry.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(200):
            file.write(bytes(1 << 20))


def nested(path):
    path.write_bytes(b"x")
    records.sidecar(path).write_text('{"a":' * 1_000_000)


BOMBS = {"a stretched tensor": (stretched, "in.pth", ["export", "in.pth", "-o", "out.onnx", "--resolution", "96x128"], "has weights of more than"),
         "a zip": (deflated, "in.pth", ["inspect", "in.pth"], "holds more than"),
         "a graph": (endless, "in.onnx", ["adopt", "in.onnx", "-o", "out.onnx", "--normalisation", "imagenet"],
                     "makes a tensor big of"),
         "a picture": (lambda path: picture(path, 12_000), "in.png", ["predict", "NET", "in.png", "-o", "out"], "12000 x 12000 pixels, more than"),
         "a picture that Pillow refuses": (lambda path: picture(path, 60_000), "in.png", ["predict", "NET", "in.png", "-o", "out"],
                                           "is not an image that can be read"),
         "a tar": (lambda path: archive(path, 1 << 32), "in.tar.gz", ["collect", "in.tar.gz"], "has no place in results"),
         "gzip": (lambda path: archive(path, 200 << 20), "in.tar.gz", ["collect", "in.tar.gz"], "has no place in results"),
         "nested JSON": (nested, "in.onnx", ["bench", "in.onnx"], "is nested more than")}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_told_in_a_line_before_it_takes_memory(artifact, tmp_path, monkeypatch, bomb):
    monkeypatch.chdir(tmp_path)
    make, name, words, told = BOMBS[bomb]
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    with at_most(600):
        assert told in refusal(*(artifact if word == "NET" else word for word in words))
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_bomb_its_line_is_all_that_is_told(tmp_path):
    """Pillow warns of one by itself."""
    picture(tmp_path / "in.png", 12_000)
    read = "import sys\nfrom rtseg_deploy import errors, images\ntry:\n images.read(sys.argv[1])\nexcept errors.RtsegError:\n print('refused')"
    done = subprocess.run([sys.executable, "-c", read, tmp_path / "in.png"], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


# ---- names


# an escape that names the window, its form of one letter, a colour, letters turned round, and a line that seems to be ours
HOSTILE = "\x1b]0;owned\x07\x9d0;owned\x9c\x1b[31m\u202enet\nrtseg-deploy: all is well\r"


def on_a_terminal(*words, cwd, how=("-m", "rtseg_deploy")):
    """What a command writes to a terminal."""
    ours, its = pty.openpty()
    done = subprocess.Popen([sys.executable, *how, *map(str, words)], cwd=cwd, stdin=its, stdout=its, stderr=its,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "200"})
    os.close(its)
    with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:     # it ends with an error when its other end is closed
        written = b""
        while block := terminal.read(1 << 16):
            written += block
    done.wait()
    return written.decode()


def test_no_step_steers_the_terminal(tmp_path):
    """Beside a bar, which has escapes of its own."""
    bar = "import sys, time; from rtseg_deploy.terminal import progress\nwith progress() as tell: tell(sys.argv[1], 0.5); time.sleep(1.2)"
    written = on_a_terminal(f"{HOSTILE} step", cwd=tmp_path, how=("-c", bar))
    assert "owned" in written and not {"\x07", "\x9d", "\x9c", "\u202e"} & set(written) and "\x1b]" not in written and "\x1b[31m" not in written


@pytest.mark.parametrize("case", ["predict", "report", "inspect", "no such file", "signature"])
def test_no_name_steers_the_terminal(artifact, tmp_path, case):
    named = tmp_path / f"{HOSTILE}.png"
    named.write_bytes(images.STREET.read_bytes())
    (tmp_path / "results").mkdir()
    result = synthetic.result(HOSTILE, iterations=8, machine=HOSTILE, warnings=[("drift", HOSTILE)], notes=[HOSTILE])
    synthetic.write(tmp_path / "results", {HOSTILE: result, f"{HOSTILE} none": {"kind": HOSTILE}})
    torch.save({"state_dict": {f"{HOSTILE}.weight": torch.ones(1)}, "arch": HOSTILE}, tmp_path / "weights.pth")
    (tmp_path / "signers").write_text("")
    written = on_a_terminal(*{"predict": ["predict", artifact, named, "-o", "out"], "report": ["report", "results", "-o", "report"],
                              "inspect": ["inspect", "weights.pth"], "no such file": ["bench", f"{HOSTILE}.onnx"],
                              "signature": ["check-signature", named, "--signers", "signers"]}[case], cwd=tmp_path)
    assert "owned" in written
    assert not {"\x07", "\x9d", "\x9c", "\u202e"} & set(written) and "\x1b]" not in written and "\x1b[31m" not in written
    assert not any(line.startswith("rtseg-deploy: all is well") for line in re.split("[\r\n]+", written))


def test_off_a_terminal_a_path_is_as_it_is(artifact, tmp_path):
    """It is data: who reads the pipe finds the file."""
    done = subprocess.run([sys.executable, "-m", "rtseg_deploy", "predict", artifact, STREET, "-o", tmp_path / "\x1b[31mout"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert all(Path(line).is_file() for line in done.stdout.splitlines()) and len(done.stdout.splitlines()) == 2


def test_no_machine_computes_in_a_spreadsheet(tmp_path):
    synthetic.write(tmp_path, {"one": synthetic.result("@SUM(1)", iterations=8, machine='=HYPERLINK("http://example.invalid")')})
    text = page.lines(summary.summary(results.read([tmp_path], print))["figures"])
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'@SUM(1)" in cells and any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert not any(cell.startswith(("=", "@", "+")) for cell in cells)
