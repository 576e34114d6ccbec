"""Jobs at the other end of an ssh connection: a real OpenSSH server on loopback, with a home and keys of its own."""
import contextlib
import errno
import fcntl
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
    assert ssh.place("ssh://TX2/a%20b/python").host == "TX2", "names in ~/.ssh/config have capitals"
    assert ssh.place("ssh://TX2/a%20b/c d/python/").python == "/a b/c d/python"


@pytest.mark.parametrize("url", ["tx2", "http://tx2", "ssh://", "ssh://-oProxyCommand=x", "ssh://me:secret@tx2", "ssh://tx2:port", "ssh://-l@tx2", "ssh://tx2?a=b",
                                 "ssh://tx2:0", "ssh://tx2:65536", "ssh://", "ssh://a b", "ssh://tx2/a\nb", "ssh://@tx2"])
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
    there = row["runs"][0]["environment"]
    assert row["iterations"] == 20 and there["python"].startswith("3.8") and there["on"] == "127.0.0.1"
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
        self.server, self.name, self.begun, self.told = server, name, [], []

    def __call__(self, step, done):
        self.told.append(step)
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
    assert not any("runner.py" in step for step in again.told), "it is there already"
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


def test_what_was_changed_there_since_it_came_is_sent_again(server, device, job, tmp_path):
    """What runs on a device is held against its hash there, also what an earlier run brought."""
    with pytest.raises(RtsegError, match="lost"):
        made(device, job, tmp_path / "first", Cut(server, "copying big"))
    (there,) = server.home.rglob("runner.py")
    there.write_text("import os; os.system('touch attacked')")
    again = Cut(None, "copying big")
    assert made(device, job, tmp_path / "second", again)
    assert any("copying runner.py" in step for step in again.told)


def test_a_damaged_beginning_here_is_not_used(server, device, job, tmp_path):
    with pytest.raises(RtsegError, match="lost"):
        made(device, job, tmp_path / "first", Cut(server, "fetching engine"))
    (part,) = (server.folder / "our-cache").rglob("*.part")
    with open(part, "r+b") as file:
        file.write(b"flipped")
    with pytest.raises(RtsegError, match="engine arrived damaged"):
        made(device, job, tmp_path / "second", launch.quiet)
    assert not part.exists() and made(device, job, tmp_path / "third", launch.quiet)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_worker_there_ends_with_the_command_here(server, artifact, tmp_path, old_python, how):
    process = start(server, "bench", artifact, "-n", 100000, "--on", server.url(old_python), "-o", tmp_path)
    next(line for line in process.stderr if "timing" in line)
    process.send_signal(how)
    process.wait()
    assert no_worker(old_python)


# ---- a device that is not as plain as others


@pytest.fixture
def odd(tmp_path):
    """A function: a server with these variables in its environment; what runs the command line against it is its attribute `run`."""
    servers = []

    def start(**variables):
        (tmp_path / "sshd").mkdir()
        servers.append(Server(tmp_path / "sshd", **variables))
        servers[0].run = lambda *arguments, **options: run_here(*arguments, **{"environment": servers[0].environment, **options})
        return servers[0]
    yield start
    for one in servers:
        one.stop()


def test_folders_and_pythons_with_odd_names(odd, artifact, tmp_path):
    there = odd(XDG_CACHE_HOME=str(tmp_path / "a b'c"))
    path = tmp_path / "py 'th%on"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    out, _ = there.run("bench", artifact, "-n", 20, "--on", there.url(str(path).replace("%", "%25")), "-o", tmp_path / "out", "--json", status=None)
    assert json.loads(out)[0]["iterations"] == 20
    assert os.listdir(tmp_path / "a b'c/rtseg-deploy/jobs") == []


def test_a_shell_that_greets(server, device, job, tmp_path):
    """bash reads .bashrc for every command of ssh, where its output is not a terminal."""
    (server.home / ".bashrc").write_text("echo 'Welcome.'; printf 'no line'; echo 'and on stderr' >&2\n")
    assert made(device, job, tmp_path / "first", launch.quiet)


@contextlib.contextmanager
def busy(server):
    """Another command's job runs on the device."""
    with open(server.home / "cache/rtseg-deploy/busy") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("moment", ["folder", "send", "start"])
def test_two_at_once_do_not_disturb_each_other(server, device, job, tmp_path, monkeypatch, moment):
    """Not even where it is the same job, in the same folder there."""
    with pytest.raises(RtsegError, match="lost"):
        made(device, job, tmp_path / "first", Cut(server, "copying big"))
    plain, before = getattr(ssh.Connection, moment), []

    def disturbed(*arguments):
        with busy(server):
            before.append(server.left())
            return plain(*arguments)
    monkeypatch.setattr(ssh.Connection, moment, disturbed)
    with pytest.raises(RtsegError, match="127.0.0.1 is busy with another job") as error:
        made(device, job, tmp_path / "second", launch.quiet)
    assert error.value.fix and server.left() == before[0] and len(before[0]) > 1
    monkeypatch.undo()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    assert made(device, job, tmp_path / "third", launch.quiet) and len((tmp_path / "ran").read_text()) == 1


def test_what_is_left_for_a_week_goes(server, device, job, tmp_path):
    """The folders of other jobs there, its own too, and what was fetched here."""
    ours = server.folder / "our-cache/rtseg-deploy"
    for moment in ("copying big", "fetching engine"):
        with pytest.raises(RtsegError, match="lost"):
            made(device, job, tmp_path / moment, Cut(server, moment))
        if moment.startswith("copying"):
            ours.mkdir(parents=True, exist_ok=True)
    (own,) = (server.home / "cache/rtseg-deploy/jobs").iterdir()
    other, young = own.parent / "other", own.parent / "young"
    (here,) = ours.glob("*.part")
    for folder in (other, young):
        folder.mkdir()
    for path in (own, other, here):
        os.utime(path, (time.time() - 9 * 86400,) * 2)
    again = Cut(None, "fetching engine")
    assert made(device, job, tmp_path / "again", again) and again.begun[0] < 0.1
    assert os.listdir(own.parent) == ["young"] and len((tmp_path / "ran").read_text()) == 2


def test_where_no_folder_can_be_made(odd):
    there = odd(XDG_CACHE_HOME="/dev/null/x")
    _, err = there.run("probe", "--on", there.url(), status=1)
    assert "no folder can be made on 127.0.0.1" in err and "XDG_CACHE_HOME" in err and len(err.strip().splitlines()) <= 2


@pytest.fixture
def tiny(tmp_path):
    """A function: a file system of so many KiB; skips where none may be mounted."""
    mounted = []

    def mount(kib):
        (tmp_path / "tiny").mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", tmp_path / "tiny"]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        mounted.append(tmp_path / "tiny")
        return mounted[0]
    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_there(odd, artifact, tiny, tmp_path):
    there = odd(XDG_CACHE_HOME=tiny(64))
    _, err = there.run("bench", artifact, "-n", 20, "--on", there.url(), "-o", tmp_path / "out", status=1)
    assert "the disk of 127.0.0.1 is full" in err and "df -h" in err
    assert os.listdir(tmp_path / "tiny/rtseg-deploy/jobs") == [] and not (tmp_path / "out").exists()


def test_a_full_disk_here(server, device, job, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny(1024)))
    with pytest.raises(OSError) as error:
        made(device, job, tmp_path / "first", launch.quiet)
    assert error.value.errno == errno.ENOSPC and not list((tmp_path / "tiny").rglob("*.part"))


def test_a_long_folder_for_temporary_files(run, server, tmp_path):
    """A socket's path has 107 bytes at most."""
    long = tmp_path / ("x" * 120 + " %C")
    long.mkdir()
    _, err = run_here("probe", "--on", server.url(), environment={**server.environment, "TMPDIR": str(long)})
    assert "lost" not in err and not any(long.iterdir())


def test_no_ssh_here(server, device, job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RtsegError, match="there is no ssh on this machine") as error:
        made(device, job, tmp_path / "first", launch.quiet)
    assert "openssh-client" in error.value.fix


def test_a_device_that_does_not_tell_a_sha256(server, device, job, tmp_path, monkeypatch):
    plain = ssh.Connection.output
    monkeypatch.setattr(ssh.Connection, "output", lambda self, script: plain(self, script.replace("sha256sum < engine", "echo ../../../x -")))
    with pytest.raises(RtsegError, match="does not tell the sha256 of engine") as error:
        made(device, job, tmp_path / "first", launch.quiet)
    assert "sha256sum" in error.value.fix
