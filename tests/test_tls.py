"""Who may come to a fleet: those with a certificate of its CA, and whoever may not is told so in a line."""
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from conftest import ROOT, run

distributed = pytest.importorskip("distributed")

from rtseg_deploy import fleet, remote, tasks  # noqa: E402
from rtseg_deploy.errors import RtsegError  # noqa: E402
from rtseg_deploy.files import read_json, write_json  # noqa: E402

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(not OPENSSL, reason="no openssl here: the package openssl has it")
SETTINGS = "[req]\ndistinguished_name = name\nx509_extensions = ca\n[name]\n[ca]\nbasicConstraints = critical, CA:TRUE\n"


def certificates(folder):
    """A folder for --tls, as docs/fleet.md makes it."""
    folder.mkdir()
    (folder / "openssl.cnf").write_text(SETTINGS)
    for line in ("req -config openssl.cnf -x509 -newkey ed25519 -noenc -days 2 -subj /CN=CA -keyout ca.key -out ca.pem",
                 "req -config openssl.cnf -newkey ed25519 -noenc -subj /CN=fleet -keyout key.pem -out request.pem",
                 "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem"):
        subprocess.run([OPENSSL, *line.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Certificates of a fleet; of strangers; and of a stranger who knows the fleet's CA, but has nothing from it."""
    root = tmp_path_factory.mktemp("tls")
    ours, theirs, mixed = certificates(root / "ours"), certificates(root / "theirs"), root / "mixed"
    shutil.copytree(theirs, mixed)
    shutil.copy(ours / "ca.pem", mixed)
    return ours, theirs, mixed


@contextmanager
def begun(*arguments, until):
    """A command that goes on until the block ends; gives the line in which it says that it works."""
    command = [sys.executable, "-m", "rtseg_deploy", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        yield next(line for line in process.stderr if until in line)
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def address(folders):
    with begun("scheduler", "--host", "127.0.0.2", "--port", 0, "--tls", folders[0], until="scheduler at") as line:
        yield line.split()[-1]


class Waiting(Exception):
    """A worker said that it waits."""


def worker(address, tls, store):
    def told(line):
        raise Waiting(line)
    return remote.worker(address, (), None, 1, store, tls, "127.0.0.3", False, told)


@needs_openssl
def test_a_worker_with_a_certificate_of_the_fleet_is_taken(address, folders, tmp_path):
    with (begun("worker", "--scheduler", address, "--tls", folders[0], "--host", "127.0.0.3", "--store", tmp_path, until="works for"),
          fleet.joined(address, folders[0]) as by):
        assert [one["address"].startswith("tls://127.0.0.3:") for one in by.workers().values()] == [True]


@needs_openssl
def test_a_worker_of_another_ca_is_refused(address, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CONNECT_SECONDS", 2)
    _, theirs, mixed = folders
    with pytest.raises(RtsegError, match="has a certificate that is not taken here"):
        worker(address, theirs, tmp_path)
    with pytest.raises(Waiting, match="no scheduler answers at tls://127.0.0.2:.*: trying again"):
        worker(address, mixed, tmp_path)
    assert not (tmp_path / "dask").exists()


@needs_openssl
def test_a_client_without_a_certificate_is_told_in_one_line(address, folders):
    engine = "engines/sgcpnet-table-5.toml"
    said = [run("bench", engine, "--scheduler", one, *more, status=1, cwd=ROOT)[1].splitlines()[-1]
            for one, more in ((address, []), (address, ["--tls", folders[1]]), (address.replace("tls", "tcp"), []))]
    assert said[0] == f"rtseg-deploy: {address} takes nobody without a certificate; add --tls FOLDER, see docs/fleet.md"
    assert said[1].startswith(f"rtseg-deploy: {address} has a certificate that is not taken here: ")
    assert said[2].startswith(f"rtseg-deploy: no scheduler answers at {address.replace('tls', 'tcp')}: ")


@needs_openssl
def test_certificates_are_for_an_address_that_asks_for_them(folders, tmp_path):
    with pytest.raises(RtsegError, match="is not encrypted"):
        fleet.client("tcp://127.0.0.1:1", folders[0])
    (tmp_path / "ca.pem").touch()
    with pytest.raises(RtsegError, match="cert.pem: no such file"):
        fleet.client("tls://127.0.0.1:1", tmp_path)


def test_a_scheduler_that_anybody_could_reach_does_not_begin():
    _, said = run("scheduler", "--host", "0.0.0.0", status=1)
    assert said.startswith("rtseg-deploy: at 0.0.0.0 anybody who reaches this port could run code on this machine; add --tls FOLDER") and said.count("\n") == 1


def test_a_worker_of_another_version_does_nothing(tmp_path):
    write_json(tmp_path / "job.json", {"action": "bench", "version": "0.0.1"})
    assert not tasks.perform(tmp_path)["ok"]
    assert read_json(tmp_path / "result.json")["error"] == f"this worker has rtseg-deploy {tasks.__version__}, and the job is of 0.0.1"
