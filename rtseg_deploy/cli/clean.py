"""The command that gives disk back: it parses, makes one call, prints."""
import json
import re
import sys

import click

from ..terminal import progress, show, warn
from .group import as_json, cli

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Amount(click.ParamType):
    """A number and its unit -> that many of the smallest."""

    def __init__(self, name, units):
        self.name, self.units = name, units

    def convert(self, value, param, ctx):
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([a-zA-Z]+)", str(value))
        if not found or found[2] not in self.units:
            self.fail(f"{value!r} is no number with one of {', '.join(self.units)} after it", param, ctx)
        return float(found[1]) * self.units[found[2]]


@cli.command()
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(exists=True, file_okay=False))
@click.option("--yes", is_flag=True, help="Remove it; without this it is only shown.")
@click.option("--older-than", "older", type=Amount("AGE", SECONDS), default="0s", help="Only what was not used for so long, such as 12h or 7d.")
@click.option("--keep", type=Amount("SIZE", BYTES), help="Only the oldest, until what is left is no more than this, such as 5GB.")
@as_json
def clean(folders, yes, older, keep, as_json):
    """Show what can be made again, and remove it: in the cache, of runs that were killed, and in folders that are named. What a run uses stays.

    Results, engines, ONNX files and what `tune` found are never among it.

    \b
    Example:
      rtseg-deploy clean engines results
      rtseg-deploy clean --older-than 7d --yes
      rtseg-deploy clean --keep 5GB --yes
    """
    from .. import clean as cleaning

    with progress() as tell:
        tell("looking", None)
        items = cleaning.found(folders, older, keep)
        stayed = cleaning.clean(items, tell) if yes else []
    total = sum(item.bytes for item in items) - sum(item.bytes for item, _ in stayed)
    if as_json:
        click.echo(json.dumps({"removed": yes, "bytes": total, "items": [item.to_json() for item in items],
                               "stayed": {str(item.path): why for item, why in stayed}}, indent=1))
    else:
        from ..report import plain_table

        show(*([plain_table(cleaning.rows(items))] if items else []),
             f"{cleaning.size(total)} in {len(items) - len(stayed)} of them " + ("removed" if yes else "can be made again: --yes removes it"))
    warn(f"{item.path} stays: {why}" for item, why in stayed)
    sys.exit(1 if stayed and not all(why == cleaning.USED for _, why in stayed) else 0)
