"""Whether an engine loads on a machine is told before it is read; without a sidecar of ours it is refused."""
import importlib.util
import json
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from conftest import run

from rtseg_deploy import launch, records, verify
from rtseg_deploy.cli import cli
from rtseg_deploy.errors import RtsegError

TI = {"name": "RTX 2080 Ti", "compute_capability": "7.5", "memory_bytes": 11 * 2**30, "driver": "580.65"}
HERE = {"gpu": TI, "tensorrt": "8.6.1", "tensorrt_rtx": "1.7.1.116"}


def engine(artifact, copy_of, runtime="tensorrt", version="8.6.1", capability="7.5", **checks):
    """An engine as such a runtime would leave it; its bytes are nothing that anything could load."""
    built = {"runtime": runtime, "version": version, "compute_capability": capability}
    described = records.read_artifact(artifact)
    return copy_of(artifact, kind="engine", target="rtx-2080ti",
                   checks={name: check for name, check in {**described.checks, "bytes": 3_000_000, "built": built, **checks}.items() if check is not None})


@pytest.mark.parametrize("built, probed, reasons", [
    ({}, HERE, []),
    ({}, {**HERE, "tensorrt": "8.6.1.6"}, ["it was built with tensorrt 8.6.1, and there is 8.6.1.6"]),
    ({"version": "8.5.3"}, HERE, ["it was built with tensorrt 8.5.3, and there is 8.6.1"]),
    ({}, {**HERE, "tensorrt": None}, ["there is no tensorrt there; it was built with 8.6.1"]),
    ({"capability": "6.1"}, HERE, ["it is for compute capability 6.1, and the RTX 2080 Ti there has 7.5"]),
    ({"bytes": 12 * 2**30}, HERE, ["it has 12,884,901,888 bytes, and the RTX 2080 Ti there 11,811,160,064 bytes of memory"]),
    ({}, {**HERE, "gpu": {"error": "no CUDA-capable device is detected"}}, ["no GPU is to be seen there: no CUDA-capable device is detected"]),
    ({"version": "10.1.0", "capability": "8.9"}, HERE,
     ["it was built with tensorrt 10.1.0, and there is 8.6.1", "it is for compute capability 8.9, and the RTX 2080 Ti there has 7.5"]),
    ({"runtime": "tensorrt_rtx", "version": "1.7.0.3"}, HERE, []),
    ({"runtime": "tensorrt_rtx", "version": "1.7.0.3", "capability": "8.6 7.5"}, HERE, []),
    ({"runtime": "tensorrt_rtx", "version": "1.6.0.3"}, HERE, ["it was built with tensorrt_rtx 1.6.0.3, and there is 1.7.1.116"]),
    ({"runtime": "tensorrt_rtx", "version": "1.7.0.3", "capability": "7.50"}, HERE,
     ["it is for compute capability 7.50, and the RTX 2080 Ti there has 7.5"]),
    ({"built": None}, HERE, ["its sidecar does not say what it was built with: build it again"])])
def test_each_reason_has_its_line(artifact, copy_of, built, probed, reasons):
    assert verify.why_not(records.read_artifact(engine(artifact, copy_of, **built)), probed) == reasons


def asked(monkeypatch, probed, load=None):
    """Let places answer probes, and loads by load(request); returns the jobs that they were asked for."""
    jobs = []

    @contextmanager
    def answer(job, place=None, tell=None):
        jobs.append(job)
        yield ({"probe": probed} if job.request["action"] == "probe" else load(job.request)), None
    monkeypatch.setattr(launch, "ran", answer)
    return jobs


def loads(jobs):
    return [job for job in jobs if job.request["action"] == "load"]


@pytest.mark.parametrize("probed, status, line", [(HERE, 0, "loads: "), ({**HERE, "tensorrt": None}, 1, "does not load: there is no tensorrt there")])
def test_the_command_says_it_in_a_line_and_by_its_status(artifact, copy_of, monkeypatch, probed, status, line):
    jobs = asked(monkeypatch, probed)
    path = engine(artifact, copy_of)
    result = CliRunner().invoke(cli, ["verify", str(path)])
    assert (result.exit_code, len(result.stdout.splitlines())) == (status, 1) and result.stdout.startswith(line)
    found = json.loads(CliRunner().invoke(cli, ["verify", str(path), "--json"]).stdout)
    assert bool(found["reasons"]) == bool(status) and found["built"]["version"] == "8.6.1" and found["probe"] == {**probed, "telemetry": {}}
    assert jobs and not loads(jobs)


def test_a_changed_engine_is_refused_before_it_is_loaded(artifact, copy_of, monkeypatch):
    jobs = asked(monkeypatch, HERE)
    path = engine(artifact, copy_of)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(RtsegError, match="was changed after it was made") as error:
        verify.verify(path)
    assert "build-engine" in error.value.fix and not jobs


def test_an_onnx_file_is_no_engine(artifact, monkeypatch):
    asked(monkeypatch, HERE)
    with pytest.raises(RtsegError, match="is no engine"):
        verify.verify(artifact)


@pytest.mark.parametrize("command", [["verify"], ["bench"], ["predict", "-o", "out", "{street}"]])
def test_without_a_sidecar_every_command_refuses_and_says_what_to_type(tmp_path, command):
    from rtseg_deploy import images
    stray = tmp_path / "stray.engine"
    stray.write_bytes(b"ftrt and native code")
    name, *rest = (word.format(street=images.STREET) for word in command)
    _, err = run(name, stray, *rest, status=1, cwd=tmp_path)
    assert "no sidecar" in err and "rtseg-deploy verify --trust" in err.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed: pip install 'rtseg-deploy[rtx]'")
def test_an_engine_that_was_built_is_told_by_a_real_probe(artifact, tmp_path):
    from rtseg_deploy import build
    path, built = build.build_engine(artifact, "rtx-2080ti", root=tmp_path)
    found = verify.verify(path)
    assert found["built"] == built.checks["built"] and found["probe"]["tensorrt_rtx"] == found["built"]["version"]
    gpu = found["probe"]["gpu"]
    assert bool(found["reasons"]) == (gpu.get("compute_capability") != "7.5"), found["reasons"]


def refused(request):
    raise RtsegError("the engine plan file is not compatible with this version of TensorRT")


@pytest.mark.parametrize("probed, load, backends, reasons", [
    (HERE, lambda request: {}, ["tensorrt"], []),
    (HERE, lambda request: refused(request) if request["backend"] == "tensorrt" else {}, ["tensorrt", "tensorrt_rtx"], []),
    ({**HERE, "tensorrt": None}, refused, ["tensorrt_rtx"], ["tensorrt_rtx 1.7.1.116: the engine plan file is not compatible with this version of TensorRT"]),
    ({**HERE, "tensorrt": None, "tensorrt_rtx": None}, refused, [], ["there is neither tensorrt nor tensorrt_rtx there"])])
def test_a_trusted_engine_is_loaded_by_what_is_there(tmp_path, monkeypatch, probed, load, backends, reasons):
    jobs = asked(monkeypatch, probed, load)
    stray = tmp_path / "stray.engine"
    stray.write_bytes(b"ftrt and native code")
    assert verify.verify(stray, trust=True)["reasons"] == reasons
    assert [job.request["backend"] for job in loads(jobs)] == backends
    assert all(job.files[job.request["artifact"]] == stray for job in loads(jobs))
