"""The command that says how right labels are: it parses, makes one call, prints."""
import json

import click

from ..terminal import Size, progress, show
from .group import as_json, as_markdown, cli, crew, fleet, on
from .tune import automatic


@cli.command("eval")
@click.argument("subject", metavar="ARTIFACT|CHECKPOINT", type=click.Path(exists=True, dir_okay=False))
@click.option("--data", "folder", required=True, type=click.Path(exists=True, file_okay=False), help="Folder of the data set.")
@click.option("--dataset", "kind", type=click.Choice(["camvid", "cityscapes", "folder"]), help="Found by the layout of the folder if not given.")
@click.option("--split", help="test of CamVid and val of Cityscapes if not given.")
@click.option("--backend", help="onnxruntime-cpu if not given, torch-eager for a checkpoint; auto: the fastest that `tune` finds; an engine has its own.")
@click.option("--count", type=click.IntRange(1), help="Only so many pictures, evenly spread over all.")
@click.option("--resolution", type=Size(), help="Of the network's input; a checkpoint gets the pictures' own, or what its paper resizes them to.")
@click.option("--dialect", help="Of a checkpoint that fits two.")
@click.option("--save", type=click.Path(file_okay=False), help="Draw each picture's errors there, with a page of them, the worst first: index.html.")
@click.option("--again", is_flag=True, help="Also pictures whose counts are there.")
@click.option("-o", "--results", default="accuracy", show_default=True, type=click.Path(file_okay=False), help="Where counts and results go.")
@automatic
@on
@fleet
@as_markdown
@as_json
def evaluate(subject, folder, kind, split, backend, count, resolution, dialect, save, again, results, precision, untuned, on, scheduler, local, tls,
             markdown, as_json):
    """Compare labels with the truth: IoU of each class, mIoU, pixel accuracy, boundary F-score. Interrupted, it goes on where it was.

    \b
    Example:
      rtseg-deploy eval net.onnx --data CamVid --save gallery
      rtseg-deploy eval weights.pth --data cityscapes --split val
      rtseg-deploy eval engines/jetson-tx2/net.fp16.engine --data CamVid --on ssh://nano@tx2
      rtseg-deploy eval net.onnx --data CamVid --scheduler tcp://127.0.0.1:8786
    """
    from .. import datasets, tasks
    from ..evaluate import Ask, remarks, rows, some
    from ..evaluate import evaluate as run

    apart = bool(scheduler or local)
    if apart and (save or backend == "auto"):
        raise click.UsageError("a fleet counts: --save draws here, and --backend auto is the best of this machine; leave --scheduler and --local out")
    with crew(scheduler, local, tls, on) as by, progress() as tell:
        tell("looking for pictures", None)
        data = some(datasets.dataset(folder, kind, split), count)
        ask = Ask(data, backend, by.place, save, again, results, precision=precision, untuned=untuned or apart, label=tasks.label_by(by) if apart else None)
        path, value = run(subject, ask, resolution, dialect, tell)
    if as_json:
        click.echo(json.dumps({"result": str(path), **value}, indent=1))
        return
    from .make import print_rows

    print_rows(rows(value), markdown, False)
    if not markdown:
        show(*remarks(path, value), *([f"{save}/index.html"] if save else []))
