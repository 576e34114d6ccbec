"""The command that says whether two figures differ: it parses, makes one call, prints."""
import json
import sys

import click

from ..terminal import show
from .group import UNSTABLE, as_json, cli


@cli.command()
@click.argument("a", type=click.Path(exists=True, dir_okay=False))
@click.argument("b", type=click.Path(exists=True, dir_okay=False))
@click.option("--vary", multiple=True, metavar="CONDITION", help="What differs on purpose, such as backend, precision or bn. Repeat for several.")
@as_json
def compare(a, b, vary, as_json):
    """Say whether two result files differ, with an interval. Results whose conditions differ are refused, and those of two devices always.

    Exit status 3 says that one of them is unstable, and with it what is said of both.

    \b
    Example:
      rtseg-deploy compare results/before.json results/after.json
      rtseg-deploy compare results/ort.json results/eager.json --vary backend
    """
    from ..compare import compare as of

    found = of(a, b, vary)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
    else:
        from ..report import plain_table
        show(plain_table([{"": name, "ms": f"{ms:.4g}", "FPS": f"{1e3 / ms:.1f}", "result": path}
                          for name, path, ms in (("A", found.a, found.a_ms), ("B", found.b, found.b_ms))]))
        show(*(f"{name}: {one} and {other}" for name, (one, other) in found.varied.items()), f"{found.says}, from {found.by}")
        show(*(f"unstable: {line}" for line in found.unstable), *(f"note: {line}" for line in found.notes))
    sys.exit(UNSTABLE if found.unstable else 0)
