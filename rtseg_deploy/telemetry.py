"""What a device says of its clocks, power and temperature: what the text of the probe's commands and files means.

nvidia-smi (NVML's own command) on desktops and servers; on a Jetson, which has no NVML, nvpmodel, jetson_clocks, tegrastats and sysfs.
"""
import re

from .device import runner

VALUES, REASONS_NOW, REASONS_OLD, MODE, TEGRASTATS = runner.COMMANDS
NAMES = ("sm_mhz", "memory_mhz", "sm_max_mhz", "temperature_c", "power_w", "power_limit_w", "state")    # of VALUES, in its order

# bits of NVML's clocks event reasons; 1 is that the GPU has nothing to do
REASONS = {0x2: "application clocks", 0x4: "power cap", 0x8: "hardware slowdown", 0x10: "sync boost", 0x20: "temperature (software)",
           0x40: "temperature (hardware)", 0x80: "power brake", 0x100: "display clock"}


def read(probed):
    """A probe's facts with what its commands and files said made plain: clocks, power, temperature, power_mode; absent where nothing said it."""
    said, files = probed.pop("said", {}), probed.pop("files", {})
    found = {**smi(said.get(VALUES) or ""), **throttled(said.get(REASONS_NOW) or said.get(REASONS_OLD) or ""), **tegrastats(said.get(TEGRASTATS) or ""),
             **devfreq(files)}
    if mode := re.search(r"Power Mode\s*:\s*(\S+)", said.get(MODE) or ""):
        found["power_mode"] = mode[1]
    return {**probed, "telemetry": found}


def smi(text):
    """Of the first GPU's line: numbers where it has numbers."""
    values = [value.strip() for value in text.split("\n")[0].split(",")]
    return {name: number(value) for name, value in zip(NAMES, values) if not value.startswith(("[", "N/A"))} if len(values) == len(NAMES) else {}


def throttled(text):
    """Why the clock is lower than it could be."""
    active = text.split("\n")[0].strip()
    return {"throttled_by": [reason for bit, reason in REASONS.items() if int(active, 16) & bit]} if re.fullmatch(r"0x[0-9a-fA-F]+", active) else {}


def number(text):
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else text


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
