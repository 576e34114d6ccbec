"""Backends and their settings for one artifact on this machine: searched once, by turns, a frame in and labels out; and what is chosen of them.

The search goes from one thing that can be set to the next (facts/settings.csv) and holds each of its values against the best so far; what is faster
in that race by more than the noise is the best from there on. The verdict is from a last race of each backend's default and best, with none of the
samples by which it became the best.
"""
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from . import backends, images, launch, locks, stream, tuned, turns
from .device import runner
from .errors import RtsegError
from .facts.settings import settings as known
from .records import read_artifact

AUTO = "auto"
SECONDS = 60
SEARCH = 0.75                       # of the seconds; the rest is for the last race
TURN_SECONDS = 0.1                  # of a turn, or one step where that takes longer
FEWEST, MOST = 6, 15                # rounds of a race; fewer than six show nothing
LAST_MOST = 40                      # rounds of the last one
BUSY = 0.5                          # load a processor, of whoever else uses the machine
FLOORS = (*backends.PRECISIONS, "any")      # of --precision: what may be computed in, and all that is more exact


@dataclass(frozen=True)
class Choice:
    """A backend and the settings that it is to have."""
    backend: str
    settings: dict
    why: str = ""                   # of one that was chosen by itself


@dataclass(frozen=True)
class Ask:
    """What is to be searched."""
    backends: tuple = ()            # those of `candidates` if not given
    precision: str | None = None    # the artifact's own if not given
    threads: int | None = None
    seconds: float = SECONDS


# ---- what is chosen


def chosen(path, artifact, asked, tell=launch.quiet, threads=None, precision=None, untuned=False, place=None):
    """The Choice of each backend that is asked for, with the settings that were found for it; auto is the fastest one, which may have to be found first.

    Raises RtsegError where one cannot run the artifact.
    """
    auto = AUTO in asked and artifact.kind != "engine"      # an engine has one backend
    if auto and (place or untuned):
        raise RtsegError("auto is the best that tune finds on this machine", "name a --backend" + (", or leave out --untuned" if untuned else ""))
    if precision and not auto:
        raise RtsegError("--precision says what --backend auto may choose from", "add --backend auto, or leave it out")
    names = backends.chosen(artifact, [name for name in asked if name != AUTO]) if not auto or len(asked) > 1 else []
    entry = None if untuned or place or artifact.kind == "engine" else tuned.found(artifact, threads)
    found = {name: Choice(name, of(entry, name)) for name in names}
    if auto:
        choice = automatic(path, artifact, Ask((), precision, threads), tell)
        found[choice.backend] = choice
    return list(found.values())


def of(entry, backend):
    row = tuned.best(entry, backend) if entry else None
    return row["settings"] if row else {}


def automatic(path, artifact, ask, tell=launch.quiet):
    """The Choice of the fastest backend that computes as exactly as is asked; what was not tuned yet is tuned now."""
    names, entry = candidates(artifact, ask.precision), tuned.found(artifact, ask.threads)
    if not entry or not tuned.covers(entry, names):
        entry = tune(path, Ask(tuple(names), ask.precision, ask.threads), tell)
    row = tuned.fastest(entry, names)
    return Choice(row["backend"], row["settings"], reason(entry, row, names, ask.precision or artifact.precision))


def candidates(artifact, precision=None):
    """Names of the backends for processors that are here and compute an artifact in a precision or a more exact one. Raises RtsegError where none does."""
    floor = FLOORS.index(precision or artifact.precision)
    names = [name for name in dict.fromkeys(one.backend for one in known()) if FLOORS.index(backends.computes(artifact.precision, name)) <= floor]
    if not names:
        raise RtsegError(f"a file of {artifact.precision} is never computed in {precision}", f"--precision {artifact.precision}, or a file that is more exact")
    there = [name for name in names if is_here(name)]
    if not there:
        raise RtsegError(f"none of {', '.join(names)} is here", "pip install 'rtseg-deploy[cpu]'")
    return there


def is_here(name):
    return find_spec("onnxruntime") is not None if name in runner.SESSIONS else backends.find(name).unavailable() is None


def reason(entry, row, names, precision):
    """Why that row, in a line."""
    rows = [one for one in (tuned.best(entry, name) for name in names) if one]
    others = [(one, turns.ratio(row["ms"], one["ms"])) for one in rows if one is not row]
    told = ", ".join(f"{middle:.2f} of {one['backend']}'s time ({low:.2f} to {high:.2f})" for one, (middle, low, high) in others)
    return (f"{row['backend']}{' with ' + written(row['settings']) if row['settings'] else ''}: " + (told or f"nothing else here computes in {precision}")
            + (f"; computed in {row['precision']}" if row["precision"] != precision else ""))


def written(settings):
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))


# ---- the search


def tune(path, ask, tell=launch.quiet):
    """The entry of an artifact, searched and kept. Raises RtsegError where no backend can run it."""
    artifact = read_artifact(path)
    if artifact.kind == "engine":
        raise RtsegError(f"{path} is an engine, which was tuned when it was built", "give the ONNX file")
    stream.refuse_unknown_enlarging(path, artifact)
    names = backends.chosen(artifact, ask.backends) if ask.backends else candidates(artifact, ask.precision)
    threads = ask.threads or launch.cpus()
    pixels = images.resized(images.read(images.STREET), artifact.resolution)
    start = partial(turns.Worker, path, artifact, pixels=pixels, threads=threads)
    tuned.path()                    # no search for nothing
    with locks.machine(True, tell):
        begin, load = time.monotonic(), runner.environment()["load"]
        search = Search(artifact.precision, threads, ask.seconds, start, tell)
        finals = search.all(names)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = {"artifact": artifact.sha256, "file": Path(path).name, "threads": threads, "machine": tuned.machine(), "when": when,
                 "seconds": round(time.monotonic() - begin, 1), "load": load, "finals": [{**row, "when": when} for row in finals], "trials": search.trials,
                 "refused": search.refused}
    tuned.keep(entry)
    return entry


def busy(entry):
    """What is to be said where others used the machine."""
    if entry["load"] > BUSY * entry["machine"]["cpus"]:
        return [f"the load was {entry['load']:.1f} on {entry['machine']['cpus']} processors when it began: what is best then need not be best on a quiet "
                "machine; tune again when it is"]
    return []


def has(what):
    """Whether this machine's processors have something: see facts.settings.Setting.needs."""
    return {"": True, "smt": runner.line_of("/sys/devices/system/cpu/smt/active") == "1", "hybrid": Path("/sys/devices/cpu_atom").exists()}[what]


def groups(backend, threads):
    """[{setting: value} of those that exclude each other] in the order in which they are tried, as this machine can have them."""
    found = []
    for _, group in groupby((one for one in known() if one.backend == backend and has(one.needs)), key=lambda one: one.about):
        values = {one.setting + one.value: {one.setting: value_of(one.value, threads)} for one in group}
        found.append([value for value in values.values() if None not in value.values()])
    return [group for group in found if group]


def value_of(text, threads):
    """A number, a share of the threads, or a word; None where there are too few threads."""
    whole, _, part = text.partition("/")
    if whole == "threads":
        return threads // int(part) or None
    return int(text) if text.isdecimal() else text


class Search:
    """start(backend, settings) opens a turns.Worker."""

    def __init__(self, precision, threads, seconds, start, tell, clock=time.monotonic):
        self.precision, self.threads, self.start, self.tell, self.clock = precision, threads, start, tell, clock
        self.begin, self.seconds, self.trials, self.refused, self.labels = clock(), seconds, [], {}, None
        self.steps, self.opening = {}, {}           # backend -> seconds of a step, and to open it

    def left(self, share=1.0):
        return self.begin + share * self.seconds - self.clock()

    def all(self, names):
        """The rows of the last race. Raises RtsegError where nothing runs."""
        with turns.kept() as keep:
            defaults = {name: worker for name in names if (worker := self.default(keep, name))}
            if not defaults:
                raise RtsegError("no backend labels it here: " + "; ".join(f"{name}: {why}" for name, why in self.refused.items()), "name a --backend")
            best = {name: ({}, worker) for name, worker in defaults.items()}
            plan = sorted(((rank, name, group) for name in defaults for rank, group in enumerate(groups(name, self.threads))), key=itemgetter(0))
            for number, (_, name, group) in enumerate(plan):
                best[name] = self.tried(keep, name, group, *best[name], len(plan) - number)
            return self.verdict(defaults, best)

    def default(self, keep, name):
        """The worker of a backend as it is; None where it cannot be used, and why is kept."""
        self.say(f"{name}: opening")
        begin = self.clock()
        try:
            worker = keep(self.start(name, {}))
        except RtsegError as error:
            self.refused[name] = error.what
            return None
        self.opening[name] = self.clock() - begin
        self.labels = worker.labels if self.labels is None else self.labels
        if other := self.other(name, worker):
            self.refused[name] = other
            worker.close()
            return None
        self.steps[name] = float(np.median(worker.turn(3)))
        return worker

    def other(self, name, worker):
        """Why a worker's labels are not those of the first backend; "" where they are."""
        if self.labels is None or worker.labels is None:
            return ""
        precision = backends.computes(self.precision, name)
        share, bar = float((worker.labels == self.labels).mean()), backends.SAME_LABELS[precision]
        return "" if share >= bar else f"other labels: {share:.2%} are equal, and at least {bar:.1%} are to be in {precision}"

    def say(self, what):
        self.tell(what, min(0.99, 1 - self.left() / self.seconds))

    def tried(self, keep, name, group, settings, worker, to_come):
        """(settings, worker) of the best so far after a race with each of a group; to_come: races, this one among them."""
        step, opening = self.steps[name], self.opening[name] * len(group)
        a_round = (len(group) + 1) * (max(TURN_SECONDS, step) + step)
        if self.left(SEARCH) < opening + FEWEST * a_round:
            self.trials += [self.row(name, one, "not tried: no time was left") for one in group]
            return settings, worker
        count = int((self.left(SEARCH) / to_come - opening) / a_round)
        others = {}
        for one in group:
            self.say(f"{name}: {written(one)}")
            if challenger := self.challenger(keep, name, one, settings):
                others[written(one)] = one, challenger
        if not others:
            return settings, worker
        times = self.race({"": worker, **{text: challenger for text, (_, challenger) in others.items()}}, step, min(MOST, max(FEWEST, count)))
        ratios = {text: turns.ratio(times[text], times[""]) for text in others}
        self.steps[name] = float(np.median(times[""]))
        winner = min(ratios, key=ratios.get)
        won = ratios[winner][2] < 1 and ratios[winner][0] <= tuned.WORTH
        for text, (one, challenger) in others.items():
            middle, low, high = ratios[text]
            verdict = "the best so far" if won and text == winner else "slower" if low > 1 else "no gain shown" if high > 1 else "another is faster"
            self.trials.append(self.row(name, one, verdict, 1e3 * float(np.median(times[text])), middle, low, high))
            if not (won and text == winner):
                challenger.close()
        if won and settings:        # the default stays for the last race
            worker.close()
        return ({**settings, **others[winner][0]}, others[winner][1]) if won else (settings, worker)

    def challenger(self, keep, name, one, settings):
        """A worker with one setting more; None where it cannot run or labels otherwise, and why is in the trials."""
        try:
            worker = keep(self.start(name, {**settings, **one}))
        except RtsegError as error:
            self.trials.append(self.row(name, one, f"refused: {error.what}"))
            return None
        if other := self.other(name, worker):
            self.trials.append(self.row(name, one, other))
            worker.close()
            return None
        return worker

    def row(self, name, one, verdict, ms=None, ratio=None, low=None, high=None):
        return {"backend": name, "settings": one, "verdict": verdict, "ms": ms, "ratio": ratio, "low": low, "high": high}

    def race(self, workers, step, count):
        steps = max(1, round(TURN_SECONDS / step))
        for worker in workers.values():
            worker.turn(steps)      # warms up what is new
        return turns.rounds(workers, steps, count, lambda number: self.say(f"round {number} of {count}"))

    def verdict(self, defaults, best):
        """The last race: of each backend its default and, where it is another one, its best."""
        workers = {}
        for name, (settings, worker) in best.items():
            workers[name, ""] = {}, defaults[name]
            if settings:
                workers[name, written(settings)] = settings, worker
        steps = [self.steps[name] for name, _ in workers]
        count = int(self.left() / (sum(steps) + sum(max(TURN_SECONDS, step) for step in steps)))
        times = self.race({key: worker for key, (_, worker) in workers.items()}, max(steps), min(LAST_MOST, max(FEWEST, count)))
        return [{"backend": name, "settings": workers[name, text][0], "precision": backends.computes(self.precision, name),
                 "labels": share(self.labels, workers[name, text][1].labels), "ms": [1e3 * seconds for seconds in times[name, text]]}
                for name, text in workers]


def share(labels, others):
    return None if labels is None or others is None else float((labels == others).mean())


# ---- what a person reads


def rows(entry):
    """Rows of plain values: each trial, then each backend of the last race, with the best settings of it that were found."""
    found = [line(one, (one["ratio"], one["low"], one["high"]), "the best so far", one["verdict"]) for one in entry["trials"]]
    last = [row for row in entry["finals"] if row["when"] == entry["when"]]
    for one in last:
        default = next(row for row in last if row["backend"] == one["backend"])
        found.append(line({**one, "ms": float(np.median(one["ms"]))}, turns.ratio(one["ms"], default["ms"]), "its default", said(entry, one, default, last[0])))
    return found + [line({"backend": name, "settings": {}, "ms": None}, None, "", f"not used: {why}") for name, why in entry["refused"].items()]


def line(one, ratio, to, verdict):
    told = ("", "") if not ratio or ratio[0] is None else (f"{ratio[0]:.3f}", f"{ratio[1]:.3f} to {ratio[2]:.3f}")
    labels = one.get("labels")
    return {"backend": one["backend"], "settings": written(one["settings"]) or "default", "ms": "" if one["ms"] is None else f"{one['ms']:.2f}",
            "ratio": told[0], "95 %": told[1], "to": to if told[0] else "", "labels": "" if labels is None else f"{labels:.2%}", "verdict": verdict}


def said(entry, one, default, first):
    """What became of a row of the last race."""
    if tuned.best(entry, one["backend"]) is not one:
        return "no gain shown" if one is not default else "the other is faster"
    against = tuned.best(entry, first["backend"])
    return "used" if one is against else f"used; {turns.ratio(one['ms'], against['ms'])[0]:.2f} of {first['backend']}'s time"
