"""What is known of machines that figures are taken on: what spoils a figure there, and the clocks of reference cards."""
from dataclasses import dataclass
from functools import cache

from . import rows


@dataclass(frozen=True)
class Condition:
    """What makes a figure that is taken on a machine untrustworthy (warning), or is to be said with it (note). {names} are what conditions.py finds."""
    name: str                       # of a predicate of conditions.py, with - for _
    severity: str
    what: str
    why: str
    fix: str                        # the command that mends it
    source: str                     # "" where reason is enough


@cache
def conditions():
    """Every Condition, in the order in which they are told."""
    return [Condition(**row) for row in rows("conditions.csv")]


@cache
def clocks():
    """Device -> MHz of its reference card: boost_mhz, and what nvidia-smi says of it at most: sm_max_mhz, memory_max_mhz."""
    return {row["device"]: {name: float(row[name]) for name in row if name.endswith("_mhz")} for row in rows("clocks.csv")}
