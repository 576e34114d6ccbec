"""Samples a machine while something is timed on it:  python3 sampler.py PID OUT.jsonl [HZ [BUS]]      HZ may be ""

One file for every device: Python 3.6 and the standard library; pynvml where it is. It appends a line that says what it reads, and then, HZ
times a second (10 where there is a GPU, else 2) and once more at the end, a line of what was read: of the GPU on PCI bus BUS (the first one
if not given), the processors, and the time that the process PID has taken. Almost everything is written as it was said, for this takes time
from what is timed: rtseg_deploy/telemetry.py makes it plain. Its standard input is a leash: it ends when that is closed, or PID is gone.
A source that fails is left out; nothing is ever printed.
"""
import glob
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from functools import partial

HZ_GPU, HZ_CPU = 10, 2
HEAD = 4096                         # bytes of a file, of which the first line is taken
QUERY = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,utilization.gpu,%s.active"
REASONS = ("clocks_event_reasons", "clocks_throttle_reasons")       # by their name of today, and the old one
RAILS = "/sys/bus/i2c/drivers/ina3221x/*/iio*/in_power?_input"      # of a Jetson: what tegrastats says, if it is there
# files, what is in their folder that says what they are, and what that must match; on a PC each processor has a cooling device
FILES = (("/sys/devices/system/cpu/cpu[0-7]/cpufreq/scaling_cur_freq", None, ""),
         ("/sys/devices/system/cpu/cpu0/thermal_throttle/*_throttle_count", None, ""),
         ("/sys/class/thermal/thermal_zone*/temp", "type", "(?i)x86_pkg_temp|cpu|gpu"),
         ("/sys/class/hwmon/hwmon*/temp1_input", "name", "coretemp|k10temp|zenpower"),
         ("/sys/class/thermal/cooling_device*/cur_state", "type", "cpu|gpu|emergency"),
         ("/sys/class/powercap/*-rapl:?/energy_uj", "max_energy_range_uj", ""),
         ("/sys/class/devfreq/*.g[pva]*/*_freq", None, ""),
         ("/sys/devices/gpu.0/load", None, ""))


def main(argv):
    sys.excepthook = lambda kind, error, trace: None
    out = os.open(argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.excepthook = lambda kind, error, trace: write(out, {"fault": "%s: %s" % (kind.__name__, error)})
    yield_to_others()
    pid, asked, bus = int(argv[0]), *(argv[2:] + ["", ""])[:2]
    gpu = nvml(bus)
    hz = float(asked) if asked else HZ_GPU if gpu or shutil.which("nvidia-smi") or shutil.which("tegrastats") else HZ_CPU
    said = None if gpu else Said(commands(bus, hz))
    try:
        opened, described = sources(said is not None and said.name == "tegrastats")
        write(out, {"sampler": 1, "pid": pid, "hz": hz, "files": list(opened), "described": described})
        sample(out, pid, hz, gpu, said, [partial(head, file) for file in opened.values()])
    finally:
        if said:
            said.end()


def yield_to_others():
    """Run on any processor, and only when nobody needs it: whoever started this may hold what is timed to some of them."""
    os.nice(19)
    try:
        os.sched_setaffinity(0, range(os.cpu_count()))
    except OSError:
        pass


def write(out, row):
    os.write(out, json.dumps(row).encode() + b"\n")


def sample(out, pid, hz, gpu, said, files):
    """Write rows until the leash is cut or the process is gone."""
    whole, loads, timed = head_of("/proc/stat"), head_of("/proc/loadavg"), head_of("/proc/%d/stat" % pid)
    due, over = time.perf_counter(), False
    while True:
        row = {"t": time.perf_counter(), "own_s": time.process_time(), "cpu": whole(), "load": loads(), "files": [read() for read in files]}
        process = timed().rpartition(")")[2].split()        # its name may hold anything
        if process and process[0] not in "ZX":
            row["timed"] = process[11:13]                   # utime, stime
        row.update({"nvml": gpu()} if gpu else {"said": said.newest()} if said.pipe else {})
        write(out, row)
        if over or "timed" not in row:
            return
        due = max(due + 1 / hz, time.perf_counter())
        over = wait(due, said)


def wait(due, said):
    """Until then, taking in what the command says; whether the leash was cut meanwhile."""
    while True:
        left = due - time.perf_counter()
        if left <= 0:
            return False
        heard = [said.pipe] if said and said.pipe else []
        ready = select.select([0] + heard, [], [], left)[0]
        if 0 in ready and not os.read(0, HEAD):
            return True
        if heard and heard[0] in ready:
            said.listen()


def head_of(path):
    """A function that reads the file's first line; of a file that cannot be opened nothing."""
    try:
        return partial(head, os.open(path, os.O_RDONLY))
    except OSError:
        return str


def head(file):
    """The first line of an open file as it is now."""
    try:
        return os.pread(file, HEAD, 0).decode(errors="replace").partition("\n")[0]
    except OSError:
        return ""


def sources(rails_are_told):
    """(path -> open file, path -> what it is) of all that can be read here."""
    opened, described = {}, {}
    for path, beside, wanted in [(path, beside and os.path.join(os.path.dirname(path), beside), wanted) for pattern, beside, wanted in FILES
                                 for path in sorted(glob.glob(pattern))] + [
            (path, re.sub(r"in_power(.)_input$", r"rail_name_\1", path), "") for path in sorted(glob.glob(RAILS)) if not rails_are_told]:
        what = head_of(beside)() if beside else ""
        read = head_of(path)
        if re.search(wanted, what) and read is not str:
            opened[path], = read.args
            described.update({path: what} if beside else {})
    return opened, described


def nvml(bus):
    """A function that asks NVML about the GPU on that bus; None where NVML is not here."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByPciBusId(bus.encode()) if bus else pynvml.nvmlDeviceGetHandleByIndex(0)
    except (AttributeError, OSError, pynvml.NVMLError):
        return None
    reasons = next((name for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons") if hasattr(pynvml, name)), "")
    questions = {"sm_mhz": ("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM), "memory_mhz": ("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
                 "sm_max_mhz": ("nvmlDeviceGetMaxClockInfo", pynvml.NVML_CLOCK_SM), "temperature_c": ("nvmlDeviceGetTemperature", 0),
                 "power_mw": ("nvmlDeviceGetPowerUsage",), "energy_mj": ("nvmlDeviceGetTotalEnergyConsumption",), "reasons": (reasons,),
                 "gpu_load_percent": ("nvmlDeviceGetUtilizationRates",), "compute": ("nvmlDeviceGetComputeRunningProcesses",),
                 "graphics": ("nvmlDeviceGetGraphicsRunningProcesses",)}
    return partial(answers, pynvml, device, {name: call for name, call in questions.items() if hasattr(pynvml, call[0])})


def answers(pynvml, device, questions):
    """What NVML says now; what it cannot say is not asked again."""
    found = {}
    for name, (function, *arguments) in list(questions.items()):
        try:
            value = getattr(pynvml, function)(device, *arguments)
        except (OSError, pynvml.NVMLError):
            del questions[name]
            continue
        found[name] = [process.pid for process in value] if isinstance(value, list) else getattr(value, "gpu", value)
    return found


def commands(bus, hz):
    """What to ask where NVML is not here, one after another until one answers."""
    smi = ["nvidia-smi", "--format=csv,noheader,nounits", "-i", bus or "0", "-lms", "%d" % (1000 / hz)]
    return [smi + ["--query-gpu=" + QUERY % reasons] for reasons in REASONS] + [["tegrastats", "--interval", "%d" % (1000 / hz)]]


class Said:
    """The newest line that a command has printed, of the first command that goes on printing."""
    def __init__(self, commands):
        self.commands = [command for command in commands if shutil.which(command[0])]
        self.process, self.pipe, self.name = None, None, ""
        self.start()

    def start(self):
        self.end()
        self.buffer = b""
        while self.commands and not self.pipe:
            command = self.commands.pop(0)
            try:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            except OSError:
                continue
            self.pipe, self.name = self.process.stdout, command[0]

    def listen(self):
        block = os.read(self.pipe.fileno(), 1 << 16)
        self.buffer = (self.buffer + block)[-HEAD:]
        if not block:
            self.start()

    def newest(self):
        *lines, rest = self.buffer.split(b"\n")
        if lines:
            self.buffer = rest
        return lines[-1].decode(errors="replace").strip() if lines else ""

    def end(self):
        if self.pipe:
            self.process.kill()
            self.process.wait()
            self.pipe.close()
            self.pipe = None


if __name__ == "__main__":
    main(sys.argv[1:])
