"""Runs every job of a bundle, one after another, and packs what came of them:  sh run.sh, or python3 steps.py

One file beside runner.py, for Python 3.6 and its standard library; it needs no network. Interrupted, it goes on where it was: a job
whose result is good is not run again.
"""
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile

SUMS = "SHA256SUMS"
RESULTS = "results.tar.gz"
DONE = "done"                       # in a job's folder: its result, and all that it made, are on the disk


def main():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    busy = open("busy", "w")        # for as long as this runs
    try:
        fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return say("this bundle is running already; wait for it, or end it")
    wrong = damaged(SUMS)
    if wrong:
        return say("%s is not as it was packed; unpack the bundle again" % wrong)
    with open("bundle.json") as file:
        jobs = json.load(file)["jobs"]
    bad = 0
    for number, job in enumerate(jobs):
        result = outcome(job) or run(job, "%d of %d: %s" % (number + 1, len(jobs), job["name"]))
        bad += not result["ok"]
        if not result["ok"]:
            say("%s: %s; %s" % (job["name"], result["error"], result["fix"]))
    pack(jobs)
    say("%d of %d jobs are good. Take %s back, then: rtseg-deploy collect %s" % (len(jobs) - bad, len(jobs), os.path.abspath(RESULTS), RESULTS))
    return 1 if bad else 0


def say(text):
    sys.stdout.buffer.write((text + "\n").encode("ascii", "backslashreplace"))     # Python 3.6 fails where the locale has no such letter
    sys.stdout.flush()
    return 1


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def damaged(sums):
    """The first file that is not what the list of sums says; None where all are."""
    with open(sums) as file:
        for line in file:
            expected, _, name = line.rstrip("\n").partition("  ")
            if not os.path.isfile(name) or digest(name) != expected:
                return name
    return None


def outcome(job):
    """The good result of a job that was run before; None where there is none."""
    path = os.path.join("jobs", job["name"], "result.json")
    if not os.path.isfile(path) or not os.path.isfile(os.path.join("jobs", job["name"], DONE)):
        return None
    with open(path) as file:
        result = json.load(file)
    return result if result["ok"] else None     # what failed may be mended by now


def run(job, title):
    """The result of a job. What it needs of an earlier one may not be there: then it fails, as a result too."""
    folder = os.path.join("jobs", job["name"])
    answer = os.path.join(folder, "result.json")
    for name in (DONE, "result.json"):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    for name, source in job["files"].items():
        if not os.path.isfile(source):
            return fail(folder, "%s was not made" % source, "see the job that makes it")
        link = os.path.join(folder, name)
        if os.path.lexists(link):
            os.remove(link)
        os.symlink(os.path.abspath(source), link)
    # on a leash, the pipe; in a session of its own, so that ctrl-C is said once, here
    process = subprocess.Popen([sys.executable, os.path.abspath("runner.py"), "job.json", "result.json"], cwd=folder, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, start_new_session=True)
    for line in process.stdout:
        mark, _, event = line.decode("utf-8", "replace").partition(" ")
        say("%s: %s" % (title, json.loads(event)["stage"]) if mark == "@rtseg" else line.decode("utf-8", "replace").rstrip("\n"))
    status = process.wait()
    if not os.path.isfile(answer):
        how = "was killed by signal %d" % -status if status < 0 else "ended with status %d and no result" % status
        return fail(folder, "the worker %s" % how, "run it again with less beside it")
    os.sync()                       # of a power that goes a result may be left and half of what it tells of
    write(os.path.join(folder, DONE), "")
    with open(answer) as file:
        return json.load(file)


def fail(folder, error, fix):
    result = {"ok": False, "error": error, "fix": fix}
    write(os.path.join(folder, "result.json"), json.dumps(result))
    return result


def write(path, text):
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def pack(jobs):
    """Everything that came of the jobs, in one file with its own sums."""
    names = {"bundle.json": "bundle.json"}
    for job in jobs:
        folder = os.path.join("jobs", job["name"])
        for name in ["job.json", "result.json"] + job["results"]:
            if os.path.isfile(os.path.join(folder, name)):
                names["%s/%s" % (job["name"], name)] = os.path.join(folder, name)
    write("RESULT-" + SUMS, "".join("%s  %s\n" % (digest(path), name) for name, path in sorted(names.items())))
    names[SUMS] = "RESULT-" + SUMS
    try:
        with tarfile.open(RESULTS + ".part", "w:gz", dereference=True, format=tarfile.GNU_FORMAT) as archive:   # no extended headers: collect takes none
            for name, path in sorted(names.items()):
                archive.add(path, name, filter=anyones)
        os.replace(RESULTS + ".part", RESULTS)
    finally:
        if os.path.exists(RESULTS + ".part"):
            os.remove(RESULTS + ".part")


def anyones(entry):
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    if platform.python_version_tuple() < ("3",):
        sys.exit("Python 3.6 or newer is needed: PYTHON=python3 sh run.sh")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(say("interrupted; type it again, and it goes on"))
    except OSError as error:
        sys.exit(say("%s: %s; where the disk is full free some space, and type it again: it goes on" % (error.filename or "writing", error.strerror)))
