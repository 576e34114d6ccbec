"""One writer of a goal at a time, and a machine that is either timed or used; whoever holds a lock may be killed."""
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from rtseg_deploy import locks
from rtseg_deploy.errors import RtsegError

HOLDS = """
import sys
from rtseg_deploy import locks
told = lambda step, done: print(step, flush=True)
kind, path = sys.argv[1:]
with locks.goal(path, told) if kind == "goal" else locks.machine(kind == "alone", told):
    print("holds", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that takes a lock and holds it until it is told."""

    def __init__(self, kind, path="", **environment):
        self.process = subprocess.Popen([sys.executable, "-c", HOLDS, kind, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "PYTHONPATH": str(ROOT), **environment})

    def said(self):
        return self.process.stdout.readline().strip()

    def until_it_holds(self):
        while (line := self.said()) != "holds":
            assert line, "it ended"
        return self

    def end(self):
        self.process.communicate("\n", timeout=20)


@pytest.fixture
def holder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    started = []

    def start(*arguments, **environment):
        started.append(Holder(*arguments, **environment))
        return started[-1]
    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_a_goal_has_one_writer_and_nothing_is_left(holder, tmp_path):
    goal = tmp_path / "net.engine"
    first = holder("goal", goal).until_it_holds()
    second = holder("goal", goal)
    assert second.said() == "waiting for another run that writes net.engine"
    assert goal.with_name(".net.engine.lock").exists()
    holder("goal", tmp_path / "other.engine").until_it_holds().end()
    first.end()
    second.until_it_holds().end()
    assert not [*tmp_path.glob(".*"), *tmp_path.rglob("goal-*")]


def test_a_goal_by_another_path_is_the_same_goal(holder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "made")
    holder("goal", tmp_path / "made" / "net.engine").until_it_holds()
    assert holder("goal", tmp_path / "link" / "net.engine").said().startswith("waiting") and not (tmp_path / "made").exists()


def test_who_shares_the_folder_and_not_the_cache_waits_too(holder, tmp_path):
    holder("goal", tmp_path / "net.engine").until_it_holds()
    assert holder("goal", tmp_path / "net.engine", XDG_CACHE_HOME=str(tmp_path / "other")).said().startswith("waiting")


@pytest.mark.parametrize("kind", ["goal", "alone", "beside"])
def test_a_holder_that_is_killed_holds_nothing(holder, tmp_path, kind):
    first = holder(kind, tmp_path / "net.engine").until_it_holds()
    second = holder("alone" if kind == "beside" else kind, tmp_path / "net.engine")
    assert second.said().startswith("waiting")
    os.kill(first.process.pid, signal.SIGKILL)
    second.until_it_holds()


def test_what_computes_goes_side_by_side_and_what_is_timed_alone(holder):
    first, second = holder("beside").until_it_holds(), holder("beside").until_it_holds()
    timed = holder("alone")
    assert timed.said() == "waiting until nothing else is timed or computed here"
    first.end()
    second.end()
    timed.until_it_holds()
    assert holder("beside").said() == "waiting for what is timed here"
    assert holder("alone").said() == "waiting until nothing else is timed or computed here"


def test_whoever_waits_to_be_alone_is_served_before_later_comers(holder):
    computing = holder("beside").until_it_holds()
    timed = holder("alone")
    assert timed.said().startswith("waiting")       # it stands in the turnstile
    later = [holder("beside") for _ in range(2)]
    assert all(one.said().startswith("waiting") for one in later)
    computing.end()
    timed.until_it_holds()
    time.sleep(2 * locks.POLL_SECONDS)
    timed.process.stdin.write("\n")
    timed.process.stdin.flush()
    for one in later:
        one.until_it_holds()


def test_a_goal_whose_lock_was_released_and_removed_meanwhile_is_locked_anew(holder, tmp_path):
    """Whoever waited holds the lock of a file that is gone then; a third one must not get in beside it."""
    goal = tmp_path / "net.engine"
    first, second = holder("goal", goal).until_it_holds(), holder("goal", goal)
    assert second.said().startswith("waiting")
    first.end()
    second.until_it_holds()
    assert holder("goal", goal).said().startswith("waiting")


def test_a_folder_that_takes_no_lock_leaves_it_to_the_cache(holder, tmp_path):
    goal = tmp_path / "file" / "net.engine"     # nothing can be made there, by root neither
    goal.parent.write_text("")
    holder("goal", goal).until_it_holds()
    assert holder("goal", goal).said().startswith("waiting")
    assert len(list((tmp_path / "cache/rtseg-deploy").glob("goal-*.lock"))) == 1


def test_a_home_that_takes_no_lock_leaves_it_to_the_folder_of_temporary_files(holder, tmp_path):
    (tmp_path / "file").write_text("")
    places = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    holder("alone", **places).until_it_holds()
    assert holder("alone", **places).said().startswith("waiting")
    assert (tmp_path / f"rtseg-deploy-{os.getuid()}").stat().st_mode & 0o777 == 0o700


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", flock)
    for block in (locks.machine(True), locks.goal(tmp_path / "net.engine")):
        with pytest.raises(RtsegError, match="nothing can be locked on this machine") as told, block:
            pass
        assert told.value.fix == "name a folder on a disk of its own: XDG_CACHE_HOME=DIR" and "\n" not in told.value.what


def test_another_machine_that_shares_the_cache_is_not_waited_for(holder, monkeypatch):
    holder("alone").until_it_holds()
    monkeypatch.setattr(locks, "boot", lambda: "another")
    waited = []
    with locks.machine(True, lambda step, done: waited.append(step)):
        assert not waited


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / ".net.engine.lock").symlink_to(tmp_path / "elsewhere")
    with locks.goal(tmp_path / "net.engine"):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / ".net.engine.lock").unlink()
