"""A worker of a fleet that is not as it should be: what it does is `rtseg-deploy`'s, as the arguments after the first two say.

garbage SEED: it works, and then returns something else. slow SECONDS: every task takes so much longer, in which the machine has nothing to do, as
where a board does it.
"""
import json
import os
import random
import sys
import time

from rtseg_deploy import cli, launch, remote

NONSENSE = (None, [], "fine", 3, {}, {"ok": "yes"}, {"ok": True}, {"ok": True, "made": []}, {"ok": True, "made": {}}, {"ok": True, "made": {"../../x": "0"}},
            {"ok": False}, {"ok": False, "error": 3}, {"ok": False, "error": "\x1b[2J" * 100})
mode, number = sys.argv.pop(1), int(sys.argv.pop(1))
chance, earlier, sound = random.Random(number), {}, remote.done


def slow(*given):
    result = sound(*given)
    time.sleep(number)
    return result


def garbage(post, request, hashes, *more):
    """What remote.done gives, spoilt."""
    result, made = sound(post, request, hashes, *more)
    mine = earlier.setdefault(request["action"], [])
    mine.append((request, result, made))
    return chance.choice((damaged, consistent, nonsense, another, numbers))(result, made, mine)


def damaged(result, made, mine):
    return result, {name: os.urandom(len(data)) for name, data in made.items()}


def consistent(result, made, mine):
    """Random bytes whose hashes are right."""
    return hashed(result, {name: os.urandom(min(len(data), 1000)) for name, data in made.items()})


def nonsense(result, made, mine):
    return chance.choice(NONSENSE), chance.choice((made, {}, {"../../x": b"x"}, dict.fromkeys(made)))


def another(result, made, mine):
    """What came of another task."""
    others = [(theirs, bytes_) for request, theirs, bytes_ in mine if request != mine[-1][0]]
    return chance.choice(others) if others else damaged(result, made, mine)


def numbers(result, made, mine):
    """Samples and counts that are none, in files that are else as they were; a sidecar's figures of a proof nobody can check without it."""
    spoil = chance.choice((float("nan"), float("inf"), -1, 10**30, "x", None))
    return hashed(result, {name: data if name.endswith((".onnx.json", ".engine.json")) else spoilt(data, spoil) for name, data in made.items()})


def spoilt(data, spoil):
    try:
        lines = [json.loads(line) for line in ([data] if data.startswith(b"{\n") else data.splitlines())]
    except ValueError:
        return data
    return b"\n".join(json.dumps(walked(line, spoil)).encode() for line in lines)


def walked(value, spoil):
    """The value with every fifth number another."""
    if isinstance(value, dict):
        return {name: walked(one, spoil) for name, one in value.items()}
    if isinstance(value, list):
        return [walked(one, spoil) for one in value]
    return spoil if isinstance(value, (int, float)) and not isinstance(value, bool) and chance.random() < 0.2 else value


def hashed(result, made):
    return {**result, "made": {name: launch.digest(data) for name, data in made.items()}}, made


remote.done = {"garbage": garbage, "slow": slow}[mode]
cli.main()
