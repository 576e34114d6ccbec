"""What `clean` takes, and above all what it leaves."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from conftest import run

from rtseg_deploy import clean, files, locks
from rtseg_deploy.cli.clean import SECONDS, Amount
from rtseg_deploy.records import read_artifact, sidecar

DAY = 86400


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A cache and a folder of temporary files of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clean.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path


def old(path, size=10, days=2.0):
    """A file that was last used so long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return aged(path, days)


def aged(path, days=2.0):
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def ended():
    """What a process that is gone called itself."""
    code = "from rtseg_deploy import files; print(files.writer())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def paths(items):
    return {item.path for item in items}


def test_of_the_cache_all_goes_that_can_be_made_again(places):
    cache = files.cache()
    gone = {old(cache / name) for name in ("kernels-0.so", "kernels-0.cubin", "tmpx.so", "job-1.part", "results/0.sqlite", "fleet/ab", "goal-0.lock")}
    stays = {old(cache / "tuned.json"), old(cache / "mine"), cache / "kernels-1.so", cache / f"machine-{locks.boot()}.lock"}
    for path in stays:
        path.touch()
    for path in (cache / "kernels-2.so", cache / "fleet/cd"):
        old(path, days=0.01)
        stays.add(path)
    (cache / "fleet/link").symlink_to(places / "elsewhere")
    stays |= {old(cache / "fleet/dask/worker"), old(cache / "fleet/rtseg-deploy-x/network.onnx")}     # of a worker that may run for days
    gone.add(old(cache / f"fleet/rtseg-deploy-{ended()}-x/network.onnx").parent)
    old(places / "elsewhere/results.json")
    old(cache / "results/0.sqlite-journal")
    assert paths(clean.found()) == gone and clean.clean(clean.found()) == []
    assert not any(path.exists() for path in (*gone, cache / "results/0.sqlite-journal")) and all(path.exists() for path in stays)
    assert (places / "elsewhere/results.json").exists()


def test_in_a_folder_only_what_a_run_that_ended_left(places):
    who, folder = ended(), places / "engines"
    gone = {old(folder / "tx2" / name) for name in (f".net.engine.{who}.part", f".out.mp4.{who}.part.mp4", "TX2-8.2.timing-cache")}
    lock = folder / "tx2/.net.engine.lock"
    lock.touch()
    stays = {old(folder / "tx2" / name) for name in ("net.engine", "net.engine.json", "results.json", ".hidden", "x.part", ".full.lock",
                                                     f".net.engine.{files.writer()}.part")}
    old(places / "other/x.timing-cache")
    (folder / "link").symlink_to(places / "other")
    assert paths(clean.found([folder])) == {*gone, lock} and clean.clean(clean.found([folder])) == []
    assert not any(path.exists() for path in (*gone, lock)) and all(path.exists() for path in stays)
    assert (places / "other/x.timing-cache").exists()


def test_what_another_machine_may_be_writing_stays_for_a_day(places):
    part = places / f".net.engine.{'0' * 8}-1-1.part"
    part.touch()
    assert not clean.found([places]) and paths(clean.found([aged(part).parent])) == {part}


def test_folders_of_runs_that_were_killed(places):
    mine = files.scratch()
    killed = places / "tmp" / f"rtseg-deploy-{ended()}-abc"
    old(killed / "network.engine", 1000)
    (killed / "results").symlink_to(places)
    old(places / "tmp/rtseg-deploy-theirs-x/file")
    (found,) = clean.found()
    assert found.path == killed and found.bytes == 1000 and clean.clean([found]) == [] and not killed.exists()
    assert Path(mine.name).is_dir() and places.is_dir()
    mine.cleanup()


def test_what_is_used_or_changed_meanwhile_stays(places):
    cache = files.cache()
    index, job, sent, changed = (old(cache / name) for name in ("results/0.sqlite", "jobs/a/net", "fleet/ab", "kernels-0.so"))
    aged(job.parent)
    items = clean.found()
    changed.write_bytes(b"new")
    with locks.goal(index), locks.goal(sent.parent), open(cache / "busy", "w") as busy:
        locks.fcntl.flock(busy, locks.fcntl.LOCK_EX)
        stayed = clean.clean(items)
    assert {(item.path, why) for item, why in stayed} == {*((path, clean.USED) for path in (index, job.parent, sent)), (changed, "it was changed meanwhile")}
    assert clean.clean([item for item, why in stayed if why == clean.USED]) == [] and changed.exists()
    assert not any(path.exists() for path in (index, job, sent))


def test_the_rest_of_a_sidecar_is_not_thrown_away(places, artifact, copy_of):
    """Its writer was killed between the two names, and the rest of the sidecar is all that says what the file is."""
    path = copy_of(artifact)
    sidecar(path).rename(path.with_name(f".{path.name}.json.{ended()}.part"))
    assert len(clean.found([path.parent])) == 1 and clean.clean(clean.found([path.parent])) == []
    assert read_artifact(path).kind == "onnx" and not files.parts(sidecar(path))


def test_the_oldest_go_first_and_only_until_the_rest_fits(places):
    cache = files.cache()
    first, second, third = (old(cache / f"kernels-{number}.so", 100, days) for number, days in enumerate((9, 6, 3)))
    assert [item.path for item in clean.found(older=5 * DAY)] == [first, second]
    assert [item.path for item in clean.found(keep=200)] == [first] and not clean.found(keep=300)
    assert [item.path for item in clean.found(older=8 * DAY, keep=0)] == [first]


def test_a_clock_that_was_set_back_makes_nothing_old(places):
    aged(old(files.cache() / "kernels-0.so"), -2)
    assert not clean.found()


def test_the_command_shows_and_removes_only_when_told(places):
    kernels = old(files.cache() / "kernels-0.so", 2_000_000)
    told = {"XDG_CACHE_HOME": str(places / "cache"), "TMPDIR": str(places / "tmp")}
    out, _ = run("clean", "--older-than", "1d", environment=told)
    assert "compiled kernels" in out and "2 MB in 1 of them can be made again: --yes removes it" in out and kernels.exists()
    out, _ = run("clean", "--keep", "1MB", "--yes", "--json", environment=told)
    assert json.loads(out)["bytes"] == 2_000_000 and json.loads(out)["removed"] and not kernels.exists()


@pytest.mark.parametrize("wrong", ["7", "7 days", "-7d", "1e9d", "٧d", "nand"])
def test_an_age_is_a_number_and_a_unit(wrong):
    with pytest.raises(click.BadParameter, match="is no number with one of s, m, h, d, w after it"):
        Amount("AGE", SECONDS).convert(wrong, None, None)
    assert Amount("AGE", SECONDS).convert("1.5 h", None, None) == 5400
