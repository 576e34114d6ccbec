"""The times of docs/algebra.md:  python docs/algebra.py [ROUNDS]

Both graphs of a network, with and without the rules that remove work, by ONNX Runtime on one thread, in turns: processor time of the thread, which
another process on the machine lengthens far less than the clock on the wall. The minimum of ROUNDS (30 if not given), at 512x1024, native logits.
"""
import sys
import time
from dataclasses import replace

import numpy as np
import onnxruntime
import torch

from rtseg_deploy import checkpoints, passes
from rtseg_deploy.deployed import deployed
from rtseg_deploy.export import trace
from rtseg_deploy.report import markdown_table

SIZE = 512, 1024
NETWORKS = (("sgcpnet", ""), ("ddrnet-23-slim", ""), ("bisenetv2", ""), ("bisenetv2", "coincheung"), ("bisenetv1-x39", ""), ("bisenetv1-r18", ""),
            ("bisenetv1-r18", "coincheung"))


def main(rounds=30):
    print(markdown_table([row(name, dialect, int(rounds)) for name, dialect in NETWORKS]))


def row(name, dialect, rounds):
    trained = checkpoints.seeded(name)
    if dialect:
        means = next(one for one in trained.network.dialects if one.name == dialect)
        trained = replace(trained, module=trained.network.module(19, means).eval(), dialect=means)
    raw = trace(deployed(trained, "native", 17), torch.zeros(1, 3, *SIZE), 17)
    plain, (rewritten, fold) = without_rules(raw), passes.optimise(raw)
    before, after = times([session(model) for model in (plain, rewritten)], rounds)
    return {"network": name, "implementation": trained.dialect.name, "GMACs": round(fold["macs"]["before"] / 1e9, 3),
            "after": round(fold["macs"]["after"] / 1e9, 3), "CPU ms": f"{1e3 * before:.1f}", "ms after": f"{1e3 * after:.1f}",
            "less %": f"{100 - 100 * after / before:.1f}"}


def without_rules(raw):
    """The graph that is only folded."""
    kept = passes.FIRST, passes.ALGEBRA
    passes.FIRST, passes.ALGEBRA = (passes.hardswish,), ()
    try:
        return passes.optimise(raw)[0]
    finally:
        passes.FIRST, passes.ALGEBRA = kept


def session(model):
    """As a user opens one, but for the thread: proof's gives its memory back at every step, and page faults would hide what is looked for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def times(sessions, rounds):
    """Seconds of the thread, the least of each session."""
    x, found = np.random.default_rng(0).standard_normal((1, 3, *SIZE), np.float32), [[] for _ in sessions]
    for _ in range(rounds + 3):
        for session, seconds in zip(sessions, found):
            begin = time.thread_time()
            session.run(None, {"input": x})
            seconds.append(time.thread_time() - begin)
    return [min(seconds[3:]) for seconds in found]


if __name__ == "__main__":
    main(*sys.argv[1:])
