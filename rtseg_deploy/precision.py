"""Which nodes have to stay in FP32: found by trying, where nothing but the device can say what overflows."""
from .errors import RtsegError


def offenders(nodes, passes):
    """Those of `nodes`, names in topological order, that must stay in FP32 for passes(names that stay) to hold.

    The shortest prefix of the others that makes it hold ends with one that must; so does the next, until no more is needed. That takes
    about log2(nodes) tries for each that is found. It is assumed that keeping more never makes it worse.
    Raises RtsegError where not even all of them are enough, or more than half are needed.
    """
    def ordered(names):
        return [name for name in nodes if name in names]

    kept = []
    while not passes(kept):
        rest = [name for name in nodes if name not in kept]
        if not kept and not passes(rest):
            raise RtsegError("the engine departs even with every layer in FP32: FP16 is not the reason", "build it without --fp16, and compare")
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
