"""The commands of `edgemae gallery`: build, search and score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemae.cli.app import app
from edgemae.cli.exit_codes import (
    Verbs,
)
from edgemae.cli.option_groups import (
    LoadFlags,
)
from edgemae.cli.options import (
    BundlePath,
    Json,
    Verbose,
)
from edgemae.cli.output import (
    print_rows,
    start_logging,
)
from edgemae.cli.path_options import App
from edgemae.cli.typer_records import (
    unfold,
)

group = App(
    name="gallery", cls=Verbs, no_args_is_help=True, help="Search images by their embeddings, and find anomalies."
)
app.add_typer(group)


@group.command()
@unfold
def build(
    flags: LoadFlags,
    bundle: BundlePath,
    folder: Annotated[str, typer.Argument(help="Class folders, or a flat folder of normal images.", metavar="DIR")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    anomaly: Annotated[
        bool, typer.Option("--anomaly", help="Make one reference set (normal images) of class folders too.")
    ] = False,
    held_out: Annotated[str | None, typer.Option(help="Images for the threshold; default: half of DIR.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of normal images that may be alarms.")] = 0.01,
    limit_kib: Annotated[int, typer.Option(help="Size of what a reference set remembers, 1 or more.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the split and of what is remembered.")] = 0,
    json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Make a labelled gallery of class folders, or a reference set of a flat folder or with --anomaly."""
    from edgemae.retrieval import folders

    start_logging(verbose)
    found = folders.build(
        bundle, folder, output, flags.loading(), as_reference=anomaly, held_out=held_out,
        false_alarm_rate=false_alarm_rate, limit_kib=limit_kib, seed=seed,
    )  # fmt: skip
    print_rows("built", found, json=json)


@group.command()
@unfold
def search(
    flags: LoadFlags,
    bundle: BundlePath,
    gallery: Annotated[Path, typer.Argument(help="What `gallery build` wrote.", metavar="GALLERY")],
    image: Annotated[str, typer.Argument(help="An image.", metavar="IMAGE")],
    top: Annotated[int, typer.Option(help="How many of the nearest, 1 or more.")] = 5,
    json: Json = False,
) -> None:  # fmt: skip
    """Show the images of a gallery that are nearest to one."""
    from edgemae.retrieval import folders

    start_logging(False)
    found = folders.search(bundle, gallery, image, flags.loading(), top=top)
    print_rows("found", found, json=json)


@group.command()
@unfold
def score(
    flags: LoadFlags,
    bundle: BundlePath,
    reference: Annotated[Path, typer.Argument(help="A reference set that `gallery build` wrote.", metavar="REFERENCE")],
    source: Annotated[str, typer.Argument(help="An image, or a folder of them.", metavar="SOURCE")],
    save: Annotated[Path | None, typer.Option(help="Folder for the images with heat maps drawn over them.")] = None,
    json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Score images by how unlike a reference set they are, the most unusual first."""
    from edgemae.retrieval import folders

    start_logging(verbose)
    found = folders.score(bundle, reference, source, flags.loading(), save=save)
    print_rows("scored", found, json=json)
