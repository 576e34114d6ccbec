"""Reads job.json, does one thing on this machine, writes result.json:  python3 runner.py job.json result.json

One file for every device: Python 3.6, the standard library, tensorrt or tensorrt_rtx, pycuda; numpy where arrays are read.
It imports nothing else of rtseg-deploy, so it can be copied to a Jetson and run there by itself.

A job is an object with "action" (probe, build, infer or time) and what the action's function reads. The result has "ok"; a failure
is a result too, with "error" and "fix". Exit status 0 or 1 says the same. TensorRT's names are looked up before they are used:
8.2, 8.6, 10, 11 and RTX share few of them, and enum numbers were changed between versions.
"""
import errno
import gc
import importlib
import json
import os
import platform
import sys
import threading
import time

REPORT = b"@rtseg "                 # begins a line that says how far the job is

SESSIONS = ("onnxruntime-cpu", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx")

# warm up for at least so many steps and seconds, but no longer than either limit
WARMUP_STEPS, WARMUP_SECONDS, WARMUP_STEPS_LIMIT, WARMUP_SECONDS_LIMIT = 50, 2.0, 2000, 30.0


class JobError(Exception):
    """Something that the user can mend: what happened, and what to type."""

    def __init__(self, error, fix="", **facts):
        Exception.__init__(self, error)
        self.answer = dict(facts, ok=False, error=error, fix=fix)


def main(argv, open_session=None):
    """Answer one job; returns the exit status."""
    job_path, result_path = argv
    with open(job_path) as file:
        job = json.load(file)
    if job.get("leash"):
        threading.Thread(target=leash, daemon=True).start()
    result = answer(job, open_session)
    write(result_path, json.dumps(result).encode())
    return 0 if result["ok"] else 1


def leash():
    """End at once when whoever started this is gone: its end of standard input is closed then."""
    while os.read(0, 1):            # not sys.stdin: a thread that waits there stops the interpreter from ending
        pass
    os._exit(4)


def write(path, data):
    """Write a file, whole or not at all."""
    part = path + ".part"
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def answer(job, open_session=None):
    """The result of a job. open_session(job) gives what infer and time work on."""
    try:
        if job["action"] in ("infer", "time"):
            return dict({"infer": infer, "time": time_steps}[job["action"]](job, (open_session or own_session)(job)), ok=True)
        return dict({"probe": probe, "build": build}[job["action"]](job), ok=True)
    except JobError as error:
        return error.answer
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return {"ok": False, "error": "%s: %s" % (error.filename or "writing", error.strerror or error),
                "fix": "nothing half-written was left; free some space" if full else ""}
    except Exception as error:  # the one place: whatever a driver or a parser throws must come home as a result
        return {"ok": False, "error": "%s: %s" % (type(error).__name__, error), "fix": ""}


def report(job, **event):
    """Say how far the job is, for whoever waits for it. Never called while the clock runs."""
    if job.get("progress"):
        sys.stdout.write(REPORT.decode() + json.dumps(event) + "\n")
        sys.stdout.flush()


# ---- time and infer: a session has feed(array), step(), output(), and facts() for the record


def time_steps(job, session):
    """Time `iterations` steps one by one after a warm-up. Samples are seconds by the host's clock, each step complete when it returns."""
    import numpy
    report(job, stage="warming up")
    session.feed(numpy.load(job["inputs"][0]))
    warmup = warm_up(session.step)
    report(job, stage="timing", expected_s=job["iterations"] * sorted(warmup)[len(warmup) // 2])
    faults = minor_faults()
    samples = clocked(session.step, job["iterations"])
    faults = minor_faults() - faults
    save_labels(session.output(), job["labels"][0])
    return {"seconds": samples, "warmup_seconds": warmup, "minor_faults": faults, "environment": dict(environment(), **session.facts())}


def warm_up(step, clock=time.perf_counter):
    """Run until the step is warm (see the limits above). Returns the samples."""
    begin, samples = clock(), []
    while True:
        samples += clock_steps(step, 1, clock)
        elapsed = clock() - begin
        if elapsed >= WARMUP_SECONDS_LIMIT or len(samples) >= WARMUP_STEPS_LIMIT:
            return samples
        if elapsed >= WARMUP_SECONDS and len(samples) >= WARMUP_STEPS:
            return samples


def clocked(step, iterations, clock=time.perf_counter):
    """Seconds of each of `iterations` calls of step(), the garbage collector held off."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        return clock_steps(step, iterations, clock)
    finally:
        if collecting:
            gc.enable()


def clock_steps(step, iterations, clock):
    """The timing loop, the only one."""
    samples = [0.0] * iterations
    for i in range(iterations):
        begin = clock()
        step()
        samples[i] = clock() - begin
    return samples


def infer(job, session):
    """Labels of each input, one file each."""
    import numpy
    for number, (source, goal) in enumerate(zip(job["inputs"], job["labels"])):
        report(job, stage="image %d of %d" % (number + 1, len(job["inputs"])), done=number / len(job["inputs"]))
        session.feed(numpy.load(source))
        session.step()
        save_labels(session.output(), goal)
    return {"environment": dict(environment(), **session.facts())}


def save_labels(output, goal):
    """Write H x W labels: the output itself, or the argmax of 1 x classes x H x W logits. None is written for no output."""
    import numpy
    if output is None:
        return
    if output.ndim == 4:
        if not numpy.isfinite(output).all():
            raise JobError("the network's output is not finite", "check the precision: FP16 may overflow; try FP32")
        output = output.argmax(1)
    numpy.save(goal, output[0].astype(numpy.uint8 if output.max() < 256 else numpy.int32))


def minor_faults():
    """Pages given to this process so far: memory taken anew in the timed part costs time on a CPU."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class OnnxRuntime:
    def __init__(self, job):
        try:
            import onnxruntime
        except ImportError as error:
            raise JobError("no onnxruntime: %s" % error, "pip install 'rtseg-deploy[cpu]'") from None
        options = onnxruntime.SessionOptions()
        self.threads = options.intra_op_num_threads = job.get("threads") or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        self.version = onnxruntime.__version__
        self.kind = job["described"]["input"]
        self.half = job["described"]["precision"] == "fp16"
        self.session = onnxruntime.InferenceSession(job["artifact"], options, providers=["CPUExecutionProvider"])
        self.binding = self.session.io_binding()

    def feed(self, array):
        self.binding.bind_cpu_input("input", array)
        self.binding.bind_output("output", "cpu")

    def step(self):
        self.session.run_with_iobinding(self.binding)

    def output(self):
        return self.binding.copy_outputs_to_cpu()[0]

    def facts(self):
        return {"backend": "onnxruntime-cpu", "onnxruntime": self.version, "threads": self.threads,
                "boundary": "network: %s input and its output in host memory" % self.kind,
                "note": "ONNX Runtime has few FP16 kernels for CPUs and computes the rest in FP32, with casts" if self.half else ""}


def own_session(job):
    return OnnxRuntime(job)


# ---- probe


def environment():
    """What this machine is, as far as it says."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "python": platform.python_version(), "system": platform.platform(),
        "machine": platform.machine(), "cpu": cpu_model(), "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "governor": text_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "model": text_of("/proc/device-tree/model"), "l4t": text_of("/etc/nv_tegra_release"),
    }


def text_of(path):
    """The first line of a file that may not exist."""
    try:
        with open(path) as file:
            return file.readline().strip("\0\n ")
    except OSError:
        return None


def cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.lower().startswith(("model name", "hardware")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def probe(job):
    """What this machine is and which TensorRT it has; a failure where it could build nothing."""
    found = environment()
    found["gpu"] = gpu()
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            found[name] = load_tensorrt(name).__version__
        except JobError as error:
            found[name] = None
            if job.get("runtime") == name:
                raise JobError(error.answer["error"], error.answer["fix"], probe=found) from None
    return {"probe": found}


def gpu():
    """The first CUDA device, or why there is none."""
    try:
        import pycuda.driver as cuda
    except ImportError:
        return {"error": "pycuda is not installed"}
    try:
        cuda.init()
        device = cuda.Device(0)
    except cuda.Error as error:
        return {"error": str(error)}
    return {"name": device.name(), "compute_capability": "%d.%d" % device.compute_capability(), "memory_bytes": device.total_memory()}


def load_tensorrt(runtime):
    """The module tensorrt or tensorrt_rtx. Raises JobError with the way to get it."""
    try:
        return importlib.import_module(runtime)
    except (ImportError, OSError) as error:  # not there, or one of its libraries is not
        fixes = {"tensorrt_rtx": "pip install 'rtseg-deploy[rtx]'",
                 "tensorrt": "on a Jetson: sudo apt-get install python3-libnvinfer; elsewhere: pip install 'rtseg-deploy[tensorrt]'"}
        where = "%s (Python %s)" % (platform.node() or "this machine", platform.python_version())
        raise JobError("no %s on %s: %s" % (runtime, where, error), fixes.get(runtime, "")) from None


# ---- build


def build(job):
    """Compile job["onnx"] into job["engine"].

    Reads runtime, precision (fp32, fp16), compute_capability ("7.5": RTX, ahead of time), workspace_bytes.
    An engine of another precision than the one asked for is an error, and is not written.
    """
    trt = load_tensorrt(job["runtime"])
    log = Log(trt)
    try:
        return compiled(trt, log, job)
    except JobError as error:
        error.answer.update(messages=log.lines[-20:], runtime=job["runtime"], version=trt.__version__)
        raise


def compiled(trt, log, job):
    """Parse, configure, build, check, write."""
    name = "%s %s" % (job["runtime"], trt.__version__)
    report(job, stage="parsing")
    builder = trt.Builder(log.logger)
    network = builder.create_network(creation_flags(trt))
    parser = trt.OnnxParser(network, log.logger)
    with open(job["onnx"], "rb") as file:
        parsed = parser.parse(file.read())
    if not parsed:
        raise JobError("%s cannot read the graph: %s" % (name, parser_errors(parser) or log.reason()), "export with another --opset, or for another target")
    config = configure(trt, builder, job)
    weakly_typed = hasattr(trt.BuilderFlag, "FP16")
    layers = layer_types(trt, network)
    if not weakly_typed:
        refuse_other_precision(layers, job["precision"])
    report(job, stage="building")
    begin = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - begin
    if plan is None:
        raise JobError("%s cannot build the engine: %s" % (name, log.reason()), "see the message; less workspace may help on a small device")
    if weakly_typed and job["precision"] == "fp16":  # the builder chose: only the engine knows
        layers = engine_layer_types(trt, log, plan)
        refuse_other_precision(layers, "fp16")
    write(job["engine"], plan)
    return {"bytes": os.path.getsize(job["engine"]), "build_seconds": seconds, "layers": layers, "messages": log.lines[-20:],
            "runtime": job["runtime"], "version": trt.__version__, "environment": environment()}


class Log:
    """TensorRT's warnings and errors, kept to be told."""

    def __init__(self, trt):
        lines, errors = self.lines, self.errors = [], []

        class Logger(trt.ILogger):
            def __init__(self):
                trt.ILogger.__init__(self)

            def log(self, severity, message):
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                    lines.append(one_line(message))
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    errors.append(lines[-1])

        self.logger = Logger()

    def reason(self):
        """Every error: the last one may say only that there is no engine."""
        return "; ".join(self.errors) or "no reason was given"


def one_line(text):
    return " ".join(str(text).split())


def creation_flags(trt):
    """8.x reads ONNX only with an explicit batch; from 10 on that is always so, and 11 has no such name."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    return 0 if flag is None else 1 << int(flag)


def configure(trt, builder, job):
    """Builder settings by what this version has: memory, TF32 off, FP16 flag, compute capability."""
    config = builder.create_builder_config()
    if "workspace_bytes" in job:
        if hasattr(config, "set_memory_pool_limit"):    # 8.4 on
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
        else:
            config.max_workspace_size = job["workspace_bytes"]
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)         # "FP32" is to mean FP32
    if job["precision"] == "fp16" and hasattr(trt.BuilderFlag, "FP16"):
        config.set_flag(trt.BuilderFlag.FP16)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED    # else the inspector knows layers by name alone
    if "compute_capability" in job:
        name = "SM" + job["compute_capability"].replace(".", "")
        if not hasattr(config, "set_compute_capability") or not hasattr(trt.ComputeCapability, name):
            raise JobError("%s %s cannot build for compute capability %s ahead of time" % (job["runtime"], trt.__version__, job["compute_capability"]),
                           "build on the device itself, with the TensorRT that serves it")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    return config


def parser_errors(parser):
    return "; ".join(one_line(parser.get_error(i).desc()) for i in range(parser.num_errors))


def layer_types(trt, network):
    """How many layers compute in FP16, and the names of those in FP32, by the types in the parsed network.

    Casts, constants and shuffles compute nothing: one of them in FP16 makes no FP16 network.
    """
    movers = [getattr(trt.LayerType, name) for name in ("CAST", "CONSTANT", "SHUFFLE", "IDENTITY") if hasattr(trt.LayerType, name)]
    half, single = 0, []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type in movers:
            continue
        kinds = [layer.get_output(n).dtype for n in range(layer.num_outputs)]
        if trt.DataType.HALF in kinds:
            half += 1
        elif trt.DataType.FLOAT in kinds:
            single.append(layer.name)
    return {"fp16": half, "fp32": len(single), "fp32_names": single}


def engine_layer_types(trt, log, plan):
    """The same of a built engine, by its inspector: what the builder chose where it was free to choose."""
    runtime = trt.Runtime(log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise JobError("the engine that was built cannot be loaded here: %s" % log.reason(), "check the driver and the free memory of the device")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    half, single = 0, []
    for layer in json.loads(text)["Layers"]:
        kinds = [output.get("Format/Datatype", "") for output in layer.get("Outputs", [])] if isinstance(layer, dict) else []
        if any("FP16" in kind or "Half" in kind for kind in kinds):
            half += 1
        elif any("FP32" in kind or "Float" in kind for kind in kinds):
            single.append(layer["Name"])
    return {"fp16": half, "fp32": len(single), "fp32_names": single}


def refuse_other_precision(layers, precision):
    if precision == "fp16" and not layers["fp16"]:
        raise JobError("no layer of the engine would compute in FP16", "give it an FP16 graph: rtseg-deploy export --precision fp16")
    if precision == "fp32" and layers["fp16"]:
        raise JobError("%d layers of the graph compute in FP16, and FP32 was asked for" % layers["fp16"], "give it an FP32 graph, or ask for FP16")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
