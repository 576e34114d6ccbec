"""Files that nobody of good will would write: what ever broke something, and new ones for as long as FUZZ_SECONDS says (10 for each kind)."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from fuzz.kinds import KINDS

SECONDS = os.environ.get("FUZZ_SECONDS", "10")


@pytest.mark.parametrize("name", KINDS)
def test_nothing_breaks(name, tmp_path):
    """In a process of its own: what is forked must have no threads."""
    found = tmp_path / name
    done = subprocess.run([sys.executable, "-m", "fuzz.search", name, SECONDS, found], cwd=Path(__file__).parent, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{found} is to be kept in tests/fuzz/corpus/{name}, once it is mended"
    assert int(done.stdout.split()[0]) > 5
