"""What the runner asks of TensorRT is in the fakes' table, and the table is what the real bindings have: read out of their wheels, which need no GPU.

A wheel's extension module holds the names of its classes, methods and enum members as NUL-terminated texts. That says which names there
are, and not on which class: a name that another class of the same version has (FLOAT, name) may be anybody's, and only its absence tells.
Names may share their ends (precision lies in set_precision), so a text that ends in a name counts as the name. There is no wheel of 8.2.
"""
import ast
import importlib.util
import zipfile
from pathlib import Path

import pytest
from conftest import downloaded
from test_runner import api

from rtseg_deploy.device import building, layers, quantised, runner

WHEELS = [  # what the table says of a version, and the wheels that it is held against
    ("8.6", "tensorrt-bindings==8.6.1", "3.8"), ("10.13", "tensorrt-cu12-bindings==10.13.3.9", "3.11"), ("10.13", "tensorrt-cu12-bindings==10.*", "3.11"),
    ("11.1", "tensorrt-cu13-bindings==11.1.0.106", "3.11"), ("11.1", "tensorrt-cu13-bindings==11.*", "3.11"),
]
# what holds objects of TensorRT in the runner, and their class
OBJECTS = {"trt": "", "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition", "parser": "OnnxParser", "layer": "ILayer",
           "produced": "ITensor", "engine": "ICudaEngine", "context": "IExecutionContext", "cache": "ITimingCache", "runtime": "Runtime"}
# what calls on them return, and attributes that enums and modules of Python have anyway
RETURNED = {"get_output": "ITensor", "get_input": "ITensor", "get_error": "ParserError", "get_timing_cache": "ITimingCache",
            "create_engine_inspector": "EngineInspector"}
ANYWAY = {"__version__", "__name__", "__members__", "name"}


def owner_of(node):
    """The class of TensorRT that an expression is of: "" for the module, None for none."""
    if isinstance(node, ast.Name):
        return OBJECTS.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return RETURNED.get(node.func.attr)
    if isinstance(node, ast.Attribute):
        if node.attr in OBJECTS:
            return OBJECTS[node.attr]
        return node.attr if owner_of(node.value) == "" and node.attr[:1].isupper() else None
    return None


def used(source):
    """"Class" or "Class.member" of every name that is asked of TensorRT, by attribute or as the text given to hasattr and getattr."""
    found, tree = set(), ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add((owner_of(node.value), node.attr))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            found |= {(owner_of(node.args[0]), text) for text in texts_of(node.args[1], tree)}
    return {f"{owner}.{name}".strip(".") for owner, name in found if owner is not None and name not in ANYWAY}


def texts_of(name, tree):
    """The texts that a name looked up may be: itself, or those that the comprehension around it goes through. One that is put together is not known."""
    if isinstance(name, ast.Constant):
        return {name.value}
    around = [node for node in ast.walk(tree) if isinstance(node, (ast.GeneratorExp, ast.ListComp)) and any(inner is name for inner in ast.walk(node))]
    tuples = [loop.iter for node in around for loop in node.generators if getattr(loop.target, "id", "") == getattr(name, "id", None)]
    return {item.value for each in tuples if isinstance(each, ast.Tuple) for item in each.elts}


TEXT = "".join(Path(module.__file__).read_text() for module in (runner, building, layers, quantised))   # what runs on a device
KNOWN = set(api.API) | {name.partition(".")[0] for name in api.API}


def test_every_name_that_the_runner_uses_is_in_the_table():
    names = used(TEXT)
    assert names - KNOWN == set()
    assert {"Builder.build_serialized_network", "TacticSource.CUDNN", "BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "ILayer.set_output_type", "LayerType.CAST",
            "IExecutionContext.profiler", "IProfiler",
            "IExecutionContext.execute_async_v2", "IExecutionContext.execute_async_v3", "ITimingCache.serialize", "ITensor.is_shape_tensor",
            "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", "Runtime.deserialize_cuda_engine", "ParserError.desc"} <= names
    assert len(names) > 70


@pytest.mark.parametrize("line, name", [
    ("config.set_speed(3)", "IBuilderConfig.set_speed"), ("x = trt.BuilderFlag.FP4", "BuilderFlag.FP4"), ("hasattr(engine, 'things')", "ICudaEngine.things"),
    ("[getattr(trt.LayerType, n) for n in ('CAST', 'MOVE')]", "LayerType.MOVE"),
    ("layer.precision_limit = 1", "ILayer.precision_limit"), ("log.trt.Magic()", "Magic"), ("network.get_layer(0).get_output(0).range", "ITensor.range"),
    ("self.context.execute_v9()", "IExecutionContext.execute_v9"),
])
def test_a_name_that_is_not_in_the_table_is_found(line, name):
    assert used(TEXT + line + "\n") - used(TEXT) == {name} and name not in KNOWN


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """texts(requirement, python): the bytes of a wheel's extension module."""
    def texts(requirement, python):
        with zipfile.ZipFile(downloaded(requirement, python, tmp_path_factory.mktemp("bindings"))) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith("/tensorrt.so")]
            return wheel.read(name)
    return texts


def contradictions(version, data):
    """Rows of the table that a wheel's texts contradict."""
    there = {name.rpartition(".")[2] for name, versions in api.API.items() if version in versions.split()}
    for name, versions in api.API.items():
        member = name.rpartition(".")[2]
        found = member.encode() + b"\0" in data
        if version in versions.split() and not found:
            yield f"{name} is not in it"
        elif version not in versions.split() and member not in there and b"\0" + member.encode() + b"\0" in data:
            yield f"{name} is in it"


@pytest.mark.parametrize("version, requirement, python", WHEELS, ids=[row[1] for row in WHEELS])
def test_the_table_is_what_the_bindings_have(texts, version, requirement, python):
    data = texts(requirement, python)
    assert list(contradictions(version, data)) == []
    others = {other: list(contradictions(other, data)) for other in api.RELEASES if other != version}
    assert all(others.values()), "the wheel cannot be told from another version's"


def test_the_table_is_what_tensorrt_rtx_has():
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")
    trt = runner.need("tensorrt_rtx")
    for name, versions in api.API.items():
        owner, _, member = name.partition(".")
        has = hasattr(trt, owner) and (not member or hasattr(getattr(trt, owner), member))
        assert has == ("rtx" in versions.split()), name
