"""The command that holds each step on the way to an engine against the checkpoint: it parses, makes one call, prints."""
import json
import sys

import click

from ..errors import need
from ..terminal import Size, progress, show, warn
from .group import as_json, as_markdown, cli, need_export, on
from .make import print_rows, trained_network


@cli.command("verify-chain")
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.argument("artifacts", nargs=-1, type=click.Path(exists=True, dir_okay=False))
@click.option("--resolution", type=Size(), required=True, help="Height first.")
@click.option("--target", default="", help="Build an engine for it, too: here ahead of time, or with --on there, where it is also run.")
@click.option("--backend", "backends", multiple=True, help="Run the FP32 file on it, too, such as openvino-bf16. Repeat for several.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]),
              help="How far the chain goes; fp32 if not given. Each takes in those before it.")
@click.option("--data", type=click.Path(exists=True, file_okay=False), help="Labelled pictures: the mIoU of each step, too.")
@click.option("--dataset", type=click.Choice(["camvid", "cityscapes", "folder"]), help="What --data is; found by its layout if not given.")
@click.option("--split", help="Of --data: test of CamVid, val of Cityscapes if not given.")
@click.option("--images", type=click.Path(exists=True), help="Pictures without labels: a folder or a list. Without either: noise, extremes and a drawn street.")
@click.option("--calibration", type=click.Path(exists=True), help="Pictures for INT8: a folder or a list; those that are compared if not given.")
@click.option("--count", type=click.IntRange(1), default=32, show_default=True, help="Of the pictures so many, in even steps.")
@click.option("--model", help="As of export: a name, or package.module:factory.")
@click.option("--dialect", help="Of a checkpoint that fits two.")
@click.option("--normalisation", type=click.Choice(["imagenet", "cityscapes", "coco", "ade20k", "none"]), help="Of ONNX files without a sidecar.")
@click.option("--max-delta", "delta", type=click.FloatRange(0), help="Of each step's logits, as a fraction of their scale; by its precision if not given.")
@click.option("--max-labels", "labels", type=click.FloatRange(0, 1), help="Share of a picture's labels that may differ, ties left out.")
@click.option("--margin", type=click.FloatRange(0), help="Of the logits' scale: a label that is preferred by less is a tie.")
@click.option("--max-drop", "drop", type=click.FloatRange(0), help="Points of mIoU, up or down.")
@click.option("-o", "--output", "folder", default="chain", show_default=True, type=click.Path(file_okay=False), help="The picture of a failure goes here.")
@on
@as_markdown
@as_json
def verify_chain(checkpoint, artifacts, model, dialect, on, markdown, as_json, delta, labels, margin, drop, **how):
    """Hold each step on the way from a checkpoint to an engine against PyTorch; name the first that is wrong, and where in it.

    The steps are PyTorch, folded in PyTorch, ONNX, FP16 (simulated), INT8 and the engine. ARTIFACTS are checked in place of the steps that they are,
    each fed as its sidecar says.

    \b
    Example:
      rtseg-deploy verify-chain weights.pth --resolution 360x480 --precision fp16
      rtseg-deploy verify-chain weights.pth net.onnx theirs.onnx --resolution 360x480 --images street.csv
    """
    need(*need_export)
    from .. import ssh
    place = ssh.place(on)
    with progress() as tell:
        tell("loading PyTorch and the checkpoint", None)
        from ..chain import Ask
        from ..chain import verify_chain as verify

        named = bool(model) and ":" in model
        trained = trained_network(checkpoint, model, dialect, how["normalisation"] if named else None, "")
        bars = {"delta": delta, "labels": labels, "margin": margin, "drop": drop}
        ask = Ask(place=place, bars=tuple(bars.items()), **{name: value or "" for name, value in how.items()})
        found = verify(trained, artifacts, ask, tell)
    warn(note for step in found["steps"] for note in step["notes"])
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        print_rows(table(found["steps"]), markdown, False)
        if found["failed"] and not markdown:
            show(*verdict(found["failed"]))
    sys.exit(0 if found["ok"] else 1)


def table(steps):
    """Rows of plain values."""
    def percent(value, form="{:.3%}"):
        return "" if value is None else form.format(value)

    return [{"step": step["step"], "how": step["made"], "max |Δ|": percent(step["max_abs"], "{:.2g}"), "of scale": percent(step["relative"], "{:.1e}"),
             "differ inside": percent(step["inside"]), "at boundaries": percent(step["boundary"]), "no ties": percent(step["beyond"]),
             "mIoU": percent(step["miou"], "{:.2f}"), "Δ points": percent(step["delta_miou"], "{:+.3f}"),
             "verdict": {True: "passes", False: "fails", None: "not run"}[step["ok"]]} for step in steps]


def verdict(failed):
    """Lines on the first step that fails."""
    yield f"first to fail: {failed['step']} ({failed['made']}): {'; '.join(failed['why'])}"
    if failed["where"]:
        yield f"where: {failed['layer'] + ': ' if failed['layer'] else ''}{failed['where']}"
    if failed["picture"]:
        yield failed["picture"]
