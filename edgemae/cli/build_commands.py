"""The verbs that make something: each is a stage of the way from a teacher to a bundle, or all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgemae.cli.app import app
from edgemae.cli.option_groups import (
    PlanFlags,
    RunFlags,
    TeacherFlags,
)
from edgemae.cli.options import (
    CalibData,
    Elastic,
    Json,
    Output,
    Precisions,
    Remote,
    RemotePython,
    Schemes,
    Size,
    StudentPath,
    TargetName,
    TargetNames,
    TeacherPath,
    Unlabelled,
)
from edgemae.cli.output import (
    print_compiled,
    print_dry_run,
    print_rows,
    start_logging,
)
from edgemae.cli.targets import (
    find_targets,
)
from edgemae.cli.training_result import print_training_result
from edgemae.cli.typer_records import (
    unfold,
)


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
    elastic: Elastic = None, remote: Remote = None, remote_python: RemotePython = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the resolved plan.")] = False,
) -> None:  # fmt: skip
    """Go the whole way: teacher and images in, a measured bundle for each target out."""
    start_logging(flags.verbose)
    targets = find_targets(target, precision)
    plan = flags.resolve(
        data__unlabelled=unlabelled, data__calib=calib_data, gates__max_drop_pts=max_drop,
        gates__p90_ms=max_latency_ms, gates__size_mib=max_size_mib, name=name, elastic__on=elastic,
    )  # fmt: skip
    from edgemae.pipeline.benchmark import benchmark_at
    from edgemae.pipeline.compile import compile_bundles
    from edgemae.pipeline.compile import dry_run as check

    benchmark = benchmark_at(remote, remote_python)
    if dry_run:
        print_dry_run(check(plan, targets, source, benchmark=benchmark, **flags.at(output)), plan, json=flags.json)
    else:
        print_compiled(compile_bundles(plan, targets, source, benchmark=benchmark, **flags.at(output)), json=flags.json)


@app.command()
@unfold
def pretrain(
    flags: TeacherFlags, output: Output = Path("runs/pretrain"), unlabelled: Unlabelled = None,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this MAE.")] = None,
) -> None:  # fmt: skip
    """Train a masked autoencoder on images without labels, from scratch or onwards."""
    start_logging(flags.verbose)
    plan = flags.resolve(data__unlabelled=unlabelled)
    from edgemae.pipeline import single_stage

    result = single_stage.pretrain(plan, start, **flags.at(output))
    print_training_result("teacher", result, output, f"edgemae distill {{0}} --data {plan.data.train}", json=flags.json)


@app.command()
@unfold
def finetune(flags: TeacherFlags, teacher: TeacherPath, output: Output = Path("runs/finetune")) -> None:
    """Train a teacher's classification head, and the teacher with it, on labels."""
    start_logging(flags.verbose)
    plan = flags.resolve()
    from edgemae.pipeline import single_stage

    result = single_stage.finetune(plan, teacher, **flags.at(output))
    print_training_result("teacher", result, output, f"edgemae distill {{0}} --data {plan.data.train}", json=flags.json)


@app.command()
@unfold
def distill(
    flags: TeacherFlags, teacher: TeacherPath, output: Output = Path("runs/distill"), unlabelled: Unlabelled = None,
    finetuned: Annotated[
        Path | None, typer.Option("--finetuned-teacher", help="Fine-tuned teacher for stage 2.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="relation, relation-full, feature or logit.")] = None,
    elastic: Elastic = None,
) -> None:  # fmt: skip
    """Train a small student to do what the teacher does."""
    start_logging(flags.verbose)
    plan = flags.resolve(data__unlabelled=unlabelled, distill__recipe=recipe, elastic__on=elastic)
    from edgemae.pipeline import single_stage

    result = single_stage.distill(plan, teacher, finetuned, **flags.at(output))
    extract_it = "edgemae extract {0} --depth ... --heads ... --mlp ... --px ... -o small.safetensors"
    following = extract_it if plan.elastic.on else f"edgemae compile {{0}} --data {plan.data.train}"
    print_training_result("student", result, output, following, json=flags.json)


@app.command()
def extract(
    student: StudentPath, output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    depth: Size = None, heads: Size = None, mlp: Size = None, px: Size = None, json: Json = False,
) -> None:  # fmt: skip
    """Take one sub-network out of an elastic student; a size that is not given is the full one."""
    start_logging(False)
    from edgemae.pipeline import single_stage

    wanted = {"depth": depth, "heads": heads, "mlp": mlp, "image_px": px}
    print_rows("extracted", single_stage.extract(student, wanted, output), json=json)


@app.command()
@unfold
def prune(
    flags: TeacherFlags, student: StudentPath, output: Output = Path("runs/prune"), target: TargetName = None,
    finetuned: Annotated[
        Path | None, typer.Option("--finetuned-teacher", help="Fine-tuned teacher that heals.")
    ] = None,
    keep_macs: Annotated[float | None, typer.Option(help="Share of the MACs that stays.")] = None,
) -> None:  # fmt: skip
    """Take whole heads and MLP units out of a student, and heal it by distillation."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    plan = flags.resolve(prune__keep_macs=keep_macs)
    from edgemae.pipeline import single_stage

    result = single_stage.prune(plan, student, finetuned, device.width_multiple, **flags.at(output))
    following = f"edgemae compile {{0}} --data {plan.data.train} --target {device.name} --set prune.keep_macs=1"
    print_training_result("student", result, output, following, json=flags.json)


@app.command()
@unfold
def quantize(
    flags: PlanFlags, student: StudentPath, output: Output = Path("runs/quantize"), target: TargetName = None,
    scheme: Schemes = None, calib_data: CalibData = None,
    finetuned: Annotated[
        Path | None, typer.Option("--finetuned-teacher", help="Fine-tuned teacher for QAT.")
    ] = None,
    qat: Annotated[bool, typer.Option("--qat", help="Also train for int8 (QAT) where it loses no accuracy.")] = False,
) -> None:  # fmt: skip
    """Make int8 graphs of a student, calibrated on images, and score each through its engine."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    plan = flags.resolve(
        data__calib=calib_data, quantize__schemes=scheme or None, quantize__qat_when="always" if qat else None
    )
    from edgemae.pipeline import single_stage

    result = single_stage.quantize(plan, student, finetuned, device, **flags.at(output))
    print_rows("int8 graphs", result, json=flags.json)


@app.command()
@unfold
def demo(flags: RunFlags, output: Output = Path("runs/demo"), target: TargetName = None) -> None:
    """Go the whole way on scikit-learn's bundled handwritten digits, in a few minutes on two cores."""
    start_logging(flags.verbose)
    (device,) = find_targets([target])
    from edgemae.pipeline.demo import run_demo

    built = run_demo(target=device, overrides=tuple(flags.set_ or ()), seed=flags.seed, **flags.at(output))
    print_compiled([built], json=flags.json)
