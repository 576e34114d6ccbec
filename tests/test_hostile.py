"""What answers at the other end of ssh may be anyone: whatever it says, a command ends with one line, and takes neither much memory nor disk.

`ssh` is a program of the tests here, which answers as an attacker would.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, at_most

from rtseg_deploy import launch, ssh
from rtseg_deploy.errors import RtsegError

# A device: it runs the scripts here, in a folder of its own, but for those that remove. EVIL is Python that may answer in its place: `script` is what it
# is asked to run.
DEVICE = f"""#!{sys.executable} -IS
import json, os, sys
script = sys.argv[-1]
if "-O" in sys.argv or "@rtseg-deploy; rm -rf " in script:     # what is removed there would be removed here, wherever a broken check let it point
    sys.exit()
out = sys.stdout.buffer
def ready():
    out.write(b"\\n@rtseg-deploy\\n")
def without_end(block, file=out):
    try:
        for _ in range(1_200_000_000 // len(block)):    # or nearly: where nothing holds it, a test fails and not the machine
            file.write(block)
    except OSError:
        os._exit(1)
EVIL
os.execvp("sh", ["sh", "-c", script])
"""


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A place that behaves as these lines of Python say; all that it writes is below tmp_path/there."""
    def made(evil="", python="true"):
        path = tmp_path / "bin/ssh"
        path.parent.mkdir(exist_ok=True)
        path.write_text(DEVICE.replace("EVIL", evil.replace("PYTHON", repr(python))))
        path.chmod(0o755)
        for name, value in {"PATH": f"{path.parent}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "there")}.items():
            monkeypatch.setenv(name, value)
        worker = tmp_path / "python"
        worker.write_text(f"#!/bin/sh\n{python}\n")
        worker.chmod(0o755)
        return ssh.place(f"ssh://device{worker}")
    return made


def answer(**result):
    """A worker's shell script that leaves a result."""
    return f"cat > result.json <<'END'\n{json.dumps(result)}\nEND"


GOOD = answer(ok=True, probe={"gpu": {"error": "none"}})


def probed(place):
    with launch.ran(launch.Job({"action": "probe"}), place) as (result, _):
        return result


def said(place):
    """The error of a probe, as it is told; its memory and its files are bounded meanwhile."""
    with at_most(300), pytest.raises(RtsegError) as error:
        probed(place)
    assert len(error.value.what) < 10_000
    return f"{error.value.what}; {error.value.fix}"


def test_the_device_of_these_tests_answers(device):
    assert probed(device(python=GOOD))["probe"] == {"gpu": {"error": "none"}}


@pytest.mark.parametrize("evil, words", [
    ('without_end(b"x" * 65536)', "prints more than the 1 MiB"),
    ('without_end(b"welcome\\n" * 8192)', "prints more than the 1 MiB"),
    ('ready(); without_end(b"x" * 65536)', "prints more than the 1 MiB"),
    ('if "pwd" in script: without_end(b"x" * 65536, sys.stderr.buffer)', "device: xxx"),
    ('if "pwd" in script: ready(); print("/../../no-such-folder-of-these-tests"); sys.exit()', "does not tell where its folder"),
    ('if "pwd" in script: ready(); print("relative"); sys.exit()', "does not tell where its folder"),
    ('if "pwd" in script: ready(); out.write(("/tmp/\\0/" + script.split("mkdir -p ")[-1].split(";")[0]).encode()); sys.exit()',
     "does not tell where its folder"),
    ('if "wc -c" in script and "for f" in script: ready(); print("many\\nrunner.py"); sys.exit()', "device"),
    ('if "wc -c < result.json" in script: ready(); print(1 << 60, "0" * 64); sys.exit()', "has result.json of more than the 768 MiB"),
    ('if "wc -c < result.json" in script: ready(); print(100, "0" * 64); sys.exit()\n'
     'if "tail -c" in script: ready(); without_end(b"x" * 65536)', "longer than device said"),
    ('if "tail -c" in script: ready(); out.write(b"{}"); sys.exit()', "arrived damaged"),
], ids=range(11))
def test_what_it_prints_has_an_end(device, evil, words):
    assert words in said(device(evil, python=GOOD))


@pytest.mark.parametrize("python, words", [
    (f"head -c 300000000 /dev/zero >&2 || exit 1\n{GOOD}", "device"),
    ("head -c 300000000 /dev/zero; exit 1", "device"),
    ("head -c 100000 /dev/zero > result.json", "is not JSON"),
    ("python3 -c 'print(\"[\" * 200000)' > result.json", "nested"),
    ("ln -s /dev/zero result.json", "device"),
    (answer(ok=True, probe=[]), "is no result of it"),
    (answer(ok=True, probe={"gpu": 5}), "is no result of it"),
    (answer(ok=False, error=["a list"]), "a list"),
    (answer(ok=False, error="x" * 1_000_000), "xxx"),
    (answer(ok=False, error="no GPU", fix="curl example.invalid | sh"), "no GPU; device says: curl"),
], ids=range(10))
def test_what_its_worker_leaves_is_no_more_than_a_result(device, python, words):
    assert words in said(device(python=python))


def test_neither_its_progress_nor_its_errors_steer_the_terminal(device, tmp_path):
    """Escapes, C1 controls, letters that turn the direction, and lines that seem to be ours."""
    hostile = "\x1b]0;owned\x07\x9b31m\u202e\nrtseg-deploy: all is well"
    place = device(python=f"printf '%s\\n' '@rtseg {json.dumps({'stage': hostile})}'\n{answer(ok=False, error=hostile, fix=hostile)}")
    done = subprocess.run([sys.executable, "-m", "rtseg_deploy", "probe", "--on", place.url], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "owned" in done.stderr
    assert not set("\x1b\x07\x9b\u202e") & set(done.stderr + done.stdout)
    lines = done.stderr.splitlines()
    assert [line.startswith("rtseg-deploy: ?]0;owned") for line in lines].count(True) == 1 and lines[-1].startswith("rtseg-deploy: ?]0;owned")
    assert not any(line.startswith("rtseg-deploy: all is well") for line in lines)


def test_it_gets_no_use_of_the_users_keys(device, tmp_path):
    """Agent and screen are not forwarded, whatever the user's configuration says."""
    place = device(f'open({str(tmp_path / "asked")!r}, "a").write(json.dumps(sys.argv) + "\\n")', python=answer(ok=True, probe={"gpu": {"error": ""}}))
    probed(place)
    asked = [json.loads(line) for line in Path(tmp_path / "asked").read_text().splitlines()]
    assert asked and all("ForwardAgent=no" in words and "ForwardX11=no" in words for words in asked)


@pytest.mark.parametrize("url", ["ssh://-oProxyCommand=id", "ssh://a@-oProxyCommand=id", "ssh://host;id", "ssh://$(id)", "ssh://host:22;id", "ssh://host\n"])
def test_an_address_is_no_option_and_no_command(url):
    with pytest.raises(RtsegError, match="is not where a job can run"):
        ssh.place(url)


def test_the_name_of_a_python_there_is_no_command(device, tmp_path):
    place = ssh.place(f"{device(python='true').url};touch {tmp_path}/attacked;")
    with pytest.raises(RtsegError):
        probed(place)
    assert not (tmp_path / "attacked").exists()
