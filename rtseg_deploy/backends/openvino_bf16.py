"""OpenVINO Runtime on the CPU in BF16, which is what it takes by itself on a CPU that has instructions for it: FP32's range and three digits."""
from . import openvino

PRECISION = "bf16"


def unavailable():
    if reason := openvino.unavailable():
        return reason
    from openvino import Core

    if "BF16" in Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return "this CPU has no instructions for BF16 that OpenVINO uses", "use --backend openvino, which computes in FP32"


def open(job):
    return Session(job)


class Session(openvino.Session):
    name, note = "openvino-bf16", "computed in BF16, OpenVINO's default on this CPU"
    settings = {**openvino.Session.settings, "INFERENCE_PRECISION_HINT": "bf16"}
