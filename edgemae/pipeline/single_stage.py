"""Single stages of a compile, a verb each: what it does before and around the cached stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgemae.distill.elastic import SIZES, sizes_of
from edgemae.distill.elastic import extract as take_out
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.stages import student_pixel
from edgemae.model.student import load_student
from edgemae.model.vit import count_macs, count_params
from edgemae.pipeline.candidate_graphs import Candidate, float_graphs, int8_candidates
from edgemae.pipeline.plan_rules import check_plan
from edgemae.pipeline.preflight import (
    blank_teacher,
    check_batches,
    check_elastic,
    check_finetuned,
    check_guided,
    check_labels,
    check_recipe,
    log_import,
)
from edgemae.pipeline.qat_stage import qat_stage
from edgemae.pipeline.scoring import score_candidates, torch_predictions
from edgemae.pipeline.stage_files import ModelFile, graph_digest
from edgemae.pipeline.training_stages import (
    StageContext,
    distill_stages,
    finetune_stage,
    open_stage_context,
    pretrain_stage,
    prune_stage,
)
from edgemae.quantize.range_search import QAT
from edgemae.quantize.schemes import STATIC_SCHEMES, schemes_for
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InputError
from edgemae.spec.plan_schema import Plan
from edgemae.spec.target import Target


def pretrain(plan: Plan, start: Path | None, **at: Any) -> Path:
    """Pretrain an MAE, from scratch or onwards from `start`; return its file. `at`: output, overwrite, resume."""
    check_plan(plan)
    file = None if start is None else ModelFile.of(start, plan)
    teacher = blank_teacher(plan) if file is None else file.teacher
    if file is not None:
        log_import(teacher)
    context = open_stage_context(plan, together=True, labels=False, reads=teacher.vit.shape, **at)
    check_batches(plan, context.inputs, "pretrain")
    return pretrain_stage(context, file).path


def finetune(plan: Plan, teacher: Path, **at: Any) -> Path:
    """Train a teacher with a head on labels; return its file."""
    check_plan(plan)
    file = ModelFile.of(teacher, plan)
    log_import(file.teacher)
    context = open_stage_context(plan, together=True, reads=file.teacher.vit.shape, **at)
    check_batches(plan, context.inputs, "finetune")
    return finetune_stage(context, file).path


def distill(plan: Plan, teacher: Path, finetuned: Path | None, **at: Any) -> Path:
    """Distill a student, with a fine-tuned teacher (made here when there are labels and none is given)."""
    check_plan(plan)
    source, tuned = ModelFile.of(teacher, plan), None if finetuned is None else ModelFile.of(finetuned, plan)
    begin = source.teacher
    own = check_finetuned(tuned, student_pixel(begin.pixel, plan)) if tuned else None
    check_recipe(plan, begin, own)
    log_import(begin)
    context = open_stage_context(plan, together=True, **at)
    check_elastic(plan, context.inputs)
    if own is not None:
        check_labels(own, context.inputs)
        if choose_recipe(plan.distill, begin, own)[1] is not own:
            check_guided(context.inputs, "stage 2")
    has_head = begin.vit.head is not None and begin.labels == context.inputs.classes
    labels = ["distill.finetune"] + ([] if tuned or has_head else ["finetune"]) if context.inputs.labelled else []
    check_batches(plan, context.inputs, "distill", *labels)
    if tuned is None and context.inputs.labelled is not None:
        tuned = source if has_head else finetune_stage(context, source)
    return distill_stages(context, source, tuned).path


def extract(source: Path, wanted: dict[str, int | None], output: Path) -> dict[str, Any]:
    """Write one sub-network of an elastic student as a student file and describe it; None: the full size."""
    student = load_student(source)
    full = dict(zip(SIZES, sizes_of(student.vit.shape), strict=True))
    sizes = full | {name: size for name, size in wanted.items() if size is not None}
    small = take_out(student, tuple(sizes.values()))
    small.save(output)
    return {"student": str(output), **sizes, "macs": count_macs(small.vit.shape), "params": count_params(small.vit)}


def prune(plan: Plan, student: Path, finetuned: Path | None, width_multiple: int, **at: Any) -> Path:
    """Prune a student and heal it; return its file."""
    check_plan(plan)
    context, file, teacher = _with_student(plan, student, finetuned, "prune.heal", **at)
    return prune_stage(context, file, teacher, width_multiple).path


def quantize(plan: Plan, student: Path, finetuned: Path | None, target: Target, **at: Any) -> dict[str, Any]:
    """Make and score the int8 graphs of a student that fit a target, those of QAT too where it runs.

    Returns a row for each scheme.
    """
    check_plan(plan)
    schemes = schemes_for(target, plan.quantize)
    if plan.quantize.qat_when == "always" and not set(schemes) & set(STATIC_SCHEMES):
        raise InputError(
            f"--qat trains the scales of a static scheme, and there is none among {', '.join(schemes) or 'none'}",
            expected=f"one of {', '.join(STATIC_SCHEMES)}",
            fix="leave --scheme or --qat out",
        )
    context, file, teacher = _with_student(plan, student, finetuned, "quantize.qat", **at)
    graph = float_graphs(context, file)["explicit"]
    float_candidates = [Candidate(e, graph, "explicit", graph_digest(graph)) for e in target.engines]
    made = int8_candidates(context, file, schemes)
    reference = torch_predictions(context, "student", file, file.student)
    scores, _ = score_candidates(context, target, file.student, [*float_candidates, *made], reference)
    _, trained = qat_stage(context, target, file, teacher, [*float_candidates, *made], scores)
    scores |= score_candidates(context, target, file.student, trained, reference)[0]
    rows: dict[str, Any] = {}
    for c in (*made, *trained):
        scheme = c.graph.history[-1].plan["scheme"] + (QAT if c.is_qat else "")
        files = {f"{scheme}{Path(name).suffix}": data for name, data in c.graph.files.items()}
        for name, data in files.items():
            write_atomic(context.work.folder / name, data)
        rows[scheme] = {"files": sorted(files), "settings": c.graph.scheme, **msgspec.to_builtins(scores[c.name])}
    return rows


def _with_student(
    plan: Plan, student: Path, finetuned: Path | None, table: str, **at: Any
) -> tuple[StageContext, ModelFile, ModelFile | None]:
    """Return the context of a verb that trains a student on by one table of the plan, with the files of its models.

    What cannot work is refused.
    """
    file, tuned = ModelFile.of(student, plan), None if finetuned is None else ModelFile.of(finetuned, plan)
    teacher = check_finetuned(tuned, file.student.pixel) if tuned else None
    context = open_stage_context(plan, reads=file.student.vit.shape, **at)
    if teacher is not None:
        check_guided(context.inputs, table)
    for model in (file.student, teacher):
        if model is not None:
            check_labels(model, context.inputs)
    check_batches(plan, context.inputs, table)
    return context, file, tuned
