"""The calibration table that weakly typed TensorRT (8.x, 10.x) reads for INT8: a scale for each tensor of an FP32 graph.

    TRT-8601-EntropyCalibration2
    input: 3ca9e1c4

First the version and the algorithm, which TensorRT compares with its own (device/quantised.py writes those of the device); then a line a
tensor: the float32 scale, its largest magnitude / 127, as eight hexadecimal digits, the most significant first. ONNX Runtime's TensorRT provider
reads the same (onnxruntime tensorrt_execution_provider.cc, ReadDynamicRange). Beside the table lies what it was made from.
"""
import json
import re
import struct

from . import files, limits
from .errors import RtsegError
from .records import FORMAT, pair, sidecar

HEAD = "TRT-8601-EntropyCalibration2"
LARGEST = 127                       # of symmetric INT8
LINE = re.compile(r"(.+): ([0-9a-f]{1,8})")


def text(peaks):
    """The table of tensors by name and largest magnitude."""
    return "\n".join([HEAD, *(f"{name}: {struct.pack('>f', peak / LARGEST).hex()}" for name, peak in peaks.items()), ""])


def scales(table):
    """Tensor -> scale. Raises RtsegError where it is no table."""
    head, *lines = table.splitlines() or [""]
    rows = [LINE.fullmatch(line) for line in lines]
    if not re.fullmatch(r"TRT-\d+-EntropyCalibration2", head) or not rows or not all(rows):
        raise RtsegError("it is no calibration table of TensorRT", "make one with rtseg-deploy calibrate --table")
    return {row[1]: struct.unpack(">f", bytes.fromhex(row[2].zfill(8)))[0] for row in rows}


def write(path, peaks, onnx_sha256, **about):
    """Write a table and what it was made from; kept, in `about`: names of the nodes that are to stay in FP32."""
    with pair(path) as (temporary, description):
        temporary.write_text(text(peaks))
        described = {"format": FORMAT, "kind": "calibration-table", "sha256": files.sha256(temporary), "onnx": onnx_sha256, **about}
        description.write_text(json.dumps(described, indent=1) + "\n")


def read(path, onnx_sha256):
    """(the table, names of the nodes that are to stay in FP32). Raises RtsegError where it is another graph's, or was changed."""
    about, again = files.read_json(sidecar(path)), "make it again with rtseg-deploy calibrate --table"
    if about.get("kind") != "calibration-table" or not isinstance(about.get("kept"), list):
        raise RtsegError(f"{path} is no calibration table of rtseg-deploy", again)
    if about.get("sha256") != files.sha256(path):
        raise RtsegError(f"{path} was changed after it was made: its sha256 is not the one in {sidecar(path).name}", again)
    if about.get("onnx") != onnx_sha256:
        raise RtsegError(f"{path} was made from another ONNX file: its scales are not this network's", again)
    table = limits.text(path)
    scales(table)
    return table, about["kept"]
