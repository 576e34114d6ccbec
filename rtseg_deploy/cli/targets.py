"""Commands about targets: what is known of them, and whether a file will do for them."""
import json
import os
import sys

import click

from .. import facts
from ..errors import need
from ..terminal import progress, show
from .group import as_json, as_markdown, cli, need_export
from .make import print_rows


@cli.command()
@as_markdown
@as_json
def targets(markdown, as_json):
    """List the targets: device, TensorRT, JetPack, CUDA, Python, what is really fast on it, its peaks, and where each is from.

    \b
    Example:
      rtseg-deploy targets
    """
    from ..report import target_rows, upright

    rows = target_rows(facts.targets().values())
    if markdown or as_json:
        print_rows(rows, markdown, as_json)
    else:
        for start in range(0, len(rows), 3):
            show(upright([{name: value for name, value in row.items() if name != "source"} for row in rows[start:start + 3]]))
        show(*(f"{row['target']}: {row['source']}" for row in rows))


@cli.command()
@click.argument("model", metavar="MODEL.onnx", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--target", "names", multiple=True, help="A name from `rtseg-deploy targets`. Repeat for several.")
@click.option("--parser", default="", help="Judge by another parser than the target's usual one: 8.2, 8.5, 8.6, 10.15, rtx.")
@click.option("--fix", is_flag=True, help="Rewrite what can be rewritten exactly, and prove it.")
@click.option("-o", "--output-file", "path", type=click.Path(dir_okay=False), help="Where --fix writes.")
@click.option("--rules", is_flag=True, help="List the rules with their sources instead.")
@click.option("--families", is_flag=True, help="Instead, export a network of every paper at three opsets and show every parser's verdict.")
@as_markdown
@as_json
def check(model, names, parser, fix, path, rules, families, markdown, as_json):
    """Say whether a target's TensorRT will read an ONNX file, without device and TensorRT: node, reason, what to do. Exit status 1 where it will not.

    \b
    Example:
      rtseg-deploy check net.onnx --target jetson-tx2 --target gtx-1080ti
      rtseg-deploy check net.onnx --target jetson-tx2 --fix -o net-tx2.onnx
      rtseg-deploy check net.onnx --target rtx-2080ti --parser 8.6
    """
    if rules or families:
        print_rows(every_rule() if rules else every_family(), markdown, as_json)
        return
    if not (model and names):
        raise click.UsageError("name a MODEL.onnx and at least one --target")
    if bool(path) != fix or fix and not path.endswith(".onnx"):
        raise click.UsageError("--fix and -o GOAL.onnx go together")
    if fix and os.path.realpath(model) in (os.path.realpath(path), os.path.realpath(f"{path}.json")):
        raise click.BadParameter(f"{path!r} would overwrite the original", param_hint="'-o'")
    need("onnx", *(("onnx_graphsurgeon", "polygraphy", "onnxruntime") if fix else ()))
    with progress() as tell:
        verdicts, repairs = (fixed if fix else looked_at)(model, names, parser, path, tell)
    if as_json:
        click.echo(json.dumps({"file": path or model, "repairs": repairs, "targets": [verdict.to_json() for verdict in verdicts]}, indent=1))
    else:
        from ..report import findings_table, repairs_table
        show(*([repairs_table(repairs)] if repairs else []), *(findings_table(verdict) for verdict in verdicts), *([path] if path else []))
    sys.exit(0 if all(verdict.passes for verdict in verdicts) else 1)


def looked_at(model, names, parser, path, tell):
    from .. import check

    tell("checking", None)
    return check.check(check.read(model), names, parser), []


def fixed(model, names, parser, path, tell):
    from ..fix import fix

    return fix(model, path, names, parser, tell)


def every_rule():
    from ..report import rule_rows
    return rule_rows(facts.rules().values())


def every_family():
    need(*need_export)
    with progress() as tell:
        tell("loading PyTorch", None)
        from .. import verdicts
        return verdicts.families(tell)
