"""Commands of a fleet: its scheduler and its workers."""
import click

from ..errors import RtsegError, need
from .group import cli

tls = click.option("--tls", metavar="FOLDER", type=click.Path(exists=True, file_okay=False),
                   help="Folder of ca.pem, cert.pem and key.pem: encrypted, and known parties only.")
insecure = click.option("--insecure", is_flag=True, help="Listen beyond this machine without --tls: whoever reaches it can run code here.")


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8786, show_default=True)
@tls
@insecure
def scheduler(host, port, tls, insecure):
    """Serve as the scheduler of a fleet: workers and commands with --scheduler meet here. Dask's own; it needs the extra `fleet`.

    \b
    Example:
      rtseg-deploy scheduler
      rtseg-deploy scheduler --host 192.168.1.5 --tls certificates
    """
    remote().scheduler(host, port, tls, insecure, lambda address: click.echo(f"scheduler at {address}", err=True))


@cli.command()
@click.option("--scheduler", "address", required=True, metavar="tcp://HOST:PORT", help="tls://HOST:PORT with --tls.")
@click.option("--target", "targets", multiple=True, help="A device that this worker has: gtx-1080ti, rtx-2080ti, jetson-tx2.")
@click.option("--on", metavar="ssh://[USER@]HOST[:PORT][/PYTHON]", help="It has that device at the other end of ssh, and does nothing else.")
@click.option("--slots", type=click.IntRange(1, 256), default=1, show_default=True, help="How much is computed at a time; what is timed is timed alone.")
@click.option("--store", type=click.Path(file_okay=False), help="Where files that arrived are kept; in the cache folder if not given.")
@click.option("--host", help="Address to listen at, for other workers; the one from which the scheduler is reached if not given.")
@tls
@insecure
def worker(address, targets, on, slots, store, host, tls, insecure):
    """Work for a fleet with this machine, or with a device that it reaches by ssh, until ctrl-C.

    \b
    Example:
      rtseg-deploy worker --scheduler tcp://127.0.0.1:8786 --slots 4
      rtseg-deploy worker --scheduler tls://192.168.1.5:8786 --tls certificates --target rtx-2080ti
      rtseg-deploy worker --scheduler tcp://127.0.0.1:8786 --target jetson-tx2 --on ssh://nano@tx2
    """
    from .. import ssh

    if on and not targets:
        raise click.UsageError("--on drives a device: say which with --target")
    ssh.place(on)
    why = remote().worker(address, targets, on, slots, store, tls, host, insecure, lambda line: click.echo(line, err=True))
    if why:
        raise RtsegError(why)


def remote():
    need("distributed")
    from .. import remote as module
    return module
