"""Deployment toolkit for real-time semantic segmentation: checkpoint -> proven ONNX -> TensorRT engine -> a figure to believe."""
import os

__version__ = "0.1.0"

# ONNX Runtime 1.29 and newer report to their maker and leave a file where they run, unless told not to before they are loaded.
# Nothing here uses a network that the user did not ask for. (microsoft/onnxruntime#27379)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
