"""A network of one's own, by package.module:factory."""
import json

import pytest
import torch
from conftest import run

from rtseg_deploy import own
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.export import export
from rtseg_deploy.records import read_artifact

CODE = '''
import torch
from torch import nn

class Net(nn.Module):
    """Logits at half the size; BatchNorm before and after a convolution."""
    def __init__(self, classes=5):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.last = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1))
    def forward(self, x):
        return self.last(self.first(x))

class Two(Net):
    def forward(self, x):
        return super().forward(x), x

def build():
    torch.manual_seed(1)
    net = Net()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2); nn.init.normal_(layer.bias); nn.init.normal_(layer.running_mean)
    return net

def two():
    return Two()

def number():
    return 3

def broken():
    return 1 / 0

def leaves():
    raise SystemExit(0)

class Odd(Exception):
    pass

def odd():
    raise Odd("one of its own")

def hungry(classes):
    return Net(classes)

def nested():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Net()
        def forward(self, x):
            return self.model(x)
    return Outer()

def strict():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(7, 5))
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets/__init__.py").write_text("")
    (tmp_path / "mynets/nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mynets", "mynets.nets"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


def test_it_is_folded_proven_and_described(package):
    trained = own.load("mynets.nets:build")
    artifact = export(trained, package / "net.onnx", (40, 60))
    assert artifact.checks["fold"]["back"] == 1 and artifact.checks["fold"]["forward"] == 1 and artifact.classes == 5
    assert artifact.checks["parity"]["ok"] and artifact.parent == {"factory": "mynets.nets:build"}
    assert read_artifact(package / "net.onnx").model == "mynets.nets.build"


def test_the_command_line_takes_it_with_a_checkpoint_and_times_it(package):
    weights = own.load("mynets.nets:build").module.state_dict()
    torch.save({"state_dict": {f"module.{key}": value * 2 for key, value in weights.items()}}, package / "weights.pth")
    run("export", "weights.pth", "--model", "mynets.nets:build", "-o", "net.onnx", "--resolution", "64x64", "--normalisation", "none", cwd=package)
    described = json.loads((package / "net.onnx.json").read_text())
    assert described["normalisation"] == {"mean": [0, 0, 0], "std": [1, 1, 1]} and "sha256" in described["parent"]
    out, _ = run("bench", "mynets.nets:build", "--resolution", "64x64", "-n", 3, "--backend", "onnxruntime-cpu", "--backend", "torch-eager", "--json",
                 cwd=package, status=None)
    assert [figure["backend"] for figure in json.loads(out)] == ["onnxruntime-cpu", "torch-eager"]
    assert all(figure["same_labels"].get("onnxruntime-cpu", 1) > 0.999 for figure in json.loads(out))


def test_a_sidecar_does_not_get_to_run_code(package):
    export(own.load("mynets.nets:build"), package / "net.onnx", (64, 64))
    (package / "mynets/nets.py").write_text("raise SystemExit('ran')")
    _, err = run("bench", "net.onnx", "-n", 3, "--backend", "torch-eager", cwd=package, status=1)
    assert "a sidecar does not get to run" in err and "ran" not in err.replace("does not get to run", "").replace("random", "")


@pytest.mark.parametrize("spec, words", [
    ("mynets.nets:two", "gives a tuple"), ("mynets.nets:number", "returns a int, not an nn.Module"), ("mynets.nets:nothing", "has no function nothing"),
    ("mynets.nets:broken", "fails: ZeroDivisionError"), ("mynets.nets:leaves", "fails: SystemExit"),
    ("mynets.nets:odd", "fails: Odd"), ("mynets.nets:hungry", "called without"),
    ("mynets.wrong:build", "cannot be imported: SyntaxError"),
    ("mynets.none:build", "no module 'mynets.none'"), ("mynets.nets:strict", "cannot take"),
])
def test_refusals(package, spec, words):
    (package / "mynets/wrong.py").write_text("def build(:")
    with pytest.raises(RtsegError) as error:
        own.load(spec)
    assert words in f"{error.value.what}; {error.value.fix}"


def test_a_checkpoint_of_another_network_is_refused(package):
    torch.save({"first.0.weight": torch.zeros(8, 3, 3, 3)}, package / "weights.pth")
    with pytest.raises(RtsegError, match="is no checkpoint of mynets.nets:build: .* keys missing"):
        own.load("mynets.nets:build", package / "weights.pth")


def test_a_prefix_that_is_the_networks_own_is_kept(package):
    weights = own.load("mynets.nets:nested").module.state_dict()
    assert all(key.startswith("model.") for key in weights)
    for prefix in ("", "module."):
        torch.save({prefix + key: value for key, value in weights.items()}, package / "weights.pth")
        assert own.load("mynets.nets:nested", package / "weights.pth").classes == 5


def test_what_it_prints_is_no_data(package):
    loud = "\nclass Loud(Net):\n    def forward(self, x):\n        print('forward')\n        return super().forward(x)\n"
    (package / "mynets/loud.py").write_text(f"{CODE}{loud}\ndef loud():\n    print('hello')\n    return Loud()\n")
    out, err = run("export", "--model", "mynets.loud:loud", "-o", "net.onnx", "--resolution", "64x64", "--json", cwd=package)
    assert json.loads(out)["classes"] == 5 and "hello" in err and "forward" in err


def test_names():
    assert own.is_own("a.b:c") and own.is_own("a:c")
    assert not own.is_own("sgcpnet") and not own.is_own(None) and not own.is_own("a/b:c")
