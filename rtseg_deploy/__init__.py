"""Deployment toolkit for real-time semantic segmentation: checkpoint -> proven ONNX -> TensorRT engine -> a figure to believe."""
import os
import sys

__version__ = "0.1.0"

# Nothing here uses a network that the user did not ask for. ONNX Runtime 1.29 and newer report to their maker and leave a file where they run, unless
# told not to before they are loaded (microsoft/onnxruntime#27379); OpenVINO tells Google Analytics of its import by a package beside it, and does
# without that package where it is not to be found.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)
