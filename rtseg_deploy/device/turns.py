"""Steps by turns: beside runner.py and frames.py, for its sessions; Python 3.6 and numpy. Who compares several workers has each keep its network ready.

After its first step a worker leaves its labels and tells so; then a line on its standard input, a number of steps, is a turn: it tells the seconds of
each, after one step that is not timed, since the caches are another worker's. It ends with its input, and where it was stopped meanwhile with its parent.
"""
import ctypes
import gc
import signal
import sys

import numpy

PARENT_ENDS = 1                     # prctl's PR_SET_PDEATHSIG
runner = sys.modules.get("rtseg_deploy.device.runner") or sys.modules["__main__"]      # whichever of the two was started


def turns(job, session):
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_ENDS, signal.SIGKILL)
    whole = runner.framed(job, session)
    whole.feed(numpy.load(job["inputs"][0]))
    whole.step()
    runner.save_labels(whole.output(), job["labels"][0])
    gc.disable()
    runner.report(job, stage="turn", seconds=[])
    for line in sys.stdin:
        whole.step()
        runner.report(job, stage="turn", seconds=runner.clock_steps(whole.step, int(line)))
        whole.samples.clear()
    return {"environment": dict(runner.environment(), **whole.facts())}
