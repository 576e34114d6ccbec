"""The command line. stdout is data, stderr is progress and warnings; exit status 0 good, 1 failed, 2 usage, 3 measured but unstable.

Only click is imported here; commands import what they need.
"""
import signal
import sys

from ..terminal import unforeseen
from . import (  # noqa: F401 (they join the group)
    accuracy,
    calibrate,
    chain,
    clean,
    compare,
    deploy,
    doctor,
    estimate,
    fleet,
    make,
    measure,
    report,
    results,
    sign,
    targets,
    tune,
)
from .group import cli


def main():
    sys.excepthook = unforeseen
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="replace")  # a terminal without these letters is no reason to fail
    for polite in (signal.SIGTERM, signal.SIGHUP):     # they clean up like ctrl-C; nohup has SIGHUP ignored, and so it stays
        if signal.getsignal(polite) != signal.SIG_IGN:
            signal.signal(polite, signal.default_int_handler)
    cli()
