"""One result in full: its table, its statistics, what limits or unsettles it, and what it was measured on."""
import re
from pathlib import Path

from . import archive, entries, files, page, results, summary
from .errors import RtsegError
from .report import plain_table, probe_table


def file_of(name, folder, tell, warn):
    """The path of a result that is called by its path or by the beginning of its id. Raises RtsegError."""
    if Path(name).is_file() or not re.fullmatch("[0-9a-f]{4,64}", name):
        return name
    found, _ = archive.rows(folder, archive.Wanted(sha256=(f"{name}*",)), tell=tell, warn=warn)
    if len({row["sha256"] for row in found}) != 1:
        raise RtsegError(f"{len(found) or 'no'} results in {folder} are called {name}", "see what they are called with: rtseg-deploy results list")
    return found[0]["file"]


def read(path):
    """The value of a result file. Raises RtsegError."""
    value = files.read_json(path)
    return entries.sound(path, value) if value.get("kind") == entries.ACCURACY else results.read_one(path).value


def to_json(path, value):
    """Without the samples."""
    return {"file": str(path), **(results.short(value) if "runs" in value else value)}


def shown(path, value):
    """What is printed."""
    if value["kind"] == entries.ACCURACY:
        from . import evaluate  # all that labels pictures

        yield f"{value['artifact']['model']} {value['artifact']['precision']} {value['backend']}"
        yield plain_table(evaluate.rows(value))
        yield probe_table(value.get("environment") or {})
        yield from evaluate.remarks(path, value)
        return
    found = summary.summary([results.Result(str(path), files.sha256(path), value)])
    yield from page.terminal(found)
    yield probe_table({name: f"{number:.5g}" for name, number in value["statistics"].items() if results.number(number)})
    yield probe_table(found["conditions"]["each"][0])
    yield str(path)
