"""What would make a figure here, or on a device, untrustworthy, and the command that mends it. It looks and changes nothing.

A machine is asked twice: device/look.py reads what the operating system and the driver's tools say, before anything else runs there, and the
probe what it is and has. facts() makes that plain, findings() holds it against facts/conditions.csv.
"""
import re
from dataclasses import asdict, dataclass

from . import conditions, launch, telemetry
from .device import look
from .errors import RtsegError, first_line

SECONDS = 1.0                       # between two looks at what the processors do
SMI = "nvidia-smi -q"
CPU = "/sys/devices/system/cpu/"
CGROUP = "/sys/fs/cgroup/"
TWICE = ["/proc/stat", CPU + "cpu0/thermal_throttle/*_throttle_count", "/sys/class/thermal/cooling_device*/cur_state"]
FILES = ["/proc/cpuinfo", "/proc/loadavg", "/proc/meminfo", "/sys/class/dmi/id/sys_vendor", "/etc/nvpmodel.conf", CPU + "online", CPU + "present",
         CPU + "smt/active", CPU + "intel_pstate/no_turbo", CPU + "cpufreq/boost", CPU + "cpu*/cpufreq/scaling_governor", CPU + "cpu*/cpufreq/scaling_m??_freq",
         CPU + "cpu*/topology/thread_siblings_list", "/sys/class/devfreq/*.g[pva]*/m??_freq", "/sys/class/power_supply/*/status",
         "/sys/class/thermal/cooling_device*/type", "/sys/devices/system/clocksource/clocksource0/current_clocksource", "/sys/devices/system/node/online",
         CGROUP + "cpu.max", *(CGROUP + folder + name for folder in ("cpu/", "cpu,cpuacct/") for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))]


@dataclass(frozen=True)
class Finding:
    """One thing that bears on every figure taken there."""
    name: str                       # of a facts.Condition
    severity: str                   # warning: not to be trusted until it is mended; note: to be said with the figure
    what: str
    why: str
    fix: str
    source: str

    def to_json(self):
        return asdict(self)


def examine(place=None, tell=launch.quiet):
    """(facts, findings) of this machine, or of the one at `place`."""
    request = {"action": "look", "commands": [SMI], "files": FILES, "twice": TWICE, "seconds": SECONDS, "variables": list(conditions.CHANGES)}
    tell("looking", None)
    with launch.ran(launch.Job(request, worker=(look.__file__,)), place, tell) as (looked, _):
        pass
    tell("probing", None)
    probed = launch.probe(place, tell)
    try:
        found = facts(probed, looked)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RtsegError(f"what {place.name if place else 'this machine'} says of itself makes no sense: {first_line(error)}",
                         "look at it: rtseg-deploy probe --json") from None
    return found, findings(found)


def findings(facts):
    """Every Finding in a machine's facts."""
    return [Finding(condition.name, condition.severity, condition.what.format(**values), condition.why, condition.fix.format(**values), condition.source)
            for condition, values in conditions.told(facts)]


def facts(probed, looked):
    """What a machine is and does, plain, of launch.probe and device/look.py; None, "" or empty where nobody says."""
    files, bus = looked["files"], probed["gpu"].get("bus", "")
    card, processes = telemetry.card(looked["said"][SMI], bus)
    return {"gpu": probed["gpu"], "bus": bus, "card": card, "processes": processes, "telemetry": probed["telemetry"], "cpu": probed.get("cpu"),
            "model": probed.get("model"), "jetson": bool(probed.get("l4t")), "allowed": looked["allowed"], "debug": looked["debug"],
            "variables": looked["variables"], **processors(files), **clocks(files), **memory(files), **shares(files, looked["later"]), **surroundings(files)}


def processors(files):
    online, present = (listed(files.get(CPU + name, "")) for name in ("online", "present"))
    siblings = {tuple(listed(text)) for path, text in files.items() if path.endswith("/thread_siblings_list")}
    return {"online": len(online), "off": sorted(set(present) - set(online)), "smt": files.get(CPU + "smt/active") == "1",
            "one_a_core": sorted(group[0] for group in siblings if group)}


def listed(text):
    """The numbers in a list such as 0-2,5."""
    ranges = [part.partition("-") for part in text.split(",") if part]
    return [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]


def clocks(files):
    """Governors, the command that ends turbo, and the range in MHz that a GPU's and the processors' clocks may move in."""
    ranges = {who: [number(files, f"{name}{end}_freq$", pick) / unit for end, pick in (("min", min), ("max", max))]
              for who, name, unit in (("GPU's", "/devfreq/.*/", 1e6), ("processors'", "/scaling_", 1e3))}
    turbo = next((f"echo {off} | sudo tee {CPU}{name}" for name, on, off in (("intel_pstate/no_turbo", "0", 1), ("cpufreq/boost", "1", 0))
                  if files.get(CPU + name) == on), "")
    return {"governors": sorted({text for path, text in files.items() if path.endswith("/scaling_governor") and text}), "turbo_off": turbo,
            "clock_ranges": {who: ends for who, ends in ranges.items() if all(ends)}}


def number(files, pattern, pick):
    """The least or greatest number in the files whose path matches; 0 where there is none."""
    return pick((int(text) for path, text in files.items() if re.search(pattern, path) and text.isdecimal()), default=0)


def memory(files):
    """MiB."""
    said = {name: int(kib) // 1024 for name, kib in re.findall(r"(?m)^(\w+):\s+(\d+) kB", files.get("/proc/meminfo", ""))}
    return {"memory_mib": said.get("MemTotal", 0), "memory_available_mib": said.get("MemAvailable", said.get("MemTotal", 0)),
            "swapped_mib": said.get("SwapTotal", 0) - said.get("SwapFree", 0)}


def shares(files, later):
    """What the processors did while they were looked at, percent; what other machines on the host took since the start."""
    then, now = files.get("/proc/stat", ""), later.get("/proc/stat", "")
    nothing = {"cpu": "cpu" + " 0" * 8}
    found = telemetry.shares({"cpu": now}, {"cpu": then}) if then and now else {}
    whole = telemetry.shares({"cpu": now}, nothing) if now else {}
    cooling = {path: text for path, text in files.items() if not path.endswith("/cur_state")
               or re.search("cpu|gpu|emergency|Processor", files.get(path.replace("cur_state", "type"), ""))}
    return {"cpu_load_percent": found.get("cpu_load_percent", 0.0), "steal_percent": found.get("steal_percent", 0.0),
            "steal_percent_since_start": whole.get("steal_percent", 0.0), "slowed_by_heat": bool(telemetry.of_cooling(cooling, {**files, **later})),
            "load": float(files.get("/proc/loadavg", "0").split()[0])}


def surroundings(files):
    """Where it runs: in a virtual machine, a container, on a battery."""
    quota, _, period = files.get(CGROUP + "cpu.max", "").partition(" ")
    for folder in (CGROUP + "cpu/", CGROUP + "cpu,cpuacct/"):
        quota, period = quota or files.get(folder + "cpu.cfs_quota_us", ""), period or files.get(folder + "cpu.cfs_period_us", "")
    return {"hypervisor": bool(re.search(r"(?m)^flags\s*:.*\bhypervisor\b", files.get("/proc/cpuinfo", ""))),
            "vendor": files.get("/sys/class/dmi/id/sys_vendor", ""), "quota": int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None,
            "on_battery": any(text == "Discharging" for path, text in files.items() if path.endswith("/status")),
            "clocksource": files.get("/sys/devices/system/clocksource/clocksource0/current_clocksource", ""),
            "nodes": len(listed(files.get("/sys/devices/system/node/online", ""))),
            "power_modes": {name: int(number) for number, name in re.findall(r"< POWER_MODEL ID=(\d+) NAME=(\S+) >", files.get("/etc/nvpmodel.conf", ""))}}
