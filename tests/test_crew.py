"""A crew: this process, or the workers of a fleet, who lose nothing, take nothing twice and time nothing beside other work."""
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")

from rtseg_deploy import bench, campaign, crew, files, remote, tasks  # noqa: E402
from rtseg_deploy import fleet as fleets  # noqa: E402
from rtseg_deploy.errors import RtsegError  # noqa: E402


def task(name, then, path, **how):
    return tasks.Task(name, {"action": "bench", "name": name}, {"input": path}, ("made",), then, **how)


def good(folder, data=b"made"):
    """What a task's process leaves."""
    (folder / "made").write_bytes(data)
    files.write_json(folder / "result.json", {"ok": True, "of": files.read_json(folder / "job.json")["of"], "made": {"made": files.sha256(folder / "made")}})


@contextmanager
def fleet(tmp_path, *given, slots=1):
    """A Fleet of workers in this process, one for each tuple of targets."""
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        async def start(number, targets):
            return await distributed.Worker(cluster.scheduler_address, nthreads=slots, name=f"worker-{number}", resources=remote.resources(None, targets),
                                            plugins=[remote.Post(tmp_path / f"store-{number}", None, slots)], dashboard=False)
        workers = [cluster.sync(start, number, targets) for number, targets in enumerate(given)]
        client = distributed.Client(cluster)
        found = fleets.Fleet(lambda: client)
        try:
            yield found
        finally:
            found.close()
            for worker in workers:
                cluster.sync(worker.close)


@pytest.fixture
def path(tmp_path):
    (tmp_path / "input").write_bytes(b"what all of them read")
    return tmp_path / "input"


@pytest.fixture
def work(monkeypatch):
    """Replaces the process of a task by a function of its folder, its job and the name of its worker."""
    def by(function):
        def worked(folder, processors, still_wanted):
            function(folder, files.read_json(folder / "job.json"), distributed.get_worker().name)
        monkeypatch.setattr(remote, "worked", worked)
    return by


@pytest.fixture
def plan(artifact, tmp_path):
    for name in (artifact.name, f"{artifact.name}.json"):
        (tmp_path / name).write_bytes((artifact.parent / name).read_bytes())
    rows = ",\n".join(f'{{ artifact = "net.onnx", iterations = {20 + n} }}' for n in range(3))
    (tmp_path / "mine.toml").write_text(f"row = [{rows}, {{ artifact = 'net.onnx', device = 'GTX 1080 Ti' }}]")
    return tmp_path / "mine.toml"


def test_here_what_follows_from_a_task_comes_right_after_it(path, monkeypatch):
    order = []
    monkeypatch.setattr(tasks, "perform", lambda folder, tell, place: order.append(files.read_json(folder / "job.json")["name"]) or {"ok": True})
    crew.Serial().run([task("first", lambda result, folder: [task("its own", lambda *_: None, path)], path), task("second", lambda *_: None, path)])
    assert order == ["first", "its own", "second"]


def test_a_fleet_gives_the_same_rows_as_this_process(plan, tmp_path):
    def asked(name):
        return bench.Ask(backends=("null",), results=str(tmp_path / name), warmup_limit=0.1)

    serial = campaign.run(plan, asked("serial"))
    with fleets.local(2) as by:
        apart = campaign.run(plan, asked("apart"), by=by)
    same = ("artifact", "backend", "resolution", "input", "protocol", "iterations", "same_labels", "figure", "file", "bn")
    assert [{name: one.result[name] for name in same} for one in serial[:3]] == [{name: one.result[name] for name in same} for one in apart[:3]]
    assert [one.path.name for one in serial] == [one.path.name for one in apart]
    assert serial[3].skipped == "needs a GTX 1080 Ti: this machine has no GPU"
    assert "--anywhere on null" in apart[3].skipped
    assert len((tmp_path / "apart/mine" / crew.TIMELINE).read_text().splitlines()) == 3


def test_this_machine_offers_its_own_gpu(monkeypatch):
    for name, offered in (("NVIDIA GeForce GTX 1080 Ti", "gtx-1080ti"), ("NVIDIA H200", None), (None, None)):
        monkeypatch.setattr(remote.launch, "probe", lambda name=name: {"gpu": {"name": name} if name else {"error": "none"}})
        with fleets.local(1) as by:
            assert by.has() and [target for target in ("gtx-1080ti", "rtx-2080ti", "jetson-tx2") if by.has(target)] == [offered] * bool(offered)


def test_what_is_timed_is_alone_on_its_machine_and_the_rest_shares_it(path, tmp_path, work):
    work(lambda folder, job, worker: (time.sleep(0.05), good(folder)))
    log, most = tmp_path / "timeline.jsonl", 12
    with fleet(tmp_path, (), (), slots=3) as by:
        by.run([task(str(number), lambda *_: None, path, alone=number % 3 == 0) for number in range(most)], timeline=log)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == most and {row["worker"] for row in rows} == {"worker-0", "worker-1"}
    beside = [(one, other) for one in rows for other in rows if one is not other and one["worker"] == other["worker"]
              and one["began"] < other["ended"] and other["began"] < one["ended"]]
    assert beside and not any(one["alone"] for one, _ in beside)


def test_a_file_travels_to_a_worker_once(path, tmp_path, work, monkeypatch):
    arrived = []
    work(lambda folder, job, worker: (good(folder), (folder / "input").read_bytes() == path.read_bytes() or 1 / 0))
    real = distributed.Client.scatter
    monkeypatch.setattr(distributed.Client, "scatter", lambda self, data, **how: (arrived.extend(data), real(self, data, **how))[1])
    with fleet(tmp_path, (), ()) as by:
        by.run([task(str(number), lambda *_: None, path) for number in range(10)])
    assert len(arrived) == 1
    assert all([one.name for one in (tmp_path / f"store-{n}").iterdir() if one.is_file()] in ([files.sha256(path)], []) for n in range(2))


def test_a_store_too_small_serves_many_tasks_of_many_workers(tmp_path, monkeypatch):
    """What one of them brings pushes out what another was about to take."""
    monkeypatch.setattr(remote, "STORE_BYTES", 150)
    posts = [remote.Post(tmp_path / "store", None, 2) for _ in range(2)]
    posts[0].store.mkdir()
    blobs = {remote.launch.digest(bytes([number]) * 100): bytes([number]) * 100 for number in range(4)}

    def taken(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        posts[number % 2].lay_out({digest[:8]: digest for digest in list(blobs)[number % 3:]}, blobs, folder)
        return all((folder / digest[:8]).read_bytes() == blobs[digest] for digest in list(blobs)[number % 3:])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(taken, range(40)))
    assert len([one for one in posts[0].store.iterdir() if one.is_file()]) == 1


def test_a_file_stays_where_it_is_for_later_tasks(path, tmp_path, work):
    """Dask would keep one copy of it, and each worker would fetch it again every few seconds."""
    work(lambda folder, job, worker: (time.sleep(0.05), good(folder)))
    with dask.config.set({"distributed.scheduler.active-memory-manager.interval": "10ms"}), fleet(tmp_path, (), ()) as by:
        for _ in range(2):
            by.run([task(str(number), lambda *_: None, path) for number in range(4)])
            time.sleep(0.3)
        fetched = by.client.run(lambda dask_worker: sum(len(one["keys"]) for one in dask_worker.transfer_incoming_log))
    assert sum(fetched.values()) == 1


GARBAGE = {
    "nothing": lambda reply: None,
    "no times": lambda reply: {**reply, "began": "yesterday"},
    "other bytes": lambda reply: {**reply, "files": {"made": b"other"}},
    "a number for bytes": lambda reply: {**reply, "files": {"made": 5}},
    "another file": lambda reply: {**reply, "files": {"../made": b"made"}, "result": {**reply["result"], "made": {"../made": remote.launch.digest(b"made")}}},
    "too few": lambda reply: {**reply, "files": {}},
    "no result": lambda reply: {**reply, "result": {}},
    "another task's": lambda reply: {**reply, "result": {**reply["result"], "of": "0" * 64}},
    "refused by its task": lambda reply: {**reply, "result": {**reply["result"], "made": {}}, "files": {}},
}


honest, KIND = remote.do, []


def broken(request, hashes, blobs):
    """remote.do of a fleet whose first worker answers with garbage."""
    reply = honest(request, hashes, blobs)
    return GARBAGE[KIND[0]](reply) if distributed.get_worker().name == "worker-0" else reply


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_never_taken(kind, path, tmp_path, work, monkeypatch):
    took = []
    work(lambda folder, job, worker: good(folder, worker.encode()))

    def take(result, folder):
        if not result["ok"] or not result["made"]:
            raise RtsegError("that is nothing")
        took.append((folder / "made").read_bytes())

    monkeypatch.setattr(remote, "do", broken)
    KIND[:] = [kind]
    with fleet(tmp_path, (), ()) as by:
        by.run([task(str(number), take, path) for number in range(4)])
    assert took == [b"worker-1"] * 4 and not (tmp_path / "made").exists()


def test_a_device_that_fails_time_after_time_is_set_aside_and_named(path, tmp_path, work):
    def at(folder, job, worker):
        if worker == "worker-0":
            raise RtsegError("CUDA error 719")
        good(folder)

    work(at)
    done = []
    with fleet(tmp_path, ("gtx-1080ti",), ("gtx-1080ti",)) as by:
        by.run([task(str(number), lambda result, folder: done.append(result["ok"]), path, device="gtx-1080ti", alone=True) for number in range(12)])
        assert done == [True] * 12 and set(by.workers()) == {"worker-1"}
    assert by.remarks == ["worker-0 was set aside after 3 failures in a row, the last one: CUDA error 719"]


def test_a_task_that_fails_everywhere_is_itself_at_fault(path, tmp_path, work):
    def at(folder, job, worker):
        if job["name"] == "bad":
            raise RtsegError("no such layer")
        good(folder)

    work(at)
    done = {}
    with fleet(tmp_path, (), (), ()) as by:
        by.run([task(name, lambda result, folder, key=(name, number): done.__setitem__(key, result["ok"]), path, alone=True)
                for number, name in enumerate(["bad", "good", "bad", "bad", "good", "bad"])])
        assert len(by.workers()) == 3
    assert len(done) == 6 and all(ok == (name == "good") for (name, _), ok in done.items()) and not by.remarks


def test_a_processor_is_judged_by_what_another_one_then_did(path, tmp_path, work):
    """What nobody can do sets nobody aside; what only one cannot does."""
    def at(folder, job, worker):
        if job["name"] == "bad" or job["name"] == "its own" and worker == "worker-0":
            raise RtsegError("no such layer")
        good(folder)

    work(at)
    for names, left in ((["bad"] * 8, 2), (["its own"] * 12, 1)):
        done = []
        with fleet(tmp_path, (), ()) as by:
            by.run([task(name, lambda result, folder: done.append(result["ok"]), path) for name in names])
            assert len(by.workers()) == left and done == [names[0] != "bad"] * len(names)


def test_a_lone_processor_goes_on_whatever_fails(path, tmp_path, work):
    def at(folder, job, worker):
        if int(job["name"]) < 5:
            raise RtsegError("no such backend")
        good(folder)

    work(at)
    done = []
    with fleet(tmp_path, ()) as by:
        by.run([task(str(number), lambda result, folder: done.append(result["ok"]), path, alone=True) for number in range(7)])
    assert sorted(done) == [False] * 5 + [True] * 2 and not by.remarks


def test_where_no_device_is_left_the_rest_is_told_why(path, tmp_path, work):
    def at(folder, job, worker):
        raise OSError(28, "No space left on device")

    work(at)
    said = []
    with fleet(tmp_path, ("jetson-tx2",)) as by:
        by.run([task(str(number), lambda result, folder: said.append(result["error"]), path, device="jetson-tx2", alone=True) for number in range(5)])
    assert len(said) == 5 and "No space left" in said[0] and "set aside" in said[-1]


def test_a_worker_that_dies_is_replaced_by_another(path, tmp_path, work):
    begun, release, done = threading.Event(), threading.Event(), []

    def at(folder, job, worker):
        if worker == "worker-0" and not begun.is_set():
            begun.set()
            release.wait(30)
        good(folder)

    work(at)
    with fleet(tmp_path, (), ()) as by:
        def kill():
            begun.wait(30)
            by.client.retire_workers(names=["worker-0"], close_workers=True, remove=True)
            release.set()
        thread = threading.Thread(target=kill)
        thread.start()
        by.run([task(str(number), lambda result, folder: done.append(result["ok"]), path) for number in range(6)])
        thread.join()
    assert done == [True] * 6


def test_a_client_that_gave_up_waits_for_the_next_one(path, tmp_path, work):
    """Dask closes its client by itself, at any moment, when a scheduler does not come back."""
    release = threading.Event()
    work(lambda folder, job, worker: (release.wait(30), good(folder)))
    with fleet(tmp_path, ()) as by:
        by.give(fleets.Attempt(task("one", lambda *_: None, path)), "worker-0", by.workers()["worker-0"]["address"])
        by.client.status = "closed"
        by.recall({})
        assert not by.running and [one.task.title for one in by.waiting["", False]] == ["one"]
        by.client.status = "running"
        release.set()


def test_a_moment_without_workers_decides_nothing(tmp_path, monkeypatch):
    """Rows were skipped for good where the scheduler had just come back."""
    with fleet(tmp_path, ("jetson-tx2",), slots=2) as by:
        for answer in ({}, {"workers": {}}):
            monkeypatch.setattr(by.client, "scheduler_info", lambda answer=answer, **how: answer)
            assert by.workers() == {} and by.has() and by.has("jetson-tx2") and not by.has("gtx-1080ti") and by.slots() == 2


def test_the_store_is_bounded_and_takes_no_damaged_file(tmp_path, monkeypatch):
    post = remote.Post(tmp_path / "store", None, 1)
    post.store.mkdir()
    with pytest.raises(RtsegError, match="arrived damaged"):
        post.kept("0" * 64, b"other")
    monkeypatch.setattr(remote, "STORE_BYTES", 250)
    names = [remote.launch.digest(bytes([number]) * 100) for number in range(4)]
    for number, name in enumerate(names):
        post.kept(name, bytes([number]) * 100)
        remote.os.utime(post.store / name, (number, number))
    assert {one.name for one in post.store.iterdir()} == set(names[2:])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_what_anybody_could_reach_is_refused(host):
    with pytest.raises(RtsegError, match="could run code on this machine"):
        remote.refuse_open(host, None, False)
    for one, tls, insecure in (("127.0.0.1", None, False), ("localhost", None, False), ("::1", None, False), (host, "folder", False), (host, None, True)):
        remote.refuse_open(one, tls, insecure)


def test_what_a_dead_worker_left_goes_when_the_next_begins(tmp_path):
    """And what a living one has stays."""
    dead, living = remote.Post(tmp_path / "store", None, 1), remote.Post(tmp_path / "store", None, 1)
    for post in (dead, living):
        post.setup(None)
        (post.own / "half").write_bytes(b"half")
    dead.held.close()
    remote.Post(tmp_path / "store", None, 1).setup(None)
    assert not dead.own.exists() and (living.own / "half").exists()


ROW = {"size": [2, 3], "confusion": [[0, 0, 4], [1, 0, 2]], "boundary": [[1, 2, 3, 4], [0, 0, 0, 0]], "seconds": {"network": 0.1}, "decode": 0.1, "waited": 0.0}


@pytest.mark.parametrize("change", [{"size": [2, float("nan")]}, {"size": []}, {"confusion": [[0, 0, 7]]}, {"confusion": [[0, 2, 4]]},
                                    {"confusion": [[0, 0, -1]]},
                                    {"confusion": [[0, 0, float("nan")]]}, {"confusion": [[0, 0]]}, {"confusion": ["000"]}, {"boundary": [[1, 2, 3, 4]]},
                                    {"boundary": [[1, 2, 3, 10**30]] * 2},
                                    {"seconds": {"network": float("nan")}}, {"seconds": {"network": "x"}}, {"waited": -1.0}])
def test_counts_that_no_picture_has_are_not_added(change):
    assert tasks.countable(ROW, 2) and not tasks.countable({**ROW, **change}, 2)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), -1.0, 1e30, "x"])
def test_a_figure_whose_samples_are_no_times_is_not_taken(spoil, artifact, tmp_path):
    ask = bench.Ask(backends=("null",), results=str(tmp_path), warmup_limit=0.1, iterations=20, names={"null": "0.json"})
    bench.bench(artifact, ask)
    result = {"ok": True, "figures": {"null": "0.json"}, "failed": {}}
    assert tasks.figures(result, tmp_path, artifact, ask)["null"]["file"] == str(artifact)
    value = files.read_json(tmp_path / "0.json")
    value["runs"][0]["seconds"][3] = spoil
    files.write_json(tmp_path / "0.json", value)
    with pytest.raises(RtsegError, match="is damaged"):
        tasks.figures(result, tmp_path, artifact, ask)
    for nonsense in ({}, {"figures": [], "failed": {}}, {"figures": {"null": 3}, "failed": {}}):
        with pytest.raises(RtsegError, match="is no timing of it"):
            tasks.figures(nonsense, tmp_path, artifact, ask)


def test_a_worker_that_dask_began_works_too(path, tmp_path, work, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work(lambda folder, job, worker: good(folder))
    done = []
    with fleet(tmp_path) as by:
        async def start():
            return await distributed.Worker(by.client.scheduler.address, nthreads=1, resources=remote.resources(None, ()), preload="rtseg_deploy.remote",
                                            dashboard=False)
        worker = by.client.cluster.sync(start)
        by.run([task("one", lambda result, folder: done.append(result["ok"]), path)])
        by.client.cluster.sync(worker.close)
    assert done == [True] and (tmp_path / "rtseg-deploy/fleet" / files.sha256(path)).is_file()
