"""What `tune` found, in the user's cache folder: tuned.json, an entry for each artifact, number of threads and machine. A broken file is an empty one.

An entry's "finals" are rows of a race: a backend, its settings, and the median step of each round. Whether one is faster than another follows from
those, so that what is chosen among them depends on what is asked for.
"""
from importlib import metadata

from . import __version__, files, launch, locks, turns
from .device import runner
from .errors import RtsegError

FORMAT = 1
MOST = 500                          # entries that are kept, the newest
WORTH = 0.98                        # of the time: what is not faster by that much is no gain
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino")
ENTRY = {"artifact": str, "threads": int, "machine": dict, "when": str, "load": (int, float), "finals": list, "trials": list, "refused": dict}
FINAL = {"backend": str, "settings": dict, "precision": str, "when": str, "ms": list}


def machine():
    """All that makes what was found on a machine good for it."""
    versions = {name: version(name) for name in RUNTIMES}
    return {"cpu": runner.environment()["cpu"], "cpus": launch.cpus(), "versions": {"rtseg-deploy": __version__, **versions}}


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def path():
    return files.cache() / "tuned.json"


def entries():
    """Those that are whole."""
    try:
        value = files.read_json(path())
    except RtsegError:
        return []
    found = value.get("entries") if value.get("format") == FORMAT else None
    return [entry for entry in found if sound(entry)] if isinstance(found, list) else []


def sound(entry):
    return launch.has(entry, ENTRY) and launch.has(entry["machine"], {"cpus": int}) and bool(entry["finals"]) and all(
        launch.has(row, FINAL) and row["ms"] and all(type(ms) in (int, float) and ms > 0 for ms in row["ms"]) for row in entry["finals"])


def found(artifact, threads=None):
    """The entry of an artifact on this machine as it is now; None where there is none."""
    mine = [entry for entry in entries() if (entry["artifact"], entry["threads"]) == (artifact.sha256, threads or launch.cpus())]
    here = machine() if mine else None
    return next((entry for entry in mine if entry["machine"] == here), None)


def keep(entry):
    """Put an entry in place of an earlier one, of which it takes over the backends that it has not itself."""
    def key(one):
        return one["artifact"], one["threads"], one["machine"]

    with locks.goal(path()):
        others = entries()
        new = {row["backend"] for row in entry["finals"]} | entry["refused"].keys()
        earlier = [row for one in others if key(one) == key(entry) for row in one["finals"] if row["backend"] not in new]
        entry = {**entry, "finals": [*entry["finals"], *earlier]}
        files.write_json(path(), {"format": FORMAT, "entries": [entry, *(one for one in others if key(one) != key(entry))][:MOST]})


# ---- what follows from an entry


def faster(one, other):
    """Whether a row's time is shorter than another's of the same race, by more than the noise."""
    middle, _, high = turns.ratio(one["ms"], other["ms"])
    return high < 1 and middle <= WORTH


def best(entry, backend):
    """The row of a backend: its default, or the settings that are faster; None where it has none."""
    rows = [row for row in entry["finals"] if row["backend"] == backend]
    return next((row for row in rows[1:] if faster(row, rows[0])), rows[0]) if rows else None


def fastest(entry, names):
    """The best row of these backends, of one race: the first one's unless another is faster."""
    rows = [row for row in (best(entry, name) for name in names) if row]
    quicker = [row for row in rows[1:] if faster(row, rows[0])]
    return min(quicker, key=lambda row: turns.ratio(row["ms"], rows[0]["ms"])[0], default=rows[0])


def covers(entry, names):
    """Whether all of these backends were in its last race, or could not be."""
    there = {row["backend"] for row in entry["finals"] if row["when"] == entry["when"]}
    return all(name in there or name in entry["refused"] for name in names) and any(name in there for name in names)
