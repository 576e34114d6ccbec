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
