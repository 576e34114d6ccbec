"""A machine sampled while something is timed on it: the sampler runs whole, on a real Python 3.6 as well; what it asks of a GPU or a Jetson is a fake."""
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, until
from test_telemetry import TX2

from rtseg_deploy import telemetry
from rtseg_deploy.device import look, sampler

SAMPLER = sampler.__file__
FAST = "50"
PYNVML = '''
NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
class NVMLError(Exception): pass
class Process:
    def __init__(self, pid): self.pid = pid
class Rates: gpu, memory = 43, 20
joules = [7000]
def nvmlInit(): pass
def nvmlDeviceGetHandleByIndex(index): return "first"
def nvmlDeviceGetHandleByPciBusId(bus): return bus.decode()
def nvmlDeviceGetClockInfo(device, kind): return {1: 1545, 2: 7000}[kind]
def nvmlDeviceGetMaxClockInfo(device, kind): return 2100
def nvmlDeviceGetTemperature(device, sensor): return 61 if device == "0000:02:00.0" else 30
def nvmlDeviceGetPowerUsage(device): return 212370
def nvmlDeviceGetTotalEnergyConsumption(device):
    joules[0] += 1000
    return joules[0]
def nvmlDeviceGetCurrentClocksThrottleReasons(device): return 0x24
def nvmlDeviceGetUtilizationRates(device): return Rates
def nvmlDeviceGetComputeRunningProcesses(device):
    import os
    return [Process(os.getppid()), Process(1), Process(2)]
def nvmlDeviceGetGraphicsRunningProcesses(device): return [Process(1)]
'''


def start(python, out, *more, pid=None, path=(), modules=None):
    """The sampler on a leash, timing this process; `path`: folders of commands in front, `modules`: one of Python modules."""
    environment = {**os.environ, "PATH": os.pathsep.join([*map(str, path), os.environ["PATH"]]), "PYTHONPATH": str(modules or "")}
    return subprocess.Popen([python, SAMPLER, str(pid or os.getpid()), str(out), *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=environment)


def finished(process):
    """What it printed, after its leash was cut."""
    printed = process.communicate(timeout=10)
    assert process.returncode == 0
    return b"".join(printed)


def rows_of(out):
    return telemetry.rows(out.read_text().splitlines())


def lines(out, count, word="\n"):
    return until(lambda: out.exists() and out.read_text().count(word) >= count, 30)


def script(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(0o755)
    return folder


def sampled(python, tmp_path, *more, word="\n", **options):
    """The rows of a run that ends when six hold the word."""
    out = tmp_path / "out.jsonl"
    process = start(python, out, *more, **options)
    assert lines(out, 6, word)
    assert finished(process) == b""
    return rows_of(out)


# ---- the processors


def test_this_machine(python, tmp_path):
    """On one clock with the timed process; what that takes is its own, and what another takes is another's."""
    began = time.perf_counter()
    out = tmp_path / "out.jsonl"
    process = start(python, out, "10")
    assert lines(out, 3)
    end = time.process_time() + 0.6
    while time.process_time() < end:
        sum(range(1000))
    assert finished(process) == b""
    rows = rows_of(out)
    assert began < rows[0]["t"] < rows[-1]["t"] < time.perf_counter() and all(row["load"] >= 0 for row in rows)
    assert all(a["t"] < b["t"] for a, b in zip(rows, rows[1:])) and len(rows) >= 6
    mine = sum((row["cpu_load_percent"] - row["others_cpu_percent"]) / 100 * (row["t"] - before["t"]) * os.cpu_count()
               for before, row in zip(rows, rows[1:]) if "others_cpu_percent" in row)
    assert mine == pytest.approx(0.6, abs=0.25) and all(0 <= row.get("others_cpu_percent", 0) <= 100 for row in rows)


def test_without_a_gpu_it_is_slow_and_costs_nearly_nothing(python, tmp_path):
    """Under 0.5 % of one processor: after its start, which is before the clock's."""
    out = tmp_path / "out.jsonl"
    process = start(python, out)
    if json.loads(out.read_text().split("\n")[0] if lines(out, 5) else "{}").get("hz") != 2:
        process.kill()
        pytest.skip("a GPU is here")
    finished(process)
    rows = rows_of(out)
    assert rows[3]["t"] - rows[0]["t"] > 1.4        # two a second
    taken = sum(row["sampler_percent"] * (row["t"] - before["t"]) for before, row in zip(rows, rows[1:4]))      # after a stall a row follows at once
    assert taken / (rows[3]["t"] - rows[0]["t"]) < 0.5


# ---- the leash


def test_it_ends_with_its_leash_at_once_after_a_last_row(python, tmp_path):
    out = tmp_path / "out.jsonl"
    process = start(python, out, "0.01")
    assert lines(out, 2)
    cut, before = time.perf_counter(), kept_waiting(process)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    took = time.perf_counter() - cut - (kept_waiting(process) - before)
    assert process.wait() == 0 and rows_of(out)[-1]["t"] >= cut and took < 3


def kept_waiting(process):
    """Seconds for which it could have run and others did: it runs when nobody else needs the processors."""
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9


def test_it_ends_when_its_parent_is_killed(python, tmp_path):
    out = tmp_path / "out.jsonl"
    parent = subprocess.Popen([sys.executable, "-c", f"import subprocess, sys; p = subprocess.Popen([{python!r}, {SAMPLER!r}, '{os.getpid()}', {str(out)!r}, "
                               f"'{FAST}'], stdin=subprocess.PIPE); print(p.pid, flush=True); p.wait()"], stdout=subprocess.PIPE, text=True)
    sampler_pid = int(parent.stdout.readline())
    assert lines(out, 3)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert until(lambda: gone(sampler_pid), 10)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("reaped", [True, False])
def test_it_ends_with_the_timed_process(python, tmp_path, reaped):
    timed = subprocess.Popen(["sleep", "100"])
    out = tmp_path / "out.jsonl"
    process = start(python, out, FAST, pid=timed.pid)
    assert lines(out, 3)
    timed.kill()
    if reaped:
        timed.wait()
    assert process.wait(timeout=10) == 0        # its leash still holds
    timed.wait()
    assert process.communicate() == (b"", b"")


def test_what_it_started_ends_with_it(python, tmp_path):
    smi = script(tmp_path / "bin", "nvidia-smi", f"echo $$ > {tmp_path}/pid; while :; do echo 1545, 7000, 2100, 61, 212.37, 43, 0x04; sleep 0.02; done")
    sampled(python, tmp_path, FAST, path=[smi])
    assert gone(int((tmp_path / "pid").read_text()))


# ---- where it cannot


@pytest.mark.parametrize("arguments", [[], ["x", "out"], ["1", "no/such/folder/out"], ["1", "out", "fast"], ["1", "out", "0"]])
def test_it_never_prints(python, tmp_path, arguments):
    done = subprocess.run([python, SAMPLER, *arguments], cwd=tmp_path, input=b"", capture_output=True)
    assert done.stdout == done.stderr == b""


@pytest.mark.parametrize("module", ["import no_such_library", *(PYNVML.replace("def nvmlInit(): pass", f"def nvmlInit(): raise {error}")
                                                                for error in ("NVMLError", "OSError", "AttributeError"))])
def test_nvml_that_does_not_work_is_left_out(python, tmp_path, module):
    (tmp_path / "pynvml.py").write_text(module)
    rows = sampled(python, tmp_path, FAST, modules=tmp_path)
    assert all("sm_mhz" not in row and "load" in row for row in rows)


# ---- a GPU


def test_nvml(python, tmp_path):
    (tmp_path / "pynvml.py").write_text(PYNVML)
    rows = sampled(python, tmp_path, "", "0000:02:00.0", modules=tmp_path)
    assert rows[1]["t"] - rows[0]["t"] > 0.08        # ten a second: where there is a GPU
    wanted = {"sm_mhz": 1545, "memory_mhz": 7000, "sm_max_mhz": 2100, "temperature_c": 61, "power_w": 212.37, "gpu_load_percent": 43,
              "throttled_by": ["power cap", "temperature (software)"], "other_processes": 2}
    assert all({name: row[name] for name in wanted} == wanted for row in rows)
    assert [b["energy_j"] - a["energy_j"] for a, b in zip(rows, rows[1:])] == [1] * (len(rows) - 1)


def test_what_nvml_does_not_say_is_left_out(python, tmp_path):
    """A Pascal has no energy counter, some cards tell no power."""
    (tmp_path / "pynvml.py").write_text(PYNVML.replace("return 212370", "raise NVMLError") + "\ndel nvmlDeviceGetTotalEnergyConsumption\n")
    row = sampled(python, tmp_path, FAST, modules=tmp_path)[-1]
    assert "power_w" not in row and "energy_j" not in row and row["sm_mhz"] == 1545 and row["temperature_c"] == 30


@pytest.mark.parametrize("driver", ["new", "old"])
def test_nvidia_smi_where_nvml_is_not(python, tmp_path, driver):
    """Read line by line as it goes on; of an old driver, which refuses the reasons' new name, by their old one."""
    refuse = 'case "$*" in *event_reasons*) echo Field is not a valid field to query.; exit 2;; esac\n' if driver == "old" else ""
    smi = script(tmp_path / "bin", "nvidia-smi", refuse + 'echo "$*" > ' + f"{tmp_path}/asked\n"
                 "while :; do echo '1530, 7000, 2100, 61, [N/A], 43, 0x0000000000000004'; sleep 0.02; done")
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    rows = [row for row in sampled(python, tmp_path, FAST, "0000:02:00.0", path=[smi], modules=tmp_path, word='"1530') if "sm_mhz" in row]
    assert len(rows) > 5 and all(row["sm_mhz"] == 1530 and row["throttled_by"] == ["power cap"] and "power_w" not in row for row in rows)
    asked = (tmp_path / "asked").read_text()
    assert "-i 0000:02:00.0" in asked and "-lms 20" in asked and ("throttle" in asked) == (driver == "old")


def test_tegrastats(python, tmp_path):
    tegra = script(tmp_path / "bin", "tegrastats", f"while :; do echo '{TX2}'; sleep 0.02; done")
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    rows = [row for row in sampled(python, tmp_path, FAST, path=[tegra], modules=tmp_path, word='"RAM') if "sm_mhz" in row]
    wanted = {"sm_mhz": 114, "gpu_load_percent": 0, "temperature_c": 37, "power_w": 2.93, "memory_mhz": 1600, "cpu_mhz": 2035, "cpu_temperature_c": 39}
    assert len(rows) > 5 and all({name: row[name] for name in wanted} == wanted for row in rows)


def test_both_files_for_devices_are_written_in_python_36_and_need_nothing():
    vermin = shutil.which("vermin", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for file in (sampler.__file__, look.__file__):
        tree = ast.parse(Path(file).read_text(), feature_version=(3, 6))
        names = {alias.name for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names if isinstance(node, ast.Import)}
        assert names <= set(sys.stdlib_module_names)
        if vermin:
            done = subprocess.run([vermin, "-t=3.6-", "--violations", file], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stdout
