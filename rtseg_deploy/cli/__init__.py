"""The command line. stdout is data, stderr is progress and warnings; exit status 0 good, 1 failed, 2 usage, 3 measured but unstable.

Only click is imported here; commands import what they need.
"""
import signal
import sys

from ..terminal import unforeseen
from . import accuracy, calibrate, chain, compare, deploy, doctor, estimate, make, measure, report, results, targets, tune  # noqa: F401 (they join the group)
from .group import cli


def main():
    sys.excepthook = unforeseen
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # a terminal without these letters is no reason to fail
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up like ctrl-C
    cli()
