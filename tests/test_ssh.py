"""Jobs at the other end of an ssh connection: a real OpenSSH server on loopback, with a home and keys of its own."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from conftest import run as run_here
from PIL import Image
from remote import Server, needs_sshd, python

from rtseg_deploy import launch, records, ssh
from rtseg_deploy.errors import RtsegError

pytestmark = [needs_sshd, pytest.mark.xdist_group("ssh")]


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture
def server(one_server):
    """With an empty home."""
    shutil.rmtree(one_server.home)
    one_server.home.mkdir()
    return one_server


@pytest.fixture
def run(server):
    def run(*arguments, **options):
        return run_here(*arguments, environment=server.environment, **options)
    return run


def start(server, *arguments):
    """The command in a process of its own, its progress to be read."""
    return subprocess.Popen([sys.executable, "-m", "rtseg_deploy", *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **server.environment})


# ---- the address


def test_an_address():
    place = ssh.place("ssh://nano@tx2:2222/usr/bin/python3.6")
    assert (place.host, place.user, place.port, place.python) == ("tx2", "nano", 2222, "/usr/bin/python3.6")
    assert ssh.place("ssh://tx2").python == "python3" and ssh.place(None) is None


@pytest.mark.parametrize("url", ["tx2", "http://tx2", "ssh://", "ssh://-oProxyCommand=x", "ssh://me:secret@tx2", "ssh://tx2:port", "ssh://-l@tx2", "ssh://tx2?a=b"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(RtsegError) as error:
        ssh.place(url)
    assert "ssh://" in error.value.fix


# ---- what is done there


@pytest.mark.parametrize("version", ["3.6", "3.8", "this"])
def test_probe(server, run, version):
    path = sys.executable if version == "this" else python(version, folder=None)
    out, _ = run("probe", "--on", server.url(path), "--json")
    assert json.loads(out)["python"].startswith("" if version == "this" else version)
    assert server.left() == ["cache/rtseg-deploy/busy"]


def test_bench_there(server, run, artifact, tmp_path, old_python):
    out, err = run("bench", artifact, "-n", 20, "--on", server.url(old_python), "-o", tmp_path, "--json", status=None)
    (row,) = json.loads(out)
    assert row["iterations"] == 20 and row["environment"]["python"].startswith("3.8") and row["environment"]["on"] == "127.0.0.1"
    assert "127.0.0.1: warming up" in err and "127.0.0.1: timing" in err
    assert server.left() == ["cache/rtseg-deploy/busy"]


@pytest.mark.parametrize("which", ["old", "this"])
def test_build_there_ahead_of_time(server, run, artifact, tmp_path, old_python, which):
    """TensorRT-RTX needs no GPU to build, so the machine at the other end is no RTX 2080 Ti and need not be."""
    pytest.importorskip("tensorrt_rtx")
    out, err = run("build-engine", artifact, "--target", "rtx-2080ti", "--fp16", "--on", server.url(old_python if which == "old" else sys.executable),
                   "-o", tmp_path, "--json")
    engine = json.loads(out)
    assert engine["checks"]["layers"]["fp16"] > 100 and engine["versions"]["tensorrt_rtx"] and engine["checks"]["run_on_device"] is False
    assert "127.0.0.1: copying network.onnx" in err and "127.0.0.1: building" in err and "127.0.0.1: fetching engine" in err
    assert records.read_artifact(tmp_path / "rtx-2080ti/net.fp16.engine").precision == "fp16"
    assert server.left() == ["cache/rtseg-deploy/busy"]


def test_predict_there_gives_what_it_gives_here(server, run, artifact, tmp_path, old_python):
    from rtseg_deploy import images
    run("predict", artifact, images.STREET, "-o", tmp_path / "here")
    run("predict", artifact, images.STREET, "-o", tmp_path / "there", "--on", server.url(old_python))
    here, there = (np.asarray(Image.open(tmp_path / where / "street.labels.png")) for where in ("here", "there"))
    assert (here == there).mean() > 0.9999


def test_a_backend_that_runs_here_only(server, run, artifact):
    _, err = run("bench", artifact, "--backend", "null", "--on", server.url(), status=1)
    assert "runs on this machine only" in err and "onnxruntime-cpu" in err


# ---- what goes wrong


def test_no_python_there(server, run):
    _, err = run("probe", "--on", server.url("/no/such/python3"), status=1)
    assert "there is no /no/such/python3 on 127.0.0.1" in err and "--on" in err


def test_no_tensorrt_there(server, run, artifact):
    _, err = run("build-engine", artifact, "--target", "jetson-tx2", "--on", server.url(python("3.6", folder=None)), status=1)
    assert "tensorrt" in err and "python3-libnvinfer" in err


def test_no_onnxruntime_there(server, run, artifact, tmp_path):
    _, err = run("bench", artifact, "--on", server.url(python("3.8", folder=None)), "-o", tmp_path, status=1)
    assert ("onnxruntime" in err or "numpy" in err) and "pip" in err
    assert not list(tmp_path.iterdir()) and server.left() == ["cache/rtseg-deploy/busy"]


def test_nobody_listens(run):
    from remote import free_port
    _, err = run("probe", "--on", f"ssh://127.0.0.1:{free_port()}", status=1)
    assert "127.0.0.1 takes no ssh connection" in err and "systemctl start ssh" in err


def test_no_such_host(run):
    _, err = run("probe", "--on", "ssh://no-such-host.invalid", status=1)
    assert "no host is called no-such-host.invalid" in err


@pytest.mark.parametrize("key, known, words", [("stranger", "known", "takes none of your keys"), ("user", "nobody", "the key of 127.0.0.1 is not known")])
def test_wrong_keys(server, run, key, known, words):
    server.client(key, known)
    try:
        _, err = run("probe", "--on", server.url(), status=1)
    finally:
        server.client("user")
    assert words in err


@pytest.mark.parametrize("said, words", [
    ("ssh: connect to host tx2 port 22: No route to host", "no route to tx2"),
    ("ssh: connect to host tx2 port 22: Connection timed out", "tx2 does not answer"),
    ("cat: write error: No space left on device", "disk of tx2 is full"),
])
def test_what_cannot_be_planted_on_loopback_is_read_from_what_ssh_says(said, words):
    connection = ssh.Connection(ssh.place("ssh://tx2"))
    with pytest.raises(RtsegError) as error:
        connection.refuse(255 if said.startswith("ssh") else 1, said)
    assert words in error.value.what and error.value.fix


def test_a_killed_worker(server, artifact, tmp_path, old_python):
    process = start(server, "bench", artifact, "-n", 100000, "--on", server.url(old_python), "-o", tmp_path)
    next(line for line in process.stderr if "timing" in line)
    subprocess.run(["pkill", "-9", "-f", f"^{old_python} runner.py"], check=True)
    rest = process.stderr.read()
    assert process.wait() == 1 and "was killed by signal 9 (out of memory?)" in rest and not list(tmp_path.iterdir())


# ---- a connection that is cut


def no_worker(there):
    for _ in range(100):
        if not subprocess.run(["pgrep", "-f", f"{there} runner.py"], capture_output=True).stdout.strip():
            return True
        time.sleep(0.1)
    return False


def test_cut_in_the_middle_of_a_bench(server, run, artifact, tmp_path, old_python):
    process = start(server, "bench", artifact, "-n", 100000, "--on", server.url(old_python), "-o", tmp_path)
    next(line for line in process.stderr if "timing" in line)
    server.cut()
    rest = process.stderr.read()
    assert process.wait() == 1 and "connection to 127.0.0.1 was lost" in rest
    assert no_worker(old_python) and not list(tmp_path.iterdir())
    assert not any(name.endswith(("result.json", ".part")) for name in server.left())
    out, err = run("bench", artifact, "-n", 20, "--on", server.url(old_python), "-o", tmp_path, "--json", status=None)
    assert json.loads(out)[0]["iterations"] == 20


class Cut:
    """A tell that cuts the connection once, when half of a file is over."""

    def __init__(self, server, name):
        self.server, self.name, self.begun = server, name, []

    def __call__(self, step, done):
        if self.name in step:
            self.begun.append(done)
            if done > 0.5 and self.server:
                self.server.cut()
                self.server = None


@pytest.fixture
def device(server, tmp_path, monkeypatch):
    """A place whose Python takes a file `big` and makes a file `engine` of it; how often it ran is in `ran`."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho >> {tmp_path}/ran\ncat big > engine\necho '{{\"ok\": true}}' > result.json\n")
    path.chmod(0o755)
    return ssh.place(server.url(path))


@pytest.fixture
def job(tmp_path):
    (tmp_path / "big").write_bytes(np.random.default_rng(0).bytes(60_000_000))
    return launch.Job({"action": "build"}, {"big": tmp_path / "big"}, ("engine",))


def made(place, job, folder, tell):
    folder.mkdir()
    place.run(job, folder, tell)
    return (folder / "engine").read_bytes() == job.files["big"].read_bytes()


@pytest.mark.parametrize("moment, name, ran", [("copying", "copying big", 0), ("fetching", "fetching engine", 1)])
def test_cut_in_the_middle_of_a_copy_the_next_run_goes_on(server, device, job, tmp_path, moment, name, ran):
    with pytest.raises(RtsegError, match="connection to 127.0.0.1 was lost"):
        made(device, job, tmp_path / "first", Cut(server, name))
    assert not any((tmp_path / "first").iterdir()) or moment == "fetching"
    assert len((tmp_path / "ran").read_text()) == ran if ran else not (tmp_path / "ran").exists()
    again = Cut(None, name)
    assert made(device, job, tmp_path / "second", again)
    assert again.begun[0] > 0.1 and len((tmp_path / "ran").read_text()) == 1
    assert server.left() == ["cache/rtseg-deploy/busy"]


def test_a_damaged_copy_is_not_used(server, device, job, tmp_path):
    """What a cut left there is not the beginning of this file."""
    with pytest.raises(RtsegError, match="lost"):
        made(device, job, tmp_path / "first", Cut(server, "copying big"))
    (part,) = server.home.rglob("big.part")
    with open(part, "r+b") as file:
        file.write(b"flipped")
    with pytest.raises(RtsegError, match="big arrived damaged"):
        made(device, job, tmp_path / "second", launch.quiet)
    assert made(device, job, tmp_path / "third", launch.quiet)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_worker_there_ends_with_the_command_here(server, artifact, tmp_path, old_python, how):
    process = start(server, "bench", artifact, "-n", 100000, "--on", server.url(old_python), "-o", tmp_path)
    next(line for line in process.stderr if "timing" in line)
    process.send_signal(how)
    process.wait()
    assert no_worker(old_python)
