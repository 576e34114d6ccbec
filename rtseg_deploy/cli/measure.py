"""Commands that measure and use artifacts: each parses, makes one call, prints."""
import json
import shlex
import sys

import click

from ..errors import need, one_line
from ..terminal import Size, progress, put, show, warn
from .group import UNSTABLE, as_json, as_markdown, cli, crew, fleet, need_export, on
from .tune import automatic


@cli.command()
@click.argument("subject", metavar="ARTIFACT|MODEL|PLAN")
@click.option("--resolution", "resolutions", type=Size(), multiple=True, help="Repeat for several; an artifact has its own.")
@click.option("--protocol", help="What is inside the clock: network (if not given), end-to-end, streaming (on a GPU), or as a paper timed: "
              "paper-amortised, paper-synced, paper-swiftnet, paper-bisenetv2, paper-unstated.")
@click.option("--paper", help="That paper's own protocol and iterations: ddrnet, bisenetv1, bisenetv2, sgcpnet, bcpnet.")
@click.option("-n", "--iterations", type=click.IntRange(1, 100_000), help="The protocol's if not given, 500 to 5000; the papers state 500 and 5000.")
@click.option("--processes", type=click.IntRange(1, 100), default=1, show_default=True, help="Fresh for each figure; from 5 on its interval means most.")
@click.option("--backend", "backends", multiple=True, help="Repeat to compare: onnxruntime-cpu (if not given), onnxruntime-cuda, onnxruntime-tensorrt, "
              "openvino, openvino-bf16, torch-eager, torch-compile, torch-cuda, null; auto: the fastest that `tune` finds. An engine has its own.")
@click.option("--image", type=click.Path(exists=True, dir_okay=False), help="Input instead of seeded noise.")
@click.option("--decode", is_flag=True, help="With end-to-end: decode the image's file within the clock, too.")
@click.option("--threads", type=click.IntRange(1, 1024), help="All processors if not given.")
@click.option("--dialect", help="Of a checkpoint that fits two.")
@click.option("--cuda-graph", is_flag=True, help="On a GPU: launch each step as one CUDA graph.")
@click.option("--portrait", is_flag=True, help="An image that is higher than wide is meant.")
@click.option("--warmup", type=click.FloatRange(0, 600), default=30.0, show_default=True, help="Seconds after which warming up ends, steady or not.")
@click.option("--profile", "profiled", is_flag=True, help="Time the layers instead, one by one.")
@click.option("--anywhere", is_flag=True, help="Of a plan: also rows of a GPU, on the backends that are named.")
@click.option("--again", is_flag=True, help="Of a plan: also what has a result.")
@click.option("-o", "--results", default="results", show_default=True, type=click.Path(file_okay=False), help="Where result files go.")
@automatic
@on
@fleet
@as_json
def bench(subject, resolutions, protocol, paper, iterations, backends, dialect, profiled, anywhere, again, warmup, on, scheduler, local, tls, as_json, **how):
    """Time a network: an exported file, or a checkpoint, a name from `rtseg-deploy models` (random weights) or a package.module:factory, exported first.
    Or every row of a plan (engines/*.toml: the papers' tables), which goes on where it was interrupted.

    Exit status 3 says that the figure was measured but is unstable; why is printed.

    \b
    Example:
      rtseg-deploy bench net.onnx --backend onnxruntime-cpu --backend torch-eager -n 500
      rtseg-deploy bench bisenetv2 --resolution 512x1024 --resolution 1024x2048
      rtseg-deploy bench ddrnet-23-slim --resolution 1024x2048 --paper ddrnet --processes 5
      rtseg-deploy bench weights.pth --resolution 360x480 --protocol end-to-end --image street.png
      rtseg-deploy bench engines/sgcpnet-table-5.toml --backend onnxruntime-cpu --backend openvino
      rtseg-deploy bench engines/sgcpnet-table-6.toml --scheduler tcp://127.0.0.1:8786
      rtseg-deploy bench engines/jetson-tx2/net.fp16.engine --on ssh://nano@tx2
    """
    from .. import ssh
    from ..measure import asked, measure

    ask = asked(protocol, paper, iterations, backends=backends, warmup_limit=warmup, place=ssh.place(on), **how)
    if subject.endswith(".toml"):
        if resolutions or dialect or protocol or paper or profiled:
            raise click.UsageError("a plan says itself what is timed: of these options it takes none: --resolution, --dialect, --protocol, --paper, --profile")
        if "auto" in backends:
            raise click.UsageError("a plan's backends are named one by one: --backend auto chooses one for a single file")
        with crew(scheduler, local, tls, on) as by:
            status = bench_plan(subject, ask, anywhere, again, as_json, by)
        sys.exit(status)
    if scheduler or local:
        raise click.UsageError("a fleet times the rows of a plan: give a PLAN, a .toml file, with --scheduler and --local")
    if profiled:
        return bench_layers(subject, resolutions, ask, dialect, as_json)
    with progress() as tell:
        done = measure(subject, resolutions, ask, dialect, tell=tell)
    if as_json:
        click.echo(json.dumps([{"result": str(path), **benchmark.to_json(samples=False)} for path, benchmark in done], indent=1))
    else:
        from ..report import bench_table, remarks
        show(bench_table(done), *remarks(done))
    sys.exit(UNSTABLE if any(benchmark.warnings for _, benchmark in done) else 0)


@cli.command()
@as_markdown
@as_json
def protocols(markdown, as_json):
    """List the ways of timing: what is inside the clock, how often, and whose way it is.

    \b
    Example:
      rtseg-deploy protocols
    """
    from .. import facts
    from ..report import protocol_rows
    from .make import print_rows

    print_rows(protocol_rows(facts.protocols().values()), markdown, as_json)


def bench_layers(subject, resolutions, ask, dialect, as_json):
    """A table of the layers for each backend."""
    from ..measure import measure
    from ..profile import profiled

    with progress() as tell:
        done = measure(subject, resolutions, ask, dialect, tell=tell, work=profiled)
    if as_json:
        click.echo(json.dumps([{"artifact": str(path), **found.to_json()} for path, found in done], indent=1))
    else:
        from ..profile import remarks
        from ..report import plain_table
        for path, found in done:
            show(f"{path} {found.backend}", plain_table(found.rows), *remarks(found))


def bench_plan(path, ask, anywhere, again, as_json, by):
    """Exit status: 1 where a row failed, 3 where one is unstable."""
    from .. import campaign

    with progress() as tell:
        outcomes = campaign.run(path, ask, anywhere, again, tell, by)
    if as_json:
        click.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
    else:
        from ..report import plain_table, plan_rows
        show(plain_table(plan_rows(outcomes)))
        warn(f"{outcome.row.subject} {outcome.backend}: {outcome.failed}" for outcome in outcomes if outcome.failed)
        if any(outcome.result for outcome in outcomes):
            show(f"rtseg-deploy report {shlex.quote(str(outcomes[0].path.parent))} -o report    # as a page, with the papers' tables")
    if any(outcome.failed for outcome in outcomes):
        return 1
    return UNSTABLE if any(outcome.result and outcome.result["status"] == "unstable" for outcome in outcomes) else 0


@cli.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@click.argument("sources", nargs=-1, required=True, metavar="IMAGE|FOLDER|VIDEO|CAMERA...")
@click.option("-o", "--output", "folder", required=True, type=click.Path(file_okay=False),
              help="Folder for <name>.overlay.png and <name>.labels.png, or <name>.overlay.mp4.")
@click.option("--backend", help="onnxruntime-cpu if not given; auto: the fastest that `tune` finds; an engine has its own.")
@click.option("--frames", type=click.IntRange(1), help="Of a video or a camera only so many.")
@click.option("--labels", is_flag=True, help="Of a video or a camera each frame's label map too.")
@automatic
@on
@as_json
def predict(artifact, sources, folder, backend, frames, labels, precision, untuned, on, as_json):
    """Label images: a coloured overlay with a legend, and the plain label map. Or a video, or a camera (camera:0) until ctrl-C: a video of the overlay.

    \b
    Example:
      rtseg-deploy predict net.onnx street.png -o out
      rtseg-deploy predict net.onnx drive.mp4 -o out
      rtseg-deploy predict net.onnx camera:0 -o out --frames 500
    """
    from .. import ssh, video
    from ..predict import images_of, refuse_same_names
    from ..predict import predict as label

    place = ssh.place(on)
    films = [source for source in sources if video.is_video(source)]
    if films and place:
        raise click.UsageError(f"{films[0]} is labelled on this machine: leave --on out, or give images")
    refuse_same_names(films)
    images = images_of([source for source in sources if source not in films])
    with progress() as tell:
        choice = choose(artifact, backend, precision, untuned, place, tell)
        done = label(artifact, images, folder, choice.backend, place, tell, untuned) if images else []
        made = [video.overlaid(artifact, film, folder, choice.backend, tell, frames, labels, untuned) for film in films]
    if choice.why:
        click.echo(one_line(f"auto chose {choice.why}"), err=True)
    if as_json:
        click.echo(json.dumps([*({"image": str(image), "overlay": str(o), "labels": str(m)} for image, (o, m) in zip(images, done)), *made], indent=1))
        return
    for pair in done:
        put(*map(str, pair))
    for found in made:
        tell_film(found)


def choose(path, backend, precision, untuned, place, tell):
    """The tune.Choice of one backend."""
    from ..records import read_artifact
    from ..tune import chosen

    choice, = chosen(path, read_artifact(path), [backend] if backend else [], tell, None, precision, untuned, place)
    return choice


def tell_film(found):
    from .. import video
    from ..report import plain_table

    show(plain_table(video.rows(found)), f"{found['frames']} frames, {found['frames_per_second']:.1f} a second; the overlay shows {found['rate']:g} a second")
    put(found["overlay"])


@cli.command()
@on
@as_json
def probe(on, as_json):
    """Say what a machine is and has: GPU, TensorRT, clocks, power mode; this one, or a device.

    \b
    Example:
      rtseg-deploy probe --on ssh://nano@tx2
    """
    from .. import launch, ssh

    with progress() as tell:
        found = launch.probe(ssh.place(on), tell)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        from ..report import probe_table
        show(probe_table(found))


@cli.command()
@click.option("-o", "--output", "folder", default="demo", show_default=True, type=click.Path(file_okay=False), help="Where everything goes.")
@click.option("-n", "--iterations", type=click.IntRange(1, 100_000), default=500, show_default=True)
@as_json
def demo(folder, iterations, as_json):
    """Do all of it once, on the trained network and the street that come with rtseg-deploy.

    \b
    Example:
      rtseg-deploy demo
    """
    need(*need_export)
    from ..demo import demo as run

    with progress() as tell:
        done = run(folder, iterations, tell)
    warn(done.warnings)
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=1))
    else:
        from ..report import artifact_table, bench_table, engines_table, remarks
        show(artifact_table(*done.artifact), engines_table(done.engines), bench_table(done.figures), *remarks(done.figures))
        show("", *(str(path) for path in (*(path for path, _ in done.engines), *done.pictures)))
