"""A fake of TensorRT for RTX: tensorrt.py beside it, as the version "rtx"."""
import importlib.util
import os

spec = importlib.util.spec_from_file_location("fakes_tensorrt", os.path.join(os.path.dirname(os.path.abspath(__file__)), "tensorrt.py"))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
fake.install(__name__)
