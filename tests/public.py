"""Public implementations' checkpoints, filled with fixed weights: the keys and shapes are facts, the weights follow from the keys.

A file of tests/dialects has a line of JSON (source, wrapper, outputs of the original code at evenly spaced places) and a line a tensor:
"key shape scale" for a weight, "key shape kind" for another, "key bn width" for a BatchNorm's five.
"""
import json
import zlib

import numpy as np

BN = ("weight", "gamma"), ("bias", "beta"), ("running_mean", "mean"), ("running_var", "var"), ("num_batches_tracked", "count")


def read(path):
    """(header, [(key, shape, kind, scale)]), in the order of the state dict."""
    first, *lines = path.read_text().splitlines()
    tensors = []
    for key, shape, kind in map(str.split, lines):
        if shape == "bn":
            tensors += [(f"{key}.{name}", () if what == "count" else (int(kind),), what, 1.0) for name, what in BN]
            continue
        shape = () if shape == "-" else tuple(map(int, shape.split("x")))
        known = kind in ("gamma", "beta", "mean", "var", "count", "bias", "scalar")
        tensors.append((key, shape, kind if known else "weight", 1.0 if known else float(kind)))
    return json.loads(first), tensors


def value(key, shape, kind, scale):
    """A tensor that depends on its key, and for a weight on its scale."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if kind == "count":
        return np.array(0, np.int64)
    if kind in ("var", "gamma"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if kind == "scalar":
        return rng.uniform(0.2, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * (scale if kind == "weight" else 0.1)).astype(np.float32)


def checkpoint(path):
    """What the implementation's training code would save, as torch.save takes it."""
    import torch
    header, tensors = read(path)
    inner = {header["prefix"] + key: torch.from_numpy(np.array(value(key, *rest))) for key, *rest in tensors}
    inner.update((key, torch.ones(tuple(shape))) for key, shape in header["extra"])
    if header["container"] is None:
        return {**inner, **header["outer"]}
    return {**header["outer"], header["container"]: inner}


def image(height, width):
    """The input for which outputs were recorded: 1 x 3 x H x W, already normalised."""
    rng = np.random.default_rng(1234)
    coarse = rng.standard_normal((1, 3, -(-height // 32), -(-width // 32))).astype(np.float32).repeat(32, 2).repeat(32, 3)[:, :, :height, :width]
    return (0.7 * rng.standard_normal((1, 3, height, width)).astype(np.float32) + 0.9 * coarse).astype(np.float32)
