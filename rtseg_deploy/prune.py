"""Results that are no longer wanted: which these are, and their removal, of nothing else and nowhere else."""
import hashlib
import os
from contextlib import ExitStack

from . import archive


def chosen(folder, wanted, keep, tell, warn):
    """Rows of what is wanted gone; never one of the newest `keep` of its configuration on its device, nor one that says no time where some are kept."""
    rows, _ = archive.rows(folder, wanted, tell=tell, warn=warn)
    if not keep:
        return rows
    kept, every = {}, archive.rows(folder, tell=tell)[0]
    for row in every:               # the newest first
        newest = kept.setdefault((row["configuration"], row["device"]), set())
        if len(newest) < keep or not row["time"]:
            newest.add(row["file"])
    return [row for row in rows if row["file"] not in kept[row["configuration"], row["device"]]]


def remove(folder, row):
    """Remove the file of a row, through no link, if it still is what the row was made of; whether it was."""
    *inner, name = os.path.relpath(row["file"], folder).split(os.sep)
    with ExitStack() as opened:
        try:
            handle = entered(opened, folder, 0)
            for part in inner:
                handle = entered(opened, part, os.O_NOFOLLOW, handle)
            with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=handle), "rb") as file:
                same = hashlib.sha256(file.read()).hexdigest() == row["sha256"]
            if same:
                os.unlink(name, dir_fd=handle)
        except OSError:
            return False
    return same


def entered(opened, name, flags, above=None):
    handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=above)
    opened.callback(os.close, handle)
    return handle
