"""From a network's logits to labels on a GPU: how many differ from PyTorch's there, and how long it takes beside its interpolate and argmax.

    python benchmarks/gpu_labels.py [--rounds 200] [--json]

The logits are drawn: `noise`, where nearly every cell is between two classes, and `regions`, a street's share of such cells. Both ways take turns, each call
between two events. PyTorch on a GPU multiplies and adds in other roundings than on a processor, whose labels the kernels give: where theirs and PyTorch's
differ, both classes are equal up to rounding, or the exit status is 1. Needs PyTorch for CUDA, and nvcc or NVRTC, which such a PyTorch brings.
"""
import argparse
import json
import sys
from ctypes import c_void_p
from functools import cache
from statistics import median

import torch
import torch.nn.functional as F

from rtseg_deploy.device import gpukernels
from rtseg_deploy.report import markdown_table

SIZES = ((45, 60), (360, 480)), ((64, 128), (512, 1024)), ((128, 256), (1024, 2048)), ((61, 81), (481, 643))
UNIT = 2.0 ** -24                   # of a float32's rounding


@cache
def kernels():
    torch.cuda.init()
    torch.zeros(1, device="cuda")       # its context is current from here on
    return gpukernels.Kernels()


class Labels:
    """The labels of 1 x classes x h x w logits on a GPU, by our kernel on PyTorch's stream."""
    def __init__(self, logits, size, mode="bilinear"):
        self.logits, self.size, self.mode, classes = logits.contiguous(), size, mode, logits.shape[1]
        self.found = torch.empty((1, *size), dtype=torch.uint8 if classes < 256 else torch.int32, device=logits.device)
        self.broken = torch.zeros(1, dtype=torch.int32, device=logits.device)

    def enqueue(self):
        kernels().labels(c_void_p(torch.cuda.current_stream().cuda_stream), self.logits.data_ptr(), self.logits.shape[1:], self.logits.dtype == torch.float16,
                         self.found.data_ptr(), self.broken.data_ptr(), self.size, self.mode)

    def __call__(self):
        self.enqueue()
        if self.broken.item():
            raise FloatingPointError("a logit is not finite")
        return self.found.cpu()


def enlarged(logits, size, mode="bilinear"):
    how = {"mode": "nearest"} if mode == "nearest" else {"mode": "bilinear", "align_corners": mode == "corners"}
    return F.interpolate(logits, size=size, **how)


def beyond_a_tie(logits, size, mode, labels):
    """Of how many pixels the label's logit is less than the greatest, in float64, by more than float32 can tell.

    A position among n rows is off by n units, and a logit by that share of the difference of two; each blend adds a few units of its own.
    """
    exact = enlarged(logits.double(), size, mode)
    chosen = exact.gather(1, labels.to(exact.device, torch.int64)[:, None])[:, 0]
    return int((exact.amax(1) - chosen > (8 + 4 * max(logits.shape[2:])) * UNIT * logits.double().abs().max()).sum())


def drawn(kind, classes, have, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    coarse = have if kind == "noise" else (have[0] // 16 + 2, have[1] // 16 + 2)
    return enlarged(torch.randn((1, classes, *coarse), generator=generator, device="cuda"), have).to(dtype)


def clocked(*calls, rounds):
    """Median milliseconds of each call by the GPU's events, in turns."""
    taken = [[] for _ in calls]
    for number in range(rounds + 20):
        for call, samples in zip(calls, taken):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            samples += [begin.elapsed_time(end)] * (number >= 20)       # what comes before warms up
    return [median(samples) for samples in taken]


def compared(have, size, classes, dtype, kind="noise", rounds=200):
    """A row of plain values."""
    logits = drawn(kind, classes, have, dtype)
    ours, theirs = Labels(logits, size), lambda: enlarged(logits, size).argmax(1)
    found, expected = ours(), theirs().cpu()
    mine, torchs = clocked(ours.enqueue, theirs, rounds=rounds)
    return {"logits": f"{kind}, {classes} classes, {str(dtype).rpartition('.')[2]}, {have[0]}x{have[1]}", "labels": f"{size[0]}x{size[1]}",
            "differ from PyTorch's": int((found != expected).sum()), "differ beyond a tie": beyond_a_tie(logits, size, "bilinear", found),
            "ms": mine, "PyTorch ms": torchs, "times as fast": torchs / mine}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU; install NVIDIA's driver and a PyTorch for CUDA")
    rows = [compared(have, size, classes, dtype, kind, given.rounds) for have, size in SIZES for classes in (11, 19) for kind in ("noise", "regions")
            for dtype in (torch.float32, torch.float16)]
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {kernels().compiler}\n")
        print(markdown_table([{name: f"{value:.3g}" if isinstance(value, float) else value for name, value in row.items()} for row in rows]))
    sys.exit(any(row["differ beyond a tie"] for row in rows))


if __name__ == "__main__":
    main()
