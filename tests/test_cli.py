"""The command line as a user meets it: help, speed of starting, and one line for every wrong thing."""
import json
import os
import pickle
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT, run
from PIL import Image

from rtseg_deploy import __version__, demo, terminal
from rtseg_deploy.cli import cli as group

README = (ROOT / "README.md").read_text()


def test_help_and_version_load_only_click():
    script = "import sys; from rtseg_deploy.cli import cli\ntry: cli(['--help'])\nexcept SystemExit: print('\\n'.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split("\n")
    assert not {"torch", "onnx", "numpy", "rich", "PIL", "onnxruntime"} & set(loaded) and "click" in loaded


def test_help_answers_in_under_a_third_of_a_second():
    def once():
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rtseg_deploy", "--help"], capture_output=True, check=True, cwd=ROOT)
        return time.perf_counter() - begin
    assert statistics.median(once() for _ in range(5)) < 0.3


def test_version():
    assert run("--version")[0].strip() == f"rtseg-deploy, version {__version__}"
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def commands(known, *above):
    """The words of each command that is no group of others."""
    for name, command in known.items():
        yield from commands(command.commands, *above, name) if hasattr(command, "commands") else [(*above, name)]


@pytest.mark.parametrize("command", list(commands(group.commands)), ids=" ".join)
def test_every_command_has_help_with_an_example_and_is_in_the_readme(command):
    out = CliRunner().invoke(group, [*command, "--help"]).output
    example = re.search(r"Example:\n((?:    .*\n)+)", out)[1]
    begin, count = ["rtseg-deploy", *command], len(example.strip().splitlines())
    typed = [shlex.split(line.partition("#")[0]) for line in [*example.strip().splitlines(), *commands_of_the_readme()]]
    assert all(words[:len(begin)] == begin for words in typed[:count])
    for words in (words for words in typed if words[:len(begin)] == begin):
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", out), option
    assert f"`{command[0]}`" in README


def commands_of_the_readme():
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip().startswith("rtseg-deploy")]


def draw_camvid(folder, pictures):
    """A data set in CamVid's form: the street, moved and darker each time, with bands of every class."""
    street = demo.images.read(demo.images.STREET)
    for split, count in pictures.items():
        for name in (split, f"{split}annot"):
            (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray((np.roll(street, 40 * number, 1) * (1 - 0.05 * number)).astype(np.uint8)).save(folder / split / f"{number}.png")
            Image.fromarray((np.arange(360, dtype=np.uint8) // 30)[:, None].repeat(480, 1)).save(folder / f"{split}annot" / f"{number}.png")


def test_the_readmes_commands_run(tmp_path):
    """In order, in one folder, as someone would who follows it; the figures are taken with fewer iterations."""
    (tmp_path / "weights.pth").write_bytes(demo.CHECKPOINT.read_bytes())
    (tmp_path / "street.png").write_bytes(demo.images.STREET.read_bytes())
    shutil.copytree(ROOT / "engines", tmp_path / "engines", ignore=lambda folder, names: [name for name in names if not name.endswith(".toml")])
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage/net.py").write_text("from torch import nn\ndef build():\n    return nn.Conv2d(3, 7, 3, 2, 1)\n")
    torch.onnx.export(torch.nn.Conv2d(3, 7, 3, 2, 1), (torch.zeros(1, 3, 64, 96),), tmp_path / "theirs.onnx", dynamo=False)
    draw_camvid(tmp_path / "camvid", {"val": 6, "test": 2})
    lines = commands_of_the_readme()
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line.partition("#")[0])[1:]
        if "--on" in words:     # needs that device: what is typed is checked against the help above
            continue
        if words[0] in ("bench", "demo"):
            words += ["-n", "20", *(["--warmup", "0.5"] if words[0] == "bench" else []), *(["--processes", "2"] if "--processes" in words else [])]
        result = subprocess.run([sys.executable, "-m", "rtseg_deploy", *words], cwd=tmp_path, capture_output=True, text=True,
                                env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert result.returncode in ((0, 3) if words[0] == "bench" else (0,)), line + result.stderr


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def weights():
    return torch.load(demo.CHECKPOINT, weights_only=True)["segmenter"]


def saved(value):
    return lambda path: torch.save(value(), path)


EXPORT = ["export", "in", "-o", "out.onnx", "--resolution", "96x128"]
BAD = {
    "no arguments": (None, ["export"], 2, "Missing"),
    "no file": (None, EXPORT, 2, "does not exist"),
    "truncated": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()[:100_000]), EXPORT, 1, "truncated or not a PyTorch checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), EXPORT, 1, "truncated or not a PyTorch checkpoint"),
    "code": (saved(Attack), EXPORT, 1, "asks to run"),
    "plain pickle with code": (lambda p: p.write_bytes(pickle.dumps(Attack(), 2)), EXPORT, 1, "in "),
    "another network": (saved(lambda: {"layer.weight": torch.ones(3)}), EXPORT, 1, "shares no tensor"),
    "one number": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT[:-1], "100"], 2, "is not HEIGHTxWIDTH"),
    "another suffix": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), ["export", "in", "-o", "in", "--resolution", "96x128"], 2, ".onnx"),
    "onto itself": (lambda p: p.with_name("in.onnx").write_bytes(demo.CHECKPOINT.read_bytes()),
                    ["export", "in.onnx", "-o", "in.onnx", "--resolution", "96x128"], 2, "would overwrite"),
    "zero": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT[:-1], "0x128"], 2, "is not HEIGHTxWIDTH"),
    "negative": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT[:-1], "-4x128"], 2, "is not HEIGHTxWIDTH"),
    "enormous": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT[:-1], "999999x999999"], 2, "is not HEIGHTxWIDTH"),
    "classes claimed": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT, "--classes", "19"], 1, "head has 11"),
    "wrong model": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT, "--model", "bisenetv2"], 1, "nearest is bisenetv2"),
    "unknown model": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT, "--model", "unet"], 1, "no network is called"),
    "opset": (lambda p: p.write_bytes(demo.CHECKPOINT.read_bytes()), [*EXPORT, "--opset", "9"], 1, "opset 9"),
    "build of what is no artifact": (lambda p: p.write_bytes(b"x"), ["build-engine", "in", "--target", "rtx-2080ti"], 1, "has no sidecar"),
    "bench of nothing": (None, ["bench", "nothing", "--resolution", "64x64"], 1, "no network is called"),
    "bench of a missing artifact": (None, ["bench", "net.onnx"], 1, "no such file"),
    "bench without a size": (None, ["bench", "sgcpnet"], 1, "add --resolution"),
    "zero iterations": (None, ["bench", "sgcpnet", "-n", "0"], 2, "not in the range"),
    "no such command": (None, ["bnech"], 2, "bnech"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path):
    make, words, status, message = BAD[case]
    if make:
        make(tmp_path / "in")
    before = sorted(tmp_path.iterdir())
    out, err = run(*words, status=status, cwd=tmp_path)
    last = err.splitlines()[-1]
    assert last.startswith("rtseg-deploy: ") and message in last and not out
    assert len([line for line in err.splitlines() if not line.startswith("  ")]) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_no_arguments_at_all_is_the_help():
    assert "build-engine" in run()[0]


def test_swapped_sizes_warn_and_go_on(tmp_path):
    _, err = run("export", demo.CHECKPOINT, "-o", tmp_path / "net.onnx", "--resolution", "128x96")
    assert "warning: 128x96 is taller than wide" in err and (tmp_path / "net.onnx").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    _, err = run("export", demo.CHECKPOINT, "-o", tmp_path / "file/net.onnx", "--resolution", "64x64", status=1)
    assert "file" in err.splitlines()[-1]


def test_names_are_printed_as_they_are(artifact, tmp_path):
    out, _ = run("bench", artifact, "--backend", "null", "-n", 5, "-o", "res[v2]", cwd=tmp_path)
    assert "res[v2]/sgcpnet-96x128" in out and list((tmp_path / "res[v2]").iterdir())


def test_a_fault_of_ours_is_one_line_too():
    script = "import rtseg_deploy.cli as c, sys\nsys.argv = ['rtseg-deploy', 'models']\nimport rtseg_deploy.models as m\nm.networks = lambda: 1 / 0\nc.main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "a fault of rtseg-deploy itself: ZeroDivisionError" in result.stderr


@pytest.mark.parametrize("missing, words, extra", [
    ("torch", ["models"], "export"), ("onnxruntime", EXPORT, "cpu"), ("polygraphy", EXPORT, "export")])
def test_a_missing_extra_is_named(missing, words, extra, tmp_path):
    (tmp_path / "in").write_bytes(demo.CHECKPOINT.read_bytes())
    script = (f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['rtseg-deploy', *{words!r}]\nimport rtseg_deploy.cli as c; c.main()")
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"rtseg-deploy: this needs {missing}, which is not installed; pip install 'rtseg-deploy[{extra}]'"


def test_models_lists_the_registry():
    rows = json.loads(run("models", "--json")[0])
    found = {row["network"]: row["GMACs"] for row in rows}
    assert found["bisenetv2"] == 24.603 and found["sgcpnet"] == 0.819 and found["ddrnet-39"] == 70.279
    assert "size not taken" in run("models", "--resolution", "713x713")[0]
    assert "ycszen/TorchSeg@62eeb15" in run("models", "--dialects")[0]
    assert run("models", "--papers", "--markdown")[0].splitlines()[1].startswith("| --- |")


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    result = subprocess.run(f"{sys.executable} -m rtseg_deploy models --dialects | head -n 1", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert not result.stderr


def test_off_a_terminal_a_step_that_counts_is_a_line_at_times(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    tell = terminal.lines()
    for number in range(1, 101):
        clock[0] += 0.2
        tell(f"{number} of 100 pictures", number / 100)
    tell("writing", None)
    tell("writing", None)
    told = capsys.readouterr().err.split("\n")
    assert told[0] == "  1 of 100 pictures" and told[-3:] == ["  100 of 100 pictures", "  writing", ""] and len(told) == 7


def test_progress_on_a_terminal_and_off_it():
    with terminal.progress() as tell:
        tell("one step", None)
        tell("one step", 0.5)
