"""Runs every job of a bundle, one after another, and packs what came of them:  sh run.sh, or python3 steps.py

One file beside runner.py, for Python 3.6 and its standard library; it needs no network. Interrupted, it goes on where it was: a job
whose result is good is not run again.
"""
import hashlib
import json
import os
import platform
import subprocess
import sys
import tarfile

SUMS = "SHA256SUMS"
RESULTS = "results.tar.gz"


def main():
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
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
    sys.stdout.write(text + "\n")
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
    if not os.path.isfile(path):
        return None
    with open(path) as file:
        result = json.load(file)
    return result if result["ok"] else None


def run(job, title):
    """The result of a job. What it needs of an earlier one may not be there: then it fails, as a result too."""
    folder = os.path.join("jobs", job["name"])
    for name, source in job["files"].items():
        if not os.path.isfile(source):
            return fail(folder, "%s was not made" % source, "see the job that makes it")
        link = os.path.join(folder, name)
        if os.path.lexists(link):
            os.remove(link)
        os.symlink(os.path.abspath(source), link)
    process = subprocess.Popen([sys.executable, os.path.abspath("runner.py"), "job.json", "result.json"], cwd=folder, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, universal_newlines=True)
    for line in process.stdout:
        mark, _, event = line.partition(" ")
        say("%s: %s" % (title, json.loads(event)["stage"]) if mark == "@rtseg" else line.rstrip("\n"))
    if process.wait() < 0:
        return fail(folder, "the worker was killed by signal %d" % -process.returncode, "run it again with less beside it")
    with open(os.path.join(folder, "result.json")) as file:
        return json.load(file)


def fail(folder, error, fix):
    result = {"ok": False, "error": error, "fix": fix}
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump(result, file)
    return result


def pack(jobs):
    """Everything that came of the jobs, in one file with its own sums."""
    names = {"bundle.json": "bundle.json"}
    for job in jobs:
        folder = os.path.join("jobs", job["name"])
        for name in ["job.json", "result.json"] + job["results"]:
            if os.path.isfile(os.path.join(folder, name)):
                names["%s/%s" % (job["name"], name)] = os.path.join(folder, name)
    with open("RESULT-" + SUMS, "w") as file:
        file.write("".join("%s  %s\n" % (digest(path), name) for name, path in sorted(names.items())))
    names[SUMS] = "RESULT-" + SUMS
    with tarfile.open(RESULTS + ".part", "w:gz", dereference=True) as archive:
        for name, path in sorted(names.items()):
            archive.add(path, name)
    os.replace(RESULTS + ".part", RESULTS)


if __name__ == "__main__":
    if platform.python_version_tuple() < ("3",):
        sys.exit("Python 3.6 or newer is needed: PYTHON=python3 sh run.sh")
    sys.exit(main())
