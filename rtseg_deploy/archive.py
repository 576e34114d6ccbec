"""A folder of results, at any depth, as rows: what `bench` and `eval` wrote, a row each, found and filtered in a second where there are 100,000.

The files are the truth. Beside them is an index, an SQLite file in the cache that may be thrown away at any moment. Every time all files are looked at
(not into), which costs 3 us each: one whose time of change, size or inode is another is read again, so that what was edited in place is seen too.
A file that changed a moment ago is read again the next time: clocks of file systems stand still for milliseconds, of some for two seconds.
"""
import hashlib
import os
import sqlite3
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, fields

from . import __version__, files, locks
from .errors import RtsegError, printable
from .records import FORMAT

TEXTS = ("id", "time", "kind", "network", "resolution", "precision", "input", "output", "backend", "protocol", "device", "status", "figure", "data",
         "configuration", "conditions", "sha256")
NUMBERS = ("fps", "fps_low", "fps_high", "ms", "miou", "iterations", "processes")
COLUMNS = (*TEXTS, *NUMBERS)
LONGEST = 300                       # letters of a text: names are shorter
YOUNG_SECONDS = 2.0                 # FAT's clock is the coarsest
PATIENCE_SECONDS = 2.0              # without a word
BUSY_SECONDS = 30.0                 # for another process that writes to the index
CHUNK = 1000                        # files after which what was read is kept
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS folders (folder TEXT PRIMARY KEY, digest TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (folder TEXT, name TEXT, stamp TEXT, why TEXT, {", ".join(f"{name} TEXT" for name in TEXTS)},
                                  {", ".join(NUMBERS)}, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS newest ON files (why, time DESC, folder, name);
"""
VERSION = int(hashlib.sha256(f"{SCHEMA} {FORMAT} {__version__} 1".encode()).hexdigest()[:7], 16)     # the last number: of how a row is made


@dataclass(frozen=True)
class Wanted:
    """Which rows: each field that says something has to fit one of the row's, * and ? standing for letters."""
    network: tuple = ()
    resolution: tuple = ()
    precision: tuple = ()           # that it was computed in
    backend: tuple = ()
    protocol: tuple = ()
    device: tuple = ()
    status: tuple = ()
    figure: tuple = ()              # id of a paper's figure that it was made for
    kind: tuple = ()                # benchmark, accuracy
    sha256: tuple = ()
    since: str = ""                 # a time as the files have it, or the beginning of one: 2026-11, 2026-11-21T10
    until: str = ""                 # the last that is wanted: 2026-11 is all of November


def rows(folder, wanted=Wanted(), limit=None, tell=locks.quiet, warn=lambda lines: None, keep=None):
    """(the rows that are wanted, the newest first and at most `limit`, how many there are without a limit); a row's "file" is where it is.

    Of each configuration on each device the newest `keep` are left out, and where some are kept, those that say no time.
    warn(lines) gets what is no result, and why no index can be kept. Raises RtsegError where there is no such folder.
    """
    if not os.path.isdir(folder):
        raise RtsegError(f"{folder}: no such folder", "name the folder that bench or eval wrote its results to")
    left, tell = [], patient(tell)
    ask = str(folder), dict(walk(folder, lambda path, why: left.append(f"{path}{why}"))), (*asked(wanted, keep), limit), tell
    try:
        answer = of_index(index_of(folder), *ask)
    except (sqlite3.DatabaseError, RtsegError) as error:
        warn([f"no index can be kept, so that every file is read each time: {error}"])
        with closing(connected(":memory:")) as database:
            answer = answered(database, *ask)
    found, total, (others, first) = answer
    if left or others:
        warn([f"left out: {(left or [first])[0]}" + (f", and {len(left) + others - 1} more files that are no results" if len(left) + others > 1 else "")])
    return found, total


# ---- the files


def walk(root, leave):
    """(folder below root, {name: stamp} of its JSON files) of each folder that has some; leave(path, why) gets what is not gone into."""
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            stamps, inner = listed(root, folder, leave)
        except OSError as error:
            leave(printable(os.path.join(root, folder)), f": {error.strerror}")
            continue
        todo += [os.path.join(folder, name) for name in inner]
        if stamps:
            yield folder, stamps


def listed(root, folder, leave):
    """({name: stamp} of JSON files, names of folders) in a folder."""
    stamps, inner = {}, []
    handle = os.open(os.path.join(root, folder), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW * bool(folder))
    try:
        with os.scandir(handle) as entries:
            for entry in entries:
                try:
                    stamp, why = looked_at(entry)
                except FileNotFoundError:           # gone since
                    continue
                if why:
                    leave(printable(os.path.join(root, folder, entry.name)), why)
                elif stamp:
                    stamps[entry.name] = stamp
                elif stamp == "":
                    inner.append(entry.name)
    finally:
        os.close(handle)
    return stamps, inner


def looked_at(entry):
    """(its stamp, "" for a folder, None for what is not ours; why it is left out). Links are not followed: they may lead anywhere."""
    name = entry.name
    ours = name.endswith(".json")
    if name[0] == ".":
        return None, ""
    if ours and entry.is_file(follow_symlinks=False) and name.isprintable():       # nearly all of them
        found = entry.stat(follow_symlinks=False)
        return f"{found.st_ctime_ns}/{found.st_size}/{found.st_ino}", ""
    folded = entry.is_dir(follow_symlinks=False)
    if not (folded or ours or entry.is_symlink() and leads_to_folder(entry)):
        return None, ""
    if not name.isprintable():
        return None, ": a name that cannot be printed"
    return ("", "") if folded else (None, ": a link, or no file")


def leads_to_folder(entry):
    try:
        return entry.is_dir()
    except OSError:                 # around in a circle
        return False


def young(stamp):
    """Whether a file of that stamp may have changed once more without another one."""
    return abs(time.time_ns() - int(stamp.partition("/")[0])) < YOUNG_SECONDS * 1e9


# ---- a file


def row(path):
    """The COLUMNS of a result file, and "file". Raises RtsegError where it is none."""
    from . import entries  # with it comes numpy, which takes longer than to find what was read before

    found = entries.entry(path)
    return {"file": str(path), **{name: shortened(str(found[name])) for name in TEXTS}, **{name: found[name] for name in NUMBERS}}


def read(path):
    """What the index has of a file: why it is no result, or "" and its COLUMNS."""
    try:
        return ["", *list(row(path).values())[1:]]
    except RtsegError as error:
        return [shortened(error.what.removeprefix(path)), *[None] * len(COLUMNS)]


def shortened(text):
    return printable(text)[:LONGEST]


# ---- the index


def index_of(root):
    """Where the index of a folder is. Raises RtsegError where none can be."""
    folder = files.cache() / "results"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RtsegError(f"{folder}: {error.strerror}") from None
    return folder / f"{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]}.sqlite"


def of_index(path, *ask):
    """The answer of the index in the cache; one that is damaged, or another version's, is replaced."""
    try:
        with closing(connected(path)) as database:
            return answered(database, *ask, path)
    except sqlite3.DatabaseError:
        with locks.goal(path, ask[-1]):
            for one in (f"{path}-journal", path):
                with suppress(OSError):
                    os.unlink(one)
    with closing(connected(path)) as database:
        return answered(database, *ask, path)


def connected(path):
    """A connection to an index. Raises sqlite3.DatabaseError where it is none of this version, or parts of it are gone: SQLite itself only looks when asked."""
    database = sqlite3.connect(path, timeout=BUSY_SECONDS)
    try:
        version, = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError("of another version")
        if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
        if version == 0:
            database.executescript(f"{SCHEMA} PRAGMA user_version = {VERSION};")
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def answered(database, root, found, question, tell, path=None):
    """(rows, how many there are without a limit, (how many files are no results, the first and why))."""
    digests = {folder: digest(stamps) for folder, stamps in found.items()}
    if digests != dict(database.execute("SELECT folder, digest FROM folders")):
        with locks.goal(path, tell) if path else nullcontext():
            update(database, root, found, digests, tell)
    source, values, limit = question
    chosen = database.execute(f"SELECT folder, name, {', '.join(COLUMNS)} FROM {source} ORDER BY time DESC, folder, name LIMIT ?",
                              (*values, -1 if limit is None else limit))
    rows = [{"file": os.path.join(root, folder, name), **dict(zip(COLUMNS, rest))} for folder, name, *rest in chosen]
    total = len(rows)
    if total == limit:
        total, = database.execute(f"SELECT count(*) FROM {source}", values).fetchone()
    others, = database.execute("SELECT count(*) FROM files WHERE why > ''").fetchone()
    first = database.execute("SELECT folder, name, why FROM files WHERE why > '' ORDER BY folder, name LIMIT 1").fetchone()
    return rows, total, (others, first and f"{os.path.join(root, *first[:2])}{first[2]}")


def digest(stamps):
    return hashlib.sha256("\n".join([f"{name}/{stamp}" for name, stamp in stamps.items()]).encode()).hexdigest()


def asked(wanted, keep):
    """The SQL of what rows() is asked for, from its FROM on, and its values."""
    where, values = condition(wanted)
    if not keep:
        return f"files WHERE {where}", values
    place = "row_number() OVER (PARTITION BY configuration, device ORDER BY time DESC, folder, name)"
    among = f"why = '' AND configuration IN (SELECT configuration FROM files WHERE {where})"
    return f"(SELECT *, {place} AS place FROM files WHERE {among}) WHERE {where} AND place > ? AND time > ''", [*values, *values, keep]


def condition(wanted):
    """The SQL of what is wanted, and its values."""
    parts, values = ["why = ''"], []
    for field in fields(wanted):
        given = getattr(wanted, field.name)
        if given and field.name in ("since", "until"):
            parts.append("time >= ?" if field.name == "since" else "time > '' AND substr(time, 1, length(?)) <= ?")
            values += [given] * (1 if field.name == "since" else 2)
        elif given:
            parts.append(f"({' OR '.join([f'{field.name} GLOB ?'] * len(given))})")
            values += given
    return " AND ".join(parts), values


def update(database, root, found, digests, tell):
    """Make the index what the folders are. What was read is kept from time to time; a folder's digest is its last, so that what was interrupted goes on."""
    known = dict(database.execute("SELECT folder, digest FROM folders"))
    changed = [folder for folder in {**found, **known} if known.get(folder) != digests.get(folder)]
    todo = []
    with database:
        for folder in changed:
            database.execute("INSERT OR REPLACE INTO folders VALUES (?, '')", (folder,))
            stamps, old = found.get(folder, {}), dict(database.execute("SELECT name, stamp FROM files WHERE folder = ?", (folder,)))
            database.executemany("DELETE FROM files WHERE folder = ? AND name = ?", [(folder, name) for name in old.keys() - stamps.keys()])
            todo += [(folder, name, stamp) for name, stamp in stamps.items() if old.get(name) != stamp]
    unsure = set()
    for begin in range(0, len(todo), CHUNK):
        with database:
            for number, (folder, name, stamp) in enumerate(todo[begin:begin + CHUNK], begin):
                tell(f"{number} of {len(todo)} results read", number / len(todo))
                if young(stamp):
                    unsure.add(folder)
                    stamp = ""
                entry = folder, name, stamp, *read(os.path.join(root, folder, name))
                database.execute(f"INSERT OR REPLACE INTO files VALUES ({', '.join('?' * len(entry))})", entry)
    with database:
        database.executemany("UPDATE folders SET digest = ? WHERE folder = ?", [(digests.get(folder), folder) for folder in changed if folder not in unsure])
        database.execute("DELETE FROM folders WHERE digest IS NULL")


def patient(tell):
    """A tell that begins when there was something to wait for."""
    begin = time.monotonic()
    return lambda step, done: tell(step, done) if time.monotonic() - begin > PATIENCE_SECONDS else None
