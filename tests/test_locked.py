"""The locked files: what they pin, that it is all that is needed, by hash, and that nothing in the repository installs around them."""
import re
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKED = sorted(path.name for path in ROOT.glob("requirements*.txt"))
APART = {"torch", "onnxruntime-gpu", "tensorrt"}        # the user's choice, the same module as onnxruntime, and a device's own
MACHINES = [{"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0", "sys_platform": system, "platform_machine": machine,
             "platform_system": {"linux": "Linux", "darwin": "Darwin"}[system], "implementation_name": "cpython",
             "platform_python_implementation": "CPython", "os_name": "posix", "extra": ""}
            for minor in (10, 11, 12, 13) for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))]


def packages(name):
    """[(Requirement, its hashes)] of a locked file, without its comment."""
    text = (ROOT / name).read_text().partition("\n")[2].replace("\\\n", " ")
    return [(Requirement(line.partition(" --hash")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})(?!\S)", line)) for line in text.splitlines()]


def pinned(requirements, machine):
    """Name -> version on a machine."""
    return {canonicalize_name(one.name): str(one.specifier) for one in requirements if not one.marker or one.marker.evaluate(machine)}


def constraints():
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda one: f"{one['python_version']}-{one['sys_platform']}-{one['platform_machine']}")
def test_all_that_is_constrained_is_locked_at_the_same_version(machine):
    locked = pinned([one for name in LOCKED for one, _ in packages(name)], machine)
    wanted = pinned(constraints(), machine)
    assert {name: locked.get(name) for name in wanted if name not in APART} == {name: version for name, version in wanted.items() if name not in APART}, \
        "constraints.txt was changed: make lock"


def test_each_package_is_one_version_with_hashes_and_no_address():
    for name in LOCKED:
        assert "://" not in (ROOT / name).read_text()
        for one, hashes in packages(name):
            assert hashes and not one.url and re.fullmatch(r"==[\w.]+", str(one.specifier)), one
            assert "torch" not in one.name and not one.name.startswith(("nvidia-c", "triton")), f"{one.name}: torch brings it, whichever the user takes"


def test_all_that_the_package_can_need_is_constrained():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    wanted = {canonicalize_name(Requirement(line).name) for text in lists for line in text.splitlines() if line and not line.startswith("#")}
    assert wanted - {canonicalize_name(one.name) for one in constraints()} <= APART


def test_nothing_that_they_need_is_missing():
    """So that they can be installed without a look at dependencies: of what is installed here, all that it names is in them too."""
    machine = {"extra": ""}
    locked = pinned([one for name in LOCKED for one, _ in packages(name)], machine)
    for name in [*locked, "torch"]:
        try:
            needed = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        missing = {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate(machine)} - locked.keys()
        assert name == "torch" or not missing, f"{name} needs {missing}"
        assert not {one for one in missing if not one.startswith(("nvidia-", "cuda-", "triton"))}


def test_make_installs_nothing_but_torch_without_a_hash():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line and "$(BIN)" in line]
    free = [line for line in lines if "--require-hashes" not in line]
    assert len(lines) == 5 and [re.search(r"(\$\(TORCH\)|-e \.)$", line)[0] for line in free] == ["$(TORCH)", "-e ."]
    assert "--no-deps --no-build-isolation" in free[1], "or it would fetch what it is built with"
