"""Commands for engines that are built: each parses, makes one call, prints."""
import json
import os
import re
import sys

import click

from ..terminal import progress, show, warn
from .group import as_json, cli, on


@cli.command()
@click.argument("engine", type=click.Path(exists=True, dir_okay=False))
@click.option("--trust", is_flag=True, help="Load it, whatever its sidecar says or without one. An engine runs native code.")
@on
@as_json
def verify(engine, trust, on, as_json):
    """Say whether an engine loads on this machine or a device, or why not, before anything of it is read. Exit status 1 says that it does not.

    \b
    Example:
      rtseg-deploy verify engines/rtx-2080ti/net.fp16.engine --on ssh://user@workstation
    """
    from .. import ssh
    from ..verify import verify as check

    place = ssh.place(on)
    with progress() as tell:
        found = check(engine, trust, place, tell)
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


@cli.command()
@click.argument("models", metavar="MODEL.onnx|PLAN...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output-file", "goal", required=True, type=click.Path(dir_okay=False), help="The archive, such as tx2.tar.gz.")
@click.option("--target", help="The device: an engine is built there, its labels are taken, and it is timed.")
@click.option("--fp16", is_flag=True, help="An FP16 engine as well.")
@click.option("--backend", "backends", multiple=True, help="Time the ONNX files there too, such as with onnxruntime-cpu; repeat for several.")
@click.option("-n", "--iterations", type=click.IntRange(1, 100_000), help="The plan's own, or 1000, if not given.")
@as_json
def bundle(models, goal, target, fp16, backends, iterations, as_json):
    """Pack jobs for a machine without network: there unpack it and type `sh run.sh`; here `collect` files what comes back.

    \b
    Example:
      rtseg-deploy bundle net.onnx --target jetson-tx2 --fp16 -o tx2.tar.gz
      rtseg-deploy bundle engines/bisenetv2-figure-10.toml --target jetson-tx2 -o tx2.tar.gz
    """
    from ..bundle import bundle as pack

    if not re.fullmatch(r"\w[\w.-]*\.tar\.gz", os.path.basename(goal)):
        raise click.BadParameter(f"{goal!r} is not a plain name that ends in .tar.gz, such as tx2.tar.gz", param_hint="'-o'")
    with progress() as tell:
        names = pack(models, goal, target, fp16, backends, iterations, tell)
    if as_json:
        click.echo(json.dumps({"file": goal, "jobs": names}, indent=1))
    else:
        show(*names, f"{goal}: take it there, then: tar xzf {os.path.basename(goal)} && sh {os.path.basename(goal).partition('.')[0]}/run.sh")


@cli.command()
@click.argument("archive", metavar="RESULTS.tar.gz", type=click.Path(exists=True, dir_okay=False))
@click.option("-e", "--engines", default="engines", show_default=True, type=click.Path(file_okay=False), help="Engines go to FOLDER/TARGET/.")
@click.option("-o", "--results", default="results", show_default=True, type=click.Path(file_okay=False), help="Where figures go.")
@click.option("--signers", type=click.Path(exists=True, dir_okay=False), help="Take only what one of these signed: see `check-signature`.")
@as_json
def collect(archive, engines, results, signers, as_json):
    """Check and file what a bundle's run brought back. Exit status 1 says that a job failed there.

    \b
    Example:
      rtseg-deploy collect results.tar.gz
      rtseg-deploy collect results.tar.gz --signers signers
    """
    from ..collect import collect as file_all

    with progress() as tell:
        rows = file_all(archive, engines, results, tell, signers)
    if as_json:
        click.echo(json.dumps([vars(row) for row in rows], indent=1))
    else:
        from ..report import plain_table
        show(plain_table([vars(row) for row in rows]))
    sys.exit(0 if all(row.ok for row in rows) else 1)
