"""Inputs by atheris, which sees what code they reach: python -m tests.fuzz --minutes 60 [KIND …]

Each kind gets its share of the time, in processes of its own: one that finds something ends, and the next goes on. What is found lies in --found, each
once by where it broke; when it is mended it is kept in tests/fuzz/corpus/KIND. Exit status 1 where something was found.
"""
import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
INSTRUMENTED = ["rtseg_deploy", "PIL", "json", "tarfile", "tomllib", "zipfile", "csv", "torch.serialization", "torch._weights_only_unpickler",
                "onnx.numpy_helper"]


def main():
    from .kinds import KINDS

    asked = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    asked.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    asked.add_argument("--minutes", type=float, default=60, help="in all")
    asked.add_argument("--found", type=Path, default=Path("fuzz-found"))
    asked.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given, more = asked.parse_known_args()
    if given.one:
        return one(given.kinds[0], KINDS, more)
    chosen = given.kinds or list(KINDS)
    bad = [fuzzed(name, 60 * given.minutes / len(chosen), given.found.resolve()) for name in chosen]
    return int(any(bad))


def one(name, kinds, arguments):
    """This process is libFuzzer's."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        for module in [module for module in sys.modules if module.startswith("rtseg_deploy")]:
            del sys.modules[module]         # kinds imported them without
        for module in [module for module in sys.modules if module.startswith(__package__ + ".") and not module.endswith("__main__")]:
            del sys.modules[module]
        from . import cage
        from .kinds import KINDS
        kind = KINDS[name]
        read = cage.enter(kind, os.getcwd(), clock=False)

    def change(data, most, seed):
        chance = random.Random(seed)
        return atheris.Mutate(data, most) if chance.randrange(4) == 0 else kind.mutated(data or chance.choice(kind.valid), chance)[:most]

    atheris.Setup([sys.argv[0], *arguments], read, custom_mutator=change)
    atheris.Fuzz()


def fuzzed(name, seconds, found):
    """Whether something was found of a kind in so much time; prints what."""
    from .kinds import KINDS

    end, executions, places = time.monotonic() + seconds, 0, {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus, work = Path(folder, "corpus"), Path(folder, "work")
        for part in (corpus, found):
            part.mkdir(parents=True, exist_ok=True)
        kept = sorted((HERE / "corpus" / name).glob("*"))
        for number, data in enumerate([*KINDS[name].valid, *(path.read_bytes() for path in kept)]):
            (corpus / f"seed-{number}").write_bytes(data)
        while (left := end - time.monotonic()) > 2:
            work.mkdir(exist_ok=True)
            command = [sys.executable, "-m", __package__, name, "--one", f"-max_total_time={left:.0f}", "-timeout=10", "-rss_limit_mb=5000", "-max_len=200000",
                       f"-seed={int(left)}", f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)]
            said = subprocess.run(command, cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT).stdout.decode(errors="replace")
            numbers = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", said, re.MULTILINE)
            executions += max((int(one or other) for one, other in numbers), default=0)
            made = [path for path in Path(folder).iterdir() if path.is_file()]
            if not numbers and not made:
                raise SystemExit(f"{name}: atheris did not run:\n{said[-2000:]}")
            for path in made:
                where = place(said)
                if where not in places:
                    places[where] = found / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
                    places[where].write_bytes(path.read_bytes())
                    print(f"{name}: {where}\n  {places[where]}", flush=True)
                path.unlink()
    print(f"{name}: {seconds:.0f} s, {executions} inputs, {executions / seconds:.0f} a second, {len(places)} found", flush=True)
    return bool(places)


def place(said):
    """Where it broke, and how: the last lines of the traceback that are this project's."""
    lines = [f"{Path(file).name}:{line}" for file, line in re.findall(r'File "([^"]+)", line (\d+)', said) if "rtseg_deploy/" in file]
    how = re.findall(r"(?m)^(?:==\d+== )?((?:[\w.]*Error|[\w.]*Exception|fuzz.cage.Broken|tests.fuzz.cage.Broken|ERROR: libFuzzer).*)", said)
    return f"{' '.join(lines[-2:])} {how[-1][:200] if how else said[-200:]}"


if __name__ == "__main__":
    sys.exit(main())
