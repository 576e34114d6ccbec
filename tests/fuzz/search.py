"""Inputs by hypothesis, for as long as there is time: mutations of valid files, made smaller where something breaks.

python -m fuzz.search KIND SECONDS FILE, in tests/: first the valid files and the corpus; prints how many inputs were read, or what broke, left in FILE.
"""
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from .cage import Last, child, enter
from .kinds import KINDS

CORPUS = Path(__file__).parent / "corpus"
ROUND = 50                          # examples between looks at the clock
MARGIN = 90                         # seconds for the start and for making a found input smaller


def main(name, seconds, goal):
    kept = {path.read_bytes(): path.name for path in sorted((CORPUS / name).glob("*"))}
    for said, data in replayed(KINDS[name], [*KINDS[name].valid, *kept]):
        Path(goal).write_bytes(data)
        return f"{kept.get(data, 'a valid file')}:\n{said}"
    said, data, count = searched(KINDS[name], float(seconds))
    if said:
        Path(goal).write_bytes(data)
        return said
    print(count, "inputs")
    return 0


def searched(kind, seconds):
    """(what broke, the input that did it, how many were read); "" where nothing broke."""
    _ = kind.valid
    last, count = Last(), Last()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        said, data = child(lambda: rounds(kind, folder, seconds, last, count), last, seconds + MARGIN)
    return said, data, int.from_bytes(count.data() or b"\0", "little")


def rounds(kind, folder, seconds, last, count):
    read = enter(kind, folder)
    end, number, total = time.monotonic() + seconds, 0, 0

    def one(random):
        nonlocal total
        data = kind.mutated(random.choice(kind.valid), random)
        for _ in range(random.randrange(3)):
            data = kind.mutated(data, random)
        last.keep(data)
        read(data)
        last.done()
        total += 1
        count.keep(total.to_bytes(8, "little"))

    while time.monotonic() < end:
        how = settings(max_examples=ROUND, database=None, deadline=None, derandomize=False, phases=(Phase.generate, Phase.shrink),
                       suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
        seed(number)(how(given(st.randoms(use_true_random=False))(one)))()
        number += 1


def replayed(kind, inputs):
    """[(what broke, input)] of inputs that are kept, each read once."""
    left, found = list(inputs), []
    while left:
        last = Last()
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            said, data = child(lambda: all_of(kind, folder, left, last), last, 600)
        if not said:
            break
        found.append((said, data))
        left = left[left.index(data) + 1:] if data in left else []
    return found


def all_of(kind, folder, inputs, last):
    read = enter(kind, folder)
    for data in inputs:
        last.keep(data)
        read(data)
        last.done()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
