"""Nothing is asked of a network that the user did not ask for: the commands run where there is none, and the kernel counts what is tried nevertheless."""
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT
from test_cli import draw_camvid

from rtseg_deploy import demo

ALONE = ["unshare", "-rn"]
GUARD = """
import os, sys
def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if not (event.startswith("socket.c") or event.startswith("socket.s")) or isinstance(arguments[1], tuple):     # a tuple is no Unix socket's
            with open(os.environ["TRIED"], "a") as file:
                file.write(f"{event} {arguments[-1]}\\n")
sys.addaudithook(guard)
"""


def allowed():
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


needs_namespace = pytest.mark.skipif(not allowed(), reason="no network namespace can be made here: unshare -rn")


@pytest.fixture
def tried(tmp_path):
    """A function that runs lines of a shell without a network; returns (what they print, what they tried to reach)."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard/sitecustomize.py").write_text(GUARD)

    def run(*lines):
        script = "\n".join(["set -e", *lines, "echo; cat /proc/net/snmp /proc/net/snmp6"])
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}/guard{os.pathsep}{ROOT}", "TRIED": str(tmp_path / "tried"), "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([*ALONE, "sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        python = (tmp_path / "tried").read_text().splitlines() if (tmp_path / "tried").exists() else []
        return done.stdout, python + counted(done.stdout)
    return run


def counted(text):
    """What left, or found no way, as the kernel of that namespace counted it: IPv4 by a line of names and one of numbers, IPv6 line by line."""
    names, numbers = re.findall(r"(?m)^Ip: (.*)$", text)
    found = dict(zip(names.split(), numbers.split())) | dict(re.findall(r"(?m)^(Ip6\w+)\s+(\d+)$", text))
    return [f"{name} {number}" for name, number in found.items() if name in ("OutRequests", "OutNoRoutes", "Ip6OutRequests", "Ip6OutNoRoutes") and int(number)]


@needs_namespace
def test_what_is_tried_is_seen(tried):
    """By Python's hook, and by the kernel of what Python does not see."""
    connect = 'import socket; socket.socket().connect(("192.0.2.1", 80))'
    assert [line.split()[0] for line in tried(f"! {sys.executable} -c '{connect}' 2>/dev/null")[1]] == ["socket.connect", "OutNoRoutes"]
    assert [line.split()[0] for line in tried(f"! {sys.executable} -I -c '{connect}' 2>/dev/null")[1]][1:] == ["OutNoRoutes"]


@needs_namespace
def test_the_commands_try_nothing(tried, tmp_path):
    draw_camvid(tmp_path / "camvid", {"val": 1, "test": 1})
    us = f"{sys.executable} -m rtseg_deploy"
    unstable = "|| [ $? = 3 ]"
    lines = [f"{us} export {demo.CHECKPOINT} -o net.onnx --resolution 96x128", f"{us} check net.onnx --target jetson-tx2 || true",
             f"{us} bench net.onnx -n 5 --warmup 0.1 --backend onnxruntime-cpu --backend openvino {unstable}",
             f"{us} report results -o report", f"{us} eval net.onnx --data camvid", f"{us} doctor || true"]
    if find_spec("tensorrt_rtx"):
        lines.insert(1, f"{us} build-engine net.onnx --target rtx-2080ti")
    if not find_spec("openvino"):
        lines = [line.replace("--backend openvino", "") for line in lines]
    printed, found = tried(*lines)
    assert not found and "mIoU" in printed and (tmp_path / "report/report.html").is_file()
