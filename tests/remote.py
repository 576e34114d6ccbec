"""An OpenSSH server on loopback with keys and a home of its own, and Pythons for it: what a device is to the ssh client."""
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
SSH = shutil.which("ssh")
needs_sshd = pytest.mark.skipif(not (SSHD and SSH), reason="no OpenSSH server here: the package openssh-server has it")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def keygen(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


class Server:
    """One server; `url(python)` is what --on takes, `environment` makes the system's ssh use a configuration of its own."""

    def __init__(self, folder, **variables):
        self.folder, self.port, self.home = folder, free_port(), folder / "home"
        self.home.mkdir()
        for name in ("host", "user", "stranger"):
            keygen(folder / name)
        shutil.copy(folder / "user.pub", folder / "authorized")
        variables = {"HOME": self.home, "XDG_CACHE_HOME": self.home / "cache", **variables}
        with contextlib.suppress(PermissionError):
            os.makedirs("/run/sshd", exist_ok=True)
        (folder / "sshd_config").write_text("\n".join([
            f"ListenAddress 127.0.0.1:{self.port}", f"HostKey {folder}/host", f"AuthorizedKeysFile {folder}/authorized", "StrictModes no", "UsePAM no",
            "PasswordAuthentication no", "KbdInteractiveAuthentication no", f"PidFile {folder}/pid",
            "SetEnv " + " ".join(f'{name}="{value}"' for name, value in variables.items()), ""]))
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        self.client("user")
        self.start()

    def client(self, key, known="known"):
        """Write the client's configuration: which key it shows, which host keys it knows."""
        (self.folder / "ssh_config").write_text(f"IdentityFile {self.folder}/{key}\nIdentitiesOnly yes\nUserKnownHostsFile {self.folder}/{known}\n"
                                                "StrictHostKeyChecking yes\n")
        bin_ = self.folder / "bin"
        bin_.mkdir(exist_ok=True)
        (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {SSH} -F {self.folder}/ssh_config "$@"\n')
        (bin_ / "ssh").chmod(0o755)

    @property
    def environment(self):
        return {"PATH": f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(self.folder / "our-cache")}

    def url(self, python=sys.executable):
        return f"ssh://127.0.0.1:{self.port}{python}"

    def start(self):
        self.process = subprocess.Popen([SSHD, "-D", "-E", self.folder / "log", "-f", self.folder / "sshd_config"])
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError((self.folder / "log").read_text())

    def sessions(self):
        """The processes of sshd that serve a connection: ending them is cutting it."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
        return [int(line.split()[0]) for line in listed if line.split()[1] == str(self.process.pid)]

    def cut(self):
        """Cut every connection, as a pulled cable does: no word to either end."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                for child in subprocess.run(["pgrep", "-P", str(pid), "sshd"], capture_output=True, text=True).stdout.split():
                    os.kill(int(child), 9)
                os.kill(pid, 9)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def left(self):
        """What is in the home there."""
        return sorted(str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file())


def python(version, *packages, folder):
    """A Python of that version from pyenv, in an environment of its own with these packages; skips where there is none."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    if not found:
        pytest.skip(f"no Python {version} here")
    if not packages:
        return str(found[-1])
    subprocess.run([found[-1], "-m", "venv", folder], check=True)
    done = subprocess.run([folder / "bin/pip", "install", "-q", *packages], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no {' '.join(packages)} for Python {version}: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "bin/python")
