"""The command that makes an INT8 artifact: parses, makes one call, prints."""
import json

import click

from ..errors import need
from ..terminal import document, progress, show, warn
from .group import as_json, as_markdown, cli


@cli.command()
@click.argument("model", metavar="MODEL.onnx", type=click.Path(exists=True, dir_okay=False))
@click.option("--images", "source", required=True, type=click.Path(exists=True), help="A folder of images, or a list of their names.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False), help="Where the images of a list are, if not beside it.")
@click.option("--count", type=click.IntRange(1, 100_000), help="How many to calibrate with; 32 if not given. The others judge.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which of them.")
@click.option("--method", type=click.Choice(["percentile", "minmax", "entropy"]), default="percentile", show_default=True, help="How ranges are found.")
@click.option("--for", "form", type=click.Choice(["tensorrt", "onnxruntime"]), default="tensorrt", show_default=True,
              help="Who is to run it: int8 with zero point 0, or uint8 for ONNX Runtime's CPU kernels. Either runs the other's slower or not at all.")
@click.option("--data", type=click.Path(exists=True, file_okay=False), help="A labelled data set: layers stay in FP32 until mIoU drops by --max-drop at most.")
@click.option("--split", help="Of the data set: val, rather than the one that accuracy is told for.")
@click.option("--max-drop", type=click.FloatRange(0, 100), default=0.5, show_default=True, help="Points of mIoU.")
@click.option("--table", type=click.Path(dir_okay=False), help="Write the calibration table for TensorRT 8.6 here, too: build-engine --int8 TABLE.")
@click.option("-o", "--output-file", "goal", type=click.Path(dir_okay=False), help="MODEL.int8.onnx if not given; its sidecar is put beside it.")
@as_markdown
@as_json
def calibrate(model, source, goal, markdown, as_json, **how):
    """Turn an exported FP32 file into INT8: ranges from images, and what costs too much accuracy stays in FP32.

    \b
    Example:
      rtseg-deploy calibrate net.onnx --images camvid/val --data camvid --split val
      rtseg-deploy calibrate net.onnx --images calib/camvid-val.csv --folder camvid/val --for onnxruntime -o net.cpu.onnx
      rtseg-deploy calibrate net.onnx --images camvid/val --table net.int8.table
    """
    if goal and not goal.endswith(".onnx"):
        raise click.BadParameter(f"{goal!r} does not end in .onnx", param_hint="'-o'")
    need("onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    with progress() as tell:
        from .. import calibrate as made

        path, artifact = made.calibrate(model, source, goal, made.Ask(**how), tell)
    warn(artifact.warnings)
    about = artifact.checks["int8"]
    if as_json:
        click.echo(json.dumps({"file": str(path), **artifact.to_json()}, indent=1))
    elif markdown:
        from ..report import markdown_table
        document(markdown_table(made.layer_rows(about)))
    else:
        from ..report import artifact_table, plain_table
        show(artifact_table(str(path), artifact), plain_table([row for row in made.layer_rows(about) if row["kept in FP32"]]), made.summary(about))
