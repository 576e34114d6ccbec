"""The command that finds the fastest backend and its settings: it parses, makes one call, prints."""
import json

import click

from ..terminal import progress, show, warn
from .group import as_json, as_markdown, cli

PRECISIONS = click.Choice(["fp32", "bf16", "int8", "any"])


def automatic(command):
    """The options of a command that can choose its backend by itself."""
    command = click.option("--untuned", is_flag=True, help="With no settings but the backend's own, whatever `tune` found.")(command)
    return click.option("--precision", type=PRECISIONS, help="With --backend auto: what may be computed in, and all that is more exact; the "
                        "file's own if not given.")(command)


@cli.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@click.option("--backend", "backends", multiple=True, help="Only this one; repeat for several. Those for processors that are here if not given.")
@click.option("--precision", type=PRECISIONS, help="Of the backends: what may be computed in, and all that is more exact; the file's own if not "
              "given.")
@click.option("--threads", type=click.IntRange(1, 1024), help="All processors if not given; what is found is good for this number.")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=60.0, show_default=True, help="That it may take, about.")
@as_markdown
@as_json
def tune(artifact, backends, precision, threads, seconds, markdown, as_json):
    """Search the settings of each backend for a file on this machine, once: a frame in, labels out, by turns. bench, predict and eval use what is found.

    The default stays where nothing is faster by more than the noise, and nothing that labels otherwise is used.

    \b
    Example:
      rtseg-deploy tune net.onnx
      rtseg-deploy tune net.onnx --precision bf16 --seconds 120
      rtseg-deploy tune net.onnx --backend onnxruntime-cpu --threads 2
    """
    from .. import tuned
    from ..tune import Ask, busy, rows
    from ..tune import tune as run
    from .make import print_rows

    with progress() as tell:
        entry = run(artifact, Ask(backends, precision, threads, seconds), tell)
    warn(busy(entry))
    print_rows(rows(entry), markdown, False) if not as_json else click.echo(json.dumps({"result": str(tuned.path()), **entry}, indent=1))
    if not (markdown or as_json):
        show(f"{entry['seconds']:.0f} s; kept in {tuned.path()}")
