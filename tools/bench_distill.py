"""What distillation is worth: one student by every recipe, beside training from scratch and MAE pretraining alone.

    python tools/bench_distill.py --data clothing10 --output runs/distill --json tools/results/distill.json
    python tools/bench_distill.py --quick

All rows have the same student, stage 1 sees the same number of images (none for `scratch`), stage 2 takes the same
optimiser steps. `scratch` and `mae` learn from labels alone, the others from labels and the fine-tuned teacher. Every
run is a process of its own (its peak memory is its own) and is kept in `--output` and in `--json` with a digest of its
plan, images and teachers: the same command goes on, one with other methods or seeds adds to the table, and a row that
was made from others is made again. After a change of a recipe's code its rows have to be removed by hand. `--data`
holds train/<class>/*, val/<class>/* and unlabelled/*; `--quick` takes scikit-learn's digits, one seed and few epochs.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.distill_rows import adopt, alike, counts, digest, finish, finished, kept, plan_for, trained_s
from support.distill_tables import margins, readme_table

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Loader
from edgemae.device.hardware.fingerprint import fingerprint
from edgemae.distill.recipes import RECIPES
from edgemae.distill.stages import Images, distill, finetune, pretrain, shape_of, student_pixel, supervise
from edgemae.evaluation.intervals import wilson
from edgemae.model.import_teacher import load_teacher
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, count_macs, count_params
from edgemae.pipeline.datasets import gather
from edgemae.pipeline.demo import PLAN, write_digits
from edgemae.pipeline.stage_cache import digest_of, file_digest
from edgemae.pipeline.training_stages import teacher_pixel
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.plan_loading import load_plan, plan_from, plan_tree
from edgemae.spec.plan_schema import Plan

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
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
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
    sys.stdout.write(readme_table(result) + "\n")
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
        folders = {"data.train": str(train), "data.eval": str(test)}
        plan = load_plan(None, tuple(args.set), PLAN | fewer | folders)
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
    before = args.output / "plan.json"
    same_plan = before.exists() and alike(json.loads(before.read_bytes()), plan_tree(plan), "finetune")
    if args.tuned is None:
        args.tuned = tuned_here(args, plan, images, trusted=same_plan)
    write_atomic(before, msgspec.json.encode(plan_tree(plan)))
    tuned = load_teacher(args.tuned)
    right = correct(tuned.vit, Loader(evaluation(images), tuned.pixel, 64, train=False))
    pixel = student_pixel(load_teacher(args.teacher).pixel, plan)
    wanted = partial(digest, plan, images, pixel, (args.teacher, args.tuned))
    runs = [(method, seed) for seed in range(args.seeds) for method in args.methods]
    earlier = kept(args.json, plan, images, right_text(right), wanted)
    adopt(args.output, earlier, wanted, trusted=same_plan)
    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(lambda run: row_of(args, run[0], run[1], wanted(*run)), runs))
    rows += [row for row in earlier if (row["method"], row["seed"]) not in runs]
    rows.sort(key=lambda row: (row["seed"], METHODS.index(row["method"])))
    shape = shape_of(plan.student, classes=len(evaluation(images).classes))
    return {
        "command": command_of(rows), "plan": plan_tree(plan_for(plan_tree(plan), "relation", plan.seed)),
        "machine": msgspec.to_builtins(fingerprint()),
        "data": counts(images),
        "teacher": {"top1": float(np.mean(right)), "macs": count_macs(tuned.vit.shape), "right": right_text(right)},
        "student": {"macs": count_macs(shape), "params": count_params(ViT(shape))}, "rows": rows,
        "margins": margins(rows),
    }  # fmt: skip


def tuned_here(args: argparse.Namespace, plan: Plan, images: Images, *, trusted: bool) -> Path:
    """Return the fine-tuned teacher, made again where plan, images or teacher are not those of the one that is there.

    One without a mark, of an earlier version, is taken where it is `trusted`.
    """
    file, mark = args.output / "tuned.safetensors", args.output / "tuned.digest"
    assert images.labelled is not None
    made_from = digest_of({
        "finetune": plan_tree(plan.finetune), "seed": plan.seed, "labels": images.labelled.fingerprint,
        "teacher": file_digest(args.teacher),
    })  # fmt: skip
    if file.exists() and (mark.read_text() == made_from if mark.exists() else trusted):
        mark.write_text(made_from)
        return file
    if not mark.exists() or mark.read_text() != made_from:  # nor can its checkpoint be gone on from
        (args.output / "tuned.ckpt").unlink(missing_ok=True)
    mark.write_text(made_from)
    file.unlink(missing_ok=True)
    tuned, _ = finetune(load_teacher(args.teacher), plan, images, args.output / "tuned.ckpt")
    tuned.save(file)
    return file


def row_of(args: argparse.Namespace, method: str, seed: int, made_from: str) -> dict[str, Any]:
    """Return one finished row, running it in a process of its own when there is none that was made from the same."""
    folder = args.output / f"{method}-{seed}"
    row = finished(folder, made_from)
    if row is None:
        command = [sys.executable, __file__, "--teacher", args.teacher, "--tuned", args.tuned, "--output", args.output,
                   "--data", args.data or args.output, "--one", method, seed]  # fmt: skip
        with open(folder / "log.txt", "a") as log:
            subprocess.run([str(part) for part in command], check=True, stderr=log)
        row = finish(folder, made_from)
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
    plan = plan_for(json.loads((args.output / "plan.json").read_bytes()), method, seed, str(args.output / "views"))
    torch.set_num_threads(plan.threads)
    images, folder = images_of(plan), args.output / f"{method}-{seed}"
    teacher, tuned = load_teacher(args.teacher), load_teacher(args.tuned)
    student = stage_one(method, plan, images, teacher, tuned, folder / "train.ckpt")
    frozen = probes(student, images)
    guide = tuned if method in RECIPES else None
    student, curve = supervise(student, plan, images, guide, folder / "train-2.ckpt")
    student.save(folder / "student.safetensors")
    right = correct(student.vit, Loader(evaluation(images), student.pixel, 64, train=False))
    seen = len(images.unlabelled) // plan.distill.batch * plan.distill.batch * plan.distill.epochs
    steps = len(images.labelled or ()) // plan.distill.finetune.batch * plan.distill.finetune.epochs
    row = {
        "method": method, "seed": seed, "top1": float(np.mean(right)), "interval": wilson(sum(right), len(right)),
        **frozen, "stage1_ms_image": 1e3 * trained_s(folder) / seen if method != "scratch" else None, "steps": steps,
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
    """Return linear probe and k-nearest-neighbour top-1 of the frozen features.

    Linear: logistic regression on standardised features. Neighbours: the 20 most similar training images vote with
    exp(cosine / 0.07), the protocol of DINO (Caron et al. 2021).
    """
    assert images.labelled is not None
    train, test = (embed(student, part) for part in (images.labelled, evaluation(images)))
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    neighbours = KNeighborsClassifier(
        min(20, len(train[0])), metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
    )
    return {
        "linear": float(linear.fit(*train).score(*test)),
        "knn": float(neighbours.fit(*train).score(*test)),
    }


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


def command_of(rows: list[dict[str, Any]]) -> str:
    """Return the command that makes all rows: this one, with the methods of those that were kept."""
    words, given = sys.argv[1:], []
    if "--methods" in words:
        at = words.index("--methods")
        given = list(takewhile(lambda word: not word.startswith("--"), words[at + 1 :]))
        words = words[:at] + words[at + 1 + len(given) :]
    methods = [name for name in METHODS if name in {row["method"] for row in rows} | set(given)]
    asked = ["--methods", *methods] if len(methods) < len(METHODS) else []
    return shlex.join(["python", "tools/bench_distill.py", *words, *asked])


if __name__ == "__main__":
    sys.exit(main())
