"""The names and numbers that a plan may hold, whatever it is used for. What images and models add: `preflight`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any

from edgemae.distill.masking import masking
from edgemae.distill.recipes import RECIPES
from edgemae.prune import CRITERIA
from edgemae.spec.errors import PlanError, check_named
from edgemae.spec.graph import KERNELS, RESIZES
from edgemae.spec.names import require_file_name
from edgemae.spec.plan_schema import Plan, ShapePlan


def check_plan(plan: Plan) -> None:
    """Raise PlanError for names that nothing answers to and for numbers that no stage can work with."""
    choices: tuple[tuple[str, str, Any], ...] = (
        ("distill.recipe", plan.distill.recipe, RECIPES),
        ("pretrain.loss", plan.pretrain.loss, ("norm-pixel", "pixel", "bce")),
        ("prune.criterion", plan.prune.criterion, CRITERIA),
        ("quantize.qat_when", plan.quantize.qat_when, ("on_accuracy_loss", "always")),
        ("data.resize", plan.data.resize, RESIZES),
        ("data.kernel", plan.data.kernel or KERNELS[0], KERNELS),
        ("graph_input", plan.graph_input, ("float32", "uint8")),
    )
    require_file_name("name", plan.name, PlanError)
    for name, value, known in choices:
        check_named(name, value, known)
    for name, value, fine, expected in chain(_numbers(plan), _trainings(plan)):
        if not fine:
            raise PlanError(
                f"{name} is {repr(value)[:200]}",
                expected=expected,
                fix=f"correct {name} in the plan file, the flag or in --set",
            )
    masking(plan.pretrain, "pretrain")
    masking(plan.distill, "distill")


LIMITS = (
    ("mixup", 100), ("cutmix", 100), ("label_smoothing", 0.99), ("drop_path", 0.99), ("teacher_weight", 1),
    ("ema", 0.99999), ("randaug", 10),
)  # fmt: skip
Rule = tuple[str, Any, bool, str]
# The least and the most of a number. Most are far above any use: they keep a slip of the keyboard, or a file that was
# sent, from taking all memory or a night before the first message.
RANGES: dict[str, tuple[float, float]] = {
    "version": (0, 2**31 - 1), "seed": (0, 2**31 - 1), "workers": (0, 256), "threads": (1, 1024),
    "teacher_heads": (0, 1024), "teacher_decoder_heads": (0, 1024),
    "elastic.samples": (0, 64), "prune.steps": (1, 1000), "prune.score_batches": (1, 100_000),
    "quantize.calibration_images": (32, 1_000_000), "quantize.min_speedup": (0, 1000),
    "scale.accumulate": (1, 1_000_000),
    "pretrain.mask_ratio_end": (0, 0.99), "distill.mask_ratio_end": (0, 0.99), "distill.teacher_block": (0, 1024),
    "gates.max_drop_pts": (0, 100), "gates.p90_ms": (0, 1e9), "gates.size_mib": (0, 1e9),
}  # fmt: skip
WEIGHTS = ("pixel", "relation", "query_key", "value", "pooled", "patch")
RANGES |= {f"distill.{of}_weight": (0, 1e6) for of in WEIGHTS}
SHAPE_RANGES = {
    "image_px": (1, 8192), "patch_px": (1, 1024), "width": (4, 16384), "depth": (1, 512), "heads": (1, 1024),
    "head_dim": (1, 4096), "mlp_ratio": (0.01, 64),
}  # fmt: skip
RANGES |= {f"{table}.{field}": ends for table in ("student", "teacher") for field, ends in SHAPE_RANGES.items()}
MOST_PATCHES, MOST_PARAMETERS = 16384, 2 * 10**9  # of an image, and of a model that is made anew: 8 GB of weights
MOST_VALUES = 64  # of a list


def _ranges(plan: Plan) -> Iterator[Rule]:
    """Yield the rules of single numbers, of lists and of whole shapes."""
    for path, (least, most) in RANGES.items():
        value: Any = functools.reduce(getattr, path.split("."), plan)
        yield path, value, value is None or least <= value <= most, f"{least:g} to {most:g}"
    agreed = plan.gates.min_agreement
    yield "gates.min_agreement", agreed, agreed is None or 0 < agreed <= 1, "above 0 and at most 1: 0 demands nothing"
    for table, section in (("elastic", plan.elastic), ("quantize", plan.quantize), ("data", plan.data)):
        for name in section.__struct_fields__:
            value = getattr(section, name)
            if isinstance(value, tuple):
                yield f"{table}.{name}", value, len(value) <= MOST_VALUES, f"at most {MOST_VALUES} values"
    for table, shape in (("student", plan.student), ("teacher", plan.teacher)):
        yield f"{table}.channels", shape.channels, shape.channels in (1, 3), "1 or 3"
        patches = (shape.image_px // shape.patch_px) ** 2
        yield f"{table}.image_px", shape.image_px, patches <= MOST_PATCHES, f"at most {MOST_PATCHES} patches"
        count = _parameters(shape)
        yield (
            f"{table}.depth",
            shape.depth,
            count <= MOST_PARAMETERS,
            (f"a model of at most {MOST_PARAMETERS:.0e} parameters; [{table}] makes {count:.1e}"),
        )


def _parameters(shape: ShapePlan) -> float:
    """Return about how many parameters a shape has: its blocks and its embedding of patches."""
    block = shape.width * (4 * shape.heads * shape.head_dim + 2 * shape.width * shape.mlp_ratio)
    return shape.depth * block + shape.width * shape.channels * shape.patch_px**2


def _numbers(plan: Plan) -> Iterator[Rule]:
    """Yield (field, value, whether it can work, what can)."""
    yield from _ranges(plan)
    for name, values in (("data.mean", plan.data.mean), ("data.std", plan.data.std)):
        counts = len(values) in (0, plan.student.channels) and len(plan.data.mean) == len(plan.data.std)
        yield name, values, counts, "mean and std of each channel, or neither"
    yield "data.std", plan.data.std, all(value > 0 for value in plan.data.std), "values above 0"
    student = plan.student
    yield "student.width", student.width, student.width > 0 and student.width % 4 == 0, "a multiple of 4"
    grid = student.patch_px > 0 and student.image_px % student.patch_px == 0
    yield "student.image_px", student.image_px, grid, f"a multiple of patch_px={student.patch_px}"
    for table, ratio in (("pretrain", plan.pretrain.mask_ratio), ("distill", plan.distill.mask_ratio)):
        yield f"{table}.mask_ratio", ratio, 0 < ratio < 1, "between 0 and 1"
    yield "prune.keep_macs", plan.prune.keep_macs, 0.1 <= plan.prune.keep_macs <= 1, "between 0.1 and 1"
    yield "gates.confidence", plan.gates.confidence, 0.5 <= plan.gates.confidence < 1, "between 0.5 and 1"
    yield "data.eval_fraction", plan.data.eval_fraction, 0 < plan.data.eval_fraction < 1, "between 0 and 1"
    elastic = plan.elastic
    sizes = (elastic.depths, elastic.heads, elastic.mlp_ratios, elastic.image_pxs, elastic.shape)
    yield "elastic.on", elastic.on, elastic.on or not any(sizes), "true, for the other fields of [elastic] to count"
    yield "elastic.lr_scale", plan.elastic.lr_scale, plan.elastic.lr_scale > 0, "above 0"
    share = plan.elastic.largest_weight
    yield "elastic.largest_weight", share, 0 <= share <= 1, "0 to 1"
    yield "elastic.shape", plan.elastic.shape, len(plan.elastic.shape) in (0, 4), "depth, heads, MLP units, image_px"
    quantize = plan.quantize
    yield "quantize.percentile", quantize.percentile, 50 < quantize.percentile <= 100, "above 50 and at most 100"
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
        yield f"{table}.epochs", t.epochs, least <= t.epochs <= 10**6, f"{least} to {10**6}"
        yield f"{table}.batch", t.batch, 1 <= t.batch <= 10**6, f"1 to {10**6}"
        yield f"{table}.lr", t.lr, 0 < t.lr < 100, "above 0, and below 100"
        yield f"{table}.weight_decay", t.weight_decay, 0 <= t.weight_decay <= 100, "0 to 100"
        yield f"{table}.warmup_fraction", t.warmup_fraction, 0 <= t.warmup_fraction < 1, "0 or more, below 1"
        yield f"{table}.crop_min", t.crop_min, 0 < t.crop_min <= 1, "above 0 and at most 1"
        for name in ("decoder_width", "decoder_heads", "decoder_depth"):
            size, step = getattr(t, name, None), 4 if name == "decoder_width" else 1
            if size is not None:
                top = 64 if name == "decoder_depth" else 8192
                fits = 1 <= size <= top and size % step == 0
                yield f"{table}.{name}", size, fits, f"a multiple of {step}, above 0 and at most {top}"
        if hasattr(t, "decoder_heads"):
            fits = t.decoder_width % t.decoder_heads == 0
            yield f"{table}.decoder_heads", t.decoder_heads, fits, f"a divisor of decoder_width, {t.decoder_width}"
        for name, most in LIMITS:
            share = getattr(t, name, 0.0)
            yield f"{table}.{name}", share, 0 <= share <= most, f"0 to {most}"
        views, mixes = getattr(t, "views", 0), bool(getattr(t, "mixup", 0.0) or getattr(t, "cutmix", 0.0))
        yield f"{table}.views", views, 0 <= views <= 10_000, "0 to 10000"
        together = not (views and plan.scale.shard_teacher)
        yield f"{table}.views", views, together, "0 with scale.shard_teacher: all processes ask such a teacher together"
        by = f" (preset '{plan.preset}' may have switched them on)" if plan.preset not in ("none", "auto") else ""
        alone = f"0 with mixup or cutmix{by}: what is mixed does not repeat; both have to be 0 for views"
        yield f"{table}.views", views, not (views and mixes), alone
        for name in ("layer_decay", "token_keep", "teacher_temperature"):
            factor = getattr(t, name, 1.0)
            limit = 1 if name == "token_keep" else 100
            yield f"{table}.{name}", factor, 0 < factor <= limit, f"above 0 and at most {limit}"
