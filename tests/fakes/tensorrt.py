"""A fake of TensorRT's Python module. api.py says which names there are; what they do is here. FAKE_TENSORRT says which version.

The fake ONNX file is JSON text:
  layers        [[name, type of its output: FLOAT, HALF, INT32], ...]
  kinds         {name: CAST, CONSTANT, ...}; a layer that is not in it is a CONVOLUTION
  parse_errors  what the parser complains about
  fail          what the builder complains about
  ignore_fp16   true: a weakly typed builder leaves all in FP32, as it may
  ignore_int8   true: the same of INT8
  reads         {name of a layer: names of the layers whose tensors it reads}
  shapes        names of layers that compute shapes
  tensors       [[name, is an input, type, shape], ...] of the engine; one float image in and labels out where there are none
  seconds       {"default": s, "external": s}: how long the device takes by the tactics allowed
  overflows     names of layers that break the labels, or make the logits NaN, when they compute in FP16
FAKE_GRAPH, where it is set, is that text for any ONNX file.
The fake engine is JSON text too: its layers, and every setting of the build for tests to read.
A name of api.py that has no behaviour here exists and fails when it is used.
"""
import enum
import importlib.util
import json
import os
import sys
import types

from fake_cuda import DRIVER, NAME


def neighbour(name):
    """A file of this folder as a module of its own: by path, for "import" would find tensorrt where the real one is wanted."""
    spec = importlib.util.spec_from_file_location("fakes_" + name, os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api = neighbour("api")
IMAGE = [["input", True, "FLOAT", [1, 3, 4, 6]], ["output", False, "INT32", [1, 4, 6]]]
NUMPY = {"FLOAT": "float32", "HALF": "float16"}
SECONDS = {"default": 1 / 1024, "external": 1 / 1024}


def install(name):
    """Put the fake of the version in FAKE_TENSORRT into sys.modules as `name`; the other module of the two is not installed."""
    version = os.environ.get("FAKE_TENSORRT")
    if (version == "rtx") != (name == "tensorrt_rtx") or version not in api.RELEASES:
        raise ImportError("No module named %r" % name)
    sys.modules[name] = make(version)


def make(version):
    """The fake of one version: a module with the names of api.API that this version has, and no other."""
    trt = types.ModuleType("tensorrt_rtx" if version == "rtx" else "tensorrt")
    trt.__version__ = api.RELEASES[version]
    owners = {}
    for name in api.API:
        owner, _, member = name.partition(".")
        if version in api.API[name].split():
            owners.setdefault(owner, []).extend([member] if member else [])
    for owner in sorted(owners, key=lambda name: name == "Logger"):         # Logger is an ILogger: after it
        members = owners[owner]
        if members and all(member.isupper() for member in members):
            setattr(trt, owner, enum.Enum(owner, [(m, i) for i, m in enumerate(members)], type=Integer))
        else:
            setattr(trt, owner, make_class(trt, version, owner, members))
    return trt


def make_class(trt, version, name, members):
    """A class with these members and no other; it knows its module and version for the behaviour's sake."""
    behaviour = vars(BEHAVIOUR.get(name, Closed))
    body = {"__slots__": (), "_trt": trt, "_version": version}
    body.update({member: behaviour[member] if member in behaviour else unwritten(name + "." + member) for member in members})
    if "__init__" in behaviour:
        body["__init__"] = behaviour["__init__"]
    base = {"IHostMemory": bytes, "Logger": getattr(trt, "ILogger", None)}.get(name, Closed)
    return type(name, (base,), body)


def unwritten(name):
    def fail(*args):
        raise NotImplementedError("the fake has %s but no behaviour for it" % name)
    return fail


def new(kind, **state):
    """An object of a class that has no constructor for users."""
    self = kind.__new__(kind)
    self._state = state
    return self


def expect(value, kind):
    """The bindings take no other type: TypeError, as theirs."""
    if not isinstance(value, kind) or (isinstance(value, Closed) and not hasattr(value, "_state")):
        raise TypeError("incompatible function arguments: %s instead of an initialised %s" % (type(value).__name__, kind.__name__))


def setting(name, kind):
    """A property that stores what it is given, of the class `kind` or of the module's class of that name."""
    def get(self):
        return self._state[name]

    def put(self, value):
        expect(value, getattr(self._trt, kind) if isinstance(kind, str) else kind)
        self._state[name] = value

    return property(get, put)


class Integer:
    """Enum members give their number to int() alone, as in the bindings."""

    def __int__(self):
        return self.value


class Closed:
    """An object without a __dict__: setting a name that it has not raises AttributeError, as in the bindings."""
    __slots__ = ("_state",)

    def __init__(self, *args):
        raise TypeError("no constructor defined")


class ILogger:
    Severity = enum.Enum("Severity", [(m, i) for i, m in enumerate("INTERNAL_ERROR ERROR WARNING INFO VERBOSE".split())], type=Integer)
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self):
        self._state = {}


class Logger:
    def __init__(self, min_severity=ILogger.WARNING):
        self._state = {"min_severity": min_severity}

    def log(self, severity, message):
        if int(severity) <= int(self._state["min_severity"]):
            sys.stderr.write("[TRT] %s\n" % message)


class Builder:
    def __init__(self, logger):
        expect(logger, self._trt.ILogger)
        self._state = {"logger": logger}

    def create_network(self, flags=0):
        expect(flags, int)
        names = [flag.name for flag in self._trt.NetworkDefinitionCreationFlag if flags >> int(flag) & 1]
        if flags >> len(self._trt.NetworkDefinitionCreationFlag):
            self._state["logger"].log(self._trt.ILogger.ERROR, "createNetworkV2: unknown flag")
            return None
        return new(self._trt.INetworkDefinition, flags=names, graph={"layers": []}, layers=[])

    def create_builder_config(self):
        flags = {self._trt.BuilderFlag.TF32}                    # on by default in every version
        return new(self._trt.IBuilderConfig, flags=flags, pools={}, max_workspace_size=None, num_compute_capabilities=0,
                   compute_capabilities={}, sources=None, preview={}, cache=None, calibrator=None, level=None,
                   profiling_verbosity=self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY)

    def build_serialized_network(self, network, config):
        expect(network, self._trt.INetworkDefinition)
        expect(config, self._trt.IBuilderConfig)
        graph, names, settings = network._state["graph"], network._state["flags"], readable(config._state)
        if not graph["layers"] or "fail" in graph:
            for message in (graph.get("fail", "the network has no layers"), api.LAST_WORDS.get(self._version)):
                if message is not None:
                    self._state["logger"].log(self._trt.ILogger.ERROR, message)
            return None
        layers = graph["layers"]
        if self._version not in api.STRONGLY_TYPED.split() and "STRONGLY_TYPED" not in names:
            chosen = "HALF" if "FP16" in settings["flags"] and not graph.get("ignore_fp16") else "FLOAT"
            if "INT8" in settings["flags"] and "QUANTIZE" not in graph.get("kinds", {}).values() and not Builder.calibrated(self, config):
                return None
            chosen = "INT8" if "INT8" in settings["flags"] and not graph.get("ignore_int8") else chosen
            held = {layer.name: layer._state["held"] for layer in network._state["layers"] if layer._state["held"]}
            if "OBEY_PRECISION_CONSTRAINTS" in settings["flags"] and any(kind == "INT32" for name, kind in layers if name in held):
                self._state["logger"].log(self._trt.ILogger.ERROR, "a precision was set for a layer of integers")
                return None
            layers = [[name, kind if kind == "INT32" else held.get(name, chosen)] for name, kind in layers]
        tactics = "external" if settings["sources"] else "default"
        if config._state["cache"]:
            config._state["cache"]._state["text"] += b" " + " ".join(name for name, _ in layers).encode()
        plan = {"version": self._version, "network_flags": names, "config": settings, "layers": layers, "device": NAME.decode(),
                "tensors": graph.get("tensors", IMAGE), "scales": self._state.get("scales"),
                "broken": any(kind == "HALF" and name in graph.get("overflows", []) for name, kind in layers),
                "seconds": graph.get("seconds", SECONDS)[tactics]}
        return self._trt.IHostMemory(json.dumps(plan).encode())


    def calibrated(self, config):
        """Whether a table of this version gives scales; without one images would be asked for."""
        calibrator = config._state["calibrator"]
        table = calibrator.read_calibration_cache() if calibrator else b""
        if table.split(b"\n")[0] == ("TRT-%s-EntropyCalibration2" % api.TABLES[self._version]).encode():
            self._state["scales"] = table.decode().splitlines()[1:]
            return True
        self._state["logger"].log(self._trt.ILogger.ERROR, "Calibration failure occurred with no scaling factors detected.")
        return False


class IInt8EntropyCalibrator2:
    def __init__(self):
        self._state = {}


class IBuilderConfig:
    int8_calibrator = setting("calibrator", "IInt8EntropyCalibrator2")
    max_workspace_size = setting("max_workspace_size", int)
    num_compute_capabilities = setting("num_compute_capabilities", int)
    profiling_verbosity = setting("profiling_verbosity", "ProfilingVerbosity")
    builder_optimization_level = setting("level", int)

    def set_flag(self, flag):
        expect(flag, self._trt.BuilderFlag)
        self._state["flags"].add(flag)

    def clear_flag(self, flag):
        expect(flag, self._trt.BuilderFlag)
        self._state["flags"].discard(flag)

    def get_flag(self, flag):
        expect(flag, self._trt.BuilderFlag)
        return flag in self._state["flags"]

    def set_memory_pool_limit(self, pool, pool_size):
        expect(pool, self._trt.MemoryPoolType)
        expect(pool_size, int)
        self._state["pools"][pool] = pool_size

    def set_tactic_sources(self, tactic_sources):
        expect(tactic_sources, int)
        self._state["sources"] = [source.name for source in self._trt.TacticSource if tactic_sources >> int(source) & 1]

    def set_preview_feature(self, feature, enable):
        expect(feature, self._trt.PreviewFeature)
        self._state["preview"][feature.name] = enable

    def create_timing_cache(self, serialized_timing_cache):
        """On RTX it asks for a GPU, of which there may be none."""
        expect(serialized_timing_cache, bytes)
        if self._version == "rtx":
            raise RuntimeError("no GPU to make a timing cache for")
        if serialized_timing_cache and b":" not in serialized_timing_cache:
            return None
        return new(self._trt.ITimingCache, text=serialized_timing_cache or NAME + b":")

    def set_timing_cache(self, cache, ignore_mismatch):
        expect(cache, self._trt.ITimingCache)
        fits = cache._state["text"].startswith(NAME + b":") or ignore_mismatch
        self._state["cache"] = cache if fits else self._state["cache"]
        return fits

    def get_timing_cache(self):
        return self._state["cache"]

    def set_compute_capability(self, compute_capability, index):
        """False, and nothing set, for an index beyond num_compute_capabilities: so does the real one."""
        expect(compute_capability, self._trt.ComputeCapability)
        expect(index, int)
        if index >= self._state["num_compute_capabilities"]:
            return False
        self._state["compute_capabilities"][index] = compute_capability
        return True


def readable(config):
    """A config's settings with names for enum members."""
    return {"flags": sorted(flag.name for flag in config["flags"]), "pools": {pool.name: size for pool, size in config["pools"].items()},
            "max_workspace_size": config["max_workspace_size"], "profiling_verbosity": config["profiling_verbosity"].name,
            "sources": config["sources"], "preview": config["preview"], "level": config["level"],
            "compute_capabilities": [config["compute_capabilities"][i].name for i in sorted(config["compute_capabilities"])]}


class INetworkDefinition:
    num_layers = property(lambda self: len(self._state["layers"]))

    def get_layer(self, index):
        return self._state["layers"][index]


class ILayer:
    name = property(lambda self: self._state["name"])
    type = property(lambda self: self._state["layer_kind"])
    num_outputs = property(lambda self: 1)
    num_inputs = property(lambda self: len(self._state["reads"]))
    precision = property(lambda self: self._state["dtype"], lambda self, kind: expect(kind, self._trt.DataType))

    def get_output(self, index):
        return new(self._trt.ITensor, name=self._state["name"], dtype=self._state["dtype"], shape=self._state["shape"]) if index == 0 else None

    def get_input(self, index):
        return new(self._trt.ITensor, name=self._state["reads"][index], dtype=self._state["dtype"], shape=False)

    def set_output_type(self, index, dtype):
        """What the layer is held to; the real builder wants its precision set too, and here that is not seen."""
        expect(dtype, self._trt.DataType)
        self._state["held"] = dtype.name


class ITensor:
    name = property(lambda self: self._state["name"])
    dtype = property(lambda self: self._state["dtype"])
    is_shape_tensor = property(lambda self: self._state["shape"])


class ITimingCache:
    def serialize(self):
        return self._trt.IHostMemory(self._state["text"])


class IHostMemory:
    nbytes = property(lambda self: len(self))


class OnnxParser:
    def __init__(self, network, logger):
        expect(network, self._trt.INetworkDefinition)
        expect(logger, self._trt.ILogger)
        self._state = {"network": network, "logger": logger, "errors": []}

    num_errors = property(lambda self: len(self._state["errors"]))

    def get_error(self, index):
        return new(self._trt.ParserError, text=self._state["errors"][index])

    def parse(self, model, path=None):
        expect(model, bytes)
        network, errors = self._state["network"]._state, self._state["errors"]
        try:
            graph = json.loads(os.environ.get("FAKE_GRAPH") or model.decode())
            errors += graph.get("parse_errors", [])
        except ValueError:
            errors.append("Failed to parse the ONNX model.")
        if self._version in api.BATCH_MUST_BE_EXPLICIT.split() and "EXPLICIT_BATCH" not in network["flags"]:
            errors.append("This version of the ONNX parser only supports TensorRT INetworkDefinitions with an explicit batch dimension.")
        for error in errors:
            self._state["logger"].log(self._trt.ILogger.ERROR, error)
        if not errors:
            network["graph"] = graph
            kinds, types = graph.get("kinds", {}), self._trt.LayerType
            network["layers"] = [new(self._trt.ILayer, name=name, dtype=self._trt.DataType[kind], layer_kind=types[kinds.get(name, "CONVOLUTION")],
                                     shape=name in graph.get("shapes", []), held=None, reads=graph.get("reads", {}).get(name, []))
                                 for name, kind in graph["layers"]]
        return not errors


class ParserError:
    def desc(self):
        return self._state["text"]


class Runtime:
    def __init__(self, logger):
        expect(logger, self._trt.ILogger)
        self._state = {"logger": logger}

    def deserialize_cuda_engine(self, serialized_engine):
        expect(serialized_engine, bytes)
        try:
            plan = json.loads(serialized_engine.decode())
        except ValueError:
            self._state["logger"].log(self._trt.ILogger.ERROR, "Magic tag does not match")
            return None
        if plan.get("device", NAME.decode()) != NAME.decode():
            self._state["logger"].log(self._trt.ILogger.ERROR, "The engine plan file is generated on an incompatible device, please rebuild.")
            return None
        if plan["version"] != self._version:
            self._state["logger"].log(self._trt.ILogger.ERROR, "The engine plan file is not compatible with this version of TensorRT")
            return None
        return new(self._trt.ICudaEngine, plan=plan)


class ICudaEngine:
    def create_engine_inspector(self):
        return new(self._trt.EngineInspector, plan=self._state["plan"])


    num_io_tensors = num_bindings = property(lambda self: len(self._state["plan"]["tensors"]))

    def create_execution_context(self):
        return new(self._trt.IExecutionContext, plan=self._state["plan"], places={}, profiler=None)

    def get_tensor_name(self, index):
        return self._state["plan"]["tensors"][index][0]

    def row(self, name):
        return next(row for row in self._state["plan"]["tensors"] if row[0] == name)

    def get_tensor_mode(self, name):
        return self._trt.TensorIOMode["INPUT" if ICudaEngine.row(self, name)[1] else "OUTPUT"]

    def get_tensor_dtype(self, name):
        return self._trt.DataType[ICudaEngine.row(self, name)[2]]

    def get_tensor_shape(self, name):
        return tuple(ICudaEngine.row(self, name)[3])

    get_binding_name = get_tensor_name

    def binding_is_input(self, index):
        return self._state["plan"]["tensors"][index][1]

    def get_binding_dtype(self, index):
        return self._trt.DataType[self._state["plan"]["tensors"][index][2]]

    def get_binding_shape(self, index):
        return tuple(self._state["plan"]["tensors"][index][3])


class IExecutionContext:
    """Runs an engine: its labels are the largest channel of its image. A profiler is told that each layer takes as long as the others."""
    profiler = setting("profiler", "IProfiler")

    def set_tensor_address(self, name, memory):
        self._state["places"][name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        return enqueued(self._state, self._state["places"], stream_handle)

    def execute_async_v2(self, bindings, stream_handle):
        return enqueued(self._state, {row[0]: place for row, place in zip(self._state["plan"]["tensors"], bindings)}, stream_handle)


def enqueued(state, places, stream_handle):
    """False where the real one would not run: memory or a stream that is not there."""
    plan = state["plan"]
    if not stream_handle or any(places.get(row[0]) not in DRIVER.memory for row in plan["tensors"]):
        return False

    def effect():
        import numpy
        arrays = [numpy.frombuffer(DRIVER.memory[places[name]], NUMPY.get(kind, kind.lower())).reshape(shape) for name, _, kind, shape in plan["tensors"]]
        broken = float("nan") if arrays[1].dtype.kind == "f" else 0
        arrays[1][...] = broken if plan["broken"] else arrays[0].argmax(1) if arrays[1].ndim == 3 else arrays[0]
    goes = {mode: [places[name] for name, is_input, _, _ in plan["tensors"] if is_input == mode] for mode in (True, False)}
    DRIVER.work(plan["seconds"], effect, stream=stream_handle, reads=goes[True], writes=goes[False])
    for name, _ in plan["layers"] if state["profiler"] else []:
        state["profiler"].report_layer_time(name, 1e3 * plan["seconds"] / len(plan["layers"]))
    return True


class IProfiler:
    def __init__(self):
        self._state = {}


class EngineInspector:
    def get_engine_information(self, format):
        """As much as the build's profiling verbosity lets be known: nothing, the layers' names, or all."""
        expect(format, self._trt.LayerInformationFormat)
        plan = self._state["plan"]
        texts = api.TYPES[self._version]
        layers = {
            "NONE": [],
            "LAYER_NAMES_ONLY": [name for name, _ in plan["layers"]],
            "DETAILED": [{"Name": name, "Inputs": [{"Name": name, "Format/Datatype": texts[kind]}], "Outputs": [{"Name": name, "Format/Datatype": texts[kind]}]}
                         for name, kind in plan["layers"]],
        }
        return json.dumps({"Layers": layers[plan["config"]["profiling_verbosity"]], api.BINDINGS[self._version]: ["input", "output"]})


BEHAVIOUR = {kind.__name__: kind for kind in (
    ILogger, Logger, Builder, IInt8EntropyCalibrator2, IBuilderConfig, INetworkDefinition, ILayer, ITensor, IHostMemory, OnnxParser, ParserError, Runtime,
    ICudaEngine, EngineInspector, IExecutionContext, ITimingCache, IProfiler)}

if __name__ == "tensorrt":
    install(__name__)
