"""Signatures of files with the user's own SSH key, by OpenSSH's ssh-keygen and in its format: nothing here does cryptography.

What is signed is the file that is named, or, of an artifact, its sidecar, which holds the artifact's sha256. The signature lies beside it, as
FILE.sig. A signature says who, not when and not under which name: an older file of the same signer passes too.
"""
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import files
from .errors import RtsegError
from .records import sidecar

NAMESPACE = "rtseg-deploy"          # a signature that was made for another purpose, such as git's, is none here
KEYS = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")     # of ~/.ssh, the first that is there
GOOD = re.compile(r'Good "\S+" signature for (?P<signer>.*) with (?P<key>\S+ key \S+)')


@dataclass(frozen=True)
class Signed:
    """A file whose signature is good."""
    file: str
    signer: str                     # as the file of signers calls them
    key: str                        # its kind and fingerprint


def signed(path):
    """The file that a signature is of: an artifact's sidecar, or the file itself."""
    return sidecar(path) if sidecar(path).is_file() else Path(path)


def signature(path):
    """Where the signature of a file lies."""
    return Path(f"{signed(path)}.sig")


def sign(path, key=None):
    """Sign a file; returns the path of the signature. Raises RtsegError.

    key: a private key, or the public half of one that ssh-agent has; the user's own if not given. A passphrase is asked for by ssh-keygen itself, on
    the terminal: so its input stays the terminal, and the file comes to it by name.
    """
    refuse_changed(path)
    with files.scratch() as folder:
        link = Path(folder, "file")
        link.symlink_to(signed(path).resolve())
        done = keygen("sign", "-f", str(key or own_key()), str(link))
        if done.returncode:
            raise RtsegError(f"{path} was not signed: {said(done)}", "a key with a passphrase: ssh-add it first; another key: --key PATH")
        files.write(signature(path), Path(f"{link}.sig").read_bytes())
    return signature(path)


def own_key():
    """The user's key, or the public half of it where only ssh-agent has it. Raises RtsegError."""
    for name in KEYS:
        for path in (Path.home() / ".ssh" / name, Path.home() / ".ssh" / f"{name}.pub"):
            if path.is_file():
                return path
    raise RtsegError("there is no SSH key in ~/.ssh", "name one: --key PATH, or make one: ssh-keygen -t ed25519")


def check(path, signers):
    """The Signed of a file that one of the signers signed, and that is as it was then. Raises RtsegError.

    signers: a file as ssh-keygen takes it (allowed_signers): a line has a name and a public key.
    """
    where = signature(path)
    if not where.is_file():
        raise RtsegError(f"{path} is not signed: there is no {where.name} beside it", f"who made it signs it: rtseg-deploy sign {shlex.quote(Path(path).name)}")
    names = keygen("find-principals", "-f", str(signers), "-s", str(where))
    if names.returncode:
        raise RtsegError(f"{path} is signed by nobody that is in {signers}: {said(names)}", "ask who it is, and add them there: NAME PUBLIC-KEY")
    for name in names.stdout.splitlines():
        with open(signed(path), "rb") as file:
            done = keygen("verify", "-f", str(signers), "-s", str(where), "-I", name, stdin=file)
        if not done.returncode and (good := GOOD.search(done.stdout)):
            refuse_changed(path)
            return Signed(str(path), good["signer"], good["key"])
    raise RtsegError(f"{path}: its signature is not good: {said(done)}", "it was changed after it was signed, or signed for something else: get it again")


def refuse_changed(path):
    """Raise RtsegError where a sidecar, which is what is signed, is of another file than the one beside it."""
    if signed(path) != Path(path) and files.read_json(sidecar(path)).get("sha256") != files.sha256(path):
        raise RtsegError(f"{path} was changed after it was made: its sha256 is not the one in {sidecar(path).name}", "make it again, or get it again")


def keygen(action, *arguments, stdin=None):
    """What ssh-keygen answers. Raises RtsegError where there is none, or one that cannot sign."""
    if not shutil.which("ssh-keygen"):
        raise RtsegError("there is no ssh-keygen on this machine", "install OpenSSH's client: sudo apt-get install openssh-client")
    command = ["ssh-keygen", "-Y", action, *(("-n", NAMESPACE) if action != "find-principals" else ()), *arguments]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, errors="replace")
    if re.search("(unknown|illegal|invalid) option.*Y|Unsupported operation", done.stderr):
        raise RtsegError("this machine's OpenSSH is too old to sign files, or to check what is signed", "it needs OpenSSH 8.2 or newer: ssh -V")
    return done


def said(done):
    """The last line of ssh-keygen's."""
    return next((line for line in reversed((done.stdout + done.stderr).splitlines()) if line.strip()), "ssh-keygen says nothing")[:300].rstrip(".\r ")
