"""Commands that make artifacts, and that say what is known: each parses, makes one call, prints."""
import json
import os
import sys

import click

from .. import facts
from ..errors import RtsegError, need
from ..terminal import Size, document, progress, show, warn
from .group import SOME_IMAGES, as_json, as_markdown, cli, crew, fleet, need_export, on, real_images


@cli.command()
@click.option("--resolution", type=Size(), default="512x1024", show_default=True, help="Size to count at.")
@click.option("--dialects", is_flag=True, help="List the public implementations whose checkpoints load, and what each means by them.")
@click.option("--papers", is_flag=True, help="Compare with the papers' figures, each counted its paper's way.")
@click.option("--folding", is_flag=True, help="Export each and show what becomes of its BatchNorm, and why what stays stays.")
@click.option("--algebra", is_flag=True, help="Export each implementation and show what rewriting takes off its multiply-accumulates.")
@as_markdown
@as_json
def models(resolution, dialects, papers, folding, algebra, markdown, as_json):
    """List the networks: parameters, multiply-accumulates, memory, and whose checkpoints are known.

    \b
    Example:
      rtseg-deploy models --resolution 1024x2048
      rtseg-deploy models --dialects
      rtseg-deploy models --papers --markdown
    """
    from .. import listing

    with progress() as tell:
        if folding or algebra:
            need(*need_export)
            from .. import matrix
            rows = matrix.folding(tell) if folding else matrix.algebra(tell)
        else:
            rows = listing.dialects() if dialects else listing.papers(tell) if papers else listing.networks(resolution, tell)
    print_rows(rows, markdown, as_json)


def print_rows(rows, markdown, as_json):
    """Rows, dicts of plain values: as JSON, as a document's table, or as the terminal's."""
    from ..report import markdown_table, plain_table

    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif markdown:
        document(markdown_table(rows))
    else:
        show(plain_table(rows))


@cli.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False))
@click.option("--model", help="Compare with this network only.")
@click.option("--dialect", help="Compare with this implementation only.")
@as_json
def inspect(checkpoint, model, dialect, as_json):
    """Say what a checkpoint is, without exporting it: network, implementation, classes, arithmetic; or how near it comes to one.

    \b
    Example:
      rtseg-deploy inspect weights.pth
    """
    with progress() as tell:
        tell("loading PyTorch and the checkpoint", None)
        from ..inspection import inspect as look

        found = look(checkpoint, model, dialect)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        from ..report import inspection_table
        show(inspection_table(found))
    sys.exit(0 if found["network"] else 1)


@cli.command()
@click.argument("checkpoint", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output-file", "path", required=True, type=click.Path(dir_okay=False), help="Where the ONNX file goes; its sidecar is put beside it.")
@click.option("--resolution", type=Size(), required=True, help="Input size, height first.")
@click.option("--network-input", type=Size(), help="Another size that the graph is to resize the image to first: BiSeNet V2 takes 512x1024 of 1024x2048.")
@click.option("--model", help="A name from `rtseg-deploy models`, found by fit if not given; or package.module:factory, a network of your own.")
@click.option("--dialect", help="A name from `rtseg-deploy models --dialects`; found by fit if not given.")
@click.option("--target", default="", help="A name from `rtseg-deploy targets`: the graph is written so that its TensorRT takes it, or not at all.")
@click.option("--opset", type=int, help="The target's if not given, or 17; 13 for TensorRT 8.2 (Jetson TX2), 17 for 8.6, any newer.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="fp16 keeps the types of input and output.")
@click.option("--input", "input_", type=click.Choice(["normalised", "rgb8", "rgb8-nchw"]), default="normalised", show_default=True,
              help="normalised: 1x3xHxW float32. rgb8: HxWx3 uint8 straight from the camera, the normalisation in the graph; rgb8-nchw: 1x3xHxW.")
@click.option("--output", type=click.Choice(["logits", "labels", "native"]), default="logits", show_default=True,
              help="logits and labels at the input's size; native: the network's own logits, 1/8 for most.")
@click.option("--classes", default="", help="Class set (camvid, cityscapes) or number of classes, to be checked; found by the head if not given.")
@click.option("--normalisation", type=click.Choice(["imagenet", "cityscapes", "coco", "ade20k", "none"]),
              help="Of a network of your own, imagenet if not given; every known implementation has its own.")
@real_images
@as_json
def export(checkpoint, path, resolution, network_input, model, dialect, target, opset, precision, input_, output, classes, normalisation, images, count,
           as_json):
    """Turn a checkpoint into an ONNX file: BatchNorm folded, proven equal to PyTorch, described by a sidecar.

    Without a checkpoint, --model gets random weights, which are good for speed and size.

    \b
    Example:
      rtseg-deploy export weights.pth -o net.onnx --resolution 1024x2048
      rtseg-deploy export weights.pth -o net.onnx --resolution 512x1024 --model mypackage.net:build
      rtseg-deploy export --model ddrnet-39 -o ddrnet.onnx --resolution 1024x1024
      rtseg-deploy export weights.pth -o tx2.onnx --resolution 512x1024 --target jetson-tx2
      rtseg-deploy export weights.pth -o half.onnx --resolution 512x1024 --precision fp16 --images frames --count 20
    """
    if images and precision != "fp16":
        raise click.UsageError("--images are for --precision fp16")
    if not path.endswith(".onnx"):
        raise click.BadParameter(f"{path!r} does not end in .onnx", param_hint="'-o'")
    if checkpoint and os.path.realpath(checkpoint) in (os.path.realpath(path), os.path.realpath(f"{path}.json")):
        raise click.BadParameter(f"{path!r} would overwrite the checkpoint", param_hint="'-o'")
    if not (checkpoint or model):
        raise click.UsageError("name a CHECKPOINT, or a --model for random weights")
    need(*need_export)
    with progress() as tell:
        tell("loading PyTorch and the checkpoint", None)
        from ..export import export as export_trained

        trained = trained_network(checkpoint, model, dialect, normalisation, classes)
        artifact = export_trained(trained, path, resolution, opset, precision, output, input_, class_set(classes, trained.classes), tell, target,
                                  network_input, listed(images, count))
    tell_artifact(path, artifact, as_json)


def listed(images, count):
    """The paths of --images: as many as were asked for, or all up to SOME_IMAGES; none where they were not given."""
    if not images:
        return ()
    from ..lists import listed as paths

    found = paths(images, count)
    return found if count or len(found) <= SOME_IMAGES else paths(images, SOME_IMAGES)


def trained_network(checkpoint, model, dialect, normalisation, classes):
    """What export is asked for: a checkpoint's network, one of the user's own, or one of the registry with random weights."""
    from .. import checkpoints, own

    if own.is_own(model):
        return own.load(model, checkpoint, normalisation or "imagenet")
    if normalisation:
        raise RtsegError("--normalisation is for a network of your own", "leave it out: what a known one was trained to see is known")
    if checkpoint:
        return checkpoints.load(checkpoint, model, dialect)
    return checkpoints.seeded(model, classes_named(classes))


def classes_named(classes):
    """How many classes --classes asks for: a number, or a class set's; Cityscapes' 19 where it says nothing."""
    if classes.isdecimal() and 0 < int(classes) <= 10_000:
        return int(classes)
    known = facts.class_sets().get(classes)
    if classes and not known:
        raise RtsegError(f"--classes {classes} is no class set and no number of classes", f"the known sets: {', '.join(facts.class_sets())}")
    return len(known.names) if known else 19


def tell_artifact(path, artifact, as_json):
    """Print what was made."""
    warn(artifact.warnings)
    if as_json:
        click.echo(json.dumps({"file": path, **artifact.to_json()}, indent=1))
    else:
        from ..report import artifact_table
        show(artifact_table(path, artifact))
        show_kept(artifact)


def show_kept(artifact):
    """What FP16 cannot hold, a line a node."""
    from ..precision import because

    show(*(f"kept in FP32, {because(node, row)}" for node, row in artifact.checks.get("kept_fp32", {}).items()))


@cli.command()
@click.argument("model", metavar="FILE.onnx", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output-file", "path", required=True, type=click.Path(dir_okay=False), help="Where the adopted file goes, its sidecar beside it.")
@click.option("--resolution", type=Size(), help="For a graph whose height and width are free.")
@click.option("--normalisation", type=click.Choice(["imagenet", "cityscapes", "coco", "ade20k", "none"]), required=True,
              help="What the network was trained to see; nothing in the file says it.")
@click.option("--classes", default="", help="Class set (camvid, cityscapes), to be checked.")
@as_json
def adopt(model, path, resolution, normalisation, classes, as_json):
    """Take in an ONNX file from elsewhere: checked, cleaned, folded, proven equal to the original, described by a sidecar.

    \b
    Example:
      rtseg-deploy adopt theirs.onnx -o net.onnx --normalisation imagenet
    """
    if not path.endswith(".onnx"):
        raise click.BadParameter(f"{path!r} does not end in .onnx", param_hint="'-o'")
    if os.path.realpath(model) in (os.path.realpath(path), os.path.realpath(f"{path}.json")):
        raise click.BadParameter(f"{path!r} would overwrite the original", param_hint="'-o'")
    need("onnx", "onnx_graphsurgeon", "polygraphy", "onnxruntime")
    with progress() as tell:
        from ..adopt import adopt as take_in

        artifact = take_in(model, path, normalisation, resolution, classes, tell)
    tell_artifact(path, artifact, as_json)


def class_set(claimed, found):
    """The name of the class set that was asked for, or "". Raises RtsegError where a number was given that is not the head's."""
    if not claimed.isdecimal():
        return claimed
    if int(claimed) != found:
        raise RtsegError(f"--classes {claimed}, but the network's head has {found}", f"leave --classes out, or find the checkpoint with {claimed}")
    return ""


@cli.command("build-engine")
@click.argument("model", metavar="FILE.onnx|PLAN", type=click.Path(exists=True, dir_okay=False))
@click.option("--target", help="The device: gtx-1080ti, rtx-2080ti, jetson-tx2; a plan's rows may say it.")
@click.option("--fp16", is_flag=True, help="FP16 inside, float32 input and output; refused if no layer would be FP16.")
@click.option("--int8", "table", metavar="TABLE", type=click.Path(exists=True, dir_okay=False),
              help="INT8 by this table of calibrate --table, where typing is weak (TensorRT 8.x, 10.x); an INT8 ONNX file needs none.")
@click.option("--keep-depthwise", is_flag=True, help="Leave depthwise convolutions as they are where the runtime expands them (rtx-2080ti).")
@click.option("--workspace", type=click.IntRange(1, 1 << 20), metavar="MIB", help="Memory for the builder, in MiB; by the target if not given.")
@click.option("-o", "--engines", default="engines", show_default=True, type=click.Path(file_okay=False), help="The engine goes to FOLDER/TARGET/.")
@real_images
@click.option("--again", is_flag=True, help="Of a plan: also engines that are there.")
@on
@fleet
@as_json
def build_engine(model, target, fp16, table, keep_depthwise, workspace, engines, images, count, again, on, scheduler, local, tls, as_json):
    """Compile an exported ONNX file for a device: on it, or ahead of time where its runtime can. Or export and compile every row of a plan.

    \b
    Example:
      rtseg-deploy build-engine net.onnx --target rtx-2080ti --fp16
      rtseg-deploy build-engine net.onnx --target jetson-tx2 --fp16 --on ssh://nano@tx2
      rtseg-deploy build-engine net.onnx --target rtx-2080ti --fp16 --images frames --count 20
      rtseg-deploy build-engine engines/sgcpnet-table-2.toml --target rtx-2080ti --local 4
    """
    if model.endswith(".toml"):
        if fp16 or table or images:
            raise click.UsageError("a plan's rows say their precision: leave --fp16, --int8 and --images out")
        sys.exit(build_plan(model, target, engines, again, (on, scheduler, local, tls), as_json, keep_depthwise=keep_depthwise, workspace_mib=workspace))
    if scheduler or local:
        raise click.UsageError("a fleet builds the rows of a plan: give a PLAN, a .toml file, with --scheduler and --local")
    if not target:
        raise click.UsageError("Missing option '--target'.")
    from .. import ssh
    from ..build import build_engine as build

    if images and not fp16:
        raise click.UsageError("--images are for --fp16")
    place = ssh.place(on)
    with progress() as tell:
        path, engine = build(model, target, fp16, engines, tell, keep_depthwise, place, workspace, listed(images, count), table)
    warn(engine.warnings)
    if as_json:
        click.echo(json.dumps({"file": str(path), **engine.to_json()}, indent=1))
    else:
        from ..report import engines_table
        show(engines_table([(path, engine)]))
        if engine.precision == "fp16":
            show(f"in FP32: {', '.join(engine.checks['layers']['fp32_names']) or 'no layer'}")
        if grouped := engine.checks.get("grouped"):
            show(f"{len(grouped['convolutions'])} depthwise convolutions built in groups of {grouped['channels']} channels (--keep-depthwise: as they are)")
        show_kept(engine)
        show(str(path))


def build_plan(path, target, root, again, who, as_json, **how):
    """Exit status: 1 where a row failed."""
    from .. import builds

    on, *fleet = who
    with crew(*fleet, on) as by, progress() as tell:
        outcomes = builds.run(path, target, root, tell, by, again, **how)
    if as_json:
        click.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
    else:
        print_rows(builds.rows(outcomes), False, False)
    warn(f"{outcome.row.subject}: {outcome.failed}" for outcome in outcomes if outcome.failed)
    return 1 if any(outcome.failed for outcome in outcomes) else 0


@cli.command()
@click.option("--network", "networks", multiple=True, help="Repeat for several; all if not given.")
@click.option("--resolution", "resolutions", type=Size(), multiple=True, help="Repeat for several; those of the network's paper if not given.")
@click.option("--target", default="rtx-2080ti", show_default=True, help="The device to compile for.")
@click.option("-o", "--output", "folder", default="matrix", show_default=True, type=click.Path(file_okay=False), help="A file a row goes here.")
@as_markdown
@as_json
def matrix(networks, resolutions, target, folder, markdown, as_json):
    """Export, prove and compile every network at every size that its paper lists. Interrupted, it goes on where it was.

    \b
    Example:
      rtseg-deploy matrix --network sgcpnet --network ddrnet-23-slim
    """
    need(*need_export)
    with progress() as tell:
        tell("loading PyTorch", None)
        from .. import matrix as every

        rows = every.matrix(every.plan(networks, resolutions), target, folder, tell)
    print_rows(rows if as_json else every.table(rows), markdown, as_json)
    sys.exit(1 if any("failed" in row for row in rows) else 0)
