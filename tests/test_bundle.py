"""Jobs for a machine without network: packed here, unpacked and run elsewhere by sh and another Python, brought back, checked, filed."""
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from remote import python

from rtseg_deploy import bundle, collect, ondevice, records
from rtseg_deploy.errors import RtsegError

pytestmark = pytest.mark.xdist_group("ssh")     # one worker makes the environments


@pytest.fixture(scope="module")
def packed(artifact, tmp_path_factory):
    """A bundle that builds an engine ahead of time and times the ONNX file."""
    goal = tmp_path_factory.mktemp("packed") / "b.tar.gz"
    run("bundle", artifact, "--target", "rtx-2080ti", "--backend", "onnxruntime-cpu", "-n", 20, "-o", goal)
    return goal


def unpacked(archive, folder):
    subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
    return folder / "b"


def run_there(folder, path):
    """In a network namespace of its own where that is allowed: without network."""
    alone = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0 else []
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHON": path}
    return subprocess.run([*alone, "sh", folder / "run.sh"], capture_output=True, text=True, env=environment, cwd="/")


@pytest.fixture(scope="module")
def brought_back(packed, old_python, tmp_path_factory):
    """(what was printed there, results.tar.gz)."""
    folder = unpacked(packed, tmp_path_factory.mktemp("there"))
    done = run_there(folder, old_python)
    assert not done.stderr, done.stderr
    return done.stdout, folder / "results.tar.gz"


def test_it_is_run_without_network_and_filed(brought_back, tmp_path):
    """No GPU is there: the engine is built ahead of time, and what would run it fails as a result."""
    printed, archive = brought_back
    assert "1 of 4: 000-net-fp32-build: building" in printed and "4 of 4: 003-net-fp32-onnxruntime-cpu: timing" in printed
    assert "2 of 4 jobs are good" in printed and "rtseg-deploy collect" in printed
    out, _ = run("collect", archive, "-e", tmp_path / "engines", "-o", tmp_path / "results", "--json", status=1)
    assert [row["ok"] for row in json.loads(out)] == [True, False, False, True]
    engine = records.read_artifact(tmp_path / "engines/rtx-2080ti/net.fp32.engine")
    assert engine.kind == "engine" and engine.checks["built"]["runtime"] == "tensorrt_rtx" and engine.checks["run_on_device"] is False
    (figure,) = (tmp_path / "results").iterdir()
    figure = json.loads(figure.read_text())
    assert figure["iterations"] == 20 and figure["environment"]["on"] == "a bundle" and figure["environment"]["python"].startswith("3.8")


def test_it_goes_on_where_it_was(packed, old_python, tmp_path):
    folder = unpacked(packed, tmp_path)
    run_there(folder, old_python)
    (folder / "jobs/003-net-fp32-onnxruntime-cpu/result.json").unlink()
    printed = run_there(folder, old_python).stdout
    assert "003-net-fp32-onnxruntime-cpu: timing" in printed and "000-net-fp32-build: building" not in printed


@pytest.mark.parametrize("name", ["runner.py", "bundle.json", "jobs/000-net-fp32-build/job.json", "files/*"])
def test_a_flipped_byte_is_found_before_anything_runs(packed, tmp_path, name):
    folder = unpacked(packed, tmp_path)
    path = next(folder.glob(name))
    flip(path)
    done = run_there(folder, sys.executable)
    assert done.returncode == 1 and f"{path.relative_to(folder)} is not as it was packed" in done.stdout
    assert not (folder / "results.tar.gz").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_old_python_runs_it_and_says_what_is_missing(packed, tmp_path):
    folder = unpacked(packed, tmp_path)
    done = run_there(folder, python("3.6", folder=None))
    assert "0 of 4 jobs are good" in done.stdout and "no tensorrt_rtx" in done.stdout and not done.stderr
    out, _ = run("collect", folder / "results.tar.gz", "-e", tmp_path / "engines", "-o", tmp_path / "results", status=1)
    assert "failed there" in out and not (tmp_path / "engines").exists()


# ---- what comes back is not believed


def repacked(archive, goal, change):
    """The same archive with change(name -> bytes) applied, whole as an archive."""
    with tarfile.open(archive) as source:
        contents = {member.name: source.extractfile(member).read() for member in source}
    change(contents)
    with tarfile.open(goal, "w:gz") as packed:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return goal


@pytest.mark.parametrize("name", ["000-net-fp32-build/engine", "000-net-fp32-build/job.json",
                                  "003-net-fp32-onnxruntime-cpu/result.json", "bundle.json", "SHA256SUMS"])
def test_a_flipped_byte_is_found_when_it_is_back(brought_back, tmp_path, name):
    def change(contents):
        data = bytearray(contents[name])
        data[len(data) // 2] ^= 1
        contents[name] = bytes(data)

    bad = repacked(brought_back[1], tmp_path / "bad.tar.gz", change)
    with pytest.raises(RtsegError) as error:
        collect.collect(bad, tmp_path / "engines", tmp_path / "results")
    assert "not as it was packed" in error.value.what and error.value.fix
    assert not (tmp_path / "engines").exists() and not (tmp_path / "results").exists()


@pytest.mark.parametrize("change", [lambda contents: contents.pop("003-net-fp32-onnxruntime-cpu/result.json"), lambda contents: contents.update({"more": b""}),
                                    lambda contents: contents.pop("SHA256SUMS")])
def test_a_file_too_few_or_too_many_is_found(brought_back, tmp_path, change):
    with pytest.raises(RtsegError):
        collect.collect(repacked(brought_back[1], tmp_path / "bad.tar.gz", change), tmp_path / "engines", tmp_path / "results")


def entry(name, kind=tarfile.REGTYPE, link=""):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize("member", [
    entry("../evil"), entry("/etc/evil"), entry("a/../../evil"), entry("a/b/c"), entry(".hidden"), entry("a/.hidden"), entry("a\nb"), entry("-rf"),
    entry("a/link", tarfile.SYMTYPE, "/etc/passwd"), entry("a/link", tarfile.LNKTYPE, "../../x"), entry("a", tarfile.DIRTYPE), entry("a", tarfile.FIFOTYPE),
    entry("a", tarfile.CHRTYPE),
], ids=lambda member: f"{member.name!r}-{member.type.decode()}")
def test_what_could_leave_its_folder_is_refused(tmp_path, member):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as archive:
        archive.addfile(member)
    (tmp_path / "home").mkdir()
    with pytest.raises(RtsegError, match="has no place in results"):
        collect.collect(tmp_path / "evil.tar.gz", tmp_path / "home/engines", tmp_path / "home/results")
    assert not any((tmp_path / "home").iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[:len(data) // 2], lambda data: b"no archive", lambda data: b"",
                                    lambda data: data[:100] + b"\xff" * 50 + data[150:]])
def test_a_damaged_archive_is_told(brought_back, tmp_path, damage):
    (tmp_path / "bad.tar.gz").write_bytes(damage(Path(brought_back[1]).read_bytes()))
    with pytest.raises(RtsegError):
        collect.collect(tmp_path / "bad.tar.gz", tmp_path / "engines", tmp_path / "results")


def test_an_archive_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "MOST_BYTES", 1000)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        big = entry("a/zeros")
        big.size = 2000
        archive.addfile(big, io.BytesIO(bytes(2000)))
    with pytest.raises(RtsegError, match="has no place"):
        collect.collect(tmp_path / "bomb.tar.gz", tmp_path / "engines", tmp_path / "results")


# ---- labels that were taken on the device


def test_labels_of_the_device_are_compared_with_the_onnx_files(artifact):
    described = records.read_artifact(artifact)
    arrays = ondevice.pictures(described)
    wanted = ondevice.expected(artifact, arrays)
    same = {name: np.where(labels == ondevice.TIED, 0, labels) for name, labels in wanted.items()}
    assert ondevice.agreement(wanted, same, "fp32")["ok"]
    shifted = {name: np.roll(labels, 8, 1) for name, labels in same.items()}
    report = ondevice.agreement(wanted, shifted, "fp16")
    assert not report["ok"] and all(row["labels_equal"] < 0.99 for row in report["inputs"].values())
    assert not ondevice.agreement(wanted, {name: labels[:-1] for name, labels in same.items()}, "fp16")["ok"]


def test_a_bundle_needs_something_to_do(artifact, tmp_path):
    with pytest.raises(RtsegError, match="nothing to do"):
        bundle.bundle([artifact], tmp_path / "b.tar.gz")
    with pytest.raises(RtsegError, match="torch-eager cannot go into a bundle"):
        bundle.bundle([artifact], tmp_path / "b.tar.gz", names=["torch-eager"])
    assert not list(tmp_path.iterdir())


def test_nothing_of_this_machine_is_in_a_bundle(artifact, tmp_path, tmp_path_factory):
    run("bundle", artifact.name, "--backend", "onnxruntime-cpu", "-o", tmp_path / "b.tar.gz", cwd=artifact.parent)
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            if re.search(r"job\.json|bundle\.json|run\.sh", member.name):
                assert str(tmp_path_factory.getbasetemp()).encode() not in archive.extractfile(member).read()
