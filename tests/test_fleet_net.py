"""A fleet of machines with addresses of their own: a worker dies, another one returns garbage, and what comes of it is as if neither had happened."""
import json
import subprocess
import sys

import fleet_hosts
import pytest
from conftest import ROOT

pytest.importorskip("distributed")


def test_a_dead_worker_and_one_that_returns_garbage_change_nothing(artifact):
    if why := fleet_hosts.why_not():
        pytest.skip(why)
    done = subprocess.run([sys.executable, ROOT / "tests/fleet_chaos.py", "slice", artifact], capture_output=True, text=True, timeout=300,
                          env={**fleet_hosts.os.environ, "PYTHONPATH": str(ROOT)})
    row = json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr
    assert done.returncode == 0 and row["wrong"] == [], row
    assert len(row["happened"]) == 2 and row["runs"] == {"bench": [0]}
