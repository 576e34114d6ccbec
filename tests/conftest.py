import functools
import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import settings

# a worker each to a processor: runtimes that all take all of them slow each other down
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(processors)]})

# what is started in the background has SIGINT ignored, and so would everything that is started here
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# a cache to each worker, for what they time they would wait for each other; it stays, with what was compiled; pip has no part in this
os.environ.setdefault("PIP_CACHE_DIR", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pip")))
os.environ["XDG_CACHE_HOME"] = str(ROOT / ".pytest_cache" / os.environ.get("PYTEST_XDIST_WORKER", "alone"))
SHARED = ROOT.parent / "shared"

# the same examples each time: a run that fails is a run that can be repeated
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def the_same_numbers(request):
    """A test gets the same random numbers whatever ran before it in its process: a run that fails can be repeated here too."""
    if hasattr(request.module, "RNG"):
        drawn = request.module.RNG.bit_generator
        drawn.state = type(drawn)(drawn.seed_seq).state


@contextmanager
def at_most(megabytes):
    """A block in which this process gets no larger than that; what earlier tests took does not hide it, where Linux forgets its high-water mark."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes << 10


@pytest.fixture(scope="session")
def shared():
    """The folder of real input beside the repository; not part of it."""
    if not SHARED.is_dir():
        pytest.skip("real input (../shared) is not here")
    return SHARED


def script(path):
    """A file that is no module of a package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def state(shared):
    """The script that fills a public implementation's keys with fixed weights."""
    return script(shared / "dialects/state.py")


def downloaded(requirement, python, folder):
    """The wheel of a requirement for a Python on Linux and x86-64, from the package index into a folder; the test is skipped where that fails."""
    platforms = [f"--platform=manylinux{name}_x86_64" for name in ("_2_28", "_2_17", "2014", "2010")]
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms, f"--python-version={python}",
                           "--dest", str(folder), requirement], capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        pytest.skip(f"{requirement} cannot be had from the package index: {done.stderr.strip().splitlines()[-1:]}")
    return wheels[0]


def until(true, seconds=20):
    """Whether it comes to be true within these seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def run(*arguments, status=0, cwd=None, environment=None, **options):
    """Run the command line in a process of its own; returns (stdout, stderr). status None: any."""
    result = subprocess.run([sys.executable, "-m", "rtseg_deploy", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}, timeout=300, **options)
    assert status is None or result.returncode == status, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="session")
def trained():
    """The trained SGCPNet that the package carries."""
    from rtseg_deploy import checkpoints, demo
    return checkpoints.load(demo.CHECKPOINT)


@pytest.fixture(scope="session")
def artifact(trained, tmp_path_factory):
    """Its ONNX file at a size that keeps tests quick."""
    from rtseg_deploy.export import export
    path = tmp_path_factory.mktemp("artifact") / "net.onnx"
    export(trained, path, (96, 128))
    return path


@pytest.fixture(scope="session")
def made_of_networks():
    """See made_once."""
    return {}


@pytest.fixture
def made_once(made_of_networks, monkeypatch):
    """What verify-chain makes of a network by itself is made once for all the files that tests hold against it. Not for tests that change how it is made."""
    from rtseg_deploy import links

    def once(name, make):
        def made(trained, reading):
            key = name, id(trained), repr(reading)
            made_of_networks[key] = made_of_networks.get(key) or (trained, make(trained, reading))  # the network is kept, and with it its id
            return made_of_networks[key][1]
        return made
    for name in ("traced", "folded"):
        monkeypatch.setattr(links, name, once(name, getattr(links, name)))


@pytest.fixture
def copy_of(tmp_path):
    """Copy an artifact with its sidecar, with fields of the sidecar changed."""
    def copy(path, **changes):
        goal = tmp_path / path.name
        goal.write_bytes(path.read_bytes())
        described = json.loads(Path(f"{path}.json").read_text())
        Path(f"{goal}.json").write_text(json.dumps({**described, **changes}))
        return goal
    return copy


@pytest.fixture(scope="session")
def old_python(tmp_path_factory):
    """A Python 3.8 as a device may have it, with what the runner can use; its tests are one xdist group, so that it is made once."""
    from remote import python
    return python("3.8", "numpy", "onnxruntime", "tensorrt-rtx", folder=tmp_path_factory.mktemp("old") / "venv")


@functools.cache
def python36():
    """A Python 3.6 that runs, or None: a version manager's stand-in may be found and refuse to run."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    question = "import sys; sys.exit(sys.version_info[:2] != (3, 6))"
    for path in [*sorted(root.glob("versions/3.6*/bin/python")), shutil.which("python3.6")]:
        if path and subprocess.run([path, "-c", question], capture_output=True).returncode == 0:
            return str(path)
    return None


@pytest.fixture(params=["3.6", "this"])
def python(request):
    path = python36() if request.param == "3.6" else sys.executable
    if path is None:
        pytest.skip("no Python 3.6 here: neither python3.6 nor one of pyenv's runs")
    return path
