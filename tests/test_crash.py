"""Whatever ends a run: a signal, a lost power, a full disk, a folder that cannot be written, a clock that was set back. No half file, and one line.

kills.py and races.py do the same at random moments, hundreds of times; a few rounds of them are here.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import pytest
import races
from conftest import ROOT

from rtseg_deploy import bench, evaluate, files, locks
from rtseg_deploy.errors import RtsegError
from rtseg_deploy.records import Artifact, read_artifact, write_artifact

NET = Artifact("onnx", "net", "seeded", 2, "", (8, 8), (8, 8), "bilinear", "fp32", "normalised", "logits", {"mean": [0.0] * 3, "std": [1.0] * 3}, 17, 1,
               {"seed": 0}, checks={"parity": {"ok": True}})


class Disk:
    """What of a folder is there after a lost power or a killed process, at each moment at which something is done to it.

    Of files only what was synced; of names those of the last sync of the folder, or those of then: a disk may have got them or not.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self.data, self.names, self.losses = folder, {}, {}, []
        for path in folder.iterdir():
            self.synced(path)
        self.synced(folder)
        for name in ("replace", "unlink", "rename", "link"):
            monkeypatch.setattr(os, name, self.before(getattr(os, name)))
        fsync = os.fsync

        def recorded(handle):
            self.lose()
            fsync(handle)
            self.synced(Path(os.readlink(f"/proc/self/fd/{handle}")))
        monkeypatch.setattr(os, "fsync", recorded)

    def before(self, call):
        def first(*arguments, **named):
            self.lose()
            return call(*arguments, **named)
        return first

    def synced(self, path):
        if path == self.folder:
            self.names = self.now()
        elif path.is_file():
            self.data[path.stat().st_ino] = path.read_bytes()

    def now(self):
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def lose(self):
        killed = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        powers = [{name: self.data.get(inode, b"") for name, inode in names.items()} for names in (self.names, self.now())]
        self.losses += [one for one in (killed, *powers) if one not in self.losses]


def fill(data):
    def filled(temporary):
        temporary.write_bytes(data)
        return NET
    return filled


def after(loss, folder):
    """The bytes of the artifact that is there after it; None where there is none."""
    folder.mkdir()
    for name, data in loss.items():
        (folder / name).write_bytes(data)
    if not (folder / "net.onnx").exists():
        return None
    read_artifact(folder / "net.onnx")
    return (folder / "net.onnx").read_bytes()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "goal").mkdir()
    return tmp_path / "goal/net.onnx"


@pytest.mark.parametrize("old", [b"old", None])
def test_a_file_and_its_sidecar_are_the_old_ones_or_the_new_ones(place, tmp_path, monkeypatch, old):
    if old:
        write_artifact(place, fill(old))
    with monkeypatch.context() as patch:
        disk = Disk(place.parent, patch)
        write_artifact(place, fill(b"new"))
    found = [after(loss, tmp_path / str(number)) for number, loss in enumerate(disk.losses)]
    assert set(found) == {old, b"new"} and len(found) > 5
    assert after({path.name: disk.data[path.stat().st_ino] for path in place.parent.iterdir()}, tmp_path / "end") == b"new"


def test_the_recorder_sees_what_is_not_synced(place, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(files, "synced", lambda path: None)
        disk = Disk(place.parent, patch)
        write_artifact(place, fill(b"new"))
        disk.lose()
    with pytest.raises(RtsegError, match="not JSON|was changed|no sidecar"):
        for number, loss in enumerate(disk.losses):
            after(loss, tmp_path / str(number))


def test_a_folder_that_is_made_outlasts_a_lost_power(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "synced", synced.append)
    files.write(tmp_path / "a/b/c.json", "{}")
    assert {tmp_path, tmp_path / "a"} < set(synced)


def test_what_a_killed_run_left_of_a_goal_goes_with_the_next(place):
    code = "import os\nfrom rtseg_deploy import files\n" \
           f"with files.replacing({str(place)!r}) as part:\n part.write_text('half')\n os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL and len(files.parts(place)) == 1
    with files.replacing(place) as part:
        part.write_text("whole")
        assert files.parts(place) == [part]
        with files.replacing(place) as other:       # another run of ours that lives is left alone
            other.write_text("x")
            assert other == part
            other.write_text("whole")
            shutil.copy(other, place.with_name("kept"))
        part.write_text("whole")
    assert place.read_text() == "whole" and not files.parts(place)


def test_a_log_whose_end_was_never_written_goes_on_before_it(tmp_path):
    """Some file systems give a file its length before its bytes."""
    row = {"name": "a", "size": [1, 1], "confusion": [], "boundary": [], "seconds": {}, "decode": 0.0, "waited": 0.0}
    lines = [json.dumps({**row, "name": name}).encode() + b"\n" for name in "abc"]
    for rest in (b"\0" * 50, b"\0" * 50 + b"\n" + lines[2], lines[2][:9]):
        (tmp_path / "log.jsonl").write_bytes(lines[0] + lines[1] + rest)
        with evaluate.log(tmp_path / "log.jsonl", False) as (done, add):
            assert done == {"a", "b"}
            add({**row, "name": "c"})
        assert [one["name"] for one in evaluate.rows_in(tmp_path / "log.jsonl")] == list("abc")


# ---- a file that is made anew while it is read


def test_who_reads_while_it_is_made_anew_reads_the_one_or_the_other(place, monkeypatch):
    write_artifact(place, fill(b"old"))
    digest, calls = files.sha256, []

    def replaced(path):
        if Path(path) == place and not calls:
            calls.append(1)
            write_artifact(place, fill(b"new"))
        return digest(path)
    monkeypatch.setattr(files, "sha256", replaced)
    assert read_artifact(place).sha256 == digest(place) and calls


def test_a_sidecar_is_not_written_over_by_who_judged_the_file_before(place, tmp_path):
    write_artifact(place, fill(b"old"))
    value = {"artifact": read_artifact(place).to_json(), "data": {"name": "d", "split": "", "pictures": 1, "digest": ""}, "backend": "b", "on": "",
             "scores": dict.fromkeys(("miou", "miou_all", "pixel_accuracy", "boundary_f", "pixels"), 0.5)}
    write_artifact(place, fill(b"new"))
    evaluate.note_in_sidecar(place, value, tmp_path / "result.json")
    assert "accuracy" not in read_artifact(place).checks
    evaluate.note_in_sidecar(place, {**value, "artifact": read_artifact(place).to_json()}, tmp_path / "result.json")
    assert "accuracy" in read_artifact(place).checks


def test_two_figures_of_one_second_have_a_name_each(tmp_path, monkeypatch):
    class Figure:
        protocol, resolution, backend = "network", (8, 8), "null"
        artifact = {"model": "net", "precision": "fp32"}

        def to_json(self):
            return {}
    monkeypatch.setattr(bench.time, "gmtime", lambda: time.struct_time((2000, 1, 1, 0, 0, 0, 5, 1, 0)))
    assert len({bench.write(Figure(), tmp_path).name for _ in range(3)}) == len(list(tmp_path.iterdir())) == 3


# ---- one line each


def in_namespace(script, *arguments):
    """Python with these arguments in a mount namespace of its own, after a script of sh; the test is skipped where that may not be."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here: unshare -rm")
    command = ["unshare", "-rm", "sh", "-c", f'{script} && exec "$@"', "sh", sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)


def test_a_folder_that_is_read_only_is_one_line(place, tmp_path):
    write_artifact(place, fill(b"net"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("old")
    (out / "TX2.timing-cache").write_text("")
    mount, code = f"mount --bind {out} {out} && mount -o remount,ro,bind {out}", "import sys; from rtseg_deploy import cli; cli.main()"
    for words, said in ((["clean", out, "--yes"], "TX2.timing-cache stays: Read-only file system"),
                        (["bench", place, "--backend", "null", "-n", 100, "-o", out], "Read-only file system")):
        done = in_namespace(mount, "-c", code, *words)
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert (out / "report.json").read_text() == "old"


FULL = """
import errno, os, subprocess, sys
from pathlib import Path
from rtseg_deploy import evaluate, files
folder = Path(sys.argv[1])
row = {"name": "", "size": [1, 1], "confusion": [], "boundary": [[1] * 100], "seconds": {}, "decode": 0.0, "waited": 0.0}
added = []
try:
    with evaluate.log(folder / "log.jsonl", False) as (done, add):
        while len(added) < 1000:
            add({**row, "name": str(len(added))})
            added.append(str(len(added)))
except OSError as error:
    assert error.errno == errno.ENOSPC
try:
    files.write(folder / "result.json", "x" * 9999)
except OSError as error:
    assert error.errno == errno.ENOSPC and os.listdir(folder) == ["log.jsonl"]
assert 0 < len(added) < 1000
subprocess.run(["mount", "-o", "remount,size=1m", folder], check=True)
with evaluate.log(folder / "log.jsonl", False) as (done, add):
    assert set(added) <= done
    add({**row, "name": "last"})
assert [one["name"] for one in evaluate.rows_in(folder / "log.jsonl")][-1] == "last"
print("good")
"""


def test_on_a_full_disk_what_is_whole_is_kept_and_goes_on(tmp_path):
    done = in_namespace(f"mount -t tmpfs -o size=16k none {tmp_path}", "-c", FULL, tmp_path)
    assert done.stdout == "good\n", done.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_one_line_that_says_how_to_go_on(place, tmp_path, monkeypatch, how):
    """To a run that waits for another one."""
    write_artifact(place, fill(b"net"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with locks.machine(True):
        process = subprocess.Popen([sys.executable, "-m", "rtseg_deploy", "bench", place, "--backend", "null", "-o", tmp_path / "results"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                                   preexec_fn=lambda: signal.signal(how, signal.SIG_DFL))      # a test run under nohup has SIGHUP ignored
        while "waiting until nothing else is timed or computed here" not in (line := process.stderr.readline()):
            assert line, "it did not wait"
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and not (tmp_path / "results").exists()
    assert err.split("\n")[-2:-1] == ["rtseg-deploy: interrupted; nothing half-written was left; what was finished is kept: run it again to go on"]


def test_a_run_that_is_to_outlive_its_terminal_does(tmp_path):
    code = "import signal, os\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nimport sys\nsys.argv = ['x', '--version']\nfrom rtseg_deploy import cli\n" \
           "try:\n cli.main()\nexcept SystemExit:\n pass\nprint(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.endswith("True\n"), done.stderr


def test_a_clock_that_was_set_back_loses_nothing(place, monkeypatch):
    """Names hold dates, and a name that is taken is not taken again; nothing that lives is taken for dead."""
    part = files.temporary_of(place)
    part.write_text("")
    for offset in (-10**9, 10**9):
        now = time.time()
        monkeypatch.setattr(files.time, "time", lambda now=now, offset=offset: now + offset)
        assert files.alive(part)


# ---- at random moments


@pytest.fixture(scope="module")
def there(artifact, tmp_path_factory):
    folder, before, temporary = tmp_path_factory.mktemp("kills"), dict(os.environ), kills.tempfile.tempdir
    kills.surroundings(folder)
    races.prepared(folder, artifact)
    yield folder
    os.environ.clear()
    os.environ.update(before)
    kills.tempfile.tempdir = temporary


def test_killed_at_random_moments(there):
    done = kills.rounds(6, ["build", "bundle", "copy"], there, 0, lambda line: None)
    assert sum(stopped for stopped, _ in done.values()) >= 2


@pytest.mark.parametrize("name", ["two builds of one engine", "timed while it is made anew"])
def test_what_meets(there, name):
    races.RACES[name](there, random.Random(0))


def test_clean_during_a_build(there):
    class First(random.Random):
        def choice(self, names):
            return "build"
    races.cleaned_during_a_run(there, First(0))
