"""Files that nobody of good will would write: what ever broke something, and new ones for as long as FUZZ_SECONDS says (10 for each kind)."""
import os
from pathlib import Path

import pytest
from fuzz import search
from fuzz.kinds import KINDS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))


@pytest.mark.parametrize("name", KINDS)
def test_what_once_broke_something(name):
    """And the valid files themselves, so that a kind without a past is read too."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    assert not search.replayed(KINDS[name], [*KINDS[name].valid, *kept])


@pytest.mark.parametrize("name", KINDS)
def test_nothing_new_breaks(name, tmp_path):
    said, data, count = search.searched(KINDS[name], SECONDS)
    if said:
        (tmp_path / name).write_bytes(data)
    assert not said, f"keep {tmp_path / name} in {CORPUS / name} once it is mended, after {count} inputs:\n{said}"
    assert count > 10
