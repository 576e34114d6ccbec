"""The command that puts results together: it parses, makes one call, prints."""
import json

import click

from ..terminal import document, progress, show, warn
from .group import as_json, as_markdown, cli


@cli.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("-o", "--output", "folder", type=click.Path(file_okay=False), help="Write the report here, too: report.md, .csv, .json and .html.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["markdown", "csv", "json", "html"]), help="Of those only this; repeat for several.")
@click.option("--paper", help="Beside this paper's tables: BCPNet, BiSeNetV1, SGCPNet, DDRNet, BiSeNetV2.")
@click.option("--table", help="Of those only this, such as II or 2.")
@as_markdown
@as_json
def report(results, paper, table, folder, formats, markdown, as_json):
    """Put results together: tables, pictures and conditions, as one page that needs nothing beside it.

    RESULTS are files that bench wrote, and folders of them.

    \b
    Example:
      rtseg-deploy report results -o report
      rtseg-deploy report results --paper sgcpnet --table II
    """
    if formats and not folder:
        raise click.UsageError("--format is of what -o writes: add -o FOLDER")
    if table and not paper:
        raise click.UsageError("--table is of a --paper: name that too")
    from .. import page, summary
    from ..results import read

    with progress() as tell:
        tell("reading results", None)
        found = summary.summary(read(results, lambda line: warn([line])), paper, table, tell)
        paths = page.write(found, folder, formats) if folder else []
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif markdown:
        document(page.markdown(found))
    else:
        show(*page.terminal(found), *map(str, paths))
