"""Signatures by ssh-keygen, with keys made here: what is good, what is not and why, and what an old OpenSSH is told."""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run
from remote import keygen

from rtseg_deploy import collect, signatures
from rtseg_deploy.errors import RtsegError


def signs():
    """Whether this machine's ssh-keygen can."""
    return bool(shutil.which("ssh-keygen")) and "rguments" in subprocess.run(["ssh-keygen", "-Y", "find-principals"], capture_output=True, text=True).stderr


pytestmark = pytest.mark.skipif(not signs(), reason="no OpenSSH 8.2 or newer here, which signs files: the package openssh-client has it")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with the keys of a friend and of a stranger, and a file `signers` that has the friend's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("friend", "stranger"):
        keygen(folder / name)
    (folder / "signers").write_text(f"friend@here {(folder / 'friend.pub').read_text()}")
    return folder


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tx2.tar.gz"
    path.write_bytes(b"a bundle")
    return path


def refused(path, keys, words):
    with pytest.raises(RtsegError, match=words) as error:
        signatures.check(path, keys / "signers")
    assert error.value.fix and "\n" not in error.value.what


def test_a_file_is_signed_and_said_to_be(file, keys):
    assert signatures.sign(file, keys / "friend") == file.with_name("tx2.tar.gz.sig")
    assert signatures.sign(file, keys / "friend").is_file(), "again: nobody is asked whether to overwrite"
    found = signatures.check(file, keys / "signers")
    assert found.signer == "friend@here" and found.key.startswith("ED25519 key SHA256:")
    assert sorted(path.name for path in file.parent.iterdir()) == ["tx2.tar.gz", "tx2.tar.gz.sig"]


def test_it_is_openssh_itself_that_reads_and_writes_them(file, keys):
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "rtseg-deploy", "-f", keys / "friend", file], check=True)
    assert signatures.check(file, keys / "signers").signer == "friend@here"
    signatures.sign(file, keys / "friend")
    with open(file) as source:
        subprocess.run(["ssh-keygen", "-Y", "verify", "-n", "rtseg-deploy", "-f", keys / "signers", "-I", "friend@here", "-s", f"{file}.sig"],
                       stdin=source, check=True)


def test_one_byte_more_is_not_what_was_signed(file, keys):
    signatures.sign(file, keys / "friend")
    file.write_bytes(b"a bundle.")
    refused(file, keys, "its signature is not good")


def test_what_is_not_signed_or_by_a_stranger_or_for_something_else(file, keys):
    refused(file, keys, "is not signed: there is no tx2.tar.gz.sig beside it")
    signatures.sign(file, keys / "stranger")
    refused(file, keys, "signed by nobody that is in")
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keys / "friend", file], check=True, input=b"y\n")
    refused(file, keys, "is not good: .*namespace")
    Path(f"{file}.sig").write_text("-----BEGIN SSH SIGNATURE-----\nU1NI\n")
    refused(file, keys, "signed by nobody|is not good")


def test_a_signer_for_another_purpose_is_none(file, keys, tmp_path):
    signatures.sign(file, keys / "friend")
    (tmp_path / "signers").write_text(f'friend@here namespaces="git" {(keys / "friend.pub").read_text()}')
    refused(file, tmp_path, "is not good|nobody")


def test_of_an_artifact_the_sidecar_is_signed_and_holds_for_both(artifact, copy_of, keys):
    path = copy_of(artifact)
    assert signatures.sign(path, keys / "friend").name == "net.onnx.json.sig"
    assert signatures.check(path, keys / "signers").file == str(path)
    described = Path(f"{path}.json").read_text()
    Path(f"{path}.json").write_text(described.replace('"fp32"', '"fp16"'))
    refused(path, keys, "its signature is not good")
    Path(f"{path}.json").write_text(described)
    path.write_bytes(path.read_bytes() + b"\0")
    refused(path, keys, "was changed after it was made")
    with pytest.raises(RtsegError, match="was changed after it was made"):
        signatures.sign(path, keys / "friend")
    Path(f"{path}.json").unlink()
    refused(path, keys, "is not signed: there is no net.onnx.sig")


def test_a_sidecar_that_is_put_beside_a_signed_file_is_not_signed(file, keys):
    signatures.sign(file, keys / "friend")
    Path(f"{file}.json").write_text("{}")
    refused(file, keys, "there is no tx2.tar.gz.json.sig")


def test_a_key_of_the_agent_and_one_with_a_passphrase(file, keys, tmp_path, monkeypatch):
    for name in ("SSH_ASKPASS", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret words", "-f", tmp_path / "guarded"], check=True)
    done = subprocess.run(["setsid", "-w", *command("sign", file, "--key", tmp_path / "guarded")], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and "was not signed" in done.stderr and "ssh-add" in done.stderr and not Path(f"{file}.sig").exists()
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            time.sleep(0.05)
        subprocess.run(["ssh-add", "-q", keys / "friend"], check=True)
        shutil.copy(keys / "friend.pub", tmp_path / "public.pub")   # its private half is in the agent alone
        signatures.sign(file, tmp_path / "public.pub")
    finally:
        agent.terminate()
        agent.wait()
    assert signatures.check(file, keys / "signers").signer == "friend@here"


def command(*arguments):
    return [sys.executable, "-m", "rtseg_deploy", *map(str, arguments)]


def test_the_users_own_key_is_found(file, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(RtsegError, match="no SSH key in ~/.ssh") as error:
        signatures.sign(file)
    assert "ssh-keygen -t ed25519" in error.value.fix
    (tmp_path / ".ssh").mkdir()
    shutil.copy(keys / "friend", tmp_path / ".ssh/id_ed25519")
    signatures.sign(file)
    assert signatures.check(file, keys / "signers").signer == "friend@here"


def old(folder, said):
    """A PATH with nothing on it but an ssh-keygen that says that."""
    path = folder / "bin/ssh-keygen"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    path.chmod(0o755)
    return str(path.parent)


@pytest.mark.parametrize("said", ["unknown option -- Y", "ssh-keygen: illegal option -- Y", 'Unsupported operation for -Y: "find-principals"'])
def test_an_old_openssh_is_told_in_a_line(file, keys, tmp_path, monkeypatch, said):
    signatures.sign(file, keys / "friend")
    monkeypatch.setenv("PATH", old(tmp_path, said) + os.pathsep + os.environ["PATH"])
    refused(file, keys, "OpenSSH is too old")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    refused(file, keys, "there is no ssh-keygen")


def test_the_commands_sign_and_check(file, keys):
    other = file.with_name("other.json")
    other.write_text("{}")
    out, _ = run("sign", file, "--key", keys / "friend")
    assert out.strip() == f"{file}.sig"
    out, _ = run("check-signature", file, other, "--signers", keys / "signers", "--json", status=1)
    good, bad = json.loads(out)
    assert (good["good"], good["signer"], bad["good"]) == (True, "friend@here", False) and "is not signed" in bad["why"]
    assert "friend@here" in run("check-signature", file, "--signers", keys / "signers")[0]


def test_collect_takes_only_what_a_signer_signed(file, keys, tmp_path):
    _, err = run("collect", file, "--signers", keys / "signers", status=1, cwd=tmp_path)
    assert "is not signed" in err
    signatures.sign(file, keys / "friend")
    with pytest.raises(RtsegError, match="is damaged or no archive"):
        collect.collect(file, tmp_path / "engines", tmp_path / "results", signers=keys / "signers")
    assert not (tmp_path / "engines").exists()
