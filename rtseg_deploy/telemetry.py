"""What a device says of its clocks, power and temperature: what the text of the probe's commands and files means.

nvidia-smi (NVML's own command) on desktops and servers; on a Jetson, which has no NVML, nvpmodel, jetson_clocks, tegrastats and sysfs.
"""
import re

from .device import runner

VALUES, REASONS_NOW, REASONS_OLD, MODE, TEGRASTATS = runner.COMMANDS
NAMES = ("sm_mhz", "memory_mhz", "sm_max_mhz", "temperature_c", "power_w", "power_limit_w", "state")    # of VALUES, in its order after the bus

# bits of NVML's clocks event reasons; 1 is that the GPU has nothing to do
REASONS = {0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "temperature (software)",
           0x40: "temperature (hardware)", 0x80: "power brake", 0x100: "display clock"}


def read(probed):
    """A probe's facts with what its commands and files said made plain: clocks, power, temperature, power_mode; absent where nothing said it."""
    said, files, bus = probed.pop("said", {}), probed.pop("files", {}), probed.get("gpu", {}).get("bus", "")
    values = [number(value) for value in smi(said.get(VALUES), bus)]
    found = {name: value for name, value in zip(NAMES, values) if value is not None} if len(values) == len(NAMES) else {}
    found.update(throttled(smi(said.get(REASONS_NOW), bus) or smi(said.get(REASONS_OLD), bus)))
    found.update({**tegrastats(said.get(TEGRASTATS) or ""), **devfreq(files)})
    if mode := re.search(r"Power Mode\s*:\s*(\S+)", said.get(MODE) or ""):
        found["power_mode"] = mode[1]
    return {**probed, "telemetry": found}


def smi(text, bus):
    """The values of the GPU on that bus, after a line of headings; of the only GPU where the bus is not known. Empty where nvidia-smi failed."""
    lines = [[value.strip() for value in line.split(",")] for line in (text or "").splitlines()[1:]]
    return next((values for found, *values in lines if found.lower().endswith(bus.lower()) or len(lines) == 1), [])


def throttled(values):
    """Why the clock is lower than it could be."""
    active = "".join(values)
    return {"throttled_by": [reason for bit, reason in REASONS.items() if int(active, 16) & bit]} if re.fullmatch(r"0x[0-9a-fA-F]+", active) else {}


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
    if gpu := re.search(r"GR3D_FREQ (\d+)%(?:@(\d+))?", line):
        found["gpu_load_percent"] = int(gpu[1])
        found.update({"gpu_mhz": int(gpu[2])} if gpu[2] else {})
    found["temperatures_c"] = {name: float(value) for name, value in re.findall(r"(\w+)@(-?\d+(?:\.\d+)?)C\b", line)}
    found["rails_mw"] = {name: int(now) for name, now in re.findall(r"(V\w+|POM_\w+) (\d+)(?:mW)?/\d+", line)}
    return found


def devfreq(files):
    """MHz of the Jetson's GPU, now and at most."""
    return {f"gpu_{kind}_mhz": int(text) // 1_000_000 for kind in ("cur", "max") for path, text in files.items()
            if path.endswith(f"{kind}_freq") and text and text.isdecimal()}
