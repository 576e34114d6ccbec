"""What devices print of themselves, read."""
import json

import pytest

from rtseg_deploy import telemetry

# of a Jetson TX2, from a public log
TX2 = ("RAM 1873/3830MB (lfb 144x4MB) CPU [8%@2016,26%@2034,24%@2035,7%@2026,7%@2034,6%@2034] EMC_FREQ 0%@1600 GR3D_FREQ 0%@114 APE 150 MTS fg 0% bg 1% "
       "PLL@39C MCPU@39C PMIC@50C Tboard@35C GPU@37C BCPU@39C thermal@38.5C Tdiode@37C VDD_SYS_GPU 77/77 VDD_SYS_SOC 539/539 VDD_IN 2930/3405 "
       "VDD_SYS_CPU 539/937 VDD_SYS_DDR 727/758")


def test_tegrastats_of_a_tx2():
    assert telemetry.tegrastats("11-21-2026 07:00:00 " + TX2) == telemetry.tegrastats(TX2)
    found = telemetry.tegrastats(TX2)
    assert (found["ram_mb"], found["ram_total_mb"], found["gpu_load_percent"], found["gpu_mhz"]) == (1873, 3830, 0, 114)
    assert found["temperatures_c"] == {"PLL": 39, "MCPU": 39, "PMIC": 50, "Tboard": 35, "GPU": 37, "BCPU": 39, "thermal": 38.5, "Tdiode": 37}
    assert found["rails_mw"] == {"VDD_SYS_GPU": 77, "VDD_SYS_SOC": 539, "VDD_IN": 2930, "VDD_SYS_CPU": 539, "VDD_SYS_DDR": 727}


HEAD = "pci.bus_id, clocks.current.sm [MHz], clocks.current.memory [MHz], clocks.max.sm [MHz], temperature.gpu, power.draw [W], power.limit [W], pstate\n"


def test_nvidia_smi():
    """Of the GPU that was probed, which need not be the first that nvidia-smi lists."""
    rows = HEAD + "00000000:01:00.0, 300 MHz, 405 MHz, 1911 MHz, 35, [N/A], 250.00 W, P8\n" \
           "00000000:02:00.0, 1545 MHz, 7000 MHz, 2100 MHz, 61, 212.37 W, 250.00 W, P2\n"
    reasons = "pci.bus_id, clocks_throttle_reasons.active\n00000000:01:00.0, 0x0000000000000001\n00000000:02:00.0, 0x0000000000000024\n"

    def read(bus):
        said = {telemetry.VALUES: rows, telemetry.REASONS_NOW: None, telemetry.REASONS_OLD: reasons}
        return telemetry.read({"gpu": {"bus": bus}, "said": said})["telemetry"]

    assert read("0000:02:00.0") == {"sm_mhz": 1545, "memory_mhz": 7000, "sm_max_mhz": 2100, "temperature_c": 61, "power_w": 212.37, "power_limit_w": 250,
                                    "state": "P2", "throttled_by": ["power cap", "temperature (software)"]}
    assert "power_w" not in read("00000000:01:00.0") and read("00000000:01:00.0")["throttled_by"] == []
    assert telemetry.read({"gpu": {"error": "none"}, "said": {telemetry.VALUES: "No devices were found\n"}})["telemetry"] == {}


def test_a_probe_is_made_plain():
    gpu = "/sys/class/devfreq/17000000.gp10b/"
    said = {telemetry.VALUES: None, telemetry.MODE: "NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n", telemetry.TEGRASTATS: TX2}
    found = telemetry.read({"gpu": {}, "said": said, "files": {gpu + "cur_freq": "1300500000", gpu + "max_freq": "1300500000"}})
    assert found["telemetry"]["power_mode"] == "MAXN" and found["telemetry"]["gpu_cur_mhz"] == found["telemetry"]["gpu_max_mhz"] == 1300
    assert telemetry.read({"gpu": {}}) == {"gpu": {}, "telemetry": {}}


# ---- rows of the sampler's raw lines

TOLD = {"sampler": 1, "pid": 7, "hz": 2, "files": [], "described": {}}


def raw(t, cpu="cpu 0 0 0 0 0 0 0 0 0 0", **more):
    return json.dumps({"t": t, "own_s": 0, "cpu": cpu, "load": "0.50 0.1 0.1 1/90 7", "files": [], **more})


def rows(*lines, **told):
    return telemetry.rows([json.dumps({**TOLD, **told}), *lines])


def test_shares_are_between_two_rows():
    """Of 1000 ticks 300 idle, 100 stolen, 600 used, 450 of those by the timed process; guests are counted with their hosts."""
    first, second = rows(raw(1, "cpu 100 10 50 500 5 1 1 20 9 9", timed=["60", "20"]),
                         raw(2, "cpu 500 60 150 750 55 11 41 120 99 9", timed=["480", "50"], own_s=0.004))
    assert first == {"t": 1, "load": 0.5}
    assert second == pytest.approx({"t": 2, "cpu_load_percent": 60, "steal_percent": 10, "others_cpu_percent": 15, "sampler_percent": 0.4, "load": 0.5})


def test_what_is_damaged_is_left_out_and_the_rest_stays():
    good = [raw(1), raw(2)]
    damaged = ["", "x", "[]", "null", "3", '{"t": "soon"}', '{"t": NaN}', raw(1.5)[:40], raw(1.2, "cpu what"), raw(1.3, files=3),
               raw(1.4, nvml={"reasons": "x"}), raw(1.6, load=None), "[" * 100_000]
    found = telemetry.rows([json.dumps(TOLD), good[0], *damaged, good[1]])
    assert [row["t"] for row in found if row["t"] in (1, 2)] == [1, 2] and all(set(row) >= {"t", "load"} for row in found)
    assert telemetry.rows([]) == telemetry.rows(good) == []         # nobody says what the files are


def test_another_number_for_the_timed_process():
    """In a container NVML may tell the host's: one of them is ours all the same."""
    def others(*pids):
        return rows(raw(1, nvml={"compute": list(pids)}))[0]["other_processes"]
    assert (others(7), others(7, 8), others(8), others(8, 9), others()) == (0, 1, 0, 1, 0)


def test_files_of_a_processor():
    files = ["/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "/sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq",
             "/sys/class/hwmon/hwmon2/temp1_input", "/sys/class/powercap/intel-rapl:0/energy_uj", "/sys/class/powercap/intel-rapl:1/energy_uj",
             "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"]
    told = {"files": files, "described": {files[2]: "coretemp", files[3]: "9999999", files[4]: "9999999"}}
    first, second, third = rows(raw(1, files=["800000", "3600000", "61000", "9000000", "1000000", "5"]),
                                raw(2, files=["900000", "3500000", "62000", "500000", "3000000", "5"]),       # the first package's counter began anew
                                raw(3, files=["", "3500000", "", "1500000", "3000000", "6"]), **told)
    assert (first["cpu_mhz"], first["cpu_temperature_c"], first["temperature_c"], first["cpu_energy_j"]) == (3600, 61, 61, 0)
    assert second["cpu_energy_j"] == pytest.approx(1.5 + 2) and "throttled_by" not in second
    assert third["throttled_by"] == ["temperature (hardware)"] and third["cpu_mhz"] == 3500 and third["cpu_energy_j"] == pytest.approx(4.5)


def test_a_counter_that_cannot_be_read_tells_no_energy_from_then_on():
    told = {"files": ["/energy_uj"], "described": {"/energy_uj": "9999999"}}
    found = rows(*(raw(t, files=[text]) for t, text in enumerate(["1000000", "2000000", "", "4000000", "5000000"])), **told)
    assert [row.get("cpu_energy_j") for row in found] == [0, 1, None, None, None]


def test_files_of_a_tx2_without_tegrastats():
    gpu, rail = "/sys/class/devfreq/17000000.gp10b/", "/sys/bus/i2c/drivers/ina3221x/0-004%d/iio:device%d/in_power%d_input"
    files = [gpu + "cur_freq", gpu + "max_freq", gpu + "min_freq", "/sys/devices/gpu.0/load", rail % (0, 0, 0), rail % (1, 1, 0),
             "/sys/class/thermal/thermal_zone2/temp", "/sys/class/thermal/thermal_zone0/temp", "/sys/class/thermal/cooling_device1/cur_state"]
    told = {"files": files, "described": dict(zip(files[4:], ["VDD_SYS_GPU", "VDD_IN", "GPU-therm", "BCPU-therm", "gpu-balanced"]))}
    (row,) = rows(raw(1, files=["1134750000", "1300500000", "114750000", "994", "4200", "11900", "70500", "68000", "1"]), **told)
    assert row == {"t": 1, "sm_mhz": 1134, "sm_max_mhz": 1300, "gpu_load_percent": 99.4, "power_w": 11.9, "temperature_c": 70.5, "cpu_temperature_c": 68,
                   "throttled_by": ["temperature (software)"], "load": 0.5}


@pytest.mark.parametrize("line, watts, mhz", [
    ("RAM 2545/31918MB (lfb 1x1MB) CPU [2%@1190,off,1%@1190] EMC_FREQ 0%@2133 GR3D_FREQ 7%@1377 GPU@41C CPU@42.5C GPU 930/930 CPU 311/311 SOC 932/932 CV 0/0 "
     "VDDRQ 155/155 SYS5V 1889/1889", 4.217, 1377),       # an AGX Xavier has no rail for all
    ("RAM 3000/7620MB SWAP 0/3810MB (cached 0MB) CPU [1%@729] GR3D_FREQ 0%@[305] cpu@45.5C gpu@46C VDD_IN 4529mW/4529mW VDD_CPU_GPU_CV 445mW/445mW",
     4.529, 305),
    ("RAM 2000/3956MB (lfb 1x4MB) IRAM 0/252kB(lfb 252kB) CPU [5%@1428] EMC_FREQ 1%@1600 GR3D_FREQ 9%@921 GPU@33C CPU@35C POM_5V_IN 2344/2344 POM_5V_GPU 40/40",
     2.344, 921)], ids=["xavier", "orin", "nano"])
def test_power_is_the_whole_boards(line, watts, mhz):
    found = telemetry.of_line(line)
    assert found["power_w"] == pytest.approx(watts) and found["sm_mhz"] == mhz and found["temperature_c"] in (41, 46, 33)


# ---- energy


def power(watts, step=0.1, begin=0.0):
    return [{"t": begin + n * step, "power_w": value} for n, value in enumerate(watts)]


def test_energy_is_the_area_under_the_power():
    assert telemetry.energy(power([100] * 11), 0, 1) == pytest.approx(100)
    assert telemetry.energy(power([100] * 11), 0.25, 0.75) == pytest.approx(50)
    ramp = power([100 * n / 10 for n in range(11)])
    assert telemetry.energy(ramp, 0, 1) == pytest.approx(50) and telemetry.energy(ramp, 0.5, 1) == pytest.approx(37.5)
    assert telemetry.energy(power([100] * 11), -0.05, 1.05) == pytest.approx(110)       # what lies outside is as the rest


def test_a_counter_goes_before_power():
    rows = [{"t": n, "energy_j": 500 + 30 * n, "power_w": 1} for n in range(5)]
    assert telemetry.energy(rows, 1, 3.5) == pytest.approx(75)
    assert telemetry.energy([{"t": n, "cpu_energy_j": 7 * n, "power_w": 1} for n in range(5)], 0, 4, cpu=True) == pytest.approx(28)


def test_no_energy_where_nobody_tells_it():
    assert telemetry.energy([], 0, 1) is None and telemetry.energy([{"t": 0}, {"t": 1}], 0, 1) is None
    assert telemetry.energy(power([100] * 11), 0.21, 0.29) is None and telemetry.energy(power([100] * 11), 5, 6) is None
    assert telemetry.energy(power([100] * 11), 0, 1, cpu=True) is None      # a graphics card's power is not the processors'
