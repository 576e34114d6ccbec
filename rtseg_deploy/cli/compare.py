"""The command that says whether figures differ: it parses, makes one call, prints."""
import json
import re
import sys

import click

from ..terminal import progress, show, warn
from .group import UNSTABLE, as_json, as_markdown, cli


class Percent(click.ParamType):
    """3% -> 0.03"""
    name = "percent"

    def convert(self, value, param, ctx):
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?%", value):
            self.fail(f"{value!r} is no percentage such as 3%", param, ctx)
        return float(value[:-1]) / 100


@cli.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True), metavar="A B|RESULTS...")
@click.option("--vary", multiple=True, metavar="CONDITION", help="What differs on purpose, such as backend, precision or bn. Repeat for several.")
@click.option("--baseline", type=click.Path(exists=True), help="Folder of results: RESULTS, files and folders, are held against its.")
@click.option("--fail-if-slower", "limit", type=Percent(), help="With --baseline: exit status 1 where one is slower by more, such as 3%, with certainty.")
@click.option("--strict", is_flag=True, help="With --baseline: exit status 3 where one is undecided, unstable or not compared.")
@as_markdown
@as_json
def compare(results, vary, baseline, limit, strict, markdown, as_json):
    """Say whether two result files differ, with an interval. Results whose conditions differ are refused, and those of two devices always.
    Or hold results against a baseline: each configuration that both have, the newest of each.

    Exit status 3 says that one of two is unstable, and with it what is said of both. With --baseline it is 1 where one is slower than the limit by its
    whole interval; where the interval spans the limit it is undecided.

    \b
    Example:
      rtseg-deploy compare results/before.json results/after.json
      rtseg-deploy compare results/ort.json results/eager.json --vary backend
      rtseg-deploy compare --baseline baseline results --fail-if-slower 3%
    """
    if bool(baseline) != (limit is not None):
        raise click.UsageError("--baseline DIR and --fail-if-slower PERCENT go together")
    if baseline:
        sys.exit(held(baseline, results, limit, vary, strict, markdown, as_json))
    if len(results) != 2 or strict or markdown:
        raise click.UsageError("name two result files, or --baseline; --strict and --markdown are of a baseline")
    from ..compare import compare as of

    found = of(*results, vary)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        from ..report import plain_table
        show(plain_table([{"": name, "ms": f"{ms:.4g}", "FPS": f"{1e3 / ms:.1f}", "result": path}
                          for name, path, ms in (("A", found.a, found.a_ms), ("B", found.b, found.b_ms))]))
        show(*(f"{name}: {one} and {other}" for name, (one, other) in found.varied.items()), f"{found.says}, from {found.by}")
        show(*(f"unstable: {line}" for line in found.unstable), *(f"note: {line}" for line in found.notes))
    sys.exit(UNSTABLE if found.unstable else 0)


def held(baseline, results, limit, vary, strict, markdown, as_json):
    """Exit status: 1 where one is too slow, 3 where it is strict and one is not known."""
    from .. import baseline as against
    from .make import print_rows

    with progress() as tell:
        found, left = against.held(baseline, results, limit, vary, tell, warn)
    if as_json:
        click.echo(json.dumps({"limit": limit, "held": [one.to_json() for one in found], "left_out": left}, indent=1))
    else:
        print_rows([against.texts(one) for one in found], markdown, False)
    warn(left)
    if any(one.verdict == "too slow" for one in found):
        return 1
    return UNSTABLE if strict and (left or any(one.verdict == "undecided" or one.comparison.unstable for one in found)) else 0
