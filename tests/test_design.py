"""The shape of the project, held: which module may import which, what loads when, and that the repository speaks of itself alone."""
import ast
import os
import re
import subprocess

import pytest
from conftest import ROOT

from rtseg_deploy import facts
from rtseg_deploy.models import networks

PACKAGE = ROOT / "rtseg_deploy"
# a module imports only from layers above its own
LAYERS = [
    {"errors", "device.runner", "device.building", "device.steps", "device.parser", "device.sampler", "device.look", "device.frames", "device.layers",
     "device.labelling", "device.quantised", "device.kernels", "device.gpukernels", "device.gpuframes", "device.turns"},
    {"limits"},
    {"files", "telemetry", "svg", "statistics"},
    {"locks"},
    {"records", "facts"},
    {"graphs", "tables", "calibration_table", "signatures"},
    {"rules"},
    {"images", "layers", "lists"},
    {"models", "datasets"},
    {"saved", "complexity", "passes", "deployed", "precision", "accuracy"},
    {"checkpoints"},
    {"own", "listing", "inspection", "proof", "plans"},
    {"ranges"},
    {"fp16"},
    {"backends"},
    {"int8", "launch", "remarks", "original", "doubts"},
    {"ssh", "ondevice", "check", "stream"},
    {"turns"},
    {"tuned"},
    {"tune"},
    {"conditions"},
    {"doctor", "results"},
    {"repairs"},
    {"export", "clean", "adopt", "fix", "calibrate", "build", "bench", "predict", "video", "verify", "deploy_config", "dataflow", "compare"},
    {"collect", "entries"},
    {"archive"},
    {"measure", "matrix", "report", "remedies", "estimate", "verdicts"},
    {"links", "departures", "differences"},
    {"suspects"},
    {"chain"},
    {"demo", "bundle", "profile", "plots", "beside"},
    {"summary", "page"},
    {"gallery"},
    {"evaluate"},
    {"sheets", "prune"},
    {"trends", "details"},
    {"baseline"},
    {"tasks"},
    {"crew"},
    {"remote", "campaign"},
    {"fleet"},
    {"builds"},
    {"terminal"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def layer(name):
    """The level of a module, by its own name or that of the package it is in; None for the package itself."""
    while name:
        if name in LEVEL:
            return LEVEL[name]
        name = name.rpartition(".")[0]
    return None


def imported(path):
    """Modules of this package that a file imports, as names below rtseg_deploy."""
    here = ("rtseg_deploy." + module_of(path)).split(".")
    if path.name != "__init__.py":
        here = here[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[:len(here) - node.level + 1][1:] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if layer(whole) is not None and (PACKAGE / whole.replace(".", "/")).with_suffix(".py").exists() else ".".join(base) or alias.name


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=map(module_of, SOURCES))
def test_imports_go_one_way(path):
    name = module_of(path)
    if name in ("__init__", "__main__", "device"):
        return
    assert layer(name) is not None, f"{name} has no place in LAYERS"
    for other in imported(path):
        if other in ("__version__",) or other.split(".")[0] == name.split(".")[0]:
            continue
        assert layer(other) is not None and layer(other) < layer(name), f"{name} imports {other}"


def test_the_measuring_half_imports_no_torch_and_no_onnx():
    for name in ("launch", "bench", "build", "predict", "images", "records", "files", "locks", "facts", "report", "backends", "device", "device.runner",
                 "ssh", "ondevice", "bundle", "collect", "precision", "verify", "deploy_config", "telemetry", "conditions", "doctor", "plans",
                 "tables", "facts.tables", "statistics", "doubts", "campaign", "measure",
                 "device.layers", "profile", "datasets", "lists", "accuracy", "facts.datasets", "calibration_table", "device.quantised",
                 "stream", "device.labelling", "device.frames", "device.kernels", "device.gpukernels", "device.gpuframes", "evaluate", "gallery", "video",
                 "turns", "tuned", "tune", "device.turns", "facts.settings", "archive", "entries", "sheets", "trends", "baseline", "prune", "details"):
        path = PACKAGE / (name.replace(".", "/") + ".py")
        path = path if path.exists() else PACKAGE / name / "__init__.py"
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        roots = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        roots |= {node.module.split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level}
        assert not roots & {"torch", "onnx", "onnxruntime", "polygraphy", "onnx_graphsurgeon"}, name


def test_the_registry_is_the_folder():
    families = {path.stem for path in (PACKAGE / "models").glob("*.py")} - {"__init__"}
    assert {network.build.__module__.rpartition(".")[2] for network in networks().values()} == families
    for name, network in networks().items():
        assert network.name == name and network.paper
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@([0-9a-f]{7,40}|v[\d.]+)", dialect.source) for dialect in network.dialects)


def test_every_fact_has_a_source():
    assert all(row.source for row in (*facts.targets().values(), *facts.devices().values(), *facts.parsers().values()))
    assert all(target.compute_capability and target.parser in facts.parsers() for target in facts.targets().values())
    assert {figure.device for figure in facts.papers()} - {""} <= set(facts.devices())


def test_functions_and_files_stay_small():
    lengths = []
    for path in SOURCES:
        assert path.read_text().count("\n") <= (500 if path.parent.name in ("models", "device") else 320), path
        lengths += [node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert sorted(lengths)[len(lengths) // 2] <= 12 and max(lengths) <= 60


def test_no_check_by_assert_and_one_broad_except():
    broad = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), path
            if isinstance(node, ast.ExceptHandler) and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")):
                broad.append(module_of(path))
    assert broad == ["device.runner"]


def test_the_repository_names_no_machine_and_no_registry():
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        path = ROOT / name
        if path.suffix in (".png", ".tar") or not path.exists():
            continue
        words = re.findall(r"/(?:root|home|work)/|pypi\.org|download\.pytorch\.org|pypi\.nvidia|files\.pythonhosted", path.read_text(errors="replace"))
        assert not words or name == "tests/test_design.py", f"{name}: {words}"


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="without pytest-xdist there is one worker")
@pytest.mark.xdist_group("own")
def test_the_tests_of_a_group_go_to_one_worker(request):
    """What says so to pytest-xdist: with a pytest that it does not know yet it is lost, and every worker makes what one should."""
    assert request.node.nodeid.endswith("@own")
