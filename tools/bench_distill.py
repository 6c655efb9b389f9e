"""What distillation is worth: one student by every recipe, beside training from scratch and MAE pretraining alone.

    python tools/bench_distill.py --data clothing10 --output runs/distill --json tools/results/distill.json
    python tools/bench_distill.py --quick

All rows have the same student, stage 1 sees the same number of images (none for `scratch`), stage 2 takes the same
optimiser steps. `scratch` and `mae` learn from labels alone, the others from labels and the fine-tuned teacher. Every
run is a process of its own (its peak memory is its own) and is kept in `--output`, and in `--json` where that has the
same plan and teacher: the same command goes on, and one with other methods or seeds adds to the table. `--data`
holds train/<class>/*, val/<class>/* and unlabelled/*; `--quick` takes scikit-learn's digits, one seed and few epochs.
`--readme FILE` rewrites the table between its marks from `--json`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from distill_tables import margins, table

from edgemae.data.images import ImageSet
from edgemae.data.loader import Loader
from edgemae.demo import PLAN, write_digits
from edgemae.device.latency import fingerprint
from edgemae.distill.recipes import RECIPES
from edgemae.distill.stages import Images, distill, finetune, pretrain, shape_of, student_pixel, supervise
from edgemae.flow import teacher_pixel
from edgemae.inputs import gather
from edgemae.measure.intervals import wilson
from edgemae.measure.probe import knn_top1, linear_probe
from edgemae.model.checkpoint import load_teacher
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, count_macs, count_params
from edgemae.model.weights import write_atomic
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.plan import load_plan, plan_from, plan_tree
from edgemae.spec.sections import Plan

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("scratch", "mae", *(name for name in RECIPES if name != "relation"), "relation")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/, val/ and unlabelled/")
    parser.add_argument("--teacher", type=Path, default=ROOT / "examples/teachers/clothing10-mae.safetensors")
    parser.add_argument("--tuned", type=Path, help="the fine-tuned teacher; default: it is fine-tuned here")
    parser.add_argument("--plan", type=Path, default=ROOT / "examples/plan.toml")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override one field of the plan")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-distill"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with the plan's threads")
    parser.add_argument("--quick", action="store_true", help="digits, ends within 5 minutes on two cores")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--readme", type=Path, help="rewrite the table of this Markdown file from --json and stop")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        if args.readme:
            rewrite(args.readme, args.json)
            return 0
        if not args.quick and args.data is None:
            parser.error("--data is needed, or --quick")
        if args.one:
            one(args, args.one[0], int(args.one[1]))
            return 0
        result = quick(args) if args.quick else bench(args, plan_of(args))
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(table(result) + "\n")
    return 0


# ---------------------------------------------------------------- all runs


def plan_of(args: argparse.Namespace) -> Plan:
    folders = {"data.train": "train", "data.eval": "val", "data.unlabelled": "unlabelled"}
    found = {key: str(args.data / name) for key, name in folders.items() if (args.data / name).is_dir()}
    return load_plan(args.plan, tuple(args.set), found)


def quick(args: argparse.Namespace) -> dict[str, Any]:
    """Run every method once on the digits, with a teacher of a sixth of the demo's epochs."""
    fewer = {key: max(2, PLAN[key] // 6) for key in PLAN if key.endswith("epochs")}
    with tempfile.TemporaryDirectory() as folder:
        args.output, args.seeds = Path(folder), 1
        write_digits(args.output / "images")
        train, test = (args.output / "images" / part for part in ("train", "test"))
        overrides = tuple(f"{key}={value}" for key, value in (PLAN | fewer).items())
        plan = load_plan(None, (*overrides, *args.set), {"data.train": str(train), "data.eval": str(test)})
        images = images_of(plan)
        teacher, _ = pretrain(plan, images.unlabelled, teacher_pixel(plan))
        args.teacher = args.output / "teacher.safetensors"
        teacher.save(args.teacher)
        return bench(args, plan)


def bench(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """Make the fine-tuned teacher and every row that is missing, and return all of them with their margins."""
    torch.set_num_threads(plan.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    images = images_of(plan)
    if args.tuned is None:
        args.tuned = args.output / "tuned.safetensors"
        if not args.tuned.exists():
            tuned, _ = finetune(load_teacher(args.teacher), plan, images, args.output / "tuned.ckpt")
            tuned.save(args.tuned)
    write_atomic(args.output / "plan.json", msgspec.json.encode(plan_tree(plan)))
    tuned = load_teacher(args.tuned)
    right = correct(tuned.vit, Loader(evaluation(images), tuned.pixel, 64, train=False))
    runs = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    earlier = kept(args, plan, right_text(right))
    for row in earlier:
        folder = args.output / f"{row['method']}-{row['seed']}"
        folder.mkdir(exist_ok=True)
        write_atomic(folder / "row.json", json.dumps(row).encode())
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda run: row_of(args, *run), runs))
    rows += [row for row in earlier if (row["method"], row["seed"]) not in runs]
    rows.sort(key=lambda row: (row["seed"], METHODS.index(row["method"])))
    shape = shape_of(plan.student, classes=len(evaluation(images).classes))
    return {
        "command": shlex.join(["python", "tools/bench_distill.py", *sys.argv[1:]]), "plan": plan_tree(plan),
        "machine": msgspec.to_builtins(fingerprint()),
        "data": {"train": len(images.labelled or ()), "stage 1": len(images.unlabelled), "val": len(right)},
        "teacher": {"top1": float(np.mean(right)), "macs": count_macs(tuned.vit.shape), "right": right_text(right)},
        "student": {"macs": count_macs(shape), "params": count_params(ViT(shape))}, "rows": rows,
        "margins": margins(rows),
    }  # fmt: skip


def kept(args: argparse.Namespace, plan: Plan, teacher: str) -> list[dict[str, Any]]:
    """Return the rows of an earlier result that had the same plan and the same teacher."""
    if args.json is None or not args.json.exists():
        return []
    old = json.loads(args.json.read_bytes())
    here = json.loads(json.dumps(plan_tree(plan)))
    same = old["teacher"]["right"] == teacher and all(
        old["plan"][part] == here[part] for part in ("distill", "student", "seed")
    )
    return old["rows"] if same else []


def row_of(args: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Return one finished row, running it in a process of its own when it is missing."""
    file = args.output / f"{method}-{seed}" / "row.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        command = [sys.executable, __file__, "--teacher", args.teacher, "--tuned", args.tuned, "--output", args.output,
                   "--data", args.data or args.output, "--one", method, seed]  # fmt: skip
        with open(file.parent / "log.txt", "a") as log:
            subprocess.run([str(part) for part in command], check=True, stderr=log)
    row: dict[str, Any] = json.loads(file.read_bytes())
    logging.info("%s, seed %d: %.1f %%", method, seed, 100 * row["top1"])
    return row


# ---------------------------------------------------------------- one run


def images_of(plan: Plan) -> Images:
    inputs = gather(plan)
    return Images(inputs.unlabelled, inputs.labelled, inputs.evaluation)


def evaluation(images: Images) -> ImageSet:
    assert images.evaluation is not None
    return images.evaluation


def one(args: argparse.Namespace, method: str, seed: int) -> None:
    """Train one student, score it, and write its row."""
    tree = json.loads((args.output / "plan.json").read_bytes())
    tree["seed"] = seed
    tree["scale"]["views_folder"] = str(args.output / "views")
    # Every epoch has views of its own: nothing repeats within a run, and the runs of a seed ask the teacher once.
    tree["distill"]["finetune"]["views"] = tree["distill"]["finetune"]["epochs"]
    if method in RECIPES:
        tree["distill"]["recipe"] = method
    if method in RECIPES and not RECIPES[method].whole_views:
        tree["distill"]["views"] = 0
    plan = plan_from(tree)
    torch.set_num_threads(plan.threads)
    images, folder = images_of(plan), args.output / f"{method}-{seed}"
    teacher, tuned = load_teacher(args.teacher), load_teacher(args.tuned)
    began = time.perf_counter()
    student = stage_one(method, plan, images, teacher, tuned, folder / "train.ckpt")
    middle = time.perf_counter()
    frozen = probes(student, images)
    after = time.perf_counter()
    guide = tuned if method in RECIPES else None
    student, curve = supervise(student, plan, images, guide, folder / "train-2.ckpt")
    ended = time.perf_counter()
    student.save(folder / "student.safetensors")
    right = correct(student.vit, Loader(evaluation(images), student.pixel, 64, train=False))
    seen = len(images.unlabelled) // plan.distill.batch * plan.distill.batch * plan.distill.epochs
    steps = len(images.labelled or ()) // plan.distill.finetune.batch * plan.distill.finetune.epochs
    row = {
        "method": method, "seed": seed, "top1": float(np.mean(right)), "interval": wilson(sum(right), len(right)),
        **frozen, "stage1_ms_image": 1e3 * (middle - began) / seen if method != "scratch" else 0.0,
        "stage2_ms_image": 1e3 * (ended - after) / (steps * plan.distill.finetune.batch), "steps": steps,
        "validation": [[line["epoch"], line["validation"]] for line in curve if "validation" in line],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "right": right_text(right),
    }  # fmt: skip
    write_atomic(folder / "row.json", json.dumps(row).encode())


def stage_one(method: str, plan: Plan, images: Images, teacher: Teacher, tuned: Teacher, checkpoint: Path) -> Student:
    """Return the student after stage 1."""
    pixel = student_pixel(teacher.pixel, plan)
    if method == "scratch":
        torch.manual_seed(plan.seed)
        return Student(ViT(shape_of(plan.student)), pixel)
    if method != "mae":
        return distill(teacher, plan, replace(images, labelled=None), checkpoint, tuned)[0]
    d, tree = plan.distill, plan_tree(plan)
    tree["teacher"] = tree["student"]
    shared = ("epochs", "batch", "lr", "weight_decay", "warmup_fraction", "mask_ratio", "mask", "mask_ratio_end",
              "decoder_width", "decoder_heads", "crop_min", "flip", "bf16")  # fmt: skip
    tree["pretrain"] = {name: getattr(d, name) for name in shared}
    mae, _ = pretrain(plan_from(tree), images.unlabelled, pixel, checkpoint=checkpoint)
    return Student(mae.vit, pixel)


def probes(student: Student, images: Images) -> dict[str, float]:
    """Return linear probe and k-nearest-neighbour top-1 of the frozen features."""
    assert images.labelled is not None
    train, test = (embed(student, part) for part in (images.labelled, evaluation(images)))
    return {"linear": linear_probe(*train, *test), "knn": knn_top1(*train, *test)}


@torch.inference_mode()
def embed(student: Student, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings (N, D) and labels (N,)."""
    vit, rows = student.vit.eval(), list(Loader(images, student.pixel, 64, train=False).epoch())
    return (
        np.concatenate([vit(batch.pixels)[1].numpy() for batch in rows]),
        np.concatenate([batch.labels.numpy() for batch in rows]),
    )


@torch.inference_mode()
def correct(vit: ViT, loader: Loader) -> list[bool]:
    """Return, image by image, whether the model is right."""
    vit.eval()
    return [bool(ok) for batch in loader.epoch() for ok in vit(batch.pixels)[0].argmax(-1) == batch.labels]


def right_text(right: list[bool]) -> str:
    return "".join("1" if ok else "0" for ok in right)


def rewrite(readme: Path, results: Path) -> None:
    """Put the table of a results file between the marks of a Markdown file."""
    result = json.loads(results.read_bytes())
    text = f"\n{table(result)}\n\nMade by `{result['command']}`.\n"
    pattern = rf"(<!-- table: {re.escape(results.stem)} -->\n).*?(<!-- end -->)"
    readme.write_text(re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], readme.read_text(), flags=re.S))


if __name__ == "__main__":
    sys.exit(main())
