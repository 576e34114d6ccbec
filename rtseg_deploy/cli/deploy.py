"""Commands for engines that are built: each parses, makes one call, prints."""
import json
import sys

import click

from ..terminal import progress, show, warn
from .group import as_json, cli


@cli.command()
@click.argument("engine", type=click.Path(exists=True, dir_okay=False))
@click.option("--trust", is_flag=True, help="Load it, whatever its sidecar says or without one. An engine runs native code.")
@as_json
def verify(engine, trust, as_json):
    """Say whether an engine loads on this machine, or why not, before anything of it is read. Exit status 1 says that it does not.

    \b
    Example:
      rtseg-deploy verify engines/rtx-2080ti/net.fp16.engine
    """
    from ..verify import verify as check

    with progress() as tell:
        found = check(engine, trust, tell)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        show(*(f"does not load: {reason}" for reason in found["reasons"]) if found["reasons"] else [f"loads: {engine}"])
    sys.exit(1 if found["reasons"] else 0)


@cli.command("deploy-config")
@click.argument("engine", type=click.Path(exists=True, dir_okay=False))
@click.option("--for", "server", type=click.Choice(["triton", "deepstream"]), required=True)
@click.option("-o", "--output", "folder", default="deploy", show_default=True, type=click.Path(file_okay=False),
              help="Triton's model repository, or where DeepStream's files go.")
@as_json
def deploy_config(engine, server, folder, as_json):
    """Write the configuration with which Triton or DeepStream serves an engine of TensorRT, and put the engine beside it.

    \b
    Example:
      rtseg-deploy deploy-config engines/gtx-1080ti/net.fp32.engine --for triton -o repository
    """
    from ..deploy_config import deploy_config as write

    made = write(engine, server, folder)
    warn(made["notes"])
    if as_json:
        click.echo(json.dumps(made, indent=1))
    else:
        show(*made["files"])
