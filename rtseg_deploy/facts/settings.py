"""What can be set of a runtime on processors, and is worth a try: see settings.csv. What does no good on a machine costs seconds there, once."""
from dataclasses import dataclass
from functools import cache

from . import rows


@dataclass(frozen=True)
class Setting:
    """One value of one setting; those of a backend that are about the same thing exclude each other."""
    backend: str
    about: str
    setting: str                    # as the runtime calls it
    value: str                      # "threads/2": half of those that are asked for
    needs: str                      # of the machine: smt, two threads a core; hybrid, fast and slow cores
    why: str
    source: str


@cache
def settings():
    """Every Setting, those that promise most first."""
    return [Setting(**{**row, "backend": backend}) for row in rows("settings.csv") for backend in row["backend"].split()]
