"""The commands on results that are there: each parses, makes one call, prints."""
import json
import time
from datetime import datetime, timezone
from functools import wraps

import click

from ..records import size
from ..terminal import Size, progress, show, warn
from .clean import SECONDS, Amount
from .group import as_json, as_markdown, cli

SHOWN = 40                          # rows of a table
FORMS = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ")
CHOICES = (("network", "As ddrnet-*; this and what follows: repeat for several."), ("resolution", ""), ("precision", "That it was computed in."),
           ("backend", ""), ("protocol", ""), ("device", "As '*2080 Ti'; a processor is called as it says."), ("status", "stable or unstable."),
           ("figure", "The paper's, that it was made for."), ("kind", "benchmark or accuracy."))
in_folder = click.argument("folder", default="results", type=click.Path(file_okay=False))


class Moment(click.ParamType):
    """The beginning of a time as the files have it, or as much as 2026-11."""
    name = "time"

    def convert(self, value, param, ctx):
        if not any(parses(value, form) for form in FORMS):
            self.fail(f"{value!r} is no time such as 2026, 2026-11, 2026-11-21 or 2026-11-21T10:30, UTC", param, ctx)
        return value


def parses(text, form):
    try:
        return datetime.strptime(text, form).strftime(form) == text
    except ValueError:
        return False


def choosing(command):
    """The options that say which results; the command gets an archive.Wanted."""
    @wraps(command)
    def chosen(since, until, **given):
        from ..archive import Wanted

        names = {name: given.pop(name) for name, _ in CHOICES}
        return command(wanted=Wanted(**{**names, "resolution": tuple(map(size, names["resolution"]))}, since=since or "", until=until or ""), **given)

    chosen = click.option("--until", type=Moment(), help="Up to this: 2026-11 is up to the end of November.")(chosen)
    chosen = click.option("--since", type=Moment(), help="From then on: 2026-11-21, or more or less of a time; UTC.")(chosen)
    for name, about in reversed(CHOICES):
        chosen = click.option(f"--{name}", multiple=True, type=Size() if name == "resolution" else str, help=about)(chosen)
    return in_folder(chosen)


@cli.group()
def results():
    """Find, compare and tidy the results in a folder, at any depth of it: files of bench and eval. What is asked is answered in a second, of 100,000 too.

    \b
    Example:
      rtseg-deploy results list
      rtseg-deploy results show 3fa9c1d2e0
      rtseg-deploy results trend
      rtseg-deploy results prune
      rtseg-deploy results export
    """


@results.command("list")
@choosing
@click.option("-n", "--limit", type=click.IntRange(1), help=f"Of the newest; {SHOWN} in a table and all with --json if not given.")
@as_markdown
@as_json
def listed(folder, wanted, limit, markdown, as_json):
    """List results, the newest first.

    \b
    Example:
      rtseg-deploy results list --network 'ddrnet-*' --resolution 1024x2048
      rtseg-deploy results list results --device '*2080 Ti' --since 2026-11 --status stable
    """
    from .. import archive

    with progress() as tell:
        rows, total = archive.rows(folder, wanted, limit or (None if as_json else SHOWN), tell, warn)
    if as_json:
        click.echo(lines(rows))
    elif rows:
        from ..sheets import texts
        from .make import print_rows
        print_rows([texts(row) for row in rows], markdown, False)
    if len(rows) < total or not total:
        click.echo(f"{len(rows)} of {total} results" if total else "no result fits", err=True)


def before(seconds):
    """The time that long ago, as the files have it."""
    return datetime.fromtimestamp(max(0.0, time.time() - seconds), timezone.utc).strftime(FORMS[-1])


def lines(rows):
    """A JSON list, a line for each: indented it takes ten times as long."""
    return "[" + ",\n ".join(map(json.dumps, rows)) + "]"


@results.command("show")
@click.argument("name", metavar="ID|FILE")
@in_folder
@as_json
def shown(name, folder, as_json):
    """Show one result in full: its table, its statistics, what unsettles it, and what it was measured on.

    \b
    Example:
      rtseg-deploy results show 3fa9c1d2e0
    """
    from .. import details

    with progress() as tell:
        path = details.file_of(name, folder, tell, warn)
    value = details.read(path)
    if as_json:
        click.echo(json.dumps(details.to_json(path, value), indent=1))
    else:
        show(*details.shown(path, value))


@results.command("trend")
@choosing
@click.option("-n", "--limit", type=click.IntRange(1), default=10, show_default=True, help="Of the newest, on each machine.")
@as_markdown
@as_json
def trend(folder, wanted, limit, markdown, as_json):
    """Show a configuration over time, on each machine: each figure beside the one before it, with an interval, and what else had changed.

    \b
    Example:
      rtseg-deploy results trend --network sgcpnet --resolution 512x1024 --backend onnxruntime-cpu
    """
    from .. import trends

    with progress() as tell:
        found = trends.trends(folder, wanted, limit, tell, warn)
    if as_json:
        click.echo(json.dumps([{"configuration": name, "points": [point.to_json() for point in points]} for name, points in found], indent=1))
        return
    from .make import print_rows
    for name, points in found:
        show(name, *[""] * markdown)
        print_rows([trends.texts(point) for point in points], markdown, False)


@results.command("prune")
@choosing
@click.option("--keep", type=click.IntRange(1), help="Never one of so many newest of its configuration on its device.")
@click.option("--older-than", "older", type=Amount("AGE", SECONDS), help="As 12h or 90d.")
@click.option("--yes", is_flag=True, help="Remove them; without it they are only named.")
@as_json
def prune(folder, wanted, keep, older, yes, as_json):
    """Remove results that fit all that is asked for. Without --yes say which these are. Nothing else is touched, and nothing outside the folder.

    \b
    Example:
      rtseg-deploy results prune --status unstable --older-than 90d --keep 3
    """
    from dataclasses import replace

    from .. import archive
    from .. import prune as pruning

    if wanted == archive.Wanted() and not keep and older is None:
        raise click.UsageError("which results are to go: say --keep, --older-than, --status or another")
    if older is not None:
        wanted = replace(wanted, until=min(before(older), wanted.until or before(older)))
    with progress() as tell:
        rows, _ = archive.rows(folder, wanted, tell=tell, warn=warn, keep=keep)
        gone = [row for row in rows if yes and pruning.remove(folder, row)]
    if as_json:
        click.echo(lines([{**row, "removed": row in gone} for row in rows]))
    elif rows:
        from ..report import plain_table
        from ..sheets import texts
        show(plain_table([texts(row) for row in rows[:SHOWN]]))
    if yes:
        warn(f"{row['file']}: changed meanwhile, or may not be removed" for row in rows if row not in gone)
    click.echo(f"{len(gone)} removed" if yes else f"{len(rows)} would go: add --yes", err=True)


@results.command("export")
@choosing
@click.option("-o", "--output", "goal", required=True, type=click.Path(dir_okay=False), help="NAME.csv or NAME.parquet.")
@as_json
def export(folder, wanted, goal, as_json):
    """Write results as a table for another program: a line for each, every number as it is.

    \b
    Example:
      rtseg-deploy results export --network 'ddrnet-*' -o ddrnet.csv
      rtseg-deploy results export -o results.parquet
    """
    from .. import archive, sheets

    with progress() as tell:
        rows, _ = archive.rows(folder, wanted, tell=tell, warn=warn)
        sheets.write(rows, goal)
    click.echo(json.dumps({"file": goal, "results": len(rows)}) if as_json else goal)
