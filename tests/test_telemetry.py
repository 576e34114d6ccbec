"""What devices print of themselves, read."""
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


def test_nvidia_smi():
    found = telemetry.smi("1545, 7000, 2100, 61, 212.37, 250.00, P2\n300, 1, 1, 1, 1, 1, P8\n")
    assert (found["sm_mhz"], found["memory_mhz"], found["power_w"], found["state"]) == (1545, 7000, 212.37, "P2")
    assert "power_w" not in telemetry.smi("300, 405, 1911, 35, [N/A], 250.00, P8")
    assert telemetry.smi("No devices were found") == telemetry.smi("") == {}
    assert telemetry.throttled("0x0000000000000024\n") == {"throttled_by": ["power cap", "temperature (software)"]}
    assert telemetry.throttled("0x0000000000000001") == {"throttled_by": []} and telemetry.throttled("[N/A]") == {}


def test_a_probe_is_made_plain():
    gpu = "/sys/class/devfreq/17000000.gp10b/"
    said = {telemetry.VALUES: None, telemetry.MODE: "NV Fan Mode:quiet\nNV Power Mode: MAXN\n0\n", telemetry.TEGRASTATS: TX2}
    found = telemetry.read({"gpu": {}, "said": said, "files": {gpu + "cur_freq": "1300500000", gpu + "max_freq": "1300500000"}})
    assert found["telemetry"]["power_mode"] == "MAXN" and found["telemetry"]["gpu_cur_mhz"] == found["telemetry"]["gpu_max_mhz"] == 1300
    assert telemetry.read({"gpu": {}}) == {"gpu": {}, "telemetry": {}}
