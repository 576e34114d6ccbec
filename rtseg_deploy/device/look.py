"""Reads job.json, runs the commands and reads the files that it names, writes result.json:  python3 look.py job.json result.json

One file for every device: Python 3.6, the standard library. It goes to a device as the runner does, changes nothing, and ends by itself. Files
are named by patterns; those in "twice" are read once more after "seconds". What cannot be read is left out, a command that fails is null.
"""
import glob
import json
import os
import subprocess
import sys
import time

BYTES, SECONDS = 1 << 16, 20        # at most of a file, and for a command


def main(argv):
    with open(argv[0], "rb") as file:
        job = json.loads(file.read().decode())
    found = texts(job["twice"])
    time.sleep(job["seconds"])
    result = {"later": texts(job["twice"]), "files": dict(found, **texts(job["files"])), "said": {command: output_of(command) for command in job["commands"]},
              "variables": {name: os.environ[name] for name in job["variables"] if name in os.environ}, "allowed": sorted(os.sched_getaffinity(0)),
              "debug": hasattr(sys, "gettotalrefcount"), "ok": True}
    with open(argv[1] + ".part", "w") as file:
        json.dump(result, file)
    os.replace(argv[1] + ".part", argv[1])


def texts(patterns):
    found = {}
    for path in [path for pattern in patterns for path in glob.glob(pattern)]:
        try:
            with open(path, "rb") as file:
                found[path] = file.read(BYTES).decode(errors="replace").strip("\0\n ")
        except OSError:
            continue
    return found


def output_of(command):
    try:
        return subprocess.run(command.split(), check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              timeout=SECONDS).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
