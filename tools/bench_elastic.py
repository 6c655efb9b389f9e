"""Elastic students against the same shapes distilled alone: accuracy of each, and what both cost.

    python tools/bench_elastic.py --json tools/results/elastic.json
    python tools/bench_elastic.py --data clothing10 --plan examples/plan.toml
    python tools/bench_elastic.py --quick

For each seed a teacher is trained on the images, then one elastic student, and each of eight of its shapes alone with
the same steps. Losses are paired over the images of all seeds: one seed alone moves by a point. `--data` holds
train/<class>/* and val/<class>/*; without it scikit-learn's digits are used. Seconds are those of the processor, so
that other programs do not count.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgemae.data.images import ImageSet, scan
from edgemae.data.loader import Loader
from edgemae.demo import PLAN, write_digits
from edgemae.device.latency import fingerprint
from edgemae.distill.elastic import extract, sizes_of, space_from
from edgemae.distill.stages import Images, distill, finetune, pretrain
from edgemae.flow import teacher_pixel
from edgemae.measure.intervals import paired_interval
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViTShape, count_macs
from edgemae.model.weights import write_atomic
from edgemae.spec.errors import EdgemaeError
from edgemae.spec.plan import load_plan, plan_tree
from edgemae.spec.sections import Plan

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
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; default: digits")
    parser.add_argument("--plan", type=Path, help="plan of the student; default: one for digits")
    parser.add_argument("--set", action="append", default=[], help="override one field of the plan")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed, four shapes, within 5 minutes")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory() as folder:
            plan, images = job(args, Path(folder))
            torch.set_num_threads(plan.threads)
            seeds = [msgspec.structs.replace(plan, seed=plan.seed + i) for i in range(1 if args.quick else args.seeds)]
            result = together([compare(p, images, SHAPES // 2 if args.quick else SHAPES) for p in seeds])
    except EdgemaeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    command = shlex.join(["python", "tools/bench_elastic.py", *sys.argv[1:]])
    result = {"command": command, **result, "plan": decisive(plan), "machine": msgspec.to_builtins(fingerprint())}
    if args.json:
        write_atomic(args.json, msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    sys.stdout.write(table(result) + "\n")
    return 0


def job(args: argparse.Namespace, folder: Path) -> tuple[Plan, Images]:
    """Return plan and images; the digits are written into `folder`."""
    root, val = args.data, "val"
    if root is None:
        root, val = folder / "digits", "test"
        write_digits(root)
    flags = {} if args.plan else dict(DIGITS) | (QUICK if args.quick else {})
    flags |= {"elastic.on": True, "data.train": str(root / "train")}
    train = scan(root / "train")
    return load_plan(args.plan, tuple(args.set), flags), Images(train.unlabelled(), train, scan(root / val))


def compare(plan: Plan, images: Images, count: int) -> dict[str, Any]:
    """Return a row for each of `count` shapes, evenly spread over the space by MACs, and the cost of the whole."""
    teacher, _ = pretrain(plan, images.unlabelled, teacher_pixel(plan))
    tuned, _ = finetune(teacher, plan, images)
    say(f"teacher: top-1 {100 * share(right(tuned, images)):.1f} %")
    (whole, _), elastic_s = timed(lambda: distill(teacher, plan, images, None, tuned))
    say(f"elastic: {elastic_s:.1f} s")
    space = space_from(whole)
    shapes = [space.shapes[round(i * (len(space.shapes) - 1) / (count - 1))] for i in range(count)]
    rows = []
    for shape in shapes:
        own = plan_of(plan, shape)
        (alone, _), seconds = timed(lambda own=own: distill(teacher, own, images, None, tuned))
        hits = right(extract(whole, sizes_of(shape)), images), right(alone, images)
        rows.append(row(shape, *hits) | {"seconds": seconds, "hits": hits})
        say(line(rows[-1]))
    return {
        "shapes": rows,
        "elastic_seconds": elastic_s,
        "cost_ratio_seconds": elastic_s / rows[-1]["seconds"],
        "cost_ratio_macs": space.cost(plan.elastic.samples),
        "alone_cost_ratio_seconds": sum(r["seconds"] for r in rows) / rows[-1]["seconds"],
        "space": space.as_dict(),
    }


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one result of all seeds: hits pooled, costs averaged."""
    rows = []
    for same in zip(*(run["shapes"] for run in runs), strict=True):
        nested, alone = (torch.cat([r["hits"][i] for r in same]) for i in range(2))
        pooled = {
            name: value for name, value in same[0].items() if name in ("depth", "heads", "mlp", "image_px", "macs")
        }
        rows.append(pooled | figures(nested, alone) | {"seconds": mean(r["seconds"] for r in same)})
    costs = [name for name in runs[0] if name not in ("shapes", "space")]
    return {
        "shapes": rows, "seeds": len(runs), "worst_loss_pts": max(r["loss_pts"] for r in rows),
        **{name: mean(run[name] for run in runs) for name in costs}, "space": runs[0]["space"],
    }  # fmt: skip


def plan_of(plan: Plan, shape: ViTShape) -> Plan:
    """Return the plan that distills one shape alone, with the same steps."""
    depth, heads, mlp, image_px = sizes_of(shape)
    student = msgspec.structs.replace(
        plan.student, depth=depth, heads=heads, head_dim=shape.head_dim, mlp_ratio=mlp / shape.width, image_px=image_px
    )
    return msgspec.structs.replace(plan, student=student, elastic=msgspec.structs.replace(plan.elastic, on=False))


def row(shape: ViTShape, nested: Tensor, alone: Tensor) -> dict[str, Any]:
    """Return what one shape reached both ways."""
    sizes = dict(zip(("depth", "heads", "mlp", "image_px"), sizes_of(shape), strict=True))
    return sizes | {"macs": count_macs(shape)} | figures(nested, alone)


def figures(nested: Tensor, alone: Tensor) -> dict[str, Any]:
    """Return both top-1; loss is alone minus elastic, in points."""
    lost, gained = int((alone & ~nested).sum()), int((nested & ~alone).sum())
    low, high = paired_interval(lost, gained, len(alone))
    return {
        "elastic_top1": share(nested), "alone_top1": share(alone), "loss_pts": 100 * (lost - gained) / len(alone),
        "loss_low_pts": 100 * low, "loss_high_pts": 100 * high, "n": len(alone),
    }  # fmt: skip


@torch.inference_mode()
def right(model: Student | Teacher, images: Images) -> Tensor:
    """Return for each evaluation image whether the model is right."""
    evaluation = images.evaluation
    assert isinstance(evaluation, ImageSet)
    batches = Loader(evaluation, model.pixel, 64, train=False).epoch()
    return torch.cat([model.vit(b.pixels)[0].argmax(-1) == b.labels for b in batches])


def share(hits: Tensor) -> float:
    return float(hits.double().mean())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def decisive(plan: Plan) -> dict[str, Any]:
    """Return the tables that decide the result, without folders."""
    return {name: plan_tree(plan)[name] for name in ("seed", "student", "distill", "elastic")}


def table(result: dict[str, Any]) -> str:
    head = "| Depth | Heads | MLP | Px | MACs | Elastic | Alone | Loss (points) |\n" + "| ---: " * 8 + "|"
    body = "\n".join(line(r) for r in result["shapes"])
    return (
        f"{head}\n{body}\n\nOne elastic run costs {result['cost_ratio_seconds']:.2f}x a plain run in seconds and "
        f"{result['cost_ratio_macs']:.2f}x in MACs of stage 2; {len(result['shapes'])} runs alone cost "
        f"{result['alone_cost_ratio_seconds']:.2f}x. Means of {result['seeds']} seeds."
    )


def line(r: dict[str, Any]) -> str:
    return (
        f"| {r['depth']} | {r['heads']} | {r['mlp']} | {r['image_px']} | {r['macs'] / 1e6:.2f} M "
        f"| {100 * r['elastic_top1']:.1f} % | {100 * r['alone_top1']:.1f} % "
        f"| {r['loss_pts']:+.2f} ({r['loss_low_pts']:+.2f} to {r['loss_high_pts']:+.2f}) |"
    )


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
