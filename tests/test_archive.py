"""Results that accumulate: the index says what a plain scan says, whatever happens to the files and to the index, and nothing in a folder breaks it."""
import contextlib
import copy
import fnmatch
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import synthetic
from conftest import ROOT, run
from hypothesis import given, settings
from hypothesis import strategies as st

from rtseg_deploy import archive, entries, limits
from rtseg_deploy.archive import Wanted
from rtseg_deploy.errors import RtsegError

EVERYTHING = Wanted()
BASE = synthetic.result(iterations=24)
MIOU = {"format": 3, "kind": "accuracy", "artifact": BASE["artifact"], "file": "net.onnx", "backend": "onnxruntime-cpu", "notes": ["random weights"],
        "data": {"name": "camvid", "split": "test", "pictures": 10, "digest": "d"}, "stages": {"network": 0.01}, "waited_share": None, "memory_bytes": None,
        "scores": {"miou": 0.5, "miou_all": 0.5, "pixel_accuracy": 0.8, "boundary_f": None, "pixels": 9, "iou": {"sky": 0.5}, "boundary": {"sky": None}},
        "environment": {"time": "2026-11-20T10:00:00Z", "cpu": "AMD EPYC"}}


def value(network="sgcpnet", backend="onnxruntime-cpu", when="2026-11-20T10:00:00Z", device="AMD EPYC", status="stable", **more):
    found = copy.deepcopy(BASE)
    found["artifact"]["model"], found["backend"], found["status"] = network, backend, status
    found["runs"][0]["environment"].update(time=when, cpu=device)
    return {**found, **more}


def put(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return path


def told(err):
    """Lines of stderr, without those that say how far it is where that takes long."""
    return [line for line in err.splitlines() if not line.startswith("  ")]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that are read."""
    found, entry = [], entries.entry
    monkeypatch.setattr(entries, "entry", lambda path: (found.append(Path(path).name), entry(path))[1])
    return found


@pytest.fixture
def at_once(monkeypatch):
    """What changed a moment ago is not read again for that."""
    monkeypatch.setattr(archive, "YOUNG_SECONDS", 0)


def plain(folder, wanted=EVERYTHING):
    """The same rows without an index and without SQL."""
    found = []
    for path in map(str, Path(folder).rglob("*.json")):
        with contextlib.suppress(RtsegError):
            found.append(archive.row(path))
    found = [row for row in found if fits(row, wanted)]
    return sorted(sorted(found, key=lambda row: os.path.split(row["file"])), key=lambda row: row["time"], reverse=True)


def fits(row, wanted):
    for name in ("network", "resolution", "precision", "backend", "protocol", "device", "status", "figure", "kind", "sha256"):
        patterns = getattr(wanted, name)
        if patterns and not any(fnmatch.fnmatchcase(row[name], pattern) for pattern in patterns):
            return False
    late = not wanted.since or row["time"] >= wanted.since
    return late and (not wanted.until or row["time"] and row["time"][:len(wanted.until)] <= wanted.until)


# ---- the index is what the files are


TIMES = st.sampled_from(["2025-12-31T23:59:59Z", "2026-01-01T00:00:00Z", "2026-11-20T10:00:00Z", "yesterday"])
VALUES = st.builds(value, st.sampled_from(["sgcpnet", "ddrnet-23", "ddrnet-39", "na\u001b[31mme"]),
                   st.sampled_from(["onnxruntime-cpu", "openvino-bf16", "tensorrt"]), TIMES, st.sampled_from(["AMD EPYC", "Xeon"]),
                   st.sampled_from(["stable", "unstable"])) | st.just(MIOU) | st.sampled_from(["{}", "no", "[]"])
STEPS = st.lists(st.tuples(st.sampled_from(["put", "put", "put", "move", "remove"]), st.integers(0, 5), VALUES), min_size=1, max_size=8)
PATTERNS = {"network": ["sgcpnet", "ddrnet-*", "?drnet-39", "*"], "precision": ["fp32", "bf16"], "device": ["*EPYC", "Xeon"], "status": ["stable", "un*"],
            "kind": ["accuracy", "benchmark"], "backend": ["o*"]}
WANTED = st.fixed_dictionaries({}, optional={**{name: st.lists(st.sampled_from(known), min_size=1, max_size=2).map(tuple) for name, known in PATTERNS.items()},
                                             "since": st.sampled_from(["2026", "2026-11-20T10:00:00Z"]), "until": st.sampled_from(["2025", "2026-01-01"])})


@given(STEPS, st.lists(WANTED.map(lambda given: Wanted(**given)), min_size=2, max_size=3))
@settings(max_examples=15)
def test_what_the_index_says_is_what_a_plain_scan_says(steps, questions):
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder, *parts) for parts in (["a.json"], ["b.json"], ["one", "a.json"], ["one", "b.json"], ["two", "deep", "c.json"], ["two", "d.json"])]
        for kind, number, what in steps:
            if kind == "put":
                put(names[number], what)
            elif names[number].exists() and kind == "move":
                os.replace(names[number], put(names[(number + 1) % 6], "{}"))
            else:
                names[number].unlink(missing_ok=True)
            assert archive.rows(folder) == (plain(folder), len(plain(folder)))
        for wanted in questions:
            found = plain(folder, wanted)
            assert archive.rows(folder, wanted) == (found, len(found)) and archive.rows(folder, wanted, 1) == (found[:1], len(found))


def test_only_what_changed_is_read_again(tmp_path, reads, at_once):
    for name in "abcd":
        put(tmp_path / name / f"{name}.json", value())
    put(tmp_path / "e.json", "{}")
    assert archive.rows(tmp_path)[1] == 4 and sorted(reads) == ["a.json", "b.json", "c.json", "d.json", "e.json"]
    archive.rows(tmp_path)
    assert len(reads) == 5
    with open(tmp_path / "a/a.json", "r+") as file:         # in place, and as long as it was
        file.write(json.dumps(value(network="sgcpneT")))
    before = os.stat(tmp_path / "b/b.json")
    put(tmp_path / "b/b.json", value(network="sgcpneU"))
    os.utime(tmp_path / "b/b.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "c/c.json").rename(tmp_path / "c/x.json")
    shutil.rmtree(tmp_path / "d")
    assert {row["network"] for row in archive.rows(tmp_path)[0]} == {"sgcpneT", "sgcpneU", "sgcpnet"} and sorted(reads[5:]) == ["a.json", "b.json", "x.json"]
    archive.rows(tmp_path)
    assert len(reads) == 8 and archive.rows(tmp_path)[1] == 3


@pytest.mark.parametrize("age, seen", [(0, "changed"), (1.5, "changed"), (9, "first"), (-9, "first")])
def test_what_is_young_is_read_again_though_it_looks_the_same(tmp_path, monkeypatch, age, seen):
    put(tmp_path / "a.json", value("first"))
    stamp = f"{time.time_ns() - int(age * 1e9)}/1/1"
    monkeypatch.setattr(archive, "listed", lambda *_: ({"a.json": stamp}, []))
    archive.rows(tmp_path)
    put(tmp_path / "a.json", value("changed"))
    assert archive.rows(tmp_path)[0][0]["network"] == seen


def index(folder):
    return archive.index_of(folder)


DAMAGE = {"gone": os.unlink, "empty": lambda path: path.write_bytes(b""), "text": lambda path: path.write_text("no database " * 99),
          "another version's": lambda path: path.write_bytes(path.read_bytes()[:60] + b"\0\0\0\7" + path.read_bytes()[64:]),
          **{f"cut at {share}": lambda path, share=share: os.truncate(path, int(share * path.stat().st_size)) for share in (0.1, 0.5, 0.9)},
          **{f"zeros from {place}": lambda path, place=place: overwritten(path, place) for place in (16, 100, 4096, 9000)}}


def overwritten(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(b"\0" * 3000)


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_index_that_is_damaged_is_made_again(tmp_path, damage, reads, at_once):
    for number in range(40):
        put(tmp_path / f"{number}.json", value())
    good = archive.rows(tmp_path)
    DAMAGE[damage](index(tmp_path))
    said = []
    for _ in range(2):
        assert archive.rows(tmp_path, warn=said.extend) == good and not said and len(reads) == 80


def test_without_a_cache_it_works_and_says_so(tmp_path, monkeypatch):
    put(tmp_path / "results/a.json", value())
    put(tmp_path / "file", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    assert archive.rows(tmp_path / "results", warn=said.extend)[1] == 1 and len(said) == 1 and said[0].startswith("no index can be kept")


def test_on_a_full_disk_it_works_and_says_so(tmp_path):
    """No file may grow beyond 20 kB, which is what SQLite meets on a full disk: it cannot write."""
    for number in range(60):
        put(tmp_path / f"results/{number}.json", value())
    out, err = run("results", "list", tmp_path / "results", "--json", environment={"XDG_CACHE_HOME": str(tmp_path)},
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)))
    assert len(json.loads(out)) == 60 and len(told(err)) == 1 and "no index can be kept" in err


def test_processes_at_once_and_an_index_that_is_thrown_away_meanwhile(tmp_path):
    for number in range(150):
        put(tmp_path / f"results/{number % 5}/{number}.json", value())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "rtseg_deploy", "results", "list", str(tmp_path / "results"), "--json"]
    working = []
    for number in range(4):
        with open(tmp_path / f"out{number}", "w") as out:
            working.append(subprocess.Popen(words, env=environment, stdout=out, stderr=subprocess.STDOUT))
    while any(one.poll() is None for one in working[:3]):
        for path in tmp_path.glob("rtseg-deploy/results/*.sqlite"):
            path.unlink(missing_ok=True)
        time.sleep(0.02)
    for number, one in enumerate(working):
        assert one.wait(60) == 0
        out = (tmp_path / f"out{number}").read_text()
        assert len(json.loads(out[out.index("["):])) == 150, out[:500]


# ---- nothing in a folder breaks it


def hostile(folder):
    """What may lie in a folder of results, beside one good result."""
    good, outside = put(folder / "good.json", value()), put(folder.parent / "outside/other.json", value("outside"))
    (folder / "link.json").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    (folder / "loop").symlink_to(folder)
    (folder / "around").symlink_to("around")
    (folder / "dangling.json").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.json")
    with open(folder / "huge.json", "wb") as file:
        file.truncate(limits.JSON_BYTES + 1)
    put(folder / "text.json", "no JSON")
    put(folder / "deep.json", '{"kind": ' + "[" * 100_000)
    put(folder / "nested.json", json.dumps(value(device="DEEP")).replace('"DEEP"', "[" * 900 + "]" * 900))
    put(folder / "numbers.json", {**value(), "statistics": {**BASE["statistics"], "energy_j": 10**400}})
    put(folder / "sizes.json", {**value(), "resolution": [10**4000, 1]})
    put(folder / "null.json", json.dumps(value(device="nul\0l\u001b[31m")))
    put(folder / "environment.json", {**MIOU, "environment": [1]})
    put(folder / "less.json", {**MIOU, "scores": {}})
    put(folder / "escape\u001b]0;x\u0007.json", value())
    put(folder / "line\nbreak.json", value())
    put(folder / "right\u202eleft.json", value())
    Path(os.fsdecode(os.fsencode(folder) + b"/byte\xff.json")).write_text(json.dumps(value()))
    put(folder / ".hidden.json", value())
    put(folder / "folder.json/inner.json", value("inner"))
    put(folder / "a\u001bb/outside.json", value("outside"))
    return good


def test_nothing_in_a_folder_breaks_it_and_what_is_left_out_is_one_line(tmp_path):
    hostile(tmp_path / "results")
    for _ in range(2):
        out, err = run("results", "list", tmp_path / "results", environment={"XDG_CACHE_HOME": str(tmp_path)})
        assert len(told(err)) == 1 and told(err)[0].startswith("warning: left out: ") and "more files" in err
        assert "inner 512x1024" in out and "outside" not in out and not any(letter in out + err for letter in "\u001b\u0007\u202e\0")
    link, name, left = ": a link, or no file", ": a name that cannot be printed", {}
    dict(archive.walk(str(tmp_path / "results"), lambda path, why: left.__setitem__(Path(path).name, why)))
    assert left == {**dict.fromkeys(("link.json", "linked", "loop", "dangling.json", "pipe.json"), link),
                    **dict.fromkeys(("escape?]0;x?.json", "line\nbreak.json", "right?left.json", "byte?.json", "a?b"), name)}
    rows, total = archive.rows(tmp_path / "results")
    assert {Path(row["file"]).name for row in rows} == {"good.json", "inner.json", "null.json"}
    for row in rows:
        run("results", "show", row["file"])


def test_what_goes_while_it_is_looked_at_is_gone_and_nothing_else(tmp_path, monkeypatch):
    for name in "abc":
        put(tmp_path / f"{name}.json", value())
    real = os.scandir

    def scandir(handle):
        entries = list(real(handle))
        (tmp_path / "b.json").unlink()
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scandir)
    said = []
    assert archive.rows(tmp_path, warn=said.extend)[1] == 2 and not said


def test_what_is_no_folder_is_one_line(tmp_path):
    with pytest.raises(RtsegError, match="no such folder"):
        archive.rows(tmp_path / "nowhere")
    assert archive.rows(put(tmp_path / "empty/x", "").parent) == ([], 0)
