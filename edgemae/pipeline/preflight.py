"""Checks before the first expensive step: a compile that must fail does so in seconds, not after hours."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from edgemae.device.engines import ENGINES
from edgemae.distill.elastic import sizes_of, space_of
from edgemae.distill.frozen_teacher import require_colours
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.stages import shape_of, student_pixel
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher, import_notes
from edgemae.model.vit import ViT, ViTShape, count_macs
from edgemae.pipeline.benchmark import LOCAL, Benchmark
from edgemae.pipeline.candidate_graphs import calibration_of
from edgemae.pipeline.datasets import Inputs
from edgemae.pipeline.plan_rules import check_plan, training_tables
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import teacher_pixel
from edgemae.prune.budget import check_budget
from edgemae.quantize.calibrate import check_calibration
from edgemae.quantize.schemes import schemes_for
from edgemae.spec.errors import CheckpointError, DataError, EngineMissingError, PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import Plan, ShapePlan
from edgemae.spec.target import Target, check_targets
from edgemae.train.distributed import ProcessGroup

log = logging.getLogger("edgemae")


def check_models(plan: Plan, targets: list[Target], source: ModelFile | None) -> Teacher | Student:
    """Refuse names, shapes, files and machines that cannot work; return the model that the way begins with.

    Raises PlanError, CheckpointError and EngineMissingError.
    """
    check_plan(plan)
    check_targets(targets)
    for target in targets:
        _check_engines(plan, target)
    if source is not None and source.is_student:
        student = source.student
        shape = student.vit.shape
        _refuse_elastic(plan, source.path)
        _refuse_kernel(plan, student)
        begin: Teacher | Student = student
    else:
        begin = source.teacher if source else blank_teacher(plan)
        shape = check_recipe(plan, begin)
    check_budget(shape, plan.prune.keep_macs, max(target.width_multiple for target in targets))
    if isinstance(begin, Teacher) and source is not None:
        log_import(begin)
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


def check_recipe(plan: Plan, teacher: Teacher, tuned: Teacher | None = None) -> ViTShape:
    """Put recipe, teacher and student together once: what does not fit says so now. Return the student's shape.

    Without a `tuned` one it will be made of `teacher`, so that this stands for both.
    """
    shape = _shape(plan.student, "student")
    if not plan.elastic.shape:  # what ships then is a part of it
        _warn_of_larger(shape, teacher.vit.shape)
    if plan.elastic.on:
        space = space_of(plan.elastic, shape)
        space.find(plan.elastic.shape or sizes_of(shape))
    recipe, source = choose_recipe(plan.distill, teacher, tuned or teacher)  # labels are not known of yet
    recipe(ViT(shape), source, student_pixel(teacher.pixel, plan), plan.distill)
    return shape


def _warn_of_larger(student: ViTShape, teacher: ViTShape) -> None:
    """Log a warning where the student takes more work than the teacher that it is to replace."""
    own, replaced = count_macs(student), count_macs(teacher)
    if own > replaced:
        log.warning(
            "the student takes %.4g M multiply-accumulates an image (%d px, patches of %d, width %d, depth %d), more "
            "than the teacher's %.4g M (%d px, patches of %d, width %d, depth %d): what ships will be slower than the "
            "teacher; lower student.image_px, width or depth, or raise student.patch_px",
            own / 1e6, student.image_px, student.patch_px, student.width, student.depth,
            replaced / 1e6, teacher.image_px, teacher.patch_px, teacher.width, teacher.depth,
        )  # fmt: skip


def check_images(
    plan: Plan,
    targets: list[Target],
    begin: Teacher | Student,
    inputs: Inputs,
    benchmark: Benchmark,
    *,
    scratch: bool = False,
) -> None:
    """Refuse images that do not fit the model or cannot calibrate int8; with `scratch` a teacher is pretrained too.

    Raises DataError and PlanError.
    """
    check_elastic(plan, inputs)
    check_batches(plan, inputs, *(["pretrain"] if scratch else []), *_trained(plan, begin, inputs))
    if isinstance(begin, Student):
        check_labels(begin, inputs)
    elif inputs.labelled is None and begin.vit.head is None:
        choose_recipe(plan.distill, begin, None)  # no teacher with a head will come of these images
    if any("int8" in target.precisions and schemes_for(target, plan.quantize) for target in targets):
        pixel = begin.pixel if isinstance(begin, Student) else student_pixel(begin.pixel, plan)
        check_calibration(calibration_of(inputs.calibration, pixel, plan.workers))
    if plan.gates.max_drop_pts is not None and inputs.evaluation.labels is None:
        log.warning("gate max_drop_pts will be missed: without labels no drop can be shown")
    for target in targets:
        if plan.gates.p90_ms is not None and (mismatch := benchmark.machine.mismatch(target)):
            log.warning("gate p90_ms will be missed for %s: %s", target.name, mismatch)


def _trained(plan: Plan, begin: Teacher | Student, inputs: Inputs) -> list[str]:
    """Return the tables of what a compile trains."""
    tables = ["quantize.qat"] + (["prune.heal"] if plan.prune.keep_macs < 1 else [])
    if isinstance(begin, Student):
        return tables
    if inputs.labelled is not None:
        tables += ["distill.finetune"] + (["finetune"] if begin.labels != inputs.classes else [])
    return ["distill", *tables]


def log_import(teacher: Teacher) -> None:
    """Log what a teacher is, and what its file did not say: what was assumed and what was left out."""
    shape = teacher.vit.shape
    log.info("teacher: %s, %d blocks, width %d, licence of the weights: %s",
             teacher.source, shape.depth, shape.width, teacher.licence)  # fmt: skip
    for kind, notes in import_notes(teacher).items():
        for note in notes:
            log.info("teacher: %s: %s", kind, note)


def check_batches(plan: Plan, inputs: Inputs, *tables: str) -> None:
    """Raise PlanError for a table whose batch does not divide among processes and parts: not after hours of others.

    A batch of more images than there are is one of all that divide.
    """
    processes, found = ProcessGroup(), training_tables(plan)
    for name in tables:
        if not found[name].epochs:
            continue
        images = inputs.unlabelled if name in ("pretrain", "distill") else inputs.labelled or inputs.unlabelled
        batch = processes.fitting(found[name].batch, len(images), plan.scale.accumulate)
        processes.rows(batch, plan.scale.accumulate, f"{name}.batch")


def check_benchmark(benchmark: Benchmark, targets: list[Target]) -> None:
    """Raise EngineMissingError when a device that is to measure can run no engine of a target; here it is no error."""
    for target in targets if benchmark is not LOCAL else ():
        if not set(target.engines) & set(benchmark.machine.engines):
            raise EngineMissingError(
                f"{benchmark.name} runs no engine of target '{target.name}'",
                expected=" or ".join(target.engines),
                fix=f"there: {ENGINES[target.engines[0]].needs}; or choose another --target",
            )


def check_elastic(plan: Plan, inputs: Inputs) -> None:
    """Raise DataError for an elastic student without labels: smaller images are learnt in stage 2 only."""
    if plan.elastic.on:
        _check_labelled(inputs, "--elastic", "trains sub-networks with labels")


def check_guided(inputs: Inputs, purpose: str) -> None:
    """Raise DataError without labels, for a fine-tuned teacher from which nothing would be learnt then."""
    _check_labelled(inputs, "--finetuned-teacher", f"serves {purpose}, which learns from labels")


def _check_labelled(inputs: Inputs, option: str, does: str) -> None:
    if inputs.labelled is None:
        raise DataError(
            f"{option} {does}, and '{inputs.unlabelled.folder}' has none",
            expected="one sub-folder for each class",
            fix=f"sort the images into class folders, or leave {option} out",
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


def check_finetuned(file: ModelFile, pixel: PixelContract) -> Teacher:
    """Return a fine-tuned teacher that fits a student's pixels.

    Raises CheckpointError without a head, PlanError for other channels or another order of them.
    """
    teacher = file.teacher
    if teacher.vit.head is None:
        raise CheckpointError(
            f"'{file.path}' has no classification head",
            expected="a fine-tuned teacher",
            fix=f"make one with `edgemae finetune {file.path}`",
        )
    require_colours(teacher, pixel)
    return teacher


def _check_engines(plan: Plan, target: Target) -> None:
    """Refuse a missing library that the build itself needs; other engines of the target may be missing here."""
    missing = [name for name in target.engines if ENGINES[name].version() is None]
    log.info("%s: engines %s%s", target.name, ", ".join(target.engines),
             f"; not installed here: {', '.join(missing)}" if missing else "")  # fmt: skip
    schemes = schemes_for(target, plan.quantize) if "int8" in target.precisions else ()
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
