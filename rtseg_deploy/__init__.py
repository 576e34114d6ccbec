"""Deployment toolkit for real-time semantic segmentation: checkpoint -> proven ONNX -> TensorRT engine -> a figure to believe."""

__version__ = "0.1.0"
