"""Reads job.json, does one thing on this machine, writes result.json:  python3 runner.py job.json result.json

One file for every device: Python 3.6, the standard library, CUDA's driver, tensorrt or tensorrt_rtx; numpy where arrays are read, onnxruntime
where it is asked for. It imports nothing else of rtseg-deploy, so it can be copied to a Jetson and run there by itself. A job has "action"
(probe, load, infer, time; build, profile, label) and what that reads; a result has "ok", and a failure "error" and "fix". Exit status 0 or 1 says
the same; 4: whoever waited is gone. With "progress", lines of "@rtseg " and JSON on stdout tell how far it is. Modules for what goes beyond a
bare network come with the job that asks for it. TensorRT's names are looked up before they are used: versions share few.
"""
import gc
import glob
import importlib
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
import threading
import time
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p, cdll, create_string_buffer
from functools import partial
from pathlib import Path
from statistics import median

PROVIDERS = {"onnxruntime-tensorrt": "TensorrtExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-cpu": "CPUExecutionProvider"}
SESSIONS = (*PROVIDERS, "tensorrt", "tensorrt_rtx")
WARMUP_STEPS, WARMUP_SECONDS, WARMUP_SECONDS_LIMIT, WINDOW_STEPS, WINDOW_SECONDS = 50, 2.0, 30.0, 20, 0.25
WARMUP_STEPS_LIMIT, STEADY = 100000, (0.05, 0.01, 0.05)     # reached only by what takes less than 20 us; by how much quartiles and median may differ
MOST = {"threads": 512, "iterations": 1000000, "warmup_limit": 3600}    # that a job may ask for
HOST_OF_DEVICE = 0.95    # a host's clock that shows less than this share of the device's did not wait for it
REPORT, CUDA = b"@rtseg ", "libcuda.so.1"     # begins a line that tells; the driver
BROUGHT = {"build": "building", "profile": "layers", "label": "labelling", "turns": "turns"}      # action -> the module that comes with such a job
NOT_FINITE = "the network's output is not finite", "check the precision: FP16 may overflow; try FP32"
BOUNDARY = "network, its %s input and its output in %s memory"
INSTALL = {"tensorrt": "on a Jetson: sudo apt-get install python3-libnvinfer; elsewhere: pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx",
           "numpy": "pip install numpy; on a Jetson: sudo apt-get install python3-numpy", "onnxruntime": "pip install onnxruntime (CPU) or onnxruntime-gpu"}
REMEDIES = {"out ?of ?memory|could not be allocated": "free memory on the GPU, or build with less of it: --workspace 256 (MiB)",
            "no space left|quota exceeded|file too large": "nothing half-written was left; free some space"}
SMI = "nvidia-smi --format=csv --query-gpu=pci.bus_id,"
COMMANDS = (SMI + "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit,pstate", SMI + "clocks_event_reasons.active",
            SMI + "clocks_throttle_reasons.active", "nvpmodel -q", "tegrastats --interval 200")     # reasons: by their name of today, and the old one

class JobError(Exception):
    """Something that the user can mend: what happened, and what to type."""
    def __init__(self, error, fix="", **facts):
        Exception.__init__(self, " ".join(error.split()))
        fix = next((better for pattern, better in REMEDIES.items() if re.search(pattern, error, re.IGNORECASE)), fix)
        self.answer = dict(facts, ok=False, error=str(self), fix=fix)

def refuse(wrong, error, fix):
    if wrong:
        raise JobError(error, fix)

def main(argv, open_session=None):
    """Answer one job; returns the exit status. open_session(job), where given, opens what infer and time work on in place of the runner."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"       # ONNX Runtime 1.29 and newer report to their maker unless told not to beforehand
    try:
        job = json.loads(Path(argv[0]).read_bytes().decode())
    except (ValueError, RecursionError):
        job = None
    job = job if isinstance(job, dict) else {"action": "nothing"}
    leashed(job)
    sys.path.insert(0, os.getcwd())                 # a job brings the modules that it needs
    try:
        made, much = list(job.get("labels") or ()) + [job.get("sampled") or ""], [name for name in MOST if not 0 <= (job.get(name) or 0) <= MOST[name]]
        refuse(much, "the job asks for more %s than anyone does" % ", ".join(much), "report it, with job.json")
        away = [name for name in made if os.path.basename(name) != name or name in (".", "..")]
        refuse(away, "the job names a file that is not in its folder", "report it, with job.json")
        given = [(open_session or own_session)(job)] if job["action"] not in ("probe", "build", "load") else []
        own = {"probe": probe, "load": load, "infer": infer, "time": time_steps}.get(job["action"])
        result = dict({"environment": environment()}, **(own or getattr(need(BROUGHT[job["action"]]), job["action"]))(job, *given), ok=True)
    except JobError as error:
        result = error.answer
    except BrokenPipeError:
        os._exit(4)             # nobody reads how far it is
    except Exception as error:  # the one place: whatever a driver, a parser or a disk throws must come home as a result
        where = getattr(error, "filename", None) or ("writing" if isinstance(error, OSError) else type(error).__name__)
        result = JobError("%s: %s" % (where, getattr(error, "strerror", None) or error)).answer
    write(argv[1], json.dumps(result).encode())
    return 0 if result["ok"] else 1

def leashed(job):
    """With "leash" whoever started this holds the other end of stdin, and a cut connection closes it."""
    if job.get("leash"):
        threading.Thread(target=lambda: [list(iter(lambda: os.read(0, 1), b"")), os._exit(4)], daemon=True).start()

def write(path, data):
    """Write a file, whole or not at all."""
    try:
        Path(path + ".part").write_bytes(data)
        os.replace(path + ".part", path)
    finally:
        if os.path.exists(path + ".part"):
            os.remove(path + ".part")

def report(job, **event):
    """Say how far the job is, for whoever waits for it. Never called while the clock runs."""
    if job.get("progress"):
        os.write(1, REPORT + json.dumps(event).encode() + b"\n")

def need(module, **facts):
    """A module that must be here. Raises JobError with the way to get it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # not there, or one of its libraries is not
        raise JobError("no %s on %s (Python %s): %s" % (module, platform.node() or "this machine", platform.python_version(), error),
                       INSTALL.get(module, ""), **facts) from None

# ---- time and infer: a session has feed(array), step() that is complete when it returns, output(), and facts() for the record; one on a
# GPU has enqueue() that returns at once, synchronise(), record(0 or 1) of two events, elapsed() between them, and capture()
def time_steps(job, session):
    """Time `iterations` steps one by one after a warm-up: seconds by the host's clock, each step complete when it returns. With "stages" a step is
    what is around the network too (frames.py), and with "sampled" another process watches the device's clocks meanwhile (sampler.py)."""
    report(job, stage="warming up")
    session = framed(job, session) if job.get("stages") else session
    session.feed(need("numpy").load(job["inputs"][0]))
    on_gpu, steps = hasattr(session, "enqueue"), job["iterations"]
    gc.disable()
    if job.get("cuda_graph"):
        refuse(not hasattr(session, "capture"), "%s has no CUDA graphs" % job["backend"], "time it without")
        session.capture()
    sampler = job.get("sampled") and subprocess.Popen([sys.executable, "sampler.py", str(os.getpid()), job["sampled"], "", gpu().get("bus", "")],
                                                      stdin=subprocess.PIPE, stdout=open(job["sampled"], "wb"))     # it is there whatever becomes of that
    drain = getattr(session, "drain", int)          # of a stream of frames: what is under way
    warmup, steady = warm_up(session.step, job.get("warmup_limit", WARMUP_SECONDS_LIMIT))
    drain()
    report(job, stage="timing", expected_s=(3 if on_gpu else 1) * steps * median(warmup))
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()     # memory taken anew costs time on a CPU
    seconds = clock_steps(session.step, steps)
    drain()
    ended, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    more = device_times(session, seconds) if on_gpu else {}
    if job.get("streaming"):
        seconds = session.taken(steps)
    elif job.get("stages"):
        more = {"stages": session.taken(steps)}
    if sampler:
        sampler.communicate()   # it ends with its input
    save_labels(session.output(), job["labels"][0])
    return dict(more, seconds=seconds, warmup_seconds=warmup, warmup_converged=steady, empty_seconds=median(clock_steps(int, 1001)), began=began,
                ended=ended, minor_faults=faults, environment=dict(environment(), **session.facts()))

def framed(job, session):
    """The session with what is around the network; a GPU does that itself where it can."""
    return need("gpuframes").framed(job, session) if hasattr(session, "places") else need("frames").Frames(job, session)

def warm_up(step, limit=WARMUP_SECONDS_LIMIT, clock=time.perf_counter):
    """Run for at least so many steps and seconds, then in windows until one is as fast as the one before. Returns (samples, whether it came to that)."""
    begin, samples, windows, steady = clock(), [], [], False
    while not steady and clock() - begin < limit and len(samples) < WARMUP_STEPS_LIMIT:
        alone = len(samples) < WARMUP_STEPS or clock() - begin < WARMUP_SECONDS
        window = clock_steps(step, 1 if alone else max(WINDOW_STEPS, int(WINDOW_SECONDS / max(median(samples[-WINDOW_STEPS:]), 1e-5))), clock)
        samples += window
        windows += [] if alone else [[sorted(window)[len(window) * quarter // 4] for quarter in (1, 2, 3)]]
        steady = len(windows) > 1 and all(abs(now - last) <= part * last for part, now, last in zip(STEADY, windows[-1], windows[-2]))
    return samples, steady

def clock_steps(step, iterations, clock=time.perf_counter):
    """Seconds of each of `iterations` calls of step(). The timing loop, the only one."""
    samples = [0.0] * iterations
    for i in range(iterations):
        begin = clock()
        step()
        samples[i] = clock() - begin
    return samples

def device_times(session, seconds):
    """Seconds by CUDA events, by the host until a call returns, and of all steps back to back: in steps of their own, for events cost time."""
    def bracketed(times):
        session.record(0)
        samples = clock_steps(session.enqueue, times)
        session.record(1)
        session.synchronise()
        return samples
    enqueue, device = zip(*((bracketed(1)[0], session.elapsed()) for _ in seconds))
    (total,) = clock_steps(lambda: bracketed(len(seconds)), 1)
    for what, host, events in (("a step", median(seconds), median(device)), ("all steps back to back", total, session.elapsed())):
        refuse(host < HOST_OF_DEVICE * events, "the host did not wait for the device: %s took %.4g ms by its clock and %.4g ms by the device's events" % (
            what, host * 1e3, events * 1e3), "no figure is given; if the device changed its clock meanwhile, lock it and time again")
    return {"device_seconds": device, "enqueue_seconds": enqueue, "back_to_back_seconds": total}

def infer(job, session):
    for number, (source, goal) in enumerate(zip(job["inputs"], job["labels"])):
        report(job, stage="image %d of %d" % (number + 1, len(job["inputs"])), done=number / len(job["inputs"]))
        session.feed(need("numpy").load(source))
        session.step()
        save_labels(session.output(), goal)
    return {"environment": dict(environment(), **session.facts())}

def save_labels(output, goal):
    """Write H x W labels: the output itself, or the argmax of 1 x classes x H x W logits. None is written for no output."""
    if output is not None:
        numpy, data = need("numpy"), io.BytesIO()
        if output.ndim == 4:
            refuse(not numpy.isfinite([output.min(), output.max()]).all(), *NOT_FINITE)
            output = output.argmax(1)
        numpy.save(data, output[0].astype(numpy.uint8 if output.max() < 256 else numpy.int32))
        write(goal, data.getvalue())    # numpy, writing by itself, does not say that the disk is full

def own_session(job):
    if job["backend"] in PROVIDERS:
        return (OnnxRuntime if job["backend"] == "onnxruntime-cpu" else OnnxRuntimeOnGpu)(job)
    return TensorRT(Log(need(job["backend"])), Path(job["artifact"]).read_bytes(), job)

def cuda(function, *arguments):
    """Call CUDA's driver. Handles and addresses go as c_void_p: a plain number would lose its upper half. Raises JobError with its reason."""
    try:
        status = getattr(cdll[CUDA], function)(*arguments)
    except (OSError, AttributeError) as error:
        raise JobError("no CUDA driver, or an old one: %s" % error, "install NVIDIA's driver; a Jetson has it from JetPack") from None
    if status:
        reason = c_char_p()
        cdll[CUDA].cuGetErrorString(status, byref(reason))
        raise JobError("%s: %s" % (function, (reason.value or b"error %d" % status).decode()), "see whether the GPU is there and free: nvidia-smi")

class Stream:
    """A CUDA stream with two events, in the context that TensorRT and ONNX Runtime use."""
    def __init__(self):
        context, self.stream, self.events = c_void_p(), c_void_p(), (c_void_p(), c_void_p())
        cuda("cuInit", 0)
        cuda("cuDevicePrimaryCtxRetain", byref(context), 0)
        cuda("cuCtxSetCurrent", context)
        cuda("cuStreamCreate", byref(self.stream), 0)
        for event in self.events:
            cuda("cuEventCreate", byref(event), 0)
    def step(self):
        self.enqueue()
        self.synchronise()
    def synchronise(self):
        cuda("cuStreamSynchronize", self.stream)
    def record(self, number):
        cuda("cuEventRecord", self.events[number], self.stream)
    def elapsed(self):
        ms = c_float()          # milliseconds between the events; seconds are returned
        cuda("cuEventSynchronize", self.events[1])
        cuda("cuEventElapsedTime", byref(ms), *self.events)
        return ms.value / 1e3
    def capture(self):
        """From here on a step is the launch of one CUDA graph."""
        graph, run = c_void_p(), c_void_p()
        self.step()                                         # what is set up at first cannot be captured
        cuda("cuStreamBeginCapture_v2", self.stream, 1)     # 1: of this thread alone
        self.enqueue()
        cuda("cuStreamEndCapture", self.stream, byref(graph))
        cuda("cuGraphInstantiate", byref(run), graph, None, None, c_size_t(0))  # by CUDA 10's form, which drivers keep
        self.enqueue = partial(cuda, "cuGraphLaunch", run, self.stream)

class TensorRT(Stream):
    """An engine with its buffers on the device: a step is the network alone."""
    def __init__(self, log, plan, job):
        Stream.__init__(self)
        self.log, self.job, self.engine = log, job, log.deserialised(plan)
        self.context = context = self.engine.create_execution_context()
        refuse(context is None, "the engine cannot be run: %s" % log.reason(), "free memory on the GPU")
        self.tensors = tensors_of(log.trt, self.engine)
        for tensor in self.tensors:
            tensor.update(array=need("numpy").zeros(tensor["shape"], tensor["type"]), place=c_void_p())
            cuda("cuMemAlloc_v2", byref(tensor["place"]), c_size_t(tensor["array"].nbytes))
        if hasattr(context, "set_tensor_address"):          # 8.5 on
            for tensor in self.tensors:
                context.set_tensor_address(tensor["name"], tensor["place"].value)
            self.launch = partial(context.execute_async_v3, self.stream.value)
        else:
            self.launch = partial(context.execute_async_v2, [tensor["place"].value for tensor in self.tensors], self.stream.value)
        self.input = next(tensor["array"] for tensor in self.tensors if tensor["input"])
    def feed(self, array):
        tensor = next(tensor for tensor in self.tensors if tensor["input"])
        takes, given = ("%s %s" % (tensor["type"], tensor["shape"]), "%s %s" % (array.dtype, list(array.shape)))
        refuse(takes != given, "the engine takes %s, not %s" % (takes, given), "build it from the ONNX file of that input and size")
        if array is not self.input:
            self.input[:] = array                           # in one piece, as the copy needs it
        cuda("cuMemcpyHtoD_v2", tensor["place"], c_void_p(tensor["array"].ctypes.data), c_size_t(array.nbytes))
    def enqueue(self):
        if not self.launch():
            raise JobError("the engine does not run: %s" % self.log.reason(), "see the message")
    def places(self):
        """(address, type, shape) of the input and the output on the device."""
        return [(tensor["place"].value, tensor["type"], tensor["shape"]) for tensor in sorted(self.tensors, key=lambda tensor: not tensor["input"])]
    def output(self):
        tensor = next(tensor for tensor in self.tensors if not tensor["input"])
        cuda("cuMemcpyDtoH_v2", c_void_p(tensor["array"].ctypes.data), tensor["place"], c_size_t(tensor["array"].nbytes))
        return tensor["array"]
    def facts(self):
        return dict(self.log.about(), backend=self.job["backend"], boundary=BOUNDARY % (self.job["described"]["input"], "device"))

def tensors_of(trt, engine):
    """Name, direction, numpy's type and shape of each input and output, in the engine's order."""
    if hasattr(engine, "num_io_tensors"):                   # 8.5 on
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        rows = [(n, engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT, engine.get_tensor_dtype(n).name, engine.get_tensor_shape(n)) for n in names]
    else:
        rows = [(engine.get_binding_name(i), engine.binding_is_input(i), engine.get_binding_dtype(i).name, engine.get_binding_shape(i))
                for i in range(engine.num_bindings)]
    return [dict(name=name, input=is_input, type={"FLOAT": "float32", "HALF": "float16"}.get(kind, kind.lower()), shape=list(shape))
            for name, is_input, kind, shape in rows]

class OnnxRuntime:
    """ONNX Runtime on the CPU, input and output bound once: a step is the network alone."""
    place, memory, note = "cpu", "host", "ONNX Runtime has few FP16 kernels for CPUs and computes the rest in FP32, with casts"
    def __init__(self, job, **given):
        self.ort, self.job = need("onnxruntime"), job
        options, wanted, self.half = self.options(), PROVIDERS[job["backend"]], job["described"]["precision"] == "fp16"
        settings = {"CPUExecutionProvider": {}, "CUDAExecutionProvider": dict(given, use_tf32="0"),
                    "TensorrtExecutionProvider": dict(given, trt_fp16_enable=str(int(self.half)))}
        order = list(PROVIDERS.values())                    # what one cannot do goes to the next
        chosen = [(name, settings[name]) for name in order[order.index(wanted):] if name in self.ort.get_available_providers()]
        self.session = self.ort.InferenceSession(job["artifact"], options, providers=chosen)
        refuse(wanted not in self.session.get_providers(), "ONNX Runtime cannot use %s here, only %s" % (wanted, ", ".join(self.session.get_providers())),
               "pip install onnxruntime-gpu, without onnxruntime beside it, and the CUDA, cuDNN and TensorRT that its page names")
        self.names = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        self.binding, self.fed = self.session.io_binding(), None
    def options(self):
        """Of a session, with job["settings"]: a name with a dot is an entry of its configuration, any other an attribute."""
        options, settings = self.ort.SessionOptions(), self.job.get("settings") or {}
        options.intra_op_num_threads, options.log_severity_level = self.job["threads"] or environment()["cpus"], 3
        options.enable_mem_pattern = self.place != "cpu"    # a block for all tensors beside what the arena has by then: BiSeNet V2 650 MiB for 410
        for name in sorted(settings):
            refuse("." not in name and not hasattr(options, name), "ONNX Runtime has no setting called %s" % name, "look for others: rtseg-deploy tune")
            if "." in name:
                options.add_session_config_entry(name, str(settings[name]))
            else:
                setattr(options, name, type(getattr(options, name))(settings[name]))
        self.threads = options.intra_op_num_threads
        return options
    def feed(self, array):
        if self.fed is not None:
            return None if array is self.input else self.fed.update_inplace(array)
        self.fed = self.ort.OrtValue.ortvalue_from_numpy(array, self.place, 0)
        self.input = array if self.place == "cpu" else None     # no copy of it
        self.binding.bind_ortvalue_input(self.names[0], self.fed)
        self.binding.bind_output(self.names[1], self.place, 0)
        self.step()
        self.given = self.binding.get_outputs()[0]          # kept, or each step would take memory anew
        if self.place == "cpu":                             # where it is read without a copy
            self.result = self.binding.copy_outputs_to_cpu()[0]
            self.given = self.ort.OrtValue.ortvalue_from_numpy(self.result, self.place, 0)
        self.binding.bind_ortvalue_output(self.names[1], self.given)
    def step(self):
        self.session.run_with_iobinding(self.binding)
    def output(self):
        return self.result if self.place == "cpu" else self.binding.copy_outputs_to_cpu()[0]
    def facts(self):
        return {"backend": self.job["backend"], "onnxruntime": self.ort.__version__, "threads": self.threads, "note": self.note if self.half else "",
                "settings": self.job.get("settings") or {},
                "boundary": BOUNDARY % (self.job["described"]["input"], self.memory), "gpu": gpu() if self.memory == "device" else None}

class OnnxRuntimeOnGpu(Stream, OnnxRuntime):
    """The same on the GPU: its own memory, our stream, and no waiting by itself, so that events and clocks are as an engine's."""
    place, memory, note = "cuda", "device", ""
    def __init__(self, job):
        Stream.__init__(self)
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"            # TensorRT's provider has no setting of its own for it
        OnnxRuntime.__init__(self, job, device_id="0", user_compute_stream=str(self.stream.value))
        self.how = self.ort.RunOptions()
        self.how.add_run_config_entry("disable_synchronize_execution_providers", "1")
    def enqueue(self):
        self.session.run_with_iobinding(self.binding, self.how)
    def places(self):
        kinds = {"tensor(float)": "float32"}
        return [(one.data_ptr(), kinds.get(one.data_type(), one.data_type()[7:-1]), one.shape()) for one in (self.fed, self.given)]

def probe(job):
    """What this machine is and has, and what its tools say, as they say it. Where the job's runtime is not here, a failure that tells the rest."""
    found = dict(environment(), gpu=gpu(), providers=[], said={command: output_of(5, *command.split()) for command in COMMANDS})
    found["files"] = {path: line_of(path) for path in glob.glob("/sys/class/devfreq/*.g[pva]*/*_freq") + ["/usr/local/cuda/version.txt"]}
    for module in [*INSTALL, "pycuda"]:     # each in a process of its own: two TensorRTs cannot be loaded into one, and a broken module may abort
        code = "import %s as m; print(getattr(m, '__version__', '?'), *getattr(m, 'get_available_providers', list)())" % module
        words = (output_of(60, sys.executable, *["-S"] * sys.flags.no_site, "-c", code) or "").split()
        found[module] = words[0] if words else None
        found["providers"] += words[1:]
    if job.get("runtime") and not found[job["runtime"]]:
        need(job["runtime"], probe=found)
    return {"probe": found}

def environment():
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "python": platform.python_version(), "system": platform.platform(),
            "machine": platform.machine(), "cpus": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "cpu": line_of("/proc/cpuinfo", r"(?i)(?:model name|hardware)\s*: (.*)") or platform.processor() or None, "l4t": line_of("/etc/nv_tegra_release"),
            "governor": line_of("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), "model": line_of("/proc/device-tree/model")}

def line_of(path, pattern="(.*)"):
    """What the pattern finds in a file that may not exist."""
    try:
        found = re.search(pattern, Path(path).read_bytes().decode(errors="replace").strip("\0\n "))
        return found and found.group(1)
    except OSError:
        return None

def output_of(seconds, *command):
    """What a command prints, until the time is over; None where it is not there or fails."""
    try:
        return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds).stdout.decode()
    except (OSError, subprocess.SubprocessError) as error:
        return (error.output or b"").decode() if isinstance(error, subprocess.TimeoutExpired) else None

def gpu():
    """The first CUDA device, or why there is none."""
    name, bus, memory, version, major, minor = create_string_buffer(256), create_string_buffer(32), c_size_t(), c_int(), c_int(), c_int()
    try:
        for call in (("cuInit", 0), ("cuDeviceGetName", name, 256, 0), ("cuDeviceGetPCIBusId", bus, 32, 0), ("cuDeviceTotalMem_v2", byref(memory), 0),
                     ("cuDriverGetVersion", byref(version)), ("cuDeviceGetAttribute", byref(major), 75, 0), ("cuDeviceGetAttribute", byref(minor), 76, 0)):
            cuda(*call)     # 75, 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
    except JobError as error:
        return {"error": str(error)}
    return {"name": name.value.decode(), "compute_capability": "%d.%d" % (major.value, minor.value), "memory_bytes": memory.value,
            "bus": bus.value.decode(), "driver": line_of("/proc/driver/nvidia/version", r"\s(\d+\.[\d.]+)\s"),
            "cuda": "%d.%d" % (version.value // 1000, version.value % 1000 // 10)}

def load(job):
    """Deserialise job["artifact"]. Tells what goes in and comes out, or TensorRT's reason against it."""
    log = Log(need(job.get("runtime") or job["backend"]))
    tensors = tensors_of(log.trt, log.deserialised(Path(job["artifact"]).read_bytes()))
    return dict(log.about(), inputs=[tensor for tensor in tensors if tensor["input"]], outputs=[tensor for tensor in tensors if not tensor["input"]])

class Log:
    """A TensorRT with its warnings and errors, kept to be told. One for all that a process does: TensorRT keeps the first."""
    def __init__(self, trt):
        self.trt, self.name, self.lines, self.errors = trt, "%s %s" % (trt.__name__, trt.__version__), [], []
        def log(logger, severity, message):
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                self.lines.append(" ".join(message.split()))
                self.errors += self.lines[-1:] if severity.name != "WARNING" else []
        self.logger = type("Logger", (trt.ILogger,), {"log": log})()
    def reason(self):
        return "; ".join(self.errors) or "no reason was given"      # all: the last may say only that there is no engine
    def about(self):
        return {"runtime": self.trt.__name__, "version": self.trt.__version__, "messages": self.lines[-20:], "environment": environment(), "gpu": gpu()}
    def deserialised(self, plan):
        self.runtime = self.trt.Runtime(self.logger)        # must outlive the engine
        engine = self.runtime.deserialize_cuda_engine(plan)
        refuse(engine is None, "%s cannot load the engine: %s" % (self.name, self.reason()), "build it here; where no GPU works: nvidia-smi")
        return engine

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
