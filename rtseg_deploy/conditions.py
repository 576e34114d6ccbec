"""The predicates of facts/conditions.csv: each says of a machine's facts (doctor.facts) whether it holds there.

predicate(facts): the values that the row's texts name, None where it does not hold. What is not known is never held against a machine.
"""
from .facts import machines as known
from .telemetry import SLOWED, number

IDLE_CLOCK = 0.5                    # a GPU whose clock is below this share of its highest is not held there: -lgc holds it also when idle
IDLE_LOAD = 5                       # percent: a GPU that does more is not idle, and its clock says nothing
BUSY = 5                            # percent of the processors, while nothing is timed
LOAD = 0.3                          # processes that run or wait, over the last minute; a quiet server has less than 0.1
STEAL = 0.05                        # percent of the time since the machine started
NEAR_LIMIT = 10                     # degrees
LOW_MEMORY, PAGED_OUT = 0.1, 64     # share of it; MiB
CLOCK_TOLERANCE = 1.005             # drivers differ by a MHz
VOLTA = 7.0
CHANGES = {"CUDA_LAUNCH_BLOCKING": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "", "NVIDIA_TF32_OVERRIDE": "1", "OMP_NUM_THREADS": "", "MKL_NUM_THREADS": "",
           "OPENBLAS_NUM_THREADS": "", "KMP_AFFINITY": "", "GOMP_CPU_AFFINITY": "", "LD_PRELOAD": "", "MALLOC_CHECK_": "", "MALLOC_PERTURB_": "",
           "PYTHONMALLOC": ""}              # the value that does harm, "" for any


def told(facts):
    """(Condition, its values) of those that hold."""
    for condition in known.conditions():
        found = globals()[condition.name.replace("-", "_")](facts)
        if found is not None:
            yield condition, {"bus": facts["bus"] or "0", **found}


def said(facts, *paths):
    """What the first of these lines of nvidia-smi -q says: a number, a text, or None for N/A and for what is not there."""
    return next((number(facts["card"][path]) for path in paths if path in facts["card"]), None)


def numbers(*values):
    return all(isinstance(value, float) for value in values)


def capability(facts):
    return float(facts["gpu"].get("compute_capability") or 0)


def reference(facts):
    """MHz of the reference card of this GPU; nothing where no row has it."""
    return next((row for device, row in known.clocks().items() if facts["gpu"].get("name", "").endswith(device)), {})


# ---- the GPU


def gpu_absent(facts):
    return {"error": facts["gpu"]["error"]} if "error" in facts["gpu"] else None


def gpu_silent(facts):
    return {} if "name" in facts["gpu"] and not facts["card"] and not facts["jetson"] else None


def floating(facts):
    """The clock now and at most, and what it could be held at; None where the GPU is not idle, or its clock is held already."""
    now, most, load = (said(facts, path) for path in ("Clocks / SM", "Max Clocks / SM", "Utilization / Gpu"))
    if not numbers(now, most) or numbers(load) and load > IDLE_LOAD or now >= IDLE_CLOCK * most:
        return None
    usual, row = said(facts, "Default Applications Clocks / Graphics"), reference(facts)
    memory = said(facts, "Default Applications Clocks / Memory", "Max Clocks / Memory")
    return {"now": now, "most": most, "clock": usual or row.get("boost_mhz", most), "memory": memory or said(facts, "Max Clocks / Memory") or 0.0}


def gpu_clocks(facts):
    return floating(facts) if capability(facts) >= VOLTA else None


def gpu_clocks_application(facts):
    return floating(facts) if 0 < capability(facts) < VOLTA and numbers(said(facts, "Applications Clocks / Graphics")) else None


def gpu_clocks_floating(facts):
    return floating(facts) if 0 < capability(facts) < VOLTA and not numbers(said(facts, "Applications Clocks / Graphics")) else None


def gpu_application_clocks(facts):
    now, usual = said(facts, "Applications Clocks / Graphics"), said(facts, "Default Applications Clocks / Graphics")
    return {"now": now, "usual": usual} if numbers(now, usual) and now < usual else None


def gpu_persistence(facts):
    return {} if said(facts, "Persistence Mode") == "Disabled" else None


def power(facts):
    """The power limit, and what it is as delivered."""
    readings = ("GPU Power Readings / ", "Power Readings / ")
    limits = ("Current Power Limit", "Enforced Power Limit", "Power Limit")
    return said(facts, *(kind + name for kind in readings for name in limits)), said(facts, *(kind + "Default Power Limit" for kind in readings))


def gpu_power_capped(facts):
    now, usual = power(facts)
    return {"now": now, "usual": usual} if numbers(now, usual) and now < usual else None


def gpu_power_raised(facts):
    now, usual = power(facts)
    return {"now": now, "usual": usual} if numbers(now, usual) and now > usual else None


def gpu_overclocked(facts):
    for kind, name, path in (("SM", "sm_max_mhz", "Max Clocks / SM"), ("memory", "memory_max_mhz", "Max Clocks / Memory")):
        now, usual = said(facts, path), reference(facts).get(name)
        if numbers(now, usual) and now > usual * CLOCK_TOLERANCE:
            return {"kind": kind, "now": now, "usual": usual}
    return None


def gpu_display(facts):
    drawing = [one for one in facts["processes"] if one["type"] == "G"]
    return {"who": listed(drawing)} if said(facts, "Display Active") == "Enabled" or drawing else None


def listed(processes):
    return "".join(f"{': ' if not n else ', '}{one['name'].rpartition('/')[2]} ({one['pid']})" for n, one in enumerate(processes))


def gpu_processes(facts):
    others = [one for one in facts["processes"] if "C" in one["type"]]
    return {"who": listed(others)[2:], "pids": " ".join(str(one["pid"]) for one in others)} if others else None


def gpu_mig(facts):
    return {} if said(facts, "MIG Mode / Current") == "Enabled" else None


def gpu_virtual(facts):
    mode = said(facts, "GPU Virtualization Mode / Virtualization Mode", "GPU Virtualization Mode / Virtualization mode")
    return {"mode": {"Pass-Through": "passed through to a virtual machine"}.get(mode, f"virtual ({mode})")} if mode not in (None, "None", "Normal") else None


def gpu_ecc(facts):
    return {} if said(facts, "ECC Mode / Current") == "Enabled" else None


def gpu_throttled(facts):
    reasons = [reason for reason in facts["telemetry"].get("throttled_by", []) if reason in SLOWED]
    return {"reasons": ", ".join(reasons)} if reasons else None


def gpu_hot(facts):
    now, margin = said(facts, "Temperature / GPU Current Temp"), said(facts, "Temperature / GPU T.Limit Temp")
    limits = [said(facts, f"Temperature / GPU {name}") for name in ("Target Temperature", "Slowdown Temp")]
    if not numbers(margin) and numbers(now) and any(map(numbers, limits)):
        margin = min(filter(numbers, limits)) - now
    return {"now": now, "margin": margin} if numbers(now, margin) and margin < NEAR_LIMIT else None


def gpu_link(facts):
    now, most = (facts["card"].get(f"PCI / GPU Link Info / Link Width / {name}", "").rstrip("x") for name in ("Current", "Max"))
    return {"now": now, "most": most} if now.isdecimal() and most.isdecimal() and int(now) < int(most) else None


# ---- a Jetson


def jetson_mode(facts):
    now, modes = facts["telemetry"].get("power_mode"), facts["power_modes"]
    best = next((name for name in modes if name.startswith("MAXN")), None)
    return {"now": now, "best": best, "number": modes[best]} if now and best and not now.startswith("MAXN") else None


def jetson_clocks(facts):
    clocks = [(who, *facts["clock_ranges"][who]) for who in facts["clock_ranges"] if facts["jetson"]]
    return next(({"who": who, "least": least, "most": most} for who, least, most in clocks if least < most), None)


# ---- processors and memory


def cores_off(facts):
    fix = "sudo nvpmodel -m 0" if facts["jetson"] else "echo 1 | sudo tee " + " ".join(f"/sys/devices/system/cpu/cpu{n}/online" for n in facts["off"])
    return {"off": ", ".join(map(str, facts["off"])), "fix": fix} if facts["off"] else None


def virtual(facts):
    return {"vendor": f" ({facts['vendor']})" if facts["vendor"] else ""} if facts["hypervisor"] else None


def shared(facts):
    steal, now = facts["steal_percent_since_start"], facts["steal_percent"]
    return {"steal": steal, "now": now} if max(steal, now) > STEAL else None


def load(facts):
    busy, over = facts["cpu_load_percent"], facts["load"]
    return {"busy": busy, "count": facts["online"], "load": over} if busy > BUSY or over > LOAD else None


def governor_unknown(facts):
    return {} if not facts["governors"] else None


def governor(facts):
    held = [least == most for who, (least, most) in facts["clock_ranges"].items() if who == "processors'"]
    other = [name for name in facts["governors"] if name != "performance"]
    return {"now": ", ".join(other)} if other and not facts["jetson"] and held != [True] else None


def turbo(facts):
    return {"fix": facts["turbo_off"]} if facts["turbo_off"] else None


def smt(facts):
    return {"cpus": ",".join(map(str, facts["one_a_core"])), "count": len(facts["one_a_core"])} if facts["smt"] else None


def bound(facts):
    count, online = len(facts["allowed"]), facts["online"]
    return {"count": count, "online": online, "all": f"0-{online - 1}"} if count < online else None


def quota(facts):
    return {"quota": facts["quota"], "online": facts["online"]} if facts["quota"] and facts["quota"] < len(facts["allowed"]) else None


def cpu_throttled(facts):
    return {} if facts["slowed_by_heat"] else None


def battery(facts):
    return {} if facts["on_battery"] else None


def memory(facts):
    total, available = facts["memory_mib"], facts["memory_available_mib"]
    return {"available": available, "total": total} if total and available < LOW_MEMORY * total else None


def swap(facts):
    return {"used": facts["swapped_mib"]} if facts["swapped_mib"] > PAGED_OUT else None


def clocksource(facts):
    return {"now": facts["clocksource"]} if facts["clocksource"] in ("hpet", "acpi_pm", "jiffies", "refined-jiffies") else None


def nodes(facts):
    return {"count": facts["nodes"]} if facts["nodes"] > 1 else None


# ---- how it is called


def debug(facts):
    return {} if facts["debug"] else None


def variables(facts):
    harmful = {name: value for name, value in facts["variables"].items() if CHANGES[name] in ("", value)}
    return {"set": ", ".join(f"{name}={value}" for name, value in harmful.items()), "names": " ".join(harmful)} if harmful else None
