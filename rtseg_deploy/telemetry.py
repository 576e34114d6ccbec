"""What a device says of its clocks, power and temperature: what the text of its commands and files means, once and while it times.

nvidia-smi (NVML's own command) on desktops and servers; on a Jetson, which has no NVML, nvpmodel, jetson_clocks, tegrastats and sysfs.
"""
import json
import math
import re

import numpy as np

from . import limits
from .device import runner

VALUES, REASONS_NOW, REASONS_OLD, MODE, TEGRASTATS = runner.COMMANDS
NAMES = ("sm_mhz", "memory_mhz", "sm_max_mhz", "temperature_c", "power_w", "power_limit_w", "state")    # of VALUES, in its order after the bus
SAMPLED = ("sm_mhz", "memory_mhz", "sm_max_mhz", "temperature_c", "power_w", "gpu_load_percent")        # of device/sampler.QUERY, before the reasons

# bits of NVML's clocks event reasons; 1 is that the GPU has nothing to do
REASONS = {0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "temperature (software)",
           0x40: "temperature (hardware)", 0x80: "power brake", 0x100: "display clock"}
SLOWED = {REASONS[bit] for bit in (0x4, 0x8, 0x20, 0x40, 0x80)}      # by power, temperature or the hardware; the others are settings


def read(probed):
    """A probe's facts with what its commands and files said made plain: clocks, power, temperature, power_mode; absent where nothing said it."""
    said, files, bus = texts(probed.pop("said", {})), texts(probed.pop("files", {})), texts(probed["gpu"]).get("bus", "")
    values = [number(value) for value in smi(said.get(VALUES), bus)]
    found = {name: value for name, value in zip(NAMES, values) if value is not None} if len(values) == len(NAMES) else {}
    found.update(throttled(smi(said.get(REASONS_NOW), bus) or smi(said.get(REASONS_OLD), bus)))
    found.update({**tegrastats(said.get(TEGRASTATS) or ""), **devfreq(files)})
    if mode := re.search(r"Power Mode\s*:\s*(\S+)", said.get(MODE) or ""):
        found["power_mode"] = mode[1]
    return {**probed, "telemetry": found}


def texts(found):
    """What is text in an object of a device, which may answer anything."""
    return {name: text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def smi(text, bus):
    """The values of the GPU on that bus, after a line of headings; of the only GPU where the bus is not known. Empty where nvidia-smi failed."""
    lines = [[value.strip() for value in line.split(",")] for line in (text or "").splitlines()[1:]]
    return next((values for found, *values in lines if found.lower().endswith(bus.lower()) or len(lines) == 1), [])


def card(text, bus):
    """Path such as "Clocks / SM" -> value, of the GPU on that bus, or the first, in what `nvidia-smi -q` prints; and the processes on it."""
    cards = re.split(r"(?m)^GPU (?=[0-9A-Fa-f]+:)", text or "")[1:]
    found = next((one for one in cards if one.partition("\n")[0].lower().endswith(bus.lower())), "") if bus or len(cards) == 1 else "".join(cards[:1])
    values, above = {}, []
    for line in found.splitlines()[1:]:
        name, told, value = line.partition(" : ")
        depth = len(name) - len(name.lstrip())
        above = [(outer, section) for outer, section in above if outer < depth]
        if told:
            values.setdefault(" / ".join([section for _, section in above] + [name.strip()]), value.strip())
        above.append((depth, name.strip()))
    processes = re.findall(r"Process ID\s*: (\d+)\s+Type\s*: (\S+)\s+Name\s*: (.*)", found)
    return values, [{"pid": int(pid), "type": kind, "name": name.strip()} for pid, kind, name in processes]


def throttled(values):
    """Why the clock is lower than it could be."""
    active = "".join(values)
    return {"throttled_by": reasons(int(active, 16))} if re.fullmatch(r"0x[0-9a-fA-F]+", active) else {}


def reasons(bits):
    return [reason for bit, reason in REASONS.items() if bits & bit]


def number(text):
    """Of "1545 MHz", or a text such as P2; None for what is not known."""
    if text.startswith(("[", "N/A")):
        return None
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)( \S+)?", text)
    return float(found[1]) if found else text


def tegrastats(text):
    """Of the last whole line that tegrastats printed: memory, load and clock of the GPU, temperatures in degrees, rails in mW now."""
    lines = [line for line in text.splitlines() if "RAM" in line]
    if not lines:
        return {}
    line, found = lines[-1], {}
    if ram := re.search(r"RAM (\d+)/(\d+)MB", line):
        found["ram_mb"], found["ram_total_mb"] = map(int, ram.groups())
    if gpu := re.search(r"GR3D_FREQ (\d+)%(?:@\[?(\d+))?", line):
        found["gpu_load_percent"] = int(gpu[1])
        found.update({"gpu_mhz": int(gpu[2])} if gpu[2] else {})
    found["temperatures_c"] = {name: float(value) for name, value in re.findall(r"(\w+)@(-?\d+(?:\.\d+)?)C\b", line)}
    found["rails_mw"] = {name: int(now) for name, now in re.findall(r"([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\w)", line)}
    return found


def devfreq(files):
    """MHz of the Jetson's GPU, now and at most."""
    return {f"gpu_{kind}_mhz": int(text) // 1_000_000 for kind in ("cur", "max") for path, text in files.items()
            if path.endswith(f"{kind}_freq") and text and text.isdecimal() and "/devfreq/" in path}


def rows(lines):
    """Telemetry rows of the lines that device/sampler.py wrote. What nobody says is absent, and a damaged line left out.

    t (seconds of that machine's time.perf_counter), sm_mhz, memory_mhz, sm_max_mhz, temperature_c, power_w, throttled_by, gpu_load_percent,
    energy_j (of the GPU, from some moment on), other_processes (on the GPU), and of the whole machine cpu_load_percent, others_cpu_percent (other processes
    than the timed one), steal_percent (other machines on the same host), all since the row before; cpu_mhz (of the fastest), cpu_temperature_c,
    cpu_energy_j, load; sampler_percent (of one processor, what the sampler itself took). On a Jetson power_w is what the whole board takes.
    """
    found, told, last = [], {}, None
    for line in lines:
        try:
            raw = json.loads(line, parse_int=limits.whole)
            if "sampler" in raw:
                told, last = raw, None
            elif "t" in raw and math.isfinite(raw["t"]):
                found.append(row(raw, told, last, found[-1] if last else {}))
                last = raw
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            continue        # a device may answer anything, and one that was cut off ends in the middle of a line
    return found


def row(raw, told, last, before):
    """One row; `last` is the raw one before it and `before` what was made of that."""
    files, described = dict(zip(told["files"], raw["files"])), told["described"]
    then = dict(zip(told["files"], last["files"])) if last else files
    plain = {"t": raw["t"], **of_files(files, described), **of_line(raw.get("said", "")), **of_nvml(raw.get("nvml", {}), told["pid"])}
    if "temperature_c" not in plain and "sm_mhz" not in plain:
        plain.update(known({"temperature_c": plain.get("cpu_temperature_c")}))
    counters = [path for path in files if path.endswith("/energy_uj")]
    readable = all(text.isdecimal() for path in counters for text in (files[path], then[path], described[path]))
    if counters and readable and (not last or "cpu_energy_j" in before):        # each starts anew from 0 by itself
        taken = sum((int(files[path]) - int(then[path])) % (int(described[path]) + 1) for path in counters)
        plain["cpu_energy_j"] = before.get("cpu_energy_j", 0.0) + taken / 1e6
    hot = [what for what in of_cooling(files, then) if what not in plain.get("throttled_by", [])]
    if hot or "throttled_by" in plain:
        plain["throttled_by"] = plain.get("throttled_by", []) + hot
    return {**plain, **(since(raw, last) if last else {}), **known({"load": number(raw["load"].partition(" ")[0])})}


def known(values):
    return {name: value for name, value in values.items() if value not in (None, "")}


def since(raw, last):
    """What the processors did between two raw rows."""
    found, used, total = shares(raw, last), *jiffies(raw, last)
    if total > 0 and "timed" in raw and "timed" in last:     # the two are counted apart: in one row more than all may be the timed one's
        timed = sum(map(int, raw["timed"])) - sum(map(int, last["timed"]))
        found["others_cpu_percent"] = max(0.0, 100 * (used - timed) / total)
    return {**found, "sampler_percent": 100 * (raw["own_s"] - last["own_s"]) / (raw["t"] - last["t"])}


def shares(raw, last):
    """Percent of the processors' time between two first lines of /proc/stat."""
    used, total = jiffies(raw, last)
    steal = int(raw["cpu"].split()[8]) - int(last["cpu"].split()[8])
    return {"cpu_load_percent": 100 * used / total, "steal_percent": 100 * steal / total} if total > 0 else {}


def jiffies(raw, last):
    """(used, all), of user nice system idle iowait irq softirq steal; guests are in the first two."""
    user, nice, system, idle, waiting, irq, soft, steal = (int(now) - int(then) for now, then in zip(raw["cpu"].split()[1:9], last["cpu"].split()[1:9]))
    used = user + nice + system + irq + soft
    return used, used + idle + waiting + steal


def of_nvml(said, pid):
    """Of device/sampler.answers. In a container the timed process may be known to NVML by another number."""
    found = {name: said[name] for name in SAMPLED if name in said}
    found.update({name: said[raw] / 1e3 for name, raw in (("power_w", "power_mw"), ("energy_j", "energy_mj")) if raw in said})
    if "reasons" in said:
        found["throttled_by"] = reasons(said["reasons"])
    if "compute" in said or "graphics" in said:
        processes = {*said.get("compute", []), *said.get("graphics", [])}
        found["other_processes"] = len(processes - {pid}) if pid in processes else max(0, len(processes) - 1)
    return found


def of_line(text):
    """Of a line of nvidia-smi, as device/sampler.QUERY asks, or of tegrastats."""
    *values, active = [value.strip() for value in text.split(",")]
    if len(values) == len(SAMPLED):
        return {**{name: value for name, value in zip(SAMPLED, map(number, values)) if isinstance(value, float)}, **throttled([active])}
    board = tegrastats(text)
    clocks = {"memory_mhz": re.findall(r"EMC_FREQ \d+%@(\d+)", text), "cpu_mhz": re.findall(r"[\[,]\d+%@(\d+)", text)}
    return known({**of_jetson(board), "sm_mhz": board.get("gpu_mhz"), "gpu_load_percent": board.get("gpu_load_percent"),
                  **{name: max(map(int, found), default=None) for name, found in clocks.items()}})


def of_jetson(board):
    """Power and temperatures of what tegrastats or its files say."""
    rails = board.get("rails_mw", {})
    whole = [milliwatts for name, milliwatts in rails.items() if name.endswith("_IN")] or list(rails.values())      # the input, or the sum of all behind it
    heat = {name.lower(): value for name, value in board.get("temperatures_c", {}).items()}
    processors = [value for name, value in heat.items() if "cpu" in name]
    return {"power_w": sum(whole) / 1e3 if whole else None, "temperature_c": heat.get("gpu"), "cpu_temperature_c": max(processors, default=None)}


def of_files(files, described):
    """Of what device/sampler.FILES says."""
    def values(pattern):
        return {path: int(text) for path, text in files.items() if re.search(pattern, path) and re.fullmatch(r"-?\d+", text)}
    heat = {"gpu" if re.match("(?i)gpu", described[path]) else f"cpu {path}": value / 1e3 for path, value in values(r"/temp(1_input)?$").items()}
    rails = {described[path]: value for path, value in values("/in_power._input$").items()}
    gpu, load = devfreq(files), max(values("/gpu.0/load$").values(), default=None)
    return known({**of_jetson({"rails_mw": rails, "temperatures_c": heat}), "sm_mhz": gpu.get("gpu_cur_mhz"), "sm_max_mhz": gpu.get("gpu_max_mhz"),
                  "gpu_load_percent": None if load is None else load / 10,
                  "cpu_mhz": max(values("/scaling_cur_freq$").values(), default=0) / 1e3 or None})


def of_cooling(files, then):
    """Why the processors, or a Jetson's GPU, are slower than they could be: a cooling device at work, a count of slowdowns that went on since then."""
    cooled = any(path.endswith("/cur_state") and text not in ("", "0") for path, text in files.items())
    counted = any(path.endswith("_throttle_count") and text != then[path] for path, text in files.items())
    return ["temperature (software)"] * cooled + ["temperature (hardware)"] * counted


def energy(rows, began, ended, cpu=False):
    """Joules that the GPU (of a Jetson the board; with `cpu` the processors) took from one t to another; None where fewer than two rows between tell it.

    By its own counter where there is one, else power over time by trapezoids. What lies before the first row or after the last is taken to be as the rest.
    """
    name = "cpu_energy_j" if cpu else "energy_j"
    told = [row for row in rows if name in row]
    if not told and not cpu:
        told = [row for row in rows if "power_w" in row]
    times = np.array([row["t"] for row in told])
    if len(times) < 2 or np.count_nonzero((times >= began) & (times <= ended)) < 2:
        return None
    if name in told[0]:
        joules = np.array([row[name] for row in told])
    else:
        power = np.array([row["power_w"] for row in told])
        joules = np.concatenate([[0], np.cumsum(np.diff(times) * (power[1:] + power[:-1]) / 2)])
    first, last = max(began, times[0]), min(ended, times[-1])
    taken = np.interp(last, times, joules) - np.interp(first, times, joules)
    return float(taken * (ended - began) / (last - first))
