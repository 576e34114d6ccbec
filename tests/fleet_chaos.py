"""A fleet on one machine, undisturbed and disturbed: what it makes is to be what one process makes. Linux, as root or where users may have namespaces.

python tests/fleet_chaos.py equal --data ../shared/camvid
python tests/fleet_chaos.py chaos --rounds 20 --data ../shared/camvid
"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
import fleet_hosts
from fleet_hosts import Hosts, said
from fleet_work import Work, faults, overlaps

from rtseg_deploy import demo
from rtseg_deploy.records import sidecar

WORKER = Path(__file__).with_name("fleet_worker.py")
CUT_SECONDS = 30
LONGEST = 900                       # seconds after which a command hangs
TRIES = 4                           # of a command until it ends well
DISK = 96 << 20
FAULTS = ("worker", "scheduler", "client", "link", "disk", "garbage")
FAMILIES = ("sgcpnet", "ddrnet-23-slim", "bisenetv1-r18", "bisenetv2", "bcpnet")


@dataclass
class Client:
    """One of the commands of a plan, until it ends well."""
    name: str
    arguments: list
    process: object = None
    codes: list = field(default_factory=list)

    @property
    def over(self):
        return self.codes and self.codes[-1] in (0, 3)


class Fleet:
    """Scheduler and workers on their machines; one of which has a small disk. script: see Hosts.worker."""

    def __init__(self, workers, folder, *script):
        self.hosts = Hosts(workers, folder)
        self.hosts.small_disk(self.hosts.workers[0], DISK)
        self.scheduler = self.hosts.scheduler()
        self.workers = {host: self.hosts.worker(host, None, *script) for host in self.hosts.workers}
        for process in self.workers.values():
            said(process, "works for")

    def commands(self, given):
        return {name: [*arguments, "--scheduler", self.hosts.address] for name, arguments in given.items()}

    def clients(self, commands):
        made = [Client(name, arguments) for name, arguments in self.commands(commands).items()]
        for one in made:
            self.start(one)
        return made

    def start(self, client):
        client.process = self.hosts.rtseg("home", *client.arguments)

    def ended(self, clients):
        """See to clients that ended; whether all are over. Raises TimeoutError where one is tried too often."""
        for one in clients:
            if one.process and one.process.poll() is not None:
                self.hosts.processes.remove(one.process)
                one.codes.append(one.process.returncode)
                if not one.over:
                    if len(one.codes) >= TRIES:
                        raise TimeoutError(f"{one.name} ended with {one.codes}: {one.process.log.read_text(errors='replace')[-600:]}")
                    self.start(one)
                else:
                    one.process, one.out = None, one.process.out
        return all(one.over for one in clients)

    # ---- what can happen

    def worker_dies(self, chance, clients):
        host = chance.choice(self.hosts.workers)
        if self.workers[host].poll() is None:
            self.hosts.end(self.workers[host])
        time.sleep(chance.uniform(0, 2))
        self.workers[host] = self.hosts.worker(host)

    def scheduler_dies(self, chance, clients):
        self.hosts.end(self.scheduler)
        time.sleep(chance.uniform(0, 4))
        self.scheduler = self.hosts.scheduler()

    def client_dies(self, chance, clients):
        running = [one for one in clients if one.process and one.process.poll() is None]
        if running:
            chance.choice(running).process.send_signal(signal.SIGKILL)

    def link_is_cut(self, chance, clients):
        host = chance.choice(self.hosts.names)
        self.hosts.cut(host)
        limit = time.monotonic() + CUT_SECONDS
        while time.monotonic() < limit:
            self.ended(clients)
            time.sleep(0.2)
        self.hosts.cut(host, False)
        return host

    def disk_fills(self, chance, clients):
        with suppress(OSError), open(self.hosts.home(self.hosts.workers[0]) / "filler", "wb") as file:     # where it is full already there is no room for one
            while True:
                file.write(bytes(1 << 16))
                file.flush()

    def garbage_comes(self, chance, clients):
        host = chance.choice(self.hosts.workers)
        if "garbage" in self.workers:
            self.hosts.end(self.workers["garbage"])
        self.workers["garbage"] = self.hosts.worker(host, self.hosts.home(host) / "garbage", WORKER, "garbage", chance.randrange(10**6))

    def happen(self, fault, chance, clients):
        return {"worker": self.worker_dies, "scheduler": self.scheduler_dies, "client": self.client_dies, "link": self.link_is_cut, "disk": self.disk_fills,
                "garbage": self.garbage_comes}[fault](chance, clients)

    def mended(self):
        """Everything as in the beginning; lines about what was left."""
        if garbage := self.workers.pop("garbage", None):
            self.hosts.end(garbage, signal.SIGTERM)
        (self.hosts.home(self.hosts.workers[0]) / "filler").unlink(missing_ok=True)
        for host, process in self.workers.items():
            if process.poll() is not None:
                self.hosts.processes.remove(process)
                self.workers[host] = self.hosts.worker(host)
        for process in self.workers.values():
            said(process, "works for")
        yield from (f"a process is left: {line[:100]}" for line in self.hosts.left())
        for host in self.hosts.workers:
            own = list((self.hosts.home(host) / "store").glob("rtseg-deploy-*"))        # a worker has one, and one in it for each task
            yield from (f"a folder is left: {path}" for path in [*own[1:], *(path for folder in own for path in folder.glob("rtseg-deploy-*"))])


def round_of(fleet, work, goal, expected, wanted, chance, lasts):
    """A row of the table: what happened, and what is wrong with what came of it."""
    moments = sorted((chance.uniform(0, 0.8 * lasts), fault) for fault in wanted)
    began, wrong, told = time.monotonic(), [], []
    clients = fleet.clients(work.commands(goal))
    try:
        while not fleet.ended(clients):
            if time.monotonic() - began > LONGEST:
                raise TimeoutError(f"after {LONGEST} s there still run {[one.name for one in clients if not one.over]}")
            while moments and time.monotonic() - began >= moments[0][0]:
                moment, fault = moments.pop(0)
                told.append(f"{fault} {moment:.1f} s {fleet.happen(fault, chance, clients) or ''}".strip())
            time.sleep(0.1)
    except TimeoutError as error:
        wrong.append(str(error))
        for one in clients:
            if one.process:
                fleet.hosts.end(one.process)
    seconds = time.monotonic() - began
    wrong += fleet.mended()
    if expected:
        wrong += faults(goal, expected)
    if not wrong:
        wrong += overlaps(goal, json.loads(next(one.out for one in clients if one.name == "bench").read_text()))
    aside = sorted({line for one in clients for line in said_of(fleet, one)})
    return {"happened": told, "seconds": round(seconds, 1), "runs": {one.name: one.codes for one in clients}, "remarks": aside, "wrong": wrong}


def said_of(fleet, client):
    return [line[:200] for path in fleet.hosts.folder.glob("*-home.log") for line in path.read_text(errors="replace").splitlines() if "set aside" in line]


def serially(hosts, commands):
    """Seconds that each command takes, one after another; and what each prints."""
    took, out = {}, {}
    for name, arguments in commands.items():
        began = time.monotonic()
        process = hosts.rtseg("home", *arguments)
        if process.wait() not in (0, 3):
            raise RuntimeError(process.log.read_text())
        hosts.processes.remove(process)
        took[name], out[name] = round(time.monotonic() - began, 1), process.out
    return took, out


def small(network, *artifacts):
    """Plans that take a minute: some of everything."""
    bench = [{"artifact": path.name, "iterations": 20 + number} for number, path in enumerate(artifacts)]
    return [*bench, {"network": network, "resolution": "64x96", "iterations": 30}], [{"artifact": path.name} for path in artifacts]


def exported(folder, *arguments):
    path = folder / f"{Path(arguments[-1]).name.partition('.')[0]}.onnx"
    made = subprocess.run([sys.executable, "-m", "rtseg_deploy", "export", "-o", path, *arguments], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr)
    return path


data = click.option("--data", type=click.Path(exists=True, file_okay=False), required=True, help="Folder of CamVid.")
as_json = click.option("--json", "as_json", is_flag=True)


@click.group()
def main():
    pass


@main.command()
@click.option("--networks", default=",".join(FAMILIES))
@click.option("--resolutions", default="128x256,256x512,512x1024")
@click.option("--workers", default=4)
@data
@click.option("--count", default=233)
@as_json
@click.pass_obj
def equal(folder, networks, resolutions, workers, data, count, as_json):
    """A plan, and a data set, in this process and by a fleet: the same results, and how long each takes. What is timed has its machine alone."""
    rows = [{"network": network, "resolution": resolution, "iterations": 10} for network in networks.split(",") for resolution in resolutions.split(",")]
    work = Work(folder, rows, rows, exported(folder, "--resolution", "360x480", demo.CHECKPOINT), os.path.abspath(data), count, ("onnxruntime-cpu",))
    fleet = Fleet(workers, folder)
    serial, _ = serially(fleet.hosts, work.commands(folder / "serial"))
    by_fleet, out = serially(fleet.hosts, fleet.commands(work.commands(folder / "fleet")))
    wrong = [*faults(folder / "fleet", folder / "serial"), *overlaps(folder / "fleet", json.loads(out["bench"].read_text())), *fleet.mended()]
    fleet.hosts.close()
    tell({name: {"serial_s": serial[name], "fleet_s": by_fleet[name], "share": round(by_fleet[name] / serial[name], 2)} for name in serial}, wrong, as_json)


@main.command()
@click.option("--tasks", default=24)
@click.option("--seconds", default=20)
@click.option("--workers", default=4)
@as_json
@click.pass_obj
def slow(folder, tasks, seconds, workers, as_json):
    """Builds that take so many seconds in which this machine has nothing to do, by one worker and by several: what a fleet of boards gains."""
    first, took = exported(folder, "--resolution", "64x128", "--model", "sgcpnet"), {}
    for number in range(tasks):
        shutil.copy(first, folder / f"{number}.onnx")
        shutil.copy(sidecar(first), sidecar(folder / f"{number}.onnx"))
    work = Work(folder, build=[{"artifact": f"{number}.onnx"} for number in range(tasks)])
    fleet = Fleet(workers, folder, WORKER, "slow", seconds)
    every = dict(fleet.workers)
    for name, hosts in (("fleet", list(every)), ("one", list(every)[:1])):
        for host in set(fleet.workers) - set(hosts):
            fleet.hosts.end(fleet.workers.pop(host), signal.SIGTERM)
        took[name] = serially(fleet.hosts, fleet.commands(work.commands(folder / name)))[0]["build-engine"]
    wrong = list(faults(folder / "fleet", folder / "one"))
    fleet.hosts.close()
    tell({"build-engine": {"serial_s": took["one"], "fleet_s": took["fleet"], "share": round(took["fleet"] / took["one"], 2)}}, wrong, as_json)


def tell(rows, wrong, as_json):
    if as_json:
        click.echo(json.dumps({"rows": rows, "wrong": wrong}, indent=1))
    else:
        for name, row in rows.items():
            click.echo(f"{name:14} one after another {row['serial_s']:7.1f} s, by the fleet {row['fleet_s']:7.1f} s: {row['share']:.2f}")
        click.echo("\n".join(wrong) or "the same results")
    sys.exit(bool(wrong))


@main.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@click.pass_obj
def slice(folder, artifact):
    """The least that shows something: a worker is killed and another one returns garbage while an artifact is timed."""
    for one in (Path(artifact), sidecar(artifact)):
        shutil.copy(one, folder)
    work = Work(folder, [{"artifact": Path(artifact).name, "iterations": 20 + number} for number in range(4)], backends=("null",))
    fleet = Fleet(2, folder)
    serially(fleet.hosts, work.commands(folder / "serial"))
    row = round_of(fleet, work, folder / "fleet", folder / "serial", ["garbage", "worker"], random.Random(0), 4)
    fleet.hosts.close()
    click.echo(json.dumps(row))
    sys.exit(bool(row["wrong"]))


@main.command()
@click.option("--rounds", default=20)
@click.option("--seed", type=int, help="Another each time if not given; it is printed.")
@click.option("--workers", default=4)
@click.option("--faults", "kinds", default=",".join(FAULTS))
@data
@click.option("--count", default=8)
@as_json
@click.pass_obj
def chaos(folder, rounds, seed, workers, kinds, data, count, as_json):
    """Disturb plans at random moments: each is to end as if nothing had happened."""
    seed, kinds = random.SystemRandom().randrange(10**6) if seed is None else seed, kinds.split(",")
    chance = random.Random(seed)
    click.echo(f"seed {seed}", err=True)
    trained = exported(folder, "--resolution", "96x128", demo.CHECKPOINT)
    work = Work(folder, *small("sgcpnet", trained, exported(folder, "--resolution", "64x128", "--model", "sgcpnet")), trained, os.path.abspath(data), count)
    fleet = Fleet(workers, folder)
    serial, _ = serially(fleet.hosts, work.commands(folder / "serial"))
    click.echo(f"serially {serial}", err=True)
    rows, lasts = [], max(serial.values())
    while len(rows) < rounds:
        number = len(rows) + 1
        wanted = [kinds[number % len(kinds)], *(chance.choice(kinds) for _ in range(chance.randrange(2)))]
        row = round_of(fleet, work, folder / str(number), folder / "serial", wanted, chance, lasts)
        lasts = min(lasts, row["seconds"])
        click.echo(json.dumps({"round": number, **row}), err=True)
        if row["wrong"]:
            kept(folder, number)
        if row["happened"] or row["wrong"]:         # else it ended before anything could happen, and is no round
            rows.append(row)
        else:
            shutil.rmtree(folder / str(number))
    fleet.hosts.close()
    told(rows, as_json, seed)
    sys.exit(any(row["wrong"] for row in rows))


def kept(folder, number):
    """What can tell why a round went wrong."""
    if where := os.environ.get("FLEET_KEEP"):
        shutil.copytree(folder, Path(where, str(number)), ignore=shutil.ignore_patterns("store", "cache", "garbage", "filler"), dirs_exist_ok=True)


def told(rows, as_json, seed):
    if as_json:
        return click.echo(json.dumps({"seed": seed, "rounds": rows}, indent=1))
    for number, row in enumerate(rows, 1):
        said = "; ".join(row["wrong"][:3]) or "right"
        click.echo(f"{number:2}  {row['seconds']:6.1f} s  {', '.join(row['happened']) or 'nothing':60}  {row['runs']}  {said}")


if __name__ == "__main__":
    main(obj=fleet_hosts.enter())
