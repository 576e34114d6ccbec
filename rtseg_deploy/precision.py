"""Which nodes have to stay in FP32: found by trying, on a device or in a simulation of FP16; and why, in words."""
from .errors import RtsegError


def offenders(nodes, passes, kept=()):
    """Those of `nodes`, names in topological order, that must stay in FP32 for passes(names that stay) to hold; `kept` are known to.

    The shortest prefix of the others that makes it hold ends with one that must; so does the next, until no more is needed. That takes
    about log2(nodes) tries for each that is found. It is assumed that keeping more never makes it worse.
    Raises RtsegError where not even all of them are enough, or more than half are needed.
    """
    def ordered(names):
        return [name for name in nodes if name in names]

    known = kept = ordered(kept)
    while not passes(kept):
        rest = [name for name in nodes if name not in kept]
        if kept == known and not passes(ordered(kept + rest)):
            raise RtsegError("it departs even with every layer in FP32: FP16 is not the reason", "build it without --fp16, and compare")
        fails, holds = 0, len(rest)
        while holds - fails > 1:
            middle = (fails + holds) // 2
            if passes(ordered(kept + rest[:middle])):
                holds = middle
            else:
                fails = middle
        kept = ordered([*kept, rest[holds - 1]])
        refuse_most(kept, len(nodes))
    return kept


def refuse_most(kept, count):
    """Raise RtsegError where more than half of `count` nodes stay."""
    if len(kept) > count / 2:
        raise RtsegError(f"{kept[0]} and {len(kept) - 1} more of {count} nodes would have to stay in FP32: it would be an FP32 engine",
                         "build it without --fp16")


def because(node, row):
    """A node that stays in FP32, and why, in words; row: see fp16.Found.reason."""
    if row["why"] == "overflow":
        return f"{node}: {row['tensor']} reaches {row['largest']:.3g}" + (f" on {row['on']}" if row["on"] else "")
    if row["why"] == "underflow":
        return f"{node}: FP16 makes {row['flushed']:.1%} of {row['tensor']} zero"
    return f"{node}: {row['why']}"
