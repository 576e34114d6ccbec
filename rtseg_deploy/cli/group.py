"""The group that every command joins, and the options that several share."""
import contextlib

import click

from .. import __version__
from ..terminal import Commands, warn

SOME_IMAGES = 16                    # on which FP16 is to hold, of more
UNSTABLE = 3                        # exit status: measured, but unstable
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
as_markdown = click.option("--markdown", is_flag=True, help="Print a table for a document.")
on = click.option("--on", metavar="ssh://[USER@]HOST[:PORT][/PYTHON]", help="Do it on a device: through the system's ssh, with its python3 or the one named.")
need_export = ("torch", "onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")


def fleet(command):
    """Who does the work: see crew()."""
    for option in (
            click.option("--tls", metavar="FOLDER", type=click.Path(exists=True, file_okay=False), help="For --scheduler tls://…: ca.pem, cert.pem, key.pem."),
            click.option("--local", type=click.IntRange(1, 256), metavar="N", help="So much at a time on this machine; what is timed is timed alone."),
            click.option("--scheduler", metavar="tcp://HOST:PORT", help="Let the workers of a fleet do it: `rtseg-deploy scheduler`, `rtseg-deploy worker`.")):
        command = option(command)
    return command


@contextlib.contextmanager
def crew(scheduler, local, tls, on):
    """Who does Tasks: a fleet, so many processes of this machine, or this process and the device that it drives. What is to be known is printed after."""
    from ..errors import need

    if sum(map(bool, (scheduler, local, on))) > 1:
        raise click.UsageError("give one of --scheduler, --local and --on" + ("; a worker has an --on of its own" if on else ""))
    if scheduler or local:
        need("distributed")
        from .. import fleet
        with fleet.joined(scheduler, tls) if scheduler else fleet.local(local) as found:
            yield found
            warn(found.remarks)
    else:
        from .. import ssh
        from ..crew import Serial
        yield Serial(ssh.place(on))


def real_images(command):
    """The images on which FP16 is to hold, beside the proof's own."""
    command = click.option("--count", type=click.IntRange(1, 100_000), help=f"How many of --images; {SOME_IMAGES} of more if not given.")(command)
    return click.option("--images", metavar="DIR|LIST", help="With FP16: real images on which it is to hold too; what overflows stays in FP32.")(command)


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="rtseg-deploy")
@click.pass_context
def cli(context):
    """Real-time segmentation networks from a PyTorch checkpoint to a TensorRT engine and a figure to believe.

    \b
    Example:
      rtseg-deploy export weights.pth -o net.onnx --resolution 1024x2048
      rtseg-deploy build-engine net.onnx --target rtx-2080ti --fp16
      rtseg-deploy bench net.onnx
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
