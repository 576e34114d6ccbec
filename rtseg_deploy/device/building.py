"""TensorRT compiles a graph: beside runner.py, with the jobs that build. Python 3.6 and its standard library, every TensorRT from 8.2 on."""
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from statistics import median

runner = sys.modules.get("rtseg_deploy.device.runner") or sys.modules["__main__"]      # whichever of the two was started
TACTICS_STEPS = 50


def build(job):
    """Compile job["onnx"] into job["engine"]. An engine of another precision than the one asked for is an error, and is not written.
    Reads runtime, precision and, where wanted: compute_capability ("7.5": RTX, ahead of time), workspace_bytes, tf32, timing_cache (a path),
    optimization_level, keep_fp32 (names of layers), table (of INT8: quantised.py), tactics (default; external: cuBLAS and cuDNN too; both: the faster)."""
    log, made, ms, asked = runner.Log(runner.need(job["runtime"])), {}, {}, job.get("tactics", "default")
    try:
        for tactics in ("default", "external") if asked == "both" else (asked,):
            made[tactics] = planned(log, job, tactics)
            if asked == "both":
                runner.report(job, stage="timing it with %s tactics" % tactics)
                session = runner.TensorRT(log, made[tactics][0], job)
                session.step()
                ms[tactics] = median(runner.clock_steps(session.step, TACTICS_STEPS)) * 1e3
    except runner.JobError as error:
        error.answer.update(log.about())
        raise
    chosen = min(made, key=ms.get) if ms else asked
    runner.write(job["engine"], made[chosen][0])
    return dict(made[chosen][1], bytes=os.path.getsize(job["engine"]), **dict(log.about(), **({"tactics": dict(ms, chosen=chosen)} if ms else {})))


def planned(log, job, tactics):
    """Parse, configure, build, check: (engine, what is known of it)."""
    trt, path = log.trt, job.get("timing_cache") if job["runtime"] != "tensorrt_rtx" else None      # there it has no effect, and asks for a GPU
    runner.report(job, stage="parsing")
    builder, batch = trt.Builder(log.logger), getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if batch is None else 1 << int(batch))       # 8.x reads ONNX with it alone; 10 ignores it, 11 has no such name
    parser = trt.OnnxParser(network, log.logger)
    runner.refuse(not parser.parse(Path(job["onnx"]).read_bytes()), "%s cannot read the graph: %s" % (log.name, "; ".join(
        parser.get_error(i).desc() for i in range(parser.num_errors)) or log.reason()), "export with another --opset, or for another target")
    config = configure(log, builder, job, tactics, path)
    kept = keep_in_fp32(log, network, config, job["keep_fp32"]) if job.get("keep_fp32") else []
    _held = runner.need("quantised").set_table(trt, config, job["table"]) if job.get("table") else None   # for as long as it builds
    runner.report(job, stage="building with %s tactics" % tactics)
    begin, plan, end = time.perf_counter(), builder.build_serialized_network(network, config), time.perf_counter()
    runner.refuse(plan is None, "%s cannot build the engine: %s" % (log.name, log.reason()), "see the message; less workspace may help on a small device")
    engine = log.deserialised(plan) if hasattr(trt.BuilderFlag, job["precision"].upper()) else None     # the builder chose: only the engine knows
    layers = engine_layers(trt, engine) if engine else network_layers(trt, network)
    layers = runner.need("quantised").counted(trt, network, engine, layers, runner.refuse) if job["precision"] == "int8" else layers
    runner.refuse((job["precision"] == "fp16") != (layers["fp16"] > 0) and not kept, "%s was asked for, and %d layers of the engine compute in FP16"
           % (job["precision"].upper(), layers["fp16"]), "give it a graph of that precision: rtseg-deploy export --precision " + job["precision"])
    if path:
        runner.write(path, bytes(config.get_timing_cache().serialize()))
    return plan, {"build_seconds": end - begin, "layers": layers, "kept_fp32": kept, "optimization_level": getattr(config, "builder_optimization_level", None),
                  "flags": [name for name, flag in sorted(trt.BuilderFlag.__members__.items()) if config.get_flag(flag)],
                  "timing_cache_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None}


def configure(log, builder, job, tactics, path):
    """Builder settings by what this version has."""
    trt, config = log.trt, builder.create_builder_config()
    if "workspace_bytes" in job:
        if hasattr(config, "set_memory_pool_limit"):        # 8.4 on
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
        else:
            config.max_workspace_size = job["workspace_bytes"]
    if not job.get("tf32"):
        config.clear_flag(trt.BuilderFlag.TF32)             # on by default, and "FP32" is to mean FP32
    if hasattr(trt.BuilderFlag, job["precision"].upper()):  # FP16, INT8: where typing is weak
        config.set_flag(getattr(trt.BuilderFlag, job["precision"].upper()))
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED    # else the inspector knows layers by name alone
    if "optimization_level" in job and hasattr(config, "builder_optimization_level"):       # 8.6 on
        config.builder_optimization_level = job["optimization_level"]
    if tactics == "external":                               # 8.6 goes without, which can cost a Pascal much: NVIDIA/TensorRT#3826
        runner.refuse(not hasattr(trt.TacticSource, "CUDNN"), "%s has no external tactics" % log.name, "build with --tactics default")
        config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN")))
        if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"):
            config.set_preview_feature(trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, False)
    if "compute_capability" in job:
        name = "SM" + job["compute_capability"].replace(".", "")
        runner.refuse(not hasattr(config, "set_compute_capability") or not hasattr(trt.ComputeCapability, name), "%s cannot build ahead of time for compute "
               "capability %s" % (log.name, job["compute_capability"]), "build on the device itself, with the TensorRT that serves it")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    if path:
        cache = config.create_timing_cache(Path(path).read_bytes() if os.path.exists(path) else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            log.lines.append("the timing cache %s is of another device or TensorRT: started with an empty one" % path)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def keep_in_fp32(log, network, config, names):
    """Hold these layers to FP32; returns those that compute floats: of shapes and integers the builder refuses it."""
    trt, layers = log.trt, {layer.name: layer for layer in map(network.get_layer, range(network.num_layers))}
    runner.refuse(not hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"), log.name + " takes types from the graph", "put casts around these layers there")
    runner.refuse(not any(name in layers for name in names), "the network has no layer called %s" % ", ".join(names),
           "its names: %s, ..." % ", ".join(sorted(layers)[:5]))       # a parser may call some nodes' layers otherwise
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kept = [name for name in names if name in layers and all(produced.dtype in (trt.DataType.FLOAT, trt.DataType.HALF) and not produced.is_shape_tensor
                                          for produced in map(layers[name].get_output, range(layers[name].num_outputs)))]
    for layer in map(layers.get, kept):
        layer.precision = trt.DataType.FLOAT
        for i in range(layer.num_outputs):
            layer.set_output_type(i, trt.DataType.FLOAT)
    return kept


def network_layers(trt, network):
    """What the parsed network's layers compute in. Casts, constants and shuffles compute nothing: one of them in FP16 makes no FP16 network."""
    movers = [getattr(trt.LayerType, name) for name in ("CAST", "CONSTANT", "SHUFFLE", "IDENTITY") if hasattr(trt.LayerType, name)]
    layers = [layer for layer in map(network.get_layer, range(network.num_layers)) if layer.type not in movers]
    return counted([(layer.name, [layer.get_output(n).dtype.name for n in range(layer.num_outputs)]) for layer in layers])


def engine_layers(trt, engine):
    """The same of a built engine, by its inspector: what the builder chose where it was free to choose."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return counted([(row["Name"], [made.get("Format/Datatype", "") for made in row.get("Outputs", [])])
                    for row in json.loads(text)["Layers"] if isinstance(row, dict)])


def counted(layers):
    """How many layers compute in FP16, and the names of those in FP32."""
    half = [bool(re.search("FP16|HALF", " ".join(kinds), re.IGNORECASE)) for _, kinds in layers]
    single = [name for (name, kinds), is_half in zip(layers, half) if re.search("FP32|FLOAT", " ".join(kinds), re.IGNORECASE) and not is_half]
    return {"fp16": sum(half), "fp32": len(single), "fp32_names": single}
