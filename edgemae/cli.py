"""The `edgemae` command: one verb an arrow or a question. Results on stdout, progress and logs on stderr.

Exit codes: 0 ok, 1 our bug, 2 usage or input, 3 accuracy gate, 4 latency or size gate, 5 environment, 130 interrupted.
Heavy libraries are imported inside the verbs: the device has no torch, and `edgemae targets` needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgemae.console import Verbs, emit, print_built, print_profile, run_app, start_logging, to_builtins

app = typer.Typer(
    name="edgemae", cls=Verbs, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]},
    help="Distill a masked autoencoder into a small model that is proved right and fast on one named device.",
)  # fmt: skip

# Typer reads these at run time, so they are spelled for Python 3.10.
Output = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for stages, report and result; an earlier run goes on.")
]
Data = Annotated[str | None, typer.Option("--data", help="Images: one sub-folder a class, or a flat folder.")]
Unlabelled = Annotated[str | None, typer.Option("--unlabelled", help="More images, used without labels.")]
EvalData = Annotated[str | None, typer.Option("--eval-data", help="Images to judge by; default: a part of --data.")]
CalibData = Annotated[
    str | None, typer.Option("--calib-data", help="Images to calibrate int8 with; default: from --data.")
]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="TOML plan; flags and --set go above it.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one field, e.g. distill.epochs=50.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that decode images.")]
Heads = Annotated[int | None, typer.Option("--teacher-heads", help="Attention heads, when the file cannot tell.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Drop finished stages and start anew.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.")]
EngineName = Annotated[str, typer.Option("--engine", help="auto, openvino, onnxruntime or tensorrt.")]
TargetName = Annotated[str | None, typer.Option("--target", help="Target name or TOML file; see `edgemae targets`.")]
BundlePath = Annotated[Path, typer.Argument(help="A .edgemae bundle.", metavar="BUNDLE")]


def _plan(plan: Path | None, overrides: list[str] | None, **flags: Any) -> Any:
    from edgemae.spec.plan import load_plan

    return load_plan(plan, tuple(overrides or ()), {key.replace("__", "."): value for key, value in flags.items()})


def _flow(plan: Any, output: Path, overwrite: bool) -> Any:
    import torch

    from edgemae.flow import Flow
    from edgemae.inputs import gather
    from edgemae.workdir import Workdir

    torch.set_num_threads(plan.threads)
    return Flow(plan, Workdir(output, overwrite=overwrite), gather(plan))


@app.command()
def compile(
    source: Annotated[Path | None, typer.Argument(help="Teacher (MAE .pth, Hugging Face folder, .safetensors) or student; none: pretrain one.")] = None,
    data: Data = None, output: Output = Path("runs/compile"), target: Annotated[list[str] | None, typer.Option("--target", help="Target name or TOML; may be repeated.")] = None,
    unlabelled: Unlabelled = None, eval_data: EvalData = None, calib_data: CalibData = None,
    max_drop: Annotated[float | None, typer.Option(help="Gate: points of top-1 below the float student.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Gate: p90 of one inference.")] = None,
    max_size_mib: Annotated[float | None, typer.Option(help="Gate: size of the bundle.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle.")] = None,
    teacher_heads: Heads = None, plan: PlanFile = None, set_: Set = None, seed: Seed = None, workers: Workers = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the resolved plan.")] = False,
    overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Go the whole way: teacher and images in, a measured bundle for each target out."""
    from edgemae.spec.target import find_target

    start_logging(verbose)
    targets = [find_target(t) for t in target or [default_target()]]
    resolved = _plan(
        plan, set_, data__train=data, data__unlabelled=unlabelled, data__eval=eval_data, data__calib=calib_data,
        gates__max_drop_pts=max_drop, gates__p90_ms=max_latency_ms, gates__size_mib=max_size_mib, name=name,
        teacher_heads=teacher_heads, seed=seed, workers=workers,
    )  # fmt: skip
    from edgemae import build

    if dry_run:
        build.check(resolved, targets, source)
        sys.stdout.write(build.resolved(resolved).decode())
        return
    print_built(build.build(resolved, targets, source, output, overwrite=overwrite), json=json)


@app.command()
def pretrain(
    data: Data = None, output: Output = Path("runs/pretrain"), unlabelled: Unlabelled = None,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this MAE.")] = None,
    plan: PlanFile = None, set_: Set = None, seed: Seed = None, workers: Workers = None, teacher_heads: Heads = None,
    eval_data: EvalData = None, overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a masked autoencoder on images without labels, from scratch or onwards."""
    from edgemae.flow import pretrained

    start_logging(verbose)
    resolved = _plan(plan, set_, data__train=data, data__unlabelled=unlabelled, data__eval=eval_data, seed=seed,
                     workers=workers, teacher_heads=teacher_heads)  # fmt: skip
    emit(
        "teacher", pretrained(_flow(resolved, output, overwrite), start), output, "edgemae distill {0} --data ...", json
    )


@app.command()
def finetune(
    teacher: Annotated[Path, typer.Argument(help="MAE teacher.")], data: Data = None, output: Output = Path("runs/finetune"),
    eval_data: EvalData = None, plan: PlanFile = None, set_: Set = None, seed: Seed = None, workers: Workers = None,
    teacher_heads: Heads = None, overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a teacher's classification head, and the teacher with it, on labels."""
    from edgemae.flow import finetuned, read_teacher

    start_logging(verbose)
    resolved = _plan(
        plan, set_, data__train=data, data__eval=eval_data, seed=seed, workers=workers, teacher_heads=teacher_heads
    )
    read_teacher(teacher, resolved)
    emit(
        "teacher",
        finetuned(_flow(resolved, output, overwrite), teacher),
        output,
        "edgemae distill {0} --data ...",
        json,
    )


@app.command()
def distill(
    teacher: Annotated[Path, typer.Argument(help="MAE teacher, with or without a head.")], data: Data = None,
    output: Output = Path("runs/distill"), unlabelled: Unlabelled = None, eval_data: EvalData = None,
    guide: Annotated[Path | None, typer.Option("--tuned-teacher", help="Fine-tuned teacher whose logits guide stage 2.")] = None,
    recipe: Annotated[str | None, typer.Option(help="relation or logit.")] = None,
    plan: PlanFile = None, set_: Set = None, seed: Seed = None, workers: Workers = None, teacher_heads: Heads = None,
    overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Train a small student to do what the teacher does."""
    from edgemae.flow import distilled, finetuned, read_teacher

    start_logging(verbose)
    resolved = _plan(plan, set_, data__train=data, data__unlabelled=unlabelled, data__eval=eval_data, distill__recipe=recipe,
                     seed=seed, workers=workers, teacher_heads=teacher_heads)  # fmt: skip
    read = read_teacher(teacher, resolved)
    flow = _flow(resolved, output, overwrite)
    if guide is None and flow.inputs.labelled is not None:
        guide = teacher if read.labels == flow.inputs.classes else finetuned(flow, teacher)
    emit("student", distilled(flow, teacher, guide), output, "edgemae compile {0} --data ... --target ...", json)


@app.command()
def prune(
    student: Annotated[Path, typer.Argument(help="student.safetensors")], data: Data = None, output: Output = Path("runs/prune"),
    teacher: Annotated[Path | None, typer.Option(help="Fine-tuned teacher that heals.")] = None,
    keep_macs: Annotated[float | None, typer.Option(help="Share of the MACs that stays.")] = None,
    target: TargetName = None, eval_data: EvalData = None, plan: PlanFile = None, set_: Set = None, seed: Seed = None,
    workers: Workers = None, overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Take whole heads and MLP units out of a student, and heal it by distillation."""
    from edgemae.flow import pruned
    from edgemae.model.student import load_student
    from edgemae.spec.target import find_target

    start_logging(verbose)
    multiple = find_target(target or default_target()).width_multiple
    load_student(student)
    resolved = _plan(
        plan, set_, data__train=data, data__eval=eval_data, prune__keep_macs=keep_macs, seed=seed, workers=workers
    )
    emit("student", pruned(_flow(resolved, output, overwrite), student, teacher, multiple), output,
         "edgemae compile {0} --data ... --target ...", json)  # fmt: skip


@app.command()
def quantize(
    student: Annotated[Path, typer.Argument(help="student.safetensors")], data: Data = None, output: Output = Path("runs/quantize"),
    target: TargetName = None, scheme: Annotated[list[str] | None, typer.Option(help="ort-static, ort-dynamic, openvino-static, tensorrt-qdq.")] = None,
    eval_data: EvalData = None, calib_data: CalibData = None, plan: PlanFile = None, set_: Set = None, seed: Seed = None,
    workers: Workers = None, overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Make int8 graphs of a student, calibrated on images, and score each through its engine."""
    from edgemae.model.student import load_student
    from edgemae.spec.target import find_target
    from edgemae.trials import score_int8

    start_logging(verbose)
    load_student(student)
    resolved = _plan(plan, set_, data__train=data, data__eval=eval_data, data__calib=calib_data, seed=seed,
                     workers=workers, quantize__schemes=scheme or None)  # fmt: skip
    rows = score_int8(_flow(resolved, output, overwrite), find_target(target or default_target()), student)
    from edgemae.console import print_rows

    print_rows("int8 graphs", rows, json=json)


@app.command(name="eval")
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a teacher or student file.")],
    eval_data: Annotated[str, typer.Option("--eval-data", help="Images to judge by.")],
    engine: EngineName = "auto", teacher_heads: Heads = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Score a bundle, or a model file, on a folder of images."""
    from edgemae.console import print_rows
    from edgemae.judging import evaluate_path

    start_logging(verbose)
    print_rows("evaluation", evaluate_path(bundle, eval_data, engine, teacher_heads or 0), json=json)


@app.command()
def profile(
    bundle: BundlePath, against: Annotated[Path | None, typer.Option(help="Another bundle, measured in turns.")] = None,
    runs: Annotated[int | None, typer.Option(help="Steady runs; default: enough for a p90.")] = None,
    engine: EngineName = "auto", target: TargetName = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Measure cold, first and steady latency here, with the evidence for believing it."""
    from edgemae import profile as measure

    start_logging(verbose)
    print_profile(measure(bundle, against, runs=runs, engine=engine, target=target), json=json)


@app.command()
def run(
    bundle: BundlePath, source: Annotated[str, typer.Argument(help="Camera index, video file, image folder or URL.")],
    policy: Annotated[str, typer.Option(help="latest, every or staleness:200ms; default by the source.")] = "auto",
    limit: Annotated[int, typer.Option(help="Stop after this many frames; 0: never.")] = 0,
    engine: EngineName = "auto", target: TargetName = None, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Run a bundle on frames and print one line a frame (JSON lines with --json)."""
    from edgemae.judging import run_frames

    start_logging(verbose)
    run_frames(bundle, source, policy, limit, engine, target, json=json)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or model file.")], teacher_heads: Heads = None, json: Json = False
) -> None:
    """Say what a bundle or a model file is, without running it."""
    from edgemae.console import print_rows
    from edgemae.judging import describe

    start_logging(False)
    print_rows(str(path), describe(path, teacher_heads or 0), json=json)


@app.command()
def verify(bundle: BundlePath, engine: EngineName = "auto", target: TargetName = None, json: Json = False) -> None:
    """Check every hash, then the golden frames on this machine's engine."""
    from edgemae import load
    from edgemae.console import print_rows

    start_logging(False)
    with load(bundle, target, engine) as model:
        print_rows("verified", {"bundle": str(bundle), **to_builtins(model.info)}, json=json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show what this machine has: processor, engines, OpenCV back-ends, and what is missing for what."""
    from edgemae.console import print_rows
    from edgemae.judging import diagnose

    start_logging(False)
    print_rows("this machine", diagnose(), json=json)


@app.command()
def targets(json: Json = False) -> None:
    """List the devices that edgemae compiles for."""
    from edgemae.console import print_targets
    from edgemae.spec.target import find_target, list_targets

    print_targets([find_target(name) for name in list_targets()], json=json)


@app.command()
def demo(
    output: Output = Path("runs/demo"), target: TargetName = None, seed: Seed = None, set_: Set = None,
    overwrite: Overwrite = False, json: Json = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Go the whole way on scikit-learn's bundled handwritten digits, in a few minutes on two cores."""
    from edgemae.demo import run_demo
    from edgemae.spec.target import find_target

    start_logging(verbose)
    built = run_demo(output, find_target(target or default_target()), tuple(set_ or ()), seed, overwrite=overwrite)
    print_built([built], json=json)


def default_target() -> str:
    """Return the built-in target that is nearest to this machine."""
    import platform

    from edgemae.device.isa import cpu_flags

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "raspberry-pi-5"
    return "laptop-x86-vnni" if any("vnni" in flag for flag in cpu_flags()) else "laptop-x86-avx2"


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_app(app))
