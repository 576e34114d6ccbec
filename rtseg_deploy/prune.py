"""The removal of results that are no longer wanted, of nothing else and nowhere else."""
import hashlib
import os
from contextlib import ExitStack


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
