"""The names and numbers that a plan may hold, whatever it is used for. What images and models add: `preflight`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from edgemae.distill.masking import masking
from edgemae.distill.recipes import RECIPES
from edgemae.prune import CRITERIA
from edgemae.spec.errors import PlanError, check_named
from edgemae.spec.graph import KERNELS
from edgemae.spec.plan_schema import Plan


def check_plan(plan: Plan) -> None:
    """Raise PlanError for names that nothing answers to and for numbers that no stage can work with."""
    choices: tuple[tuple[str, str, Any], ...] = (
        ("distill.recipe", plan.distill.recipe, RECIPES),
        ("pretrain.loss", plan.pretrain.loss, ("norm-pixel", "pixel", "bce")),
        ("prune.criterion", plan.prune.criterion, CRITERIA),
        ("quantize.qat_when", plan.quantize.qat_when, ("on_accuracy_loss", "always")),
        ("data.resize", plan.data.resize, ("short-side", "stretch")),
        ("data.kernel", plan.data.kernel or KERNELS[0], KERNELS),
        ("graph_input", plan.graph_input, ("float32", "uint8")),
    )
    for name, value, known in choices:
        check_named(name, value, known)
    for name, value, fine, expected in chain(_numbers(plan), _trainings(plan)):
        if not fine:
            raise PlanError(
                f"{name} is {value!r}", expected=expected, fix=f"correct {name} in the plan file, the flag or in --set"
            )
    masking(plan.pretrain, "pretrain")
    masking(plan.distill, "distill")


LIMITS = (
    ("mixup", 100), ("cutmix", 100), ("label_smoothing", 0.99), ("drop_path", 0.99), ("teacher_weight", 1),
    ("ema", 0.99999), ("randaug", 10),
)  # fmt: skip
Rule = tuple[str, Any, bool, str]


def _numbers(plan: Plan) -> Iterator[Rule]:
    """Yield (field, value, whether it can work, what can)."""
    named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plan.name) is not None
    yield "name", plan.name, named, "letters, digits, dots, dashes and underscores: it names the bundle's file"
    for name, values in (("data.mean", plan.data.mean), ("data.std", plan.data.std)):
        counts = len(values) in (0, plan.student.channels) and len(plan.data.mean) == len(plan.data.std)
        yield name, values, counts, "mean and std of each channel, or neither"
    yield "data.std", plan.data.std, all(value > 0 for value in plan.data.std), "values above 0"
    student = plan.student
    yield "student.width", student.width, student.width > 0 and student.width % 4 == 0, "a multiple of 4"
    grid = student.patch_px > 0 and student.image_px % student.patch_px == 0
    yield "student.image_px", student.image_px, grid, f"a multiple of patch_px={student.patch_px}"
    yield "student.depth", student.depth, student.depth >= 1, ">= 1"
    for table, ratio in (("pretrain", plan.pretrain.mask_ratio), ("distill", plan.distill.mask_ratio)):
        yield f"{table}.mask_ratio", ratio, 0 < ratio < 1, "between 0 and 1"
    yield "prune.keep_macs", plan.prune.keep_macs, 0.1 <= plan.prune.keep_macs <= 1, "between 0.1 and 1"
    yield "gates.confidence", plan.gates.confidence, 0.5 <= plan.gates.confidence < 1, "between 0.5 and 1"
    yield "workers", plan.workers, plan.workers >= 0, ">= 0"
    yield "threads", plan.threads, plan.threads >= 1, ">= 1"
    yield "data.eval_fraction", plan.data.eval_fraction, 0 < plan.data.eval_fraction < 1, "between 0 and 1"
    elastic = plan.elastic
    sizes = (elastic.depths, elastic.heads, elastic.mlp_ratios, elastic.image_pxs, elastic.shape)
    yield "elastic.on", elastic.on, elastic.on or not any(sizes), "true, for the other fields of [elastic] to count"
    yield "scale.accumulate", plan.scale.accumulate, plan.scale.accumulate >= 1, ">= 1"
    yield "version", plan.version, plan.version >= 0, ">= 0"
    yield "elastic.lr_scale", plan.elastic.lr_scale, plan.elastic.lr_scale > 0, "above 0"
    share = plan.elastic.largest_weight
    yield "elastic.largest_weight", share, 0 <= share <= 1, "0 to 1"
    yield "elastic.samples", plan.elastic.samples, plan.elastic.samples >= 0, ">= 0"
    yield "elastic.shape", plan.elastic.shape, len(plan.elastic.shape) in (0, 4), "depth, heads, MLP units, image_px"
    yield "prune.steps", plan.prune.steps, plan.prune.steps >= 1, ">= 1"
    yield "prune.score_batches", plan.prune.score_batches, plan.prune.score_batches >= 1, ">= 1"
    quantize = plan.quantize
    yield "quantize.percentile", quantize.percentile, 50 < quantize.percentile <= 100, "above 50 and at most 100"
    yield "quantize.calibration_images", quantize.calibration_images, quantize.calibration_images >= 32, ">= 32"
    alphas = bool(quantize.smooth_alphas) and all(a == -1 or 0 <= a <= 1 for a in quantize.smooth_alphas)
    yield "quantize.smooth_alphas", quantize.smooth_alphas, alphas, "some of -1 (off) and 0 to 1"


def training_tables(plan: Plan) -> dict[str, Any]:
    """Return the tables of everything that trains."""
    return {
        "pretrain": plan.pretrain, "finetune": plan.finetune, "distill": plan.distill,
        "distill.finetune": plan.distill.finetune, "prune.heal": plan.prune.heal,
        "quantize.qat": plan.quantize.qat,
    }  # fmt: skip


def _trainings(plan: Plan) -> Iterator[Rule]:
    """Yield the rules of everything that trains."""
    for table, t in training_tables(plan).items():
        least = 0 if table in ("prune.heal", "quantize.qat") else 1
        yield f"{table}.epochs", t.epochs, t.epochs >= least, f">= {least}"
        yield f"{table}.batch", t.batch, t.batch >= 1, ">= 1"
        yield f"{table}.lr", t.lr, 0 < t.lr < 100, "above 0, and below 100"
        yield f"{table}.weight_decay", t.weight_decay, t.weight_decay >= 0, ">= 0"
        yield f"{table}.warmup_fraction", t.warmup_fraction, 0 <= t.warmup_fraction < 1, "0 or more, below 1"
        yield f"{table}.crop_min", t.crop_min, 0 < t.crop_min <= 1, "above 0 and at most 1"
        for name in ("decoder_width", "decoder_heads", "decoder_depth"):
            size, step = getattr(t, name, None), 4 if name == "decoder_width" else 1
            if size is not None:
                yield f"{table}.{name}", size, size >= 1 and size % step == 0, f"a multiple of {step}, above 0"
        if hasattr(t, "decoder_heads"):
            fits = t.decoder_width % t.decoder_heads == 0
            yield f"{table}.decoder_heads", t.decoder_heads, fits, f"a divisor of decoder_width, {t.decoder_width}"
        for name, most in LIMITS:
            share = getattr(t, name, 0.0)
            yield f"{table}.{name}", share, 0 <= share <= most, f"0 to {most}"
        views, mixes = getattr(t, "views", 0), bool(getattr(t, "mixup", 0.0) or getattr(t, "cutmix", 0.0))
        yield f"{table}.views", views, views >= 0, ">= 0"
        together = not (views and plan.scale.shard_teacher)
        yield f"{table}.views", views, together, "0 with scale.shard_teacher: all processes ask such a teacher together"
        by = f" (preset '{plan.preset}' may have switched them on)" if plan.preset not in ("none", "auto") else ""
        alone = f"0 with mixup or cutmix{by}: what is mixed does not repeat; both have to be 0 for views"
        yield f"{table}.views", views, not (views and mixes), alone
        for name in ("layer_decay", "token_keep", "teacher_temperature"):
            factor = getattr(t, name, 1.0)
            limit = 1 if name == "token_keep" else 100
            yield f"{table}.{name}", factor, 0 < factor <= limit, f"above 0 and at most {limit}"
