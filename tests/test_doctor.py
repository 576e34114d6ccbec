"""What doctor finds: on recorded machines what stands against a figure there and nothing else, each condition when it is planted, here what is true."""
import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run
from remote import Server, needs_sshd, python

from rtseg_deploy import conditions, doctor, launch, telemetry
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.facts import machines
from rtseg_deploy.remedies import findings_lines

MACHINES = ROOT / "tests/machines"
CPU = doctor.CPU
STAT = "cpu  100 0 50 {idle} 0 0 0 {steal} 0 0\ncpu0 100 0 50 9000 0 0 0 0 0 0"
# a bare server that nobody else uses, its processors' clocks fixed
QUIET = {"/proc/stat": STAT.format(idle=9000, steal=0), "/proc/loadavg": "0.02 0.05 0.01 1/300 4242",
         "/proc/meminfo": "MemTotal: 16384000 kB\nMemFree: 12000000 kB\nMemAvailable: 14000000 kB\nSwapTotal: 2097148 kB\nSwapFree: 2097148 kB",
         "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme sse2 avx2", CPU + "online": "0-7", CPU + "present": "0-7", CPU + "smt/active": "0",
         CPU + "cpufreq/boost": "0", **{f"{CPU}cpu{n}/cpufreq/scaling_governor": "performance" for n in range(8)},
         **{f"{CPU}cpu{n}/topology/thread_siblings_list": str(n) for n in range(8)},
         "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc", "/sys/devices/system/node/online": "0"}
LATER = {"/proc/stat": STAT.format(idle=9800, steal=0)}
CARDS = {"gtx-1080ti": ("NVIDIA GeForce GTX 1080 Ti", "6.1"), "rtx-2080ti": ("NVIDIA GeForce RTX 2080 Ti", "7.5"), "h200": ("NVIDIA H200", "9.0")}


def machine(name="", smi=None, reasons="0x0000000000000001", probe=None, files=None, later=None, **looked):
    """The facts of a quiet server with that card, or of none, with changes; reasons: NVML's bits."""
    smi = smi or (MACHINES / f"{name}.txt").read_text() if name else None
    gpu = {"error": "no GPU"}
    said = {}
    if name:
        title, capability = CARDS[name]
        bus = smi.partition("\nGPU ")[2].partition("\n")[0]
        gpu = {"name": title, "compute_capability": capability, "memory_bytes": 1 << 33, "bus": bus[4:]}
        said = {telemetry.REASONS_OLD: f"pci.bus_id, clocks_throttle_reasons.active\n{bus}, {reasons}\n"}
    probed = telemetry.read({"gpu": gpu, "said": said, **(probe or {})})
    return doctor.facts(probed, {"files": {**QUIET, **(files or {})}, "later": {**LATER, **(later or {})}, "said": {doctor.SMI: smi},
                                 "allowed": list(range(8)), "variables": {}, "debug": False, **looked})


def found(facts):
    return {finding.name: finding for finding in doctor.findings(facts)}


def changed(name, *pairs):
    text = (MACHINES / f"{name}.txt").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


# ---- recorded machines


def test_a_quiet_server_without_gpu_has_nothing_against_it_but_that():
    assert list(found(machine())) == ["gpu-absent"]


def test_a_1080_ti_with_a_screen():
    """Idle, its driver's 139 MHz of 1911; NVML locks clocks from Volta on, and this card's application clocks are N/A."""
    told = found(machine("gtx-1080ti"))
    assert list(told) == ["gpu-clocks-floating", "gpu-persistence", "gpu-display"]
    assert "-lgc" not in told["gpu-clocks-floating"].fix and "needs Volta" in told["gpu-clocks-floating"].what
    assert "sudo nvidia-smi -i 0000:01:00.0 -ac 5505,1582" in told["gpu-clocks-floating"].fix
    assert told["gpu-display"].what.endswith(": Xorg (1139), gnome-shell (1310)") and "multi-user.target" in told["gpu-display"].fix
    assert told["gpu-persistence"].fix == "sudo nvidia-smi -i 0000:01:00.0 -pm 1"


def test_a_2080_ti_overclocked_and_capped():
    told = found(machine("rtx-2080ti", reasons="0x0000000000000005"))
    assert list(told) == ["gpu-clocks", "gpu-persistence", "gpu-power-capped", "gpu-overclocked", "gpu-throttled"]
    assert "-lgc 1545,1545" in told["gpu-clocks"].fix and "300 MHz while idle, up to 2250" in told["gpu-clocks"].what
    assert "200 W; this card's default is 250 W" in told["gpu-power-capped"].what and told["gpu-power-capped"].fix.endswith("-pl 250")
    assert "SM clock goes up to 2250 MHz, the reference card's to 2100" in told["gpu-overclocked"].what
    assert told["gpu-throttled"].what.endswith("now: power cap")


def test_an_h200_with_mig():
    told = found(machine("h200", files={"/proc/cpuinfo": "flags\t: fpu hypervisor avx2"}))
    assert list(told) == ["gpu-clocks", "gpu-processes", "gpu-mig", "gpu-virtual", "gpu-ecc", "virtual"]
    assert told["gpu-processes"].what.endswith(": python3 (48211)") and told["gpu-processes"].fix.endswith("kill 48211")
    assert "-lgc 1980,1980" in told["gpu-clocks"].fix and told["gpu-mig"].fix.endswith("-mig 0") and "passed through" in told["gpu-virtual"].what


TX2 = "/sys/class/devfreq/17000000.gp10b/"


def jetson(mode, most, least, online):
    files = {"/etc/nvpmodel.conf": (MACHINES / "nvpmodel.conf").read_text(), TX2 + "max_freq": str(most), TX2 + "min_freq": str(least),
             CPU + "online": online, CPU + "present": "0-5", CPU + "cpu0/cpufreq/scaling_min_freq": "345600", CPU + "cpu0/cpufreq/scaling_max_freq": "345600",
             **{f"{CPU}cpu{n}/cpufreq/scaling_governor": "schedutil" for n in range(8)}}
    probe = {"gpu": {"name": "NVIDIA Tegra X2", "compute_capability": "6.2", "memory_bytes": 8235577344, "bus": ""}, "model": "quill", "l4t": "# R32 (release)",
             "said": {telemetry.MODE: f"NV Fan Mode:quiet\nNV Power Mode: {mode}\n1\n", telemetry.TEGRASTATS: "RAM 1873/7850MB (lfb 144x4MB)\n"}}
    return machine(probe=probe, files=files, allowed=doctor.listed(online))


def test_a_tx2_as_it_starts():
    told = found(jetson("MAXQ", 850_000_000, 114_750_000, "0,3-5"))
    assert list(told) == ["jetson-mode", "jetson-clocks", "cores-off"]
    assert told["jetson-mode"].what == "power mode MAXQ, not MAXN" and told["jetson-mode"].fix == "sudo nvpmodel -m 0 && sudo jetson_clocks"
    assert "GPU's clock moves between 114.75 and 850 MHz" in told["jetson-clocks"].what and told["jetson-clocks"].fix == "sudo jetson_clocks"
    assert "processors 1, 2 are off" in told["cores-off"].what and told["cores-off"].fix == "sudo nvpmodel -m 0"


def test_a_tx2_after_nvpmodel_and_jetson_clocks():
    assert not found(jetson("MAXN", 1_300_500_000, 1_300_500_000, "0-5"))


# ---- each condition, planted on a machine that has it not


def stat(**changes):
    return {"/proc/stat": STAT.format(**{"idle": 9800, "steal": 0, **changes})}


GRAPHICS, MEMORY = (f"        {name:34}: " for name in ("Graphics", "Memory"))
THROTTLED = CPU + "cpu0/thermal_throttle/core_throttle_count"
PLANTED = {
    "gpu-absent": ({}, "no GPU answers"),
    "gpu-silent": ({"name": "h200", "smi": "nothing"}, "tells nothing"),
    "gpu-clocks": ({"name": "rtx-2080ti"}, "not locked"),
    "gpu-clocks-application": ({"name": "gtx-1080ti", "smi": changed("gtx-1080ti", (GRAPHICS + "N/A", GRAPHICS + "1480 MHz"),
                                                                     (MEMORY + "N/A", MEMORY + "5505 MHz"))},
                               "-lgc, which would lock it"),
    "gpu-clocks-floating": ({"name": "gtx-1080ti"}, "N/A on this card"),
    "gpu-application-clocks": ({"name": "h200", "smi": changed("h200", ("\n    Applications Clocks\n" + GRAPHICS + "1980",
                                                                         "\n    Applications Clocks\n" + GRAPHICS + "1200"))},
                               "to 1200 MHz; its default is 1980"),
    "gpu-persistence": ({"name": "rtx-2080ti"}, "is off"),
    "gpu-power-capped": ({"name": "rtx-2080ti"}, "200 W"),
    "gpu-power-raised": ({"name": "rtx-2080ti", "smi": changed("rtx-2080ti", (": 200.00 W", ": 280.00 W"))}, "280 W; this card's default is 250 W"),
    "gpu-overclocked": ({"name": "gtx-1080ti", "smi": changed("gtx-1080ti", (": 5505", ": 5805"))},
                        "memory clock goes up to 5805 MHz, the reference card's to 5505"),
    "gpu-display": ({"name": "gtx-1080ti"}, "a display hangs"),
    "gpu-processes": ({"name": "h200"}, "others compute"),
    "gpu-mig": ({"name": "h200"}, "slice"),
    "gpu-virtual": ({"name": "h200", "smi": changed("h200", ("Pass-Through", "VGPU"))}, "virtual (VGPU)"),
    "gpu-ecc": ({"name": "h200"}, "ECC is on"),
    "gpu-throttled": ({"name": "h200", "reasons": "0x0000000000000048"}, "hardware slowdown, temperature (hardware)"),
    "gpu-hot": ({"name": "rtx-2080ti", "smi": changed("rtx-2080ti", ("Current Temp                  : 44", "Current Temp : 79"))}, "79 degrees, 5 below"),
    "gpu-link": ({"name": "h200", "smi": changed("h200", ("Current                   : 16x", "Current : 4x"))}, "4 PCI Express lanes of 16"),
    "cores-off": ({"files": {CPU + "present": "0-9"}}, "8, 9 are off"),
    "virtual": ({"files": {"/proc/cpuinfo": "flags\t: hypervisor", "/sys/class/dmi/id/sys_vendor": "QEMU"}}, "a virtual machine (QEMU)"),
    "shared": ({"files": {"/proc/stat": STAT.format(idle=9000, steal=50)}, "later": stat(steal=60)}, "1.2 % now"),
    "load": ({"later": {"/proc/stat": "cpu  600 0 50 9500 0 0 0 0 0 0"}}, "50 % of 8 processors are busy"),
    "governor-unknown": ({"files": {f"{CPU}cpu{n}/cpufreq/scaling_governor": "" for n in range(8)}}, "cannot be read"),
    "governor": ({"files": {CPU + "cpu3/cpufreq/scaling_governor": "powersave"}}, "governor is powersave"),
    "turbo": ({"files": {CPU + "intel_pstate/no_turbo": "0"}}, "turbo is on"),
    "smt": ({"files": {CPU + "smt/active": "1", **{f"{CPU}cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)}}}, "two threads"),
    "bound": ({"allowed": [0, 1]}, "2 of 8"),
    "quota": ({"files": {doctor.CGROUP + "cpu.max": "150000 100000"}}, "1.5 processors' time of 8"),
    "cpu-throttled": ({"files": {THROTTLED: "7"}, "later": {THROTTLED: "9"}}, "heat"),
    "battery": ({"files": {"/sys/class/power_supply/BAT0/status": "Discharging"}}, "battery"),
    "memory": ({"files": {"/proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 204800 kB"}}, "200 MiB of 4000 MiB"),
    "swap": ({"files": {"/proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 2048000 kB\nSwapTotal: 1024000 kB\nSwapFree: 512000 kB"}},
             "500 MiB are paged out"),
    "clocksource": ({"files": {"/sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"}}, "by hpet"),
    "nodes": ({"files": {"/sys/devices/system/node/online": "0-1"}}, "2 parts"),
    "debug": ({"debug": True}, "debug build"),
    "variables": ({"variables": {"CUDA_LAUNCH_BLOCKING": "1", "OMP_NUM_THREADS": "4", "NVIDIA_TF32_OVERRIDE": "0"}},
                  "CUDA_LAUNCH_BLOCKING=1, OMP_NUM_THREADS=4"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_condition_is_found_where_it_is_planted(name):
    changes, words = PLANTED[name]
    assert words in found(machine(**changes))[name].what
    if "name" not in changes:
        assert set(found(machine(**changes))) == {name, "gpu-absent"}


def test_every_condition_is_planted_and_has_reason_and_remedy():
    names = [condition.name for condition in machines.conditions()]
    assert set(names) == {*PLANTED, "jetson-mode", "jetson-clocks"} and len(set(names)) == len(names)
    assert all(condition.what and condition.why and condition.fix and condition.severity in ("warning", "note") for condition in machines.conditions())


def test_a_locked_clock_and_a_busy_gpu_are_not_taken_for_a_floating_one():
    for change in ((": 300 MHz", ": 1545 MHz"), ("Gpu                               : 0 %", "Gpu : 97 %")):
        assert "gpu-clocks" not in found(machine("rtx-2080ti", smi=changed("rtx-2080ti", change)))


def test_a_card_at_the_reference_clocks_is_not_overclocked():
    assert "gpu-overclocked" not in found(machine("rtx-2080ti", smi=changed("rtx-2080ti", (": 2250", ": 2100"))))


def test_idle_is_no_reason_that_holds_a_gpu_back():
    assert "gpu-throttled" not in found(machine("h200", reasons="0x0000000000000001")) | found(machine("h200", reasons="0x0000000000000102"))


def test_of_two_cards_the_one_that_was_probed_is_looked_at():
    both = (MACHINES / "gtx-1080ti.txt").read_text() + (MACHINES / "h200.txt").read_text().partition("Attached GPUs                             : 1\n")[2]
    values, processes = telemetry.card(both, "0000:03:00.0")
    assert values["Product Name"] == "NVIDIA H200" and [one["pid"] for one in processes] == [48211]
    assert telemetry.card(both, "0000:01:00.0")[0]["Max Clocks / SM"] == "1911 MHz" and telemetry.card(both, "0000:99:00.0") == ({}, [])
    assert telemetry.card(None, "") == ({}, [])
    assert values["FB Memory Usage / Total"] == "143771 MiB"        # not the slice's


def test_fixed_clocks_make_the_governor_irrelevant():
    files = {CPU + "cpu3/cpufreq/scaling_governor": "powersave", CPU + "cpu3/cpufreq/scaling_min_freq": "2000000"}
    assert "governor" not in found(machine(files={**files, CPU + "cpu3/cpufreq/scaling_max_freq": "2000000"}))
    assert "governor" in found(machine(files={**files, CPU + "cpu3/cpufreq/scaling_max_freq": "2000100"}))


# ---- asking


def test_this_machine():
    """What the kernel says here is found, and no more: the test knows the machine by other ways."""
    out, _ = run("doctor", "--json")
    told = json.loads(out)
    names = {finding["name"] for finding in told["findings"]}
    here = told["facts"]
    assert ("virtual" in names) == (" hypervisor " in Path("/proc/cpuinfo").read_text().replace("\n", " "))
    assert ("gpu-absent" in names) == ("error" in launch.probe()["gpu"])
    assert ("governor-unknown" in names) == (not here["governors"]) and (here["load"] > conditions.LOAD) <= ("load" in names)
    assert {"name", "severity", "what", "why", "fix", "source"} == set(told["findings"][0]) if told["findings"] else True


@needs_sshd
@pytest.mark.xdist_group("ssh")
def test_a_device(tmp_path):
    server = Server(tmp_path)
    try:
        out, _ = run("doctor", "--on", server.url(python("3.6", folder=None)), "--json", environment=server.environment)
    finally:
        server.stop()
    assert json.loads(out)["facts"]["online"] > 0 and not list(server.home.glob("cache/*/jobs/*"))


def test_nonsense_is_one_line(monkeypatch):
    monkeypatch.setattr(launch, "probe", lambda place, tell: {"gpu": {"error": ""}, "telemetry": {}})
    monkeypatch.setattr(doctor, "FILES", [])
    good = {"files": {}, "later": {}, "said": {doctor.SMI: None}, "allowed": [], "variables": {}, "debug": False}
    assert doctor.facts(launch.probe(None, None), good)["online"] == 0
    for bad in ({"files": []}, {"files": {"/proc/loadavg": "x"}}, {"said": {}}, {"files": {"/proc/meminfo": 3}}, {"files": {CPU + "online": "a-b"}}):
        monkeypatch.setattr(launch, "ran", lambda *rest, bad=bad: contextlib.nullcontext(({**good, **bad}, None)))
        with pytest.raises(RtsegError, match="makes no sense"):
            doctor.examine()


def test_what_is_printed_names_what_mends_it(capsys):
    from rich.console import Console

    told = machine("rtx-2080ti")
    Console(width=200).print(*findings_lines(told, doctor.findings(told)))
    out = capsys.readouterr().out
    assert out.startswith("NVIDIA GeForce RTX 2080 Ti: 3 warnings, 1 note") and "→ sudo nvidia-smi -i 0000:65:00.0 -pl 250" in out
    assert replace(doctor.findings(told)[0], what="x").to_json()["what"] == "x"
