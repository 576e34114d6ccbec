"""The device worker as a process of its own, under Python 3.6 and this one, against a fake of every TensorRT that it is to drive."""
import ast
import functools
import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rtseg_deploy.device import runner

RUNNER = Path(runner.__file__).resolve()
FAKES = Path(__file__).resolve().parent / "fakes"
MIB = 1 << 20
MIXED = [["conv1", "FLOAT"], ["conv2", "FLOAT"], ["argmax", "INT32"]]               # for weakly typed versions: the builder chooses
TYPED = [["conv1", "HALF"], ["conv2", "HALF"], ["cast", "FLOAT"], ["argmax", "INT32"]]


def load(path):
    """A file as a module, under a name that hides no other."""
    spec = importlib.util.spec_from_file_location("loaded_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api = load(FAKES / "api.py")
fake = functools.cache(load(FAKES / "tensorrt.py").make)
VERSIONS = list(api.RELEASES)
WEAK = [version for version in VERSIONS if version not in api.STRONGLY_TYPED.split()]
STRONG = api.STRONGLY_TYPED.split()
every_version = pytest.mark.parametrize("version", VERSIONS)


def runtime(version):
    return "tensorrt_rtx" if version == "rtx" else "tensorrt"


@functools.cache
def python36():
    """A Python 3.6 that runs, or None: a version manager's stand-in may be found and refuse to run."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    question = "import sys; sys.exit(sys.version_info[:2] != (3, 6))"
    for path in [*sorted(root.glob("versions/3.6*/bin/python")), shutil.which("python3.6")]:
        if path and subprocess.run([path, "-c", question], capture_output=True).returncode == 0:
            return str(path)
    return None


@pytest.fixture(params=["3.6", "this"])
def python(request):
    path = python36() if request.param == "3.6" else sys.executable
    if path is None:
        pytest.skip("no Python 3.6 here: neither python3.6 nor one of pyenv's runs")
    return path


@pytest.fixture
def run(tmp_path):
    """Run one job in an empty folder; returns the result. -S, for what is installed here must not be found in place of nothing."""
    def run(python, job, version=None, fakes=True, **environment):
        job = dict({"onnx": "graph.onnx", "engine": "net.engine", "precision": "fp32", "runtime": runtime(version)}, **job)
        (tmp_path / "job.json").write_text(json.dumps(job))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FAKE_"))}
        if fakes:
            kept["PYTHONPATH"] = str(FAKES)
        if version:
            kept["FAKE_TENSORRT"] = version
        done = subprocess.run([python, "-S", str(RUNNER), "job.json", "result.json"], cwd=tmp_path, capture_output=True, text=True,
                              env={**kept, "PYTHONDONTWRITEBYTECODE": "1", **environment}, timeout=60)
        assert (done.stdout, done.stderr) == ("", "")
        result = json.loads((tmp_path / "result.json").read_text())
        assert done.returncode == (0 if result["ok"] else 1)
        return result
    return run


@pytest.fixture
def build(run, tmp_path):
    """Build a graph; returns (result, what the fake engine says of itself, or None where no engine was written)."""
    def build(python, version, graph, **job):
        (tmp_path / "graph.onnx").write_text(json.dumps(graph))
        result = run(python, dict({"action": "build"}, **job), version)
        engine = tmp_path / "net.engine"
        return result, json.loads(engine.read_text()) if engine.exists() else None
    return build


def assert_told(result, *words):
    """A failure is one line that says these words, and something to do about it."""
    assert result["ok"] is False and result["fix"]
    assert "\n" not in result["error"]
    for word in words:
        assert word in result["error"]


# ---- without TensorRT


@pytest.mark.parametrize("action", ["probe", "build"])
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_a_machine_without_tensorrt_is_told_how_to_get_it(python, run, tmp_path, action, module):
    (tmp_path / "graph.onnx").write_text("{}")
    result = run(python, {"action": action, "runtime": module}, fakes=False)
    assert_told(result, module)
    assert "install" in result["fix"]
    assert {path.name for path in tmp_path.iterdir()} == {"job.json", "graph.onnx", "result.json"}


# ---- probe


@every_version
def test_probe_tells_version_and_device(python, run, version):
    result = run(python, {"action": "probe"}, version)
    assert result["ok"] and result["probe"]["tensorrt"] == api.RELEASES[version]
    assert result["probe"]["gpu"] == {"name": "GeForce RTX 2080 Ti", "compute_capability": "7.5", "memory_bytes": 11554717696}


def test_probe_tells_why_there_is_no_device(python, run):
    result = run(python, {"action": "probe"}, "10.13", FAKE_CUDA="none")
    assert "no CUDA-capable device" in result["probe"]["gpu"]["error"]


def test_probe_without_tensorrt_still_tells_of_the_machine(python, run):
    result = run(python, {"action": "probe", "runtime": "tensorrt"}, "rtx")
    assert_told(result, "tensorrt")
    assert result["probe"]["gpu"]["compute_capability"] == "7.5" and result["probe"]["python"]


# ---- build


@every_version
def test_fp32_engine(python, build, version, tmp_path):
    result, engine = build(python, version, {"layers": MIXED}, workspace_bytes=256 * MIB, progress="progress.json")
    assert result["ok"], result
    assert (result["version"], result["runtime"]) == (api.RELEASES[version], runtime(version))
    assert result["layers"] == {"fp16": 0, "fp32": 2, "fp32_names": ["conv1", "conv2"]}
    assert result["bytes"] == (tmp_path / "net.engine").stat().st_size and result["build_seconds"] >= 0
    assert json.loads((tmp_path / "progress.json").read_text())["stage"] == "building"
    assert engine["config"]["flags"] == []                                  # neither FP16 nor TF32, which is on by default
    assert "EXPLICIT_BATCH" in engine["network_flags"] or version not in ("8.2", "8.6")
    assert engine["config"]["compute_capabilities"] == []


@every_version
def test_workspace_goes_the_way_that_the_version_has(python, build, version):
    _, engine = build(python, version, {"layers": MIXED}, workspace_bytes=256 * MIB)
    old, new = engine["config"]["max_workspace_size"], engine["config"]["pools"]
    assert (old, new) == ((256 * MIB, {}) if version == "8.2" else (None, {"WORKSPACE": 256 * MIB}))


@pytest.mark.parametrize("version", WEAK)
def test_fp16_engine_where_the_builder_chooses(python, build, version):
    result, engine = build(python, version, {"layers": MIXED[:2]}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 0, "fp32_names": []}
    assert engine["config"]["flags"] == ["FP16"]


@pytest.mark.parametrize("version", WEAK)
def test_integer_layers_of_an_fp16_engine_are_in_neither_count(build, version):
    result, _ = build(sys.executable, version, {"layers": MIXED}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 0, "fp32_names": []}


@pytest.mark.parametrize("version", STRONG)
def test_fp16_engine_where_the_graph_decides(python, build, version):
    result, engine = build(python, version, {"layers": TYPED}, precision="fp16")
    assert result["ok"], result
    assert result["layers"] == {"fp16": 2, "fp32": 1, "fp32_names": ["cast"]}
    assert engine["config"]["flags"] == [] and engine["layers"] == TYPED


@every_version
def test_fp16_without_a_layer_in_fp16_is_refused(python, build, version):
    """Weakly typed: the builder ignores the flag, as it may. Strongly typed: the graph is FP32."""
    result, engine = build(python, version, {"layers": MIXED, "ignore_fp16": True}, precision="fp16")
    assert_told(result, "FP16")
    assert engine is None


@pytest.mark.parametrize("kind", ["CAST", "CONSTANT", "SHUFFLE"])
@pytest.mark.parametrize("version", ["11.1", "rtx"])
def test_a_cast_to_fp16_makes_no_fp16_engine(build, version, kind):
    layers = [["conv1", "FLOAT"], ["mover", "HALF"], ["conv2", "FLOAT"]]
    result, engine = build(sys.executable, version, {"layers": layers, "kinds": {"mover": kind}}, precision="fp16")
    assert not result["ok"] and "FP16" in result["error"] and engine is None


def test_compute_capability_is_set_ahead_of_time(python, build):
    result, engine = build(python, "rtx", {"layers": MIXED}, compute_capability="7.5")
    assert result["ok"], result
    assert engine["config"]["compute_capabilities"] == ["SM75"]


@pytest.mark.parametrize("version, capability", [*((version, "7.5") for version in VERSIONS[:-1]), ("rtx", "6.1"), ("rtx", "9.0")])
def test_compute_capability_is_refused_where_it_cannot_be_set(python, build, version, capability):
    result, engine = build(python, version, {"layers": MIXED}, compute_capability=capability)
    assert_told(result, capability, api.RELEASES[version])
    assert engine is None


@every_version
def test_parser_errors_come_home(python, build, version, tmp_path):
    errors = ["In node 3: no importer for HardSwish", "In node 9: bad Resize"]
    result, engine = build(python, version, {"layers": MIXED, "parse_errors": errors}, progress="progress.json")
    assert_told(result, *errors, api.RELEASES[version])
    assert engine is None
    assert json.loads((tmp_path / "progress.json").read_text())["stage"] == "parsing"       # nobody tried to build it


def test_a_parser_error_of_several_lines_becomes_one(build):
    """The parser puts what TensorRT said on further lines of its message."""
    error = "Invalid Node - Pad_14\n[shuffleNode.cpp] Error Code 4: no\n"
    result, _ = build(sys.executable, "8.6", {"layers": MIXED, "parse_errors": [error]})
    assert_told(result, "Invalid Node - Pad_14", "Error Code 4: no")


@every_version
def test_a_file_that_is_no_graph_comes_home(run, version, tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"\x08 no graph")
    assert_told(run(sys.executable, {"action": "build"}, version), "Failed to parse")
    assert not (tmp_path / "net.engine").exists()


@every_version
def test_the_builders_reason_comes_home(python, build, version):
    """The reason, not the last line of the log: 8.2 adds there only that it has no engine."""
    result, engine = build(python, version, {"layers": MIXED, "fail": "Could not find any implementation for node conv2"})
    assert_told(result, "Could not find any implementation for node conv2", api.RELEASES[version])
    assert engine is None


def test_whatever_else_goes_wrong_comes_home_too(python, run):
    result = run(python, {"action": "build", "onnx": "absent.onnx"}, "10.13")
    assert result["ok"] is False and "absent.onnx" in result["error"]


# ---- the fakes: a name that a version has not is not there, or no test above could fail


@every_version
def test_the_fakes_have_the_names_of_the_table_and_no_other(version):
    trt = fake(version)
    for name, versions in api.API.items():
        owner, _, member = name.partition(".")
        assert (hasattr(trt, owner) and (not member or hasattr(getattr(trt, owner), member))) == (version in versions.split()), name
    assert {name for name in vars(trt) if not name.startswith("_")} <= {name.partition(".")[0] for name in api.API}


def test_the_table_is_what_the_facts_say():
    """A few rows written a second time, so that a slip in the table does not pass as a fact."""
    def has(version, owner, member):
        return hasattr(getattr(fake(version), owner, None), member)

    assert [has(v, "BuilderFlag", "FP16") for v in VERSIONS] == [True, True, True, False, False]
    assert [has(v, "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") for v in VERSIONS] == [True, True, True, False, False]
    assert [has(v, "IBuilderConfig", "set_memory_pool_limit") for v in VERSIONS] == [False, True, True, True, True]
    assert [has(v, "IBuilderConfig", "max_workspace_size") for v in VERSIONS] == [True, True, False, False, False]
    assert [has(v, "IExecutionContext", "execute_async_v3") for v in VERSIONS] == [False, True, True, True, True]
    assert [has(v, "ComputeCapability", "SM75") for v in VERSIONS] == [False, False, False, False, True]
    assert VERSIONS == ["8.2", "8.6", "10.13", "11.1", "rtx"]


@every_version
def test_the_fakes_refuse_what_the_real_ones_refuse(version):
    trt = fake(version)
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()
    with pytest.raises(AttributeError):
        config.no_such_setting = 1
    with pytest.raises(TypeError):
        config.set_flag(3)
    with pytest.raises(TypeError):
        config.profiling_verbosity = 1
    with pytest.raises(TypeError):
        trt.OnnxParser(builder.create_network(0), trt.Logger()).parse("text")
    with pytest.raises(TypeError):
        trt.Builder(type("Unready", (trt.ILogger,), {"__init__": lambda self: None})())
    if version not in ("8.2", "8.6"):
        with pytest.raises(AttributeError):
            config.max_workspace_size = 1


@every_version
def test_only_8x_needs_an_explicit_batch(version, capfd):
    trt = fake(version)
    network = trt.Builder(trt.Logger()).create_network(0)
    parser = trt.OnnxParser(network, trt.Logger())
    assert parser.parse(json.dumps({"layers": MIXED}).encode()) == (version not in ("8.2", "8.6"))
    assert ("explicit batch" in capfd.readouterr().err) == (version in ("8.2", "8.6"))


@pytest.mark.parametrize("version, bindings, half", [
    ("8.2", "Bindings", "FP16"), ("10.13", "Bindings", "Half"), ("11.1", "I/O Tensors", "Half"),
])
def test_the_fake_inspector_tells_what_the_build_lets_it_tell(version, bindings, half):
    trt = fake(version)
    text = {}
    for verbosity in ("LAYER_NAMES_ONLY", "DETAILED"):
        plan = {"version": version, "layers": [["conv1", "HALF"]], "config": {"profiling_verbosity": verbosity}}
        engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(json.dumps(plan).encode())
        text[verbosity] = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
        assert bindings in text[verbosity]
    assert text["LAYER_NAMES_ONLY"]["Layers"] == ["conv1"]
    assert half in text["DETAILED"]["Layers"][0]["Outputs"][0]["Format/Datatype"]


# ---- the clock


def test_clocked_gives_the_durations_and_nothing_beside_them():
    now, planted, collecting = [100.0], [0.5, 0.25, 2.0, 0.125], []

    def step():
        now[0] += planted[len(collecting)]
        collecting.append(gc.isenabled())

    assert runner.clocked(step, 4, lambda: now[0]) == planted
    assert collecting == [False] * 4 and gc.isenabled()


def test_clocked_leaves_the_garbage_collector_as_it_was():
    def step():
        raise ValueError("no step")

    with pytest.raises(ValueError):
        runner.clocked(step, 3)
    assert gc.isenabled()
    gc.disable()
    try:
        runner.clocked(lambda: None, 1)
        assert not gc.isenabled()
    finally:
        gc.enable()


# Binary fractions of a second add up without rounding.
@pytest.mark.parametrize("seconds, steps", [
    (1 / 64, 128),                              # 50 steps come first: on until 2 s
    (0.25, 50),                                 # 2 s come first: on until 50 steps
    (1.0, 30),                                  # neither matters at 30 s
    (40.0, 1),
    (1 / 65536, runner.WARMUP_STEPS_LIMIT),     # nor after so many steps
])
def test_warm_up_stops_in_time(seconds, steps):
    now = [0.0]

    def step():
        now[0] += seconds

    assert runner.warm_up(step, clock=lambda: now[0]) == [seconds] * steps


# ---- the floor: Python 3.6 and nothing to install


def imports():
    """(module, line, at top level) of every import of the runner."""
    tree = ast.parse(RUNNER.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in [alias.name for alias in node.names] if isinstance(node, ast.Import) else ["." * node.level + (node.module or "")]:
                yield name.partition(".")[0], node.lineno, node in tree.body


def test_the_runner_is_written_in_python_36():
    ast.parse(RUNNER.read_text(), feature_version=(3, 6))


def test_the_runner_needs_nothing_installed():
    newer = {"contextvars", "dataclasses", "graphlib", "tomllib", "zoneinfo"}
    lazy = {"tensorrt", "tensorrt_rtx", "pycuda", "numpy"}
    for name, line, top in imports():
        assert name in sys.stdlib_module_names - newer or (name in lazy and not top), f"line {line} imports {name}"
