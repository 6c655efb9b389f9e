"""Elastic students against the same shapes distilled alone: accuracy of each, and what both cost.

    python tools/bench_elastic.py --json tools/results/elastic.json
    python tools/bench_elastic.py --data clothing10 --plan examples/plan.toml \\
        --teacher examples/teachers/clothing10-mae.safetensors --set threads=1 --jobs 2 --output runs/elastic
    python tools/bench_elastic.py --quick

For each seed one elastic student is trained, and each of eight of its shapes alone with the same steps, all by the same
teacher, which is fine-tuned here and, without `--teacher`, pretrained here. Losses are paired over the images of all
seeds: one seed alone moves by a point. `--data` holds train/<class>/*, val/<class>/* and unlabelled/*; without it
scikit-learn's digits are used. A finished training is kept in `--output` for the same plan, images and teachers: the
same command goes on; after a change of code the folder has to be removed by hand. Seconds are those of the processor,
so that other programs count little.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import shlex
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import torch
from bench_distill import correct, evaluation, finetuned_here, images_of, plan_of, right_text
from support.distill_rows import counts
from support.distill_tables import over_photos

from edgemae.data.loader import Loader
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.distill.elastic import extract, sizes_of, space_of
from edgemae.distill.stages import Images, distill, pretrain, shape_of, student_pixel
from edgemae.evaluation.intervals import paired_interval
from edgemae.model.import_teacher import load_teacher
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViTShape, count_macs
from edgemae.pipeline.demo import PLAN, write_digits
from edgemae.pipeline.stage_cache import digest_of, file_digest
from edgemae.pipeline.training_stages import teacher_pixel
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.plan_loading import load_plan, plan_tree
from edgemae.spec.plan_schema import Plan
from edgemae.train.distributed import bf16_is_fast

SHAPES = 8
# Patches of 8 px: 16 tokens are enough for digits of 8x8 pixels, and a run takes under a minute on one core.
DIGITS: dict[str, Any] = PLAN | {
    "threads": 1, "teacher.patch_px": 8, "student.patch_px": 8, "student.depth": 4, "student.width": 48,
    "student.heads": 4, "student.head_dim": 12, "distill.mask_ratio": 0.5, "pretrain.mask_ratio": 0.5,
    "distill.epochs": 10, "distill.finetune.lr": 0.012, "finetune.epochs": 40,
    # Weights that many shapes share need more steps than one shape does: 16 epochs are 224 of them.
    "distill.finetune.epochs": 80,
}  # fmt: skip
QUICK = {"pretrain.epochs": 10, "finetune.epochs": 8, "distill.epochs": 3, "distill.finetune.epochs": 8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/, val/ and unlabelled/; default: digits")
    parser.add_argument("--teacher", type=Path, help="a pretrained MAE; default: it is pretrained here, by the plan")
    parser.add_argument("--plan", type=Path, help="plan of the student; default: one for digits")
    parser.add_argument("--set", action="append", default=[], help="override one field of the plan")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-elastic"), help="finished trainings, kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each with the plan's threads")
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, four shapes, within 5 minutes")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    command = shlex.join(["python", "tools/bench_elastic.py", *sys.argv[1:]])
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if args.quick:
                args.output, args.seeds = Path(scratch), 1
            result = bench(args, job(args))
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    result = {"command": command, **result, "machine": msgspec.to_builtins(fingerprint())}
    if args.json:
        write_atomic(args.json, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    sys.stdout.write(readme_table(result) + "\n")
    return 0


def job(args: argparse.Namespace) -> Plan:
    """Return the plan; the digits are written into the output folder."""
    few = [f"{name}={value}" for name, value in QUICK.items()] if args.quick else []
    args.set = ["elastic.on=true", *few, *args.set]
    if args.data is not None:
        return plan_of(args)
    digits = args.output / "digits"
    write_digits(digits)
    folders = {"data.train": str(digits / "train"), "data.eval": str(digits / "test")}
    return load_plan(args.plan, tuple(args.set), ({} if args.plan else DIGITS) | folders)


def bench(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Train teacher, elastic students and `SHAPES` shapes alone, evenly spread over the space by MACs."""
    torch.set_num_threads(plan.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    images = images_of(plan)
    full = shape_of(plan.student, classes=len(evaluation(images).classes))
    space, count = space_of(plan.elastic, full), SHAPES // 2 if args.quick else SHAPES
    shapes = [space.shapes[round(i * (len(space.shapes) - 1) / (count - 1))] for i in range(count)]
    if args.teacher is None:
        args.teacher = args.output / "teacher.safetensors"
        pretrain(plan, images.unlabelled, teacher_pixel(plan))[0].save(args.teacher)
    finetuned = finetuned_here(args, plan, images, trusted=False)
    teacher_right = right_of(load_teacher(finetuned), images)
    seeds = [msgspec.structs.replace(plan, seed=plan.seed + i) for i in range(args.seeds)]
    plans = [each for seed in seeds for each in (seed, *(plan_of_shape(seed, shape) for shape in shapes))]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        trained = list(pool.map(partial(kept, args.output, (args.teacher, finetuned), shapes), plans))
    runs = [trained[i : i + 1 + count] for i in range(0, len(trained), 1 + count)]
    elastic_s, alone_s = mean(run[0]["seconds"] for run in runs), [[one["seconds"] for one in run[1:]] for run in runs]
    return {
        "teacher": {"top1": share(teacher_right), "macs": count_macs(load_teacher(finetuned).vit.shape)},
        "data": counts(images),
        "shapes": (rows := [row_of(shape, i, runs) for i, shape in enumerate(shapes)]),
        "seeds": args.seeds,
        "worst_loss_pts": max(row["loss_pts"] for row in rows),
        "elastic_seconds": elastic_s,
        "cost_ratio_seconds": mean(run[0]["seconds"] / seconds[-1] for run, seconds in zip(runs, alone_s, strict=True)),
        "cost_ratio_macs": [
            part.cost(plan.elastic.samples) for part in (space.full_size_images, space)
        ],  # of each stage
        "alone_cost_ratio_seconds": mean(sum(seconds) / seconds[-1] for seconds in alone_s),
        "space": space.as_dict(),
        "plan": checkpoint_identity(plan),
    }


def plan_of_shape(plan: Plan, shape: ViTShape) -> Plan:
    """Return the plan that distills one shape alone, with the same steps."""
    depth, heads, mlp, image_px = sizes_of(shape)
    student = msgspec.structs.replace(
        plan.student, depth=depth, heads=heads, head_dim=shape.head_dim, mlp_ratio=mlp / shape.width, image_px=image_px
    )
    return msgspec.structs.replace(plan, student=student, elastic=msgspec.structs.replace(plan.elastic, on=False))


def kept(output: Path, teachers: tuple[Path, Path], shapes: list[ViTShape], plan: Plan) -> dict[str, Any]:
    """Return one training's row: the one of `output` that was made from the same, or a new one."""
    images = images_of(plan)
    identity = checkpoint_identity(plan) | {
        "teachers": [file_digest(file) for file in teachers], "bf16": bf16_is_fast(torch.device("cpu")),
        "pixels": msgspec.to_builtins(student_pixel(load_teacher(teachers[0]).pixel, plan)),
        "images": [part and part.fingerprint for part in (images.unlabelled, images.labelled, images.evaluation)],
        "shapes": [sizes_of(shape) for shape in shapes],
    }  # fmt: skip
    if not plan.elastic.on:
        del identity["elastic"], identity["shapes"]
    file = output / f"{'elastic' if plan.elastic.on else 'alone'}-{digest_of(identity)[:16]}.json"
    if not file.exists():
        logging.basicConfig(filename=file.with_suffix(".log"), level=logging.INFO, format="%(asctime)s %(message)s",
                            force=True)  # fmt: skip
        write_atomic(file, msgspec.json.encode(train(plan, images, teachers, shapes)))
    row: dict[str, Any] = msgspec.json.decode(file.read_bytes())
    tops = ", ".join(f"{100 * share(right):.1f} %" for right in row["right"])
    said = "elastic" if plan.elastic.on else "alone"
    sys.stderr.write(f"seed {plan.seed}, {said}: {tops} in {row['seconds']:.0f} s\n")
    return row


def train(plan: Plan, images: Images, teachers: tuple[Path, Path], shapes: list[ViTShape]) -> dict[str, Any]:
    """Distill one student, and return seconds of the processor and, image by image, where it is right.

    Of an elastic one that is said for each of `shapes`, taken out of it.
    """
    torch.set_num_threads(plan.threads)
    teacher, finetuned = map(load_teacher, teachers)
    began = time.process_time()
    student, _ = distill(teacher, plan, images, None, finetuned)
    seconds = time.process_time() - began
    students = [extract(student, sizes_of(shape)) for shape in shapes] if plan.elastic.on else [student]
    return {"seconds": seconds, "right": [right_of(each, images) for each in students]}


def right_of(model: Student | Teacher, images: Images) -> str:
    """Return for each evaluation image whether the model is right."""
    return right_text(correct(model.vit, Loader(evaluation(images), model.pixel, 64, train=False)))


def share(right: str) -> float:
    return right.count("1") / len(right)


def row_of(shape: ViTShape, number: int, runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what one shape reached both ways; loss is alone minus elastic, in points, over all seeds."""
    nested, alone = [run[0]["right"][number] for run in runs], [run[1 + number]["right"][0] for run in runs]
    if len(runs) == 1:
        pairs = list(zip(alone[0], nested[0], strict=True))
        lost, gained = pairs.count(("1", "0")), pairs.count(("0", "1"))
        loss, (low, high) = (lost - gained) / len(pairs), paired_interval(lost, gained, len(pairs))
    else:
        loss, low, high = over_photos(alone, nested)
    sizes = dict(zip(("depth", "heads", "mlp", "image_px"), sizes_of(shape), strict=True))
    return sizes | {
        "macs": count_macs(shape), "elastic_top1": mean(map(share, nested)), "alone_top1": mean(map(share, alone)),
        "loss_pts": 100 * loss, "loss_low_pts": 100 * low, "loss_high_pts": 100 * high,
        "n": len(nested[0]), "seconds": mean(run[1 + number]["seconds"] for run in runs),
    }  # fmt: skip


def checkpoint_identity(plan: Plan) -> dict[str, Any]:
    """Return the tables that decide the result, without folders."""
    return {name: plan_tree(plan)[name] for name in ("seed", "student", "distill", "elastic")}


def readme_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown, a row for each shape."""
    head = "| Depth | Heads | MLP | Px | MACs | Elastic | Alone | Loss (points) |\n" + "| ---: " * 8 + "|"
    body = "\n".join(line(row) for row in result["shapes"])
    seeds = f"Means of {result['seeds']} seeds" if result["seeds"] > 1 else "One seed"
    first, second = result["cost_ratio_macs"]
    return (
        f"{head}\n{body}\n\nOne elastic run costs {result['cost_ratio_seconds']:.2f}x a plain run in seconds (a step "
        f"of stage 1 has {first:.2f}x the student's MACs, one of stage 2 {second:.2f}x); "
        f"{len(result['shapes'])} runs alone cost {result['alone_cost_ratio_seconds']:.2f}x. "
        f"{seeds}, {result['shapes'][0]['n']} images."
    )


def line(row: dict[str, Any]) -> str:
    return (
        f"| {row['depth']} | {row['heads']} | {row['mlp']} | {row['image_px']} | {row['macs'] / 1e6:.2f} M "
        f"| {100 * row['elastic_top1']:.1f} % | {100 * row['alone_top1']:.1f} % "
        f"| {row['loss_pts']:+.2f} ({row['loss_low_pts']:+.2f} to {row['loss_high_pts']:+.2f}) |"
    )


if __name__ == "__main__":
    sys.exit(main())
