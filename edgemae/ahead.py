"""What can be known before the first expensive step: a compile that must fail does so in seconds, not after hours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from edgemae.bench import HERE, Bench
from edgemae.device.engines import ENGINES
from edgemae.distill.elastic import sizes_of, space_of
from edgemae.distill.masking import masking
from edgemae.distill.recipes import RECIPES, choose_recipe
from edgemae.distill.stages import shape_of, student_pixel
from edgemae.flow import is_student, read_teacher, teacher_pixel, tell_import
from edgemae.inputs import Inputs
from edgemae.model.student import Student, load_student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.prune import CRITERIA
from edgemae.prune.budget import check_budget
from edgemae.quantize.calibrate import check_calibration
from edgemae.quantize.schemes import candidates
from edgemae.spec.errors import CheckpointError, DataError, EngineMissingError, PlanError, check_named
from edgemae.spec.graph import KERNELS
from edgemae.spec.sections import Plan, ShapePlan
from edgemae.spec.target import Target
from edgemae.trials import calibration_of

log = logging.getLogger("edgemae")


def check_ahead(plan: Plan, targets: list[Target], source: Path | None) -> Teacher | Student:
    """Refuse names, shapes, files and machines that cannot work; return the model that the way begins with.

    Raises PlanError, CheckpointError and EngineMissingError.
    """
    check_plan(plan)
    for target in targets:
        _check_engines(plan, target)
    if source is not None and is_student(source):
        student = load_student(source)
        shape = student.vit.shape
        _refuse_elastic(plan, source)
        _refuse_kernel(plan, student)
        begin: Teacher | Student = student
    else:
        begin = read_teacher(source, plan) if source else blank_teacher(plan)
        shape = check_recipe(plan, begin)
    check_budget(shape, plan.prune.keep_macs, max(target.width_multiple for target in targets))
    if isinstance(begin, Teacher) and source is not None:
        tell_import(begin)
    return begin


def _refuse_elastic(plan: Plan, source: Path) -> None:
    if plan.elastic.on:
        raise PlanError(
            f"--elastic distills, and '{source}' is a student already",
            expected="a teacher as SOURCE",
            fix=f"leave --elastic out; `edgemae extract {source}` takes a sub-network out of an elastic student",
        )


def _refuse_kernel(plan: Plan, student: Student) -> None:
    if plan.data.kernel not in ("", student.pixel.kernel):
        raise PlanError(
            f"data.kernel is '{plan.data.kernel}', and the student learned from '{student.pixel.kernel}'",
            expected=f"'{student.pixel.kernel}', or none",
            fix="leave data.kernel out, or distill a student with it",
        )


def check_recipe(plan: Plan, teacher: Teacher) -> ViTShape:
    """Put recipe, teacher and student together once: what does not fit says so now. Return the student's shape."""
    shape = _shape(plan.student, "student")
    if plan.elastic.on:
        space = space_of(plan.elastic, shape)
        space.find(plan.elastic.shape or sizes_of(shape))
    recipe, _ = choose_recipe(plan.distill, teacher, teacher)  # whether there will be labels is not known yet
    recipe(ViT(shape), teacher, student_pixel(teacher.pixel, plan), plan.distill)
    return shape


def check_images(plan: Plan, targets: list[Target], begin: Teacher | Student, inputs: Inputs, bench: Bench) -> None:
    """Refuse images that do not fit the model or cannot calibrate int8. Raises DataError."""
    check_elastic(plan, inputs)
    if isinstance(begin, Student):
        check_labels(begin, inputs)
    elif inputs.labelled is None and begin.vit.head is None:
        choose_recipe(plan.distill, begin, None)  # no teacher with a head will come of these images
    if any("int8" in target.precisions and candidates(target, plan.quantize) for target in targets):
        pixel = begin.pixel if isinstance(begin, Student) else student_pixel(begin.pixel, plan)
        check_calibration(calibration_of(inputs.calibration, pixel, plan.workers))
    if plan.gates.max_drop_pts and inputs.evaluation.labels is None:
        log.warning("gate max_drop_pts will be missed: without labels no drop can be shown")
    for target in targets:
        if plan.gates.p90_ms and (unlike := bench.machine.mismatch(target)):
            log.warning("gate p90_ms will be missed for %s: %s", target.name, unlike)


def check_bench(bench: Bench, targets: list[Target]) -> None:
    """Raise EngineMissingError when a device that is to measure can run no engine of a target; here it is no error."""
    for target in targets if bench is not HERE else ():
        if not set(target.engines) & set(bench.machine.engines):
            raise EngineMissingError(
                f"{bench.name} runs no engine of target '{target.name}'",
                expected=" or ".join(target.engines),
                fix=f"there: {ENGINES[target.engines[0]].needs}; or choose another --target",
            )


def check_elastic(plan: Plan, inputs: Inputs) -> None:
    """Raise DataError for an elastic student without labels: its sub-networks are trained in stage 2."""
    if plan.elastic.on and inputs.labelled is None:
        raise DataError(
            f"--elastic trains sub-networks with labels, and '{inputs.unlabelled.folder}' has none",
            expected="one sub-folder for each class",
            fix="sort the images into class folders, or leave --elastic out",
        )


def check_labels(model: Student | Teacher, inputs: Inputs) -> None:
    """Raise DataError unless a model with a head was trained on the very classes of the labelled images."""
    if inputs.labelled is None or model.labels == inputs.classes:
        return
    has = f"the classes {', '.join(model.labels)}" if model.labels else "no classification head"
    raise DataError(
        f"'{inputs.labelled.folder}' has the classes {', '.join(inputs.classes)}, and the model has {has}",
        expected="class folders named as the model's labels, or a flat folder for a model without a head",
        fix="rename the folders, or distill a student for these classes with `edgemae distill`",
    )


def read_guide(path: Path, plan: Plan, inputs: Inputs) -> Teacher:
    """Return a fine-tuned teacher for these classes. Raises CheckpointError without a head, DataError for others."""
    teacher = read_teacher(path, plan)
    if teacher.vit.head is None:
        raise CheckpointError(
            f"'{path}' has no classification head",
            expected="a fine-tuned teacher",
            fix=f"make one with `edgemae finetune {path}`",
        )
    check_labels(teacher, inputs)
    return teacher


def check_plan(plan: Plan) -> None:
    """Raise PlanError for names that nothing answers to and for numbers that no stage can work with."""
    choices: tuple[tuple[str, str, Any], ...] = (
        ("distill.recipe", plan.distill.recipe, RECIPES),
        ("pretrain.loss", plan.pretrain.loss, ("norm-pixel", "pixel", "bce")),
        ("prune.criterion", plan.prune.criterion, CRITERIA),
        ("quantize.aware_when", plan.quantize.aware_when, ("hurt", "always")),
        ("data.resize", plan.data.resize, ("short-side", "stretch")),
        ("data.kernel", plan.data.kernel or KERNELS[0], KERNELS),
        ("graph_input", plan.graph_input, ("float32", "uint8")),
    )
    for name, value, known in choices:
        check_named(name, value, known)
    masking(plan.pretrain, "pretrain")
    masking(plan.distill, "distill")
    for name, value, fine, expected in chain(_numbers(plan), _trainings(plan)):
        if not fine:
            raise PlanError(
                f"{name} is {value!r}", expected=expected, fix=f"correct {name} in the plan file, the flag or in --set"
            )


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
    alphas = bool(quantize.smooth_alphas) and all(a == -1 or 0 <= a <= 1 for a in quantize.smooth_alphas)
    yield "quantize.smooth_alphas", quantize.smooth_alphas, alphas, "some of -1 (off) and 0 to 1"


def _trainings(plan: Plan) -> Iterator[Rule]:
    """Yield the rules of everything that trains."""
    tables: dict[str, Any] = {
        "pretrain": plan.pretrain, "finetune": plan.finetune, "distill": plan.distill,
        "distill.finetune": plan.distill.finetune, "prune.heal": plan.prune.heal,
        "quantize.aware": plan.quantize.aware,
    }  # fmt: skip
    for table, t in tables.items():
        least = 0 if table in ("prune.heal", "quantize.aware") else 1
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
        yield f"{table}.views", views, not (views and mixes), "0 with mixup or cutmix: what is mixed does not repeat"
        for name in ("layer_decay", "token_keep", "teacher_temperature"):
            factor = getattr(t, name, 1.0)
            limit = 1 if name == "token_keep" else 100
            yield f"{table}.{name}", factor, 0 < factor <= limit, f"above 0 and at most {limit}"


def _check_engines(plan: Plan, target: Target) -> None:
    """Refuse a missing library that the build itself needs; other engines of the target may be missing here."""
    missing = [name for name in target.engines if ENGINES[name].version() is None]
    log.info("%s: engines %s%s", target.name, ", ".join(target.engines),
             f"; not installed here: {', '.join(missing)}" if missing else "")  # fmt: skip
    schemes = candidates(target, plan.quantize) if "int8" in target.precisions else ()
    needed = {"onnxruntime": "to check every graph", "openvino": f"to measure for target '{target.name}'"}
    for name, purpose in needed.items():
        if name in missing or (name == "onnxruntime" and ENGINES[name].version() is None):
            raise EngineMissingError(
                f"the engine '{name}' is not installed, and compiling needs it {purpose}",
                expected=f"a Python module '{name}'",
                fix="pip install 'edgemae[build]', or choose a target without it",
            )
    if "openvino-static" in schemes and not _is_installed("nncf"):
        raise EngineMissingError(
            "the module 'nncf' is not installed, and int8 for OpenVINO is made with it",
            expected="a Python module 'nncf'",
            fix="pip install 'edgemae[build]', or leave openvino-static out of quantize.schemes",
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a None in sys.modules
        return False


def _shape(plan: ShapePlan, table: str) -> ViTShape:
    sizes = (plan.image_px, plan.patch_px, plan.width, plan.depth, plan.heads, plan.head_dim)
    fits = min(sizes) >= 1 and plan.width % 4 == 0 and plan.image_px % plan.patch_px == 0
    if not fits or plan.mlp_ratio <= 0 or plan.channels not in (1, 3):
        raise PlanError(
            f"[{table}] is no shape of a ViT: {plan}",
            expected="numbers above 0, width a multiple of 4, image_px a multiple of patch_px, 1 or 3 channels",
            fix=f"correct [{table}] in the plan, or --set {table}.…",
        )
    return shape_of(plan)


def blank_teacher(plan: Plan) -> Teacher:
    """Return an untrained teacher of the plan's shape."""
    return Teacher(ViT(_shape(plan.teacher, "teacher")), teacher_pixel(plan))
