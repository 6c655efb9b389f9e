"""The `edgemae` command: one verb an arrow or a question. Results on stdout, progress and logs on stderr.

Exit codes: 0 ok, 1 our bug, 2 usage or input, 3 accuracy gate, 4 latency or size gate, 5 environment (or figures of
`profile` that are INVALID), 130 interrupted.
Heavy libraries are imported inside the verbs: the device has no torch, and `edgemae targets` needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgemae import console
from edgemae.console import INTERRUPTED, Verbs, run_app, start_logging
from edgemae.made import emit
from edgemae.options import (
    BundlePath,
    CalibData,
    DecoderHeads,
    Elastic,
    EngineName,
    Heads,
    Json,
    Measure,
    Output,
    PlanFlags,
    Precisions,
    ProfileFlags,
    RunFlags,
    Schemes,
    Size,
    StudentPath,
    TargetName,
    TargetNames,
    TeacherFlags,
    TeacherPath,
    Unlabelled,
    Verbose,
    Version,
    find_targets,
    unfold,
)

app = typer.Typer(
    name="edgemae", cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None,
    # --max_drop is read as --max-drop: both spellings are in people's fingers.
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda t: t.replace("_", "-")},
)  # fmt: skip


@app.callback()
def root(version: Version = False) -> None:
    """Distill a masked autoencoder into a small model that is proved right and fast on one named device."""


# ---------------------------------------------------------------- arrows


@app.command()
@unfold
def compile(
    flags: TeacherFlags,
    source: Annotated[Path | None, typer.Argument(
        help="Teacher (MAE .pth, Hugging Face folder, .safetensors) or student; none: pretrain one.", metavar="SOURCE",
    )] = None,
    output: Output = Path("runs/compile"), target: TargetNames = None, precision: Precisions = None,
    unlabelled: Unlabelled = None, calib_data: CalibData = None,
    max_drop: Annotated[float | None, typer.Option(help="Gate: points of top-1 below the float student.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Gate: p90 of one inference.")] = None,
    max_size_mib: Annotated[float | None, typer.Option(help="Gate: size of the bundle.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.")] = None,
    elastic: Elastic = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the resolved plan.")] = False,
) -> None:  # fmt: skip
    """Go the whole way: teacher and images in, a measured bundle for each target out."""
    start_logging(flags.verbose)
    targets = find_targets(target, precision)
    plan = flags.resolve(
        data__unlabelled=unlabelled, data__calib=calib_data, gates__max_drop_pts=max_drop,
        gates__p90_ms=max_latency_ms, gates__size_mib=max_size_mib, name=name, elastic__on=elastic,
    )  # fmt: skip
    from edgemae import build

    if dry_run:
        console.print_dry_run(build.dry_run(plan, targets, source, **flags.at(output)), plan, json=flags.json)
    else:
        console.print_built(build.build(plan, targets, source, **flags.at(output)), json=flags.json)


@app.command()
@unfold
def pretrain(
    flags: TeacherFlags, output: Output = Path("runs/pretrain"), unlabelled: Unlabelled = None,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this MAE.")] = None,
) -> None:  # fmt: skip
    """Train a masked autoencoder on images without labels, from scratch or onwards."""
    start_logging(flags.verbose)
    plan = flags.resolve(data__unlabelled=unlabelled)
    from edgemae import arrows

    made = arrows.pretrain(plan, start, **flags.at(output))
    emit("teacher", made, output, f"edgemae distill {{0}} --data {plan.data.train}", json=flags.json)


@app.command()
@unfold
def finetune(flags: TeacherFlags, teacher: TeacherPath, output: Output = Path("runs/finetune")) -> None:
    """Train a teacher's classification head, and the teacher with it, on labels."""
    start_logging(flags.verbose)
    plan = flags.resolve()
    from edgemae import arrows

    made = arrows.finetune(plan, teacher, **flags.at(output))
    emit("teacher", made, output, f"edgemae distill {{0}} --data {plan.data.train}", json=flags.json)


@app.command()
@unfold
def distill(
    flags: TeacherFlags, teacher: TeacherPath, output: Output = Path("runs/distill"), unlabelled: Unlabelled = None,
    guide: Annotated[Path | None, typer.Option("--tuned-teacher", help="Fine-tuned teacher for stage 2.")] = None,
    recipe: Annotated[str | None, typer.Option(help="relation, relation-full, feature or logit.")] = None,
    elastic: Elastic = None,
) -> None:  # fmt: skip
    """Train a small student to do what the teacher does."""
    start_logging(flags.verbose)
    plan = flags.resolve(data__unlabelled=unlabelled, distill__recipe=recipe, elastic__on=elastic)
    from edgemae import arrows

    made = arrows.distill(plan, teacher, guide, **flags.at(output))
    extract_it = "edgemae extract {0} --depth ... --heads ... --mlp ... --px ... -o small.safetensors"
    following = extract_it if plan.elastic.on else f"edgemae compile {{0}} --data {plan.data.train}"
    emit("student", made, output, following, json=flags.json)


@app.command()
def extract(
    student: StudentPath, output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    depth: Size = None, heads: Size = None, mlp: Size = None, px: Size = None, json: Json = False,
) -> None:  # fmt: skip
    """Take one sub-network out of an elastic student; a size that is not given is the full one."""
    start_logging(False)
    from edgemae import arrows

    wanted = {"depth": depth, "heads": heads, "mlp": mlp, "image_px": px}
    console.print_rows("extracted", arrows.extract(student, wanted, output), json=json)


@app.command()
@unfold
def prune(
    flags: TeacherFlags, student: StudentPath, output: Output = Path("runs/prune"), target: TargetName = None,
    guide: Annotated[Path | None, typer.Option("--tuned-teacher", help="Fine-tuned teacher that heals.")] = None,
    keep_macs: Annotated[float | None, typer.Option(help="Share of the MACs that stays.")] = None,
) -> None:  # fmt: skip
    """Take whole heads and MLP units out of a student, and heal it by distillation."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    plan = flags.resolve(prune__keep_macs=keep_macs)
    from edgemae import arrows

    made = arrows.prune(plan, student, guide, device.width_multiple, **flags.at(output))
    following = f"edgemae compile {{0}} --data {plan.data.train} --target {device.name} --set prune.keep_macs=1"
    emit("student", made, output, following, json=flags.json)


@app.command()
@unfold
def quantize(
    flags: PlanFlags, student: StudentPath, output: Output = Path("runs/quantize"), target: TargetName = None,
    scheme: Schemes = None, calib_data: CalibData = None,
    guide: Annotated[Path | None, typer.Option("--tuned-teacher", help="Fine-tuned teacher for the tail.")] = None,
    aware: Annotated[bool, typer.Option("--aware", help="Train for the integers, also if int8 does not hurt.")] = False,
) -> None:  # fmt: skip
    """Make int8 graphs of a student, calibrated on images, and score each through its engine."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    plan = flags.resolve(
        data__calib=calib_data, quantize__schemes=scheme or None, quantize__aware_when="always" if aware else None
    )
    from edgemae import arrows

    made = arrows.quantize(plan, student, guide, device, **flags.at(output))
    console.print_rows("int8 graphs", made, json=flags.json)


@app.command()
@unfold
def demo(flags: RunFlags, output: Output = Path("runs/demo"), target: TargetName = None) -> None:
    """Go the whole way on scikit-learn's bundled handwritten digits, in a few minutes on two cores."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    from edgemae.demo import run_demo

    built = run_demo(target=device, overrides=tuple(flags.set_ or ()), seed=flags.seed, **flags.at(output))
    console.print_built([built], json=flags.json)


# ---------------------------------------------------------------- questions


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A bundle, or a teacher or student file.", metavar="MODEL")],
    eval_data: Annotated[str, typer.Option("--eval-data", help="Images to judge by.")],
    engine: EngineName = "auto", teacher_heads: Heads = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Score a bundle, or a model file, on a folder of images."""
    from edgemae.judging import evaluate_path

    start_logging(verbose)
    console.print_rows("evaluation", evaluate_path(model, eval_data, engine, heads=teacher_heads or 0), json=json)


@app.command()
@unfold
def profile(
    flags: ProfileFlags, context: typer.Context, bundle: BundlePath, json: Json = False, verbose: Verbose = False
) -> None:
    """Measure latency, with the evidence for believing it: exit 4 for a missed limit, 5 for INVALID figures."""
    from edgemae import profile as measure

    start_logging(verbose)
    found = flags.elsewhere(bundle, context) or measure(bundle, **flags.wanted())
    console.print_profile(found, flags.html, json=json)


@app.command()
def run(
    bundle: BundlePath,
    source: Annotated[str, typer.Argument(help="Camera index, video file, image folder or URL.", metavar="SOURCE")],
    policy: Annotated[str | None, typer.Option(help="latest, every or staleness:200ms; default by source.")] = None,
    limit: Annotated[int, typer.Option(help="Stop after this many frames; 0: never.")] = 0,
    engine: EngineName = "auto", target: TargetName = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Run a bundle on frames and print one line a frame (JSON lines with --json)."""
    from edgemae.judging import run_frames

    start_logging(verbose)
    if run_frames(bundle, source, policy, limit, engine, target, json=json):
        raise typer.Exit(INTERRUPTED)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or model file.", metavar="PATH")], teacher_heads: Heads = None,
    teacher_decoder_heads: DecoderHeads = None, json: Json = False,
) -> None:  # fmt: skip
    """Say what a bundle or a model file is, without running it."""
    from edgemae.judging import describe

    start_logging(False)
    found = describe(path, heads=teacher_heads or 0, decoder_heads=teacher_decoder_heads or 0)
    console.print_rows(str(path), found, json=json)


@app.command()
def verify(bundle: BundlePath, engine: EngineName = "auto", target: TargetName = None, json: Json = False) -> None:
    """Check every hash, then the golden frames on this machine's engine."""
    from edgemae import load

    start_logging(False)
    with load(bundle, target, engine) as model:
        console.print_rows("verified", {"bundle": str(bundle), **model.info}, json=json)


@app.command()
def finalize(bundle: BundlePath, target: TargetName = None, measure: Measure = True, json: Json = False) -> None:
    """Make a bundle ready on this device: build its engines into the cache, prove each, profile the first."""
    from edgemae import judging

    start_logging(False)
    console.print_rows("ready", judging.finalize(bundle, target, measure=measure), json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what this machine has: processor, engines, OpenCV back-ends, and what is missing for what."""
    from edgemae.doctor import diagnose

    start_logging(False)
    console.print_rows("this machine", diagnose(), json=json)


@app.command()
def targets(json: Json = False) -> None:
    """List the devices that edgemae compiles for."""
    from edgemae.spec.target import list_targets

    console.print_targets(find_targets(list_targets()), json=json)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_app(app))
