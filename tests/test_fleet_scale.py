"""What a fleet costs: the table and the picture of docs/fleet-scale.md."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("distributed")
pytest.importorskip("matplotlib")


def case(jobs, work, seconds):
    each = {"scheduler": 1 << 26, "client": 1 << 26, "worker": 1 << 26}
    return {"jobs": jobs, "devices": 50, "work_seconds": work, "seconds": seconds, "cpu_seconds": {"scheduler": jobs / 100, "client": jobs / 50, "worker": 1.0},
            "filing_seconds": jobs / 200, "idle_bytes": each, "peak_bytes": {**each, "client": 1 << 27}, "artifact_bytes": 1 << 21, "figure_bytes": 1 << 16,
            "stored": 50, "fetched": 49}


def test_a_document_is_filled(tmp_path):
    cases = [case(100, 0.0, 2.0), case(1000, 0.0, 20.0), case(1000, 1.0, 25.0)]
    kept, document = tmp_path / "kept.json", tmp_path / "fleet-scale.md"
    about = {"cpu": "a CPU", "cpus": 2, "load": 0.5, "python": "3"}
    kept.write_text(json.dumps({"format": 1, "kind": "fleet", "dask": "1", "environment": about, "cases": cases}))
    document.write_text((ROOT / "docs/fleet-scale.md").read_text())
    subprocess.run([sys.executable, ROOT / "benchmarks/fleet.py", "--from", kept, "--document", document], check=True, capture_output=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [line.split(" | ") for line in document.read_text().partition("<!-- python")[2].splitlines() if line.startswith("| 1")]
    assert [(row[2], row[3], row[4], row[5], row[6], row[7]) for row in rows] == [
        ("2.0", "20.00", "10.00", "20.00", "10.00", "5.00"), ("20.0", "20.00", "10.00", "20.00", "1.00", "5.00"),
        ("25.0", "25.00", "10.00", "20.00", "1.00", "5.00")]
    assert [row[-2] for row in rows] == ["50, fetched 49"] * 3 and [row[-1] for row in rows] == [" |", " |", "80% |"]
    assert document.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert document.read_text().partition("## How it grows")[2] == (ROOT / "docs/fleet-scale.md").read_text().partition("## How it grows")[2]
