"""Jobs for a machine without network: packed here, unpacked and run elsewhere by sh and another Python, brought back, checked, filed."""
import gzip
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, at_most, run, until
from remote import python

from rtseg_deploy import bundle, collect, facts, launch, limits, ondevice, records
from rtseg_deploy.device import runner, steps
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
    with tarfile.open(archive) as packed:
        assert {(member.uid, member.gid, member.uname, member.gname) for member in packed} == {(0, 0, "", "")}, "nothing of that machine"
    out, _ = run("collect", archive, "-e", tmp_path / "engines", "-o", tmp_path / "results", "--json", status=1)
    assert [row["ok"] for row in json.loads(out)] == [True, False, False, True]
    engine = records.read_artifact(tmp_path / "engines/rtx-2080ti/net.fp32.engine")
    assert engine.kind == "engine" and engine.checks["built"]["runtime"] == "tensorrt_rtx" and engine.checks["run_on_device"] is False
    (figure,) = (tmp_path / "results").iterdir()
    figure = json.loads(figure.read_text())
    there = figure["runs"][0]["environment"]
    assert figure["iterations"] == 20 and there["on"] == "a bundle" and there["python"].startswith("3.8") and figure["runs"][0]["telemetry"]


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


# ---- a run there that is disturbed


@pytest.fixture
def small(tmp_path):
    """start(code) -> (its folder, the process of a bundle there whose runner is that code), one job."""
    processes = []

    def start(code, path=sys.executable, **options):
        folder = tmp_path / "small"
        (folder / "jobs/000-a").mkdir(parents=True, exist_ok=True)
        contents = {"runner.py": "import json, os, sys, time\n" + code, "steps.py": Path(steps.__file__).read_text(), "run.sh": bundle.RUN,
                    "jobs/000-a/job.json": "{}", "bundle.json": json.dumps({"jobs": [{"name": "000-a", "files": {}, "results": []}]})}
        for name, text in contents.items():
            (folder / name).write_text(text)
        (folder / "SHA256SUMS").write_text("".join(f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n" for name, text in contents.items()))
        options = {"cwd": "/", **options, "env": {"PATH": os.environ["PATH"], "PYTHON": str(path), **options.get("env", {})}}
        process = subprocess.Popen(["sh", folder / "run.sh"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)
        processes.append(process)
        return folder, process
    yield start
    for process in processes:
        process.kill()


WAITS = "open('pid', 'w').write(str(os.getpid())); print('@rtseg {\"stage\": \"waiting\"}', flush=True); os.read(0, 1); open('ended', 'w')"


@pytest.mark.parametrize("code, words", [
    ("os.kill(os.getpid(), 9)", "000-a: the worker was killed by signal 9; run it again"),
    ("sys.exit(4)", "000-a: the worker ended with status 4 and no result; run it again"),
    ("sys.stdout.buffer.write(b'\\xff\\n'); open('result.json', 'w').write('{\"ok\": true}')", "1 of 1 jobs are good"),
])
def test_a_worker_that_dies_there_is_a_result(small, code, words):
    folder, process = small(code, python("3.6", folder=None), env={"LC_ALL": "C"})
    (folder / "jobs/000-a/result.json").write_text('{"ok": false, "error": "of the last run", "fix": ""}')
    out, err = process.communicate()
    assert words in out and "of the last run" not in out and not err and (folder / "results.tar.gz").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_worker(small, how):
    folder, process = small(WAITS)
    next(line for line in process.stdout if "waiting" in line)
    os.killpg(process.pid, how)
    out, err = process.communicate()
    assert ("interrupted" in out) == (how == signal.SIGINT) and not err and not (folder / "results.tar.gz").exists()
    assert until((folder / "jobs/000-a/ended").exists)


def test_a_bundle_runs_once_at_a_time(small):
    folder, first = small(WAITS)
    next(line for line in first.stdout if "waiting" in line)
    out, err = small(WAITS)[1].communicate()
    assert "running already" in out and not err


def test_a_full_disk_there_is_one_line(small):
    folder, process = small("open('result.json', 'w').write('{\"ok\": true}')", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)))
    out, err = process.communicate()
    assert process.returncode == 1 and "File too large; where the disk is full free some space" in out and not err
    assert not list(folder.glob("results.tar.gz*"))


def test_the_python_that_is_named_may_be_relative(small, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    _, process = small("open('result.json', 'w').write('{\"ok\": true}')", "./python", cwd=tmp_path)
    assert "1 of 1 jobs are good" in process.communicate()[0]


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
    monkeypatch.setattr(limits, "ARCHIVE_BYTES", 1000)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        big = entry("a/zeros")
        big.size = 2000
        archive.addfile(big, io.BytesIO(bytes(2000)))
    with pytest.raises(RtsegError, match="has no place"):
        collect.collect(tmp_path / "bomb.tar.gz", tmp_path / "engines", tmp_path / "results")


def resealed(archive, goal, change):
    """The same with the sums of what it holds after the change: not damaged, forged."""
    def seal(contents):
        change(contents)
        contents["SHA256SUMS"] = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in contents.items() if name != "SHA256SUMS").encode()
    return repacked(archive, goal, seal)


BUILD, TIME = "000-net-fp32-build", "003-net-fp32-onnxruntime-cpu"


def told(name, *keys, value):
    """A change of one value in a JSON file."""
    def change(contents):
        whole = json.loads(contents[name])
        inner = whole
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        contents[name] = json.dumps(whole).encode()
    return change


HOSTILE = {
    "name above": told("bundle.json", "jobs", 0, "name", value="../x"), "name a path": told("bundle.json", "jobs", 0, "name", value="/etc"),
    "name roundabout": told("bundle.json", "jobs", 0, "name", value=f"{TIME}/../{BUILD}"),
    "name twice": told("bundle.json", "jobs", 2, "name", value="001-net-fp32-labels"), "name unknown": told("bundle.json", "jobs", 0, "name", value="more"),
    "name without end": told("bundle.json", "jobs", 0, "name", value="a." * 2**21 + "a"),
    "precision a path": told("bundle.json", "jobs", 0, "precision", value="fp32/../../../evil"),
    "backend a path": told("bundle.json", "jobs", 3, "backend", value="x/../../../../evil"),
    "target a path": told("bundle.json", "jobs", 0, "target", value="../evil"), "file with NUL": told("bundle.json", "jobs", 0, "file", value="a\0b"),
    "file a number": told("bundle.json", "jobs", 0, "file", value=1), "no jobs": told("bundle.json", "jobs", value={}),
    "a job that is none": told("bundle.json", "jobs", 0, value=[]), "an action": told("bundle.json", "jobs", 0, "action", value="exec"),
    "an action no text": told("bundle.json", "jobs", 0, "action", value=[]), "an artifact": told("bundle.json", "jobs", 0, "artifact", value={}),
    "a model a path": told("bundle.json", "jobs", 3, "artifact", "model", value="../evil"), "results": told("bundle.json", "jobs", 0, "results", value=[1]),
    "results elsewhere": told("bundle.json", "jobs", 0, "results", value=["../bundle.json"]),
    "no engine": lambda contents: contents.pop(f"{BUILD}/engine"), "bytes": told(f"{BUILD}/result.json", "bytes", value="many"),
    "gpu": told(f"{BUILD}/result.json", "gpu", value=[]), "no seconds": told(f"{TIME}/result.json", "seconds", value=[]),
    "seconds": told(f"{TIME}/result.json", "seconds", value=["1"]), "not a second": told(f"{TIME}/result.json", "seconds", value=[float("nan")]),
    "environment": told(f"{TIME}/result.json", "environment", value=[]), "deep": lambda contents: contents.update({f"{TIME}/result.json": b"[" * 200_000}),
    "a list": lambda contents: contents.update({f"{TIME}/result.json": b"[]"}),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_forged_files_nothing(brought_back, tmp_path, change):
    bad = resealed(brought_back[1], tmp_path / "bad.tar.gz", change)
    with at_most(200), pytest.raises(RtsegError):
        collect.collect(bad, tmp_path / "a/engines", tmp_path / "a/results")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar.gz"]


def test_what_is_resealed_is_filed(brought_back, tmp_path):
    rows = collect.collect(resealed(brought_back[1], tmp_path / "same.tar.gz", lambda contents: None), tmp_path / "engines", tmp_path / "results")
    assert [row.ok for row in rows] == [True, False, False, True]


@pytest.mark.parametrize("path", ["../../x.onnx", "/x.onnx", "..", "-x.onnx", "x" * 10])
def test_an_engine_stays_in_its_folder(brought_back, tmp_path, path):
    bad = resealed(brought_back[1], tmp_path / "bad.tar.gz", told("bundle.json", "jobs", 0, "file", value=path))
    row, *_ = collect.collect(bad, tmp_path / "engines", tmp_path / "results")
    assert Path(row.what).parent == tmp_path / "engines/rtx-2080ti"


def headers(kind, size=0):
    """An archive's bytes: the header of a member of that kind, and nothing after it."""
    found = entry("a/b", kind)
    found.size = size
    return gzip.compress(found.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE])
def test_extended_headers_are_refused_before_they_are_read(tmp_path, kind):
    (tmp_path / "evil.tar.gz").write_bytes(headers(kind, 1 << 40))
    with pytest.raises(RtsegError, match="has no place in results"):
        collect.collect(tmp_path / "evil.tar.gz", tmp_path / "engines", tmp_path / "results")


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a/b", "a/b"], ["é"], ["x" * 201]])
def test_names_that_are_in_each_others_way(tmp_path, names):
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            archive.addfile(entry(name))
    with pytest.raises(RtsegError) as error:
        collect.collect(tmp_path / "evil.tar.gz", tmp_path / "engines", tmp_path / "results")
    assert error.value.fix


def test_a_text_that_is_too_long_to_be_read_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ARCHIVE_TEXT", 1000)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        big = entry("SHA256SUMS")
        big.size = 2000
        archive.addfile(big, io.BytesIO(bytes(2000)))
    with pytest.raises(RtsegError, match="has no place"):
        collect.collect(tmp_path / "bomb.tar.gz", tmp_path / "engines", tmp_path / "results")


def npy(header, data=b""):
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def zipped():
    buffer = io.BytesIO()
    np.savez(buffer, labels=np.zeros((2, 2), int))
    return buffer.getvalue()


@pytest.mark.parametrize("data", [
    b"", b"no array", launch.saved(np.zeros((2, 2, 2), np.uint8)), launch.saved(np.zeros((2, 2), np.float32)), launch.saved(np.zeros((2, 2), bool)), zipped(),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }", b"cos\nsystem\n(S'true'\ntR."),
    npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 10000000), }", b"few"),
    npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 9), }"),
    npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2), }", b"few"),
    npy("{'descr': ((((", b""), npy("{'descr'"), npy("-" * 100), npy("\n  x\n y"),
])
def test_labels_that_are_none_are_told(tmp_path, data):
    (tmp_path / "labels-0.npy").write_bytes(data)
    with pytest.raises(RtsegError, match="labels-0.npy, made on the device"):
        launch.labels(tmp_path / "labels-0.npy")


def test_labels_are_read(tmp_path):
    (tmp_path / "labels-0.npy").write_bytes(launch.saved(np.arange(6, dtype=np.int32).reshape(2, 3)))
    assert launch.labels(tmp_path / "labels-0.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


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


def test_two_files_of_one_name_would_be_one_engine(artifact, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("net.onnx", "net.onnx.json"):
            shutil.copy(artifact.parent / name, tmp_path / folder / name)
    with pytest.raises(RtsegError, match="a/net.onnx and .*b/net.onnx would have the same name"):
        bundle.bundle([tmp_path / "a/net.onnx", tmp_path / "b/net.onnx"], tmp_path / "b.tar.gz", names=["onnxruntime-cpu"])
    assert not (tmp_path / "b.tar.gz").exists()


def test_a_bundle_does_not_replace_what_goes_into_it(artifact, tmp_path):
    shutil.copy(artifact, tmp_path / "net.tar.gz")
    shutil.copy(f"{artifact}.json", tmp_path / "net.tar.gz.json")
    with pytest.raises(RtsegError, match="one of the files to be packed"):
        bundle.bundle([tmp_path / "net.tar.gz"], tmp_path / "net.tar.gz", names=["onnxruntime-cpu"])
    assert records.read_artifact(tmp_path / "net.tar.gz")


@pytest.mark.parametrize("name", [".tar.gz", "..tar.gz", "-x.tar.gz", "a b.tar.gz", "a.zip", "a'b.tar.gz"])
def test_a_bundle_has_a_plain_name(artifact, tmp_path, name):
    _, err = run("bundle", artifact, "--backend", "onnxruntime-cpu", "-o", tmp_path / name, status=2)
    assert "plain name" in err and not list(tmp_path.iterdir())


def test_odd_names_of_files_go_there_and_back(artifact, tmp_path):
    odd = tmp_path / ("-ü '" + "x" * 200 + ".onnx")
    shutil.copy(artifact, odd)
    shutil.copy(f"{artifact}.json", f"{odd}.json")
    (name,) = bundle.bundle([odd], tmp_path / "b.tar.gz", names=["onnxruntime-cpu"], iterations=5)
    folder = unpacked(tmp_path / "b.tar.gz", tmp_path)
    assert len(name) < 70 and "1 of 1 jobs are good" in run_there(folder, sys.executable).stdout
    (row,) = collect.collect(folder / "results.tar.gz", tmp_path / "engines", tmp_path / "results")
    assert row.ok and json.loads(Path(row.what).read_text())["file"] == str(odd)


def test_a_plan_goes_there_row_by_row_and_comes_back_as_its_figures(tmp_path):
    (tmp_path / "mine.toml").write_text("""
protocol = "paper-bisenetv2"
iterations = 7
row = [
    { network = "bisenetv2", resolution = "64x128", input = "32x64", classes = 7 },
    { network = "bisenetv2", resolution = "64x128", input = "32x64", classes = 7, protocol = "paper-amortised" },
]
""")
    names = bundle.bundle([tmp_path / "mine.toml"], tmp_path / "b.tar.gz", names=["onnxruntime-cpu"])
    folder = unpacked(tmp_path / "b.tar.gz", tmp_path)
    assert len(names) == 2 and "2 of 2 jobs are good" in run_there(folder, sys.executable).stdout
    filed = collect.collect(folder / "results.tar.gz", tmp_path / "engines", tmp_path / "results")
    first, second = (json.loads(Path(one.what).read_text()) for one in filed)
    assert (first["protocol"], second["protocol"]) == ("paper-bisenetv2", "paper-amortised") and first["iterations"] == 7
    assert first["artifact"]["network_input"] == [32, 64] and first["artifact"]["classes"] == 7 and first["file"] == "01-bisenetv2-64x128-fp32.onnx"


def test_a_plan_of_processors_has_nothing_for_a_gpu(tmp_path):
    with pytest.raises(RtsegError, match="has only rows of processors"):
        bundle.bundle([ROOT / "engines/sgcpnet-table-5.toml"], tmp_path / "b.tar.gz", "jetson-tx2")


def test_nothing_of_this_machine_is_in_a_bundle(artifact, tmp_path, tmp_path_factory):
    run("bundle", artifact.name, "--backend", "onnxruntime-cpu", "-o", tmp_path / "b.tar.gz", cwd=artifact.parent)
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            if member.name.endswith("job.json"):
                assert json.load(archive.extractfile(member))["leash"], "the worker ends with run.sh"
            if re.search(r"job\.json|bundle\.json|run\.sh", member.name):
                assert str(tmp_path_factory.getbasetemp()).encode() not in archive.extractfile(member).read()


def taken_there(labels):
    """A change of the results: the labels of the device are labels(what is expected), or its error."""
    def change(contents):
        folder = "001-net-fp32-labels"
        if isinstance(labels, str):
            result = {"ok": False, "error": labels, "fix": ""}
        else:
            result = {"ok": True, "environment": {}}
            for number in range(3):
                expected = np.load(io.BytesIO(contents[f"{folder}/expected-{number}.npy"]))
                contents[f"{folder}/labels-{number}.npy"] = launch.saved(labels(np.where(expected == ondevice.TIED, 0, expected)).astype(np.uint8))
        contents[f"{folder}/result.json"] = json.dumps(result).encode()
    return change


def test_an_engine_is_filed_with_what_its_labels_are_worth(brought_back, tmp_path):
    filed = collect.collect(resealed(brought_back[1], tmp_path / "r.tar.gz", taken_there(lambda labels: labels)), tmp_path / "engines", tmp_path / "results")
    assert filed[0].ok and records.read_artifact(filed[0].what).checks["run_on_device"]["ok"]


@pytest.mark.parametrize("labels", [lambda labels: np.roll(labels, 9, 1), runner.NOT_FINITE[0]])
def test_an_engine_with_other_labels_is_not_filed(brought_back, tmp_path, labels):
    filed = collect.collect(resealed(brought_back[1], tmp_path / "r.tar.gz", taken_there(labels)), tmp_path / "engines", tmp_path / "results")
    assert not filed[0].ok and "its labels are not those of" in filed[0].what and not (tmp_path / "engines").exists()


def test_what_fp16_cannot_hold_stays_in_fp32_on_the_device_too(artifact, tmp_path, monkeypatch):
    why = {"a node": {"why": "overflow", "tensor": "t", "largest": 1e6, "on": "street"}}
    monkeypatch.setattr(bundle.build, "staying", lambda *rest, **more: why)
    subject = bundle.Subject(artifact, bundle.bench.Ask(iterations=20), "net.onnx")
    built, *_ = bundle.engine_steps(subject, records.read_artifact(artifact), facts.target("gtx-1080ti"), "fp16", tmp_path, launch.quiet)
    assert built.job.request["keep_fp32"] == ["a node"] and built.about["proven"]["kept_fp32"] == why
