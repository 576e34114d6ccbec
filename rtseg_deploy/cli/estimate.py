"""The command that says what to expect of a device that is not here: it parses, makes one call, prints."""
import json

import click

from ..terminal import Size, document, progress, show
from .group import as_json, as_markdown, cli


@cli.command()
@click.argument("subject", metavar="[NETWORK|MODEL.onnx]", required=False)
@click.option("--resolution", type=Size(), help="Of a network by name, or of an ONNX file whose size is free; height first.")
@click.option("--target", "targets", multiple=True, help="Repeat for several; all if not given.")
@click.option("--fp16", is_flag=True, help="FP16 beside FP32.")
@click.option("--layers", is_flag=True, help="What each layer takes on the one --target, nothing fused.")
@click.option("--papers", is_flag=True, help="The papers' own figures beside what is estimated for them.")
@as_markdown
@as_json
def estimate(subject, resolution, targets, fp16, layers, papers, markdown, as_json):
    """Estimate milliseconds and memory on devices that are not here: a bracket from their data sheets, never a measurement.

    NETWORK is a name from `rtseg-deploy models`, giving logits at the image's size; an ONNX file is taken as it is.

    \b
    Example:
      rtseg-deploy estimate ddrnet-23-slim --resolution 1024x2048 --fp16
      rtseg-deploy estimate sgcpnet --resolution 512x1024 --target jetson-tx2 --layers
      rtseg-deploy estimate --papers
    """
    if papers and (subject or resolution or targets or fp16 or layers):
        raise click.UsageError("--papers stands alone: its networks, sizes and devices are the papers'")
    if not (subject or papers):
        raise click.UsageError("name a NETWORK or an ONNX file, or ask for --papers")
    if layers and len(targets) != 1:
        raise click.UsageError("--layers needs one --target")
    with progress() as tell:
        from .. import estimate as model

        if papers:
            rows = model.papers(tell)
        elif layers:
            rows = model.per_layer(subject, resolution, *targets, "fp16" if fp16 else "fp32", tell)
        else:
            rows = model.estimate(subject, resolution, targets, fp16, tell)
    said = [model.ESTIMATE, *([model.counted(rows)] if papers else [])]
    if as_json:
        click.echo(json.dumps({"said": said, "rows": rows}, indent=1))
        return
    from ..report import brackets, markdown_table, plain_table

    rows, notes = (rows, []) if layers else model.noted(rows)
    if not (papers or layers):
        said = [f"{rows[0]['network']}: {said[0]}"]
        rows = [{name: value for name, value in row.items() if name != "network"} for row in rows]
    if markdown:
        document("\n\n".join([markdown_table(rows), "\n".join(f"* {line}" for line in (*notes, *said))]))
    else:
        show(plain_table(rows if papers or layers else brackets(rows)), *notes, *said)
