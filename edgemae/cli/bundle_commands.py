"""The verbs that ask about something finished: how right, how fast, what it is, what it sees, what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemae.cli.app import app
from edgemae.cli.option_groups import (
    LoadFlags,
    ProfileFlags,
    WatchFlags,
)
from edgemae.cli.options import (
    BundlePath,
    DecoderHeads,
    Heads,
    Json,
    Measure,
    TargetName,
    Verbose,
)
from edgemae.cli.output import (
    print_profile,
    print_rows,
    print_targets,
    screen,
    start_logging,
    write_json,
)
from edgemae.cli.targets import (
    find_targets,
)
from edgemae.cli.typer_records import (
    unfold,
)
from edgemae.spec.errors import MachineError


@app.command(name="eval")
@unfold
def evaluate(
    flags: LoadFlags,
    model: Annotated[Path, typer.Argument(help="A bundle, or a teacher or student file.", metavar="MODEL")],
    eval_data: Annotated[str, typer.Option("--eval-data", help="Images to measure accuracy on.")],
    teacher_heads: Heads = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Score a bundle, or a model file, on a folder of images."""
    from edgemae.evaluation.evaluate import evaluate_path

    start_logging(verbose)
    found = evaluate_path(model, eval_data, flags.loading(), heads=teacher_heads or 0)
    print_rows("evaluation", found, json=json)


@app.command()
@unfold
def profile(
    flags: ProfileFlags, context: typer.Context, bundle: BundlePath, json: Json = False, verbose: Verbose = False
) -> None:
    """Measure latency, with the evidence for believing it: exit 4 for a missed limit, 5 for INVALID figures."""
    from edgemae import profile as measure
    from edgemae.profiling.bundle_profile import keep

    start_logging(verbose)
    flags.check()
    found = flags.elsewhere(bundle, context) or measure(bundle, **flags.wanted())
    try:
        print_profile(found, flags.html, json=json)
    finally:  # whatever its limits say
        if flags.keep:
            keep(bundle, found)


@app.command()
@unfold
def run(
    flags: WatchFlags, bundle: BundlePath,
    source: Annotated[str, typer.Argument(help="Camera index, video file, image folder or URL.", metavar="SOURCE")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Run a bundle on frames: figures on a terminal, a line a frame elsewhere; also a window, a video, a page."""
    from edgemae.viewer.run import run as watch

    start_logging(verbose)
    if code := watch(bundle, source, flags.wanted(json)):
        raise typer.Exit(code)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or model file.", metavar="PATH")], teacher_heads: Heads = None,
    teacher_decoder_heads: DecoderHeads = None, json: Json = False,
) -> None:  # fmt: skip
    """Say what a bundle or a model file is, without running it."""
    from edgemae.deploy.describe import describe

    start_logging(False)
    found = describe(path, heads=teacher_heads or 0, decoder_heads=teacher_decoder_heads or 0)
    print_rows(str(path), found, json=json)


@app.command()
@unfold
def verify(flags: LoadFlags, bundle: BundlePath, json: Json = False) -> None:
    """Check every hash, then the golden frames on this machine's engine, in a process of its own under limits."""
    from edgemae.deploy.first_run import first_run

    start_logging(False)
    print_rows("verified", {"bundle": str(bundle), **first_run(bundle, **flags.loading())}, json=json)


@app.command()
def finalize(bundle: BundlePath, target: TargetName = None, measure: Measure = True, json: Json = False) -> None:
    """Make a bundle ready on this device: build its engines into the cache, prove each, profile the first."""
    from edgemae.deploy.finalize import finalize as make_ready

    start_logging(False)
    print_rows("ready", make_ready(bundle, target, measure=measure), json=json)


@app.command()
def doctor(
    source: Annotated[
        str | None, typer.Argument(help="Also say why this one does not open.", metavar="[SOURCE]")
    ] = None,
    json: Json = False,
) -> None:
    """Examine this machine: engines, OpenCV, cameras, cache, a fix for each fault; exit 5 when one is in the way."""
    from edgemae.doctor import diagnose
    from edgemae.doctor.page import table

    start_logging(False)
    found = diagnose(source)
    write_json(found) if json else screen().print(table(found["findings"]))
    if found["state"] == "red":
        raise typer.Exit(MachineError.exit_code)


@app.command()
def targets(json: Json = False) -> None:
    """List the devices that edgemae compiles for."""
    from edgemae.spec.target import list_targets

    print_targets(find_targets(list_targets()), json=json)
