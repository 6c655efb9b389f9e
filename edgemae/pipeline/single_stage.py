"""Single arrows of the way, each on its own: what their verbs do before and around the cached stages of `flow`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgemae.distill.elastic import SIZES, sizes_of
from edgemae.distill.elastic import extract as take_out
from edgemae.distill.recipes import choose_recipe
from edgemae.distill.stages import student_pixel
from edgemae.evaluation.accuracy import score
from edgemae.model.student import Student, load_student
from edgemae.model.vit import count_macs, count_params
from edgemae.pipeline.candidate_graphs import (
    Candidate,
    engine_predictions,
    graphs,
    int8_candidates,
    torch_predictions,
)
from edgemae.pipeline.plan_rules import check_plan
from edgemae.pipeline.preflight import (
    blank_teacher,
    check_batches,
    check_elastic,
    check_guided,
    check_labels,
    check_recipe,
    read_finetuned,
)
from edgemae.pipeline.qat_stage import tail
from edgemae.pipeline.stage_files import graph_digest
from edgemae.pipeline.training_stages import (
    Flow,
    distilled,
    finetuned,
    log_import,
    open_flow,
    pretrained,
    pruned,
    read_teacher,
)
from edgemae.quantize.range_search import AWARE
from edgemae.quantize.schemes import STATIC_SCHEMES, candidates
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import InputError
from edgemae.spec.plan_schema import Plan
from edgemae.spec.report import StageScore
from edgemae.spec.target import Target


def pretrain(plan: Plan, start: Path | None, **at: Any) -> Path:
    """Pretrain an MAE, from scratch or onwards from `start`; return its file. `at`: output, overwrite, resume."""
    check_plan(plan)
    teacher = blank_teacher(plan) if start is None else read_teacher(start, plan)
    if start is not None:
        log_import(teacher)
    flow = open_flow(plan, together=True, labels=False, reads=teacher.vit.shape, **at)
    check_batches(plan, flow.inputs, "pretrain")
    return pretrained(flow, start)


def finetune(plan: Plan, teacher: Path, **at: Any) -> Path:
    """Train a teacher with a head on labels; return its file."""
    check_plan(plan)
    begin = read_teacher(teacher, plan)
    log_import(begin)
    flow = open_flow(plan, together=True, reads=begin.vit.shape, **at)
    check_batches(plan, flow.inputs, "finetune")
    return finetuned(flow, teacher)


def distill(plan: Plan, teacher: Path, finetuned_path: Path | None, **at: Any) -> Path:
    """Distill a student, guided by a fine-tuned teacher (made here when there are labels and none is given)."""
    check_plan(plan)
    begin = read_teacher(teacher, plan)
    finetuned_teacher = (
        read_finetuned(finetuned_path, plan, student_pixel(begin.pixel, plan)) if finetuned_path else None
    )
    check_recipe(plan, begin, finetuned_teacher)
    log_import(begin)
    flow = open_flow(plan, together=True, **at)
    check_elastic(plan, flow.inputs)
    if finetuned_teacher is not None:
        check_labels(finetuned_teacher, flow.inputs)
        if choose_recipe(plan.distill, begin, finetuned_teacher)[1] is not finetuned_teacher:
            check_guided(flow.inputs, "stage 2")
    has_head = begin.vit.head is not None and begin.labels == flow.inputs.classes
    labels = ["distill.finetune"] + ([] if finetuned_path or has_head else ["finetune"]) if flow.inputs.labelled else []
    check_batches(plan, flow.inputs, "distill", *labels)
    del begin, finetuned_teacher  # the stages read them again, and a large teacher is gigabytes
    if finetuned_path is None and flow.inputs.labelled is not None:
        finetuned_path = teacher if has_head else finetuned(flow, teacher)
    return distilled(flow, teacher, finetuned_path)


def extract(source: Path, wanted: dict[str, int | None], output: Path) -> dict[str, Any]:
    """Write one sub-network of an elastic student as a student file and say what it is; None: the full size."""
    student = load_student(source)
    full = dict(zip(SIZES, sizes_of(student.vit.shape), strict=True))
    sizes = full | {name: size for name, size in wanted.items() if size is not None}
    small = take_out(student, tuple(sizes.values()))
    small.save(output)
    return {"student": str(output), **sizes, "macs": count_macs(small.vit.shape), "params": count_params(small.vit)}


def prune(plan: Plan, student: Path, finetuned_path: Path | None, width_multiple: int, **at: Any) -> Path:
    """Prune a student and heal it; return its file."""
    check_plan(plan)
    flow = _with_student(plan, load_student(student), finetuned_path, "prune.heal", **at)
    return pruned(flow, student, finetuned_path, width_multiple)


def quantize(plan: Plan, student: Path, finetuned_path: Path | None, target: Target, **at: Any) -> dict[str, Any]:
    """Make and score the int8 graphs of a student that fit a target, those of the tail too where it runs.

    Returns a row for each scheme.
    """
    check_plan(plan)
    schemes = candidates(target, plan.quantize)
    if plan.quantize.aware_when == "always" and not set(schemes) & set(STATIC_SCHEMES):
        raise InputError(
            f"--aware trains the scales of a static scheme, and there is none among {', '.join(schemes) or 'none'}",
            expected=f"one of {', '.join(STATIC_SCHEMES)}",
            fix="leave --scheme or --aware out",
        )
    flow = _with_student(plan, load_student(student), finetuned_path, "quantize.aware", **at)
    float_graph = graphs(flow, student)["explicit"]
    floats = [Candidate(e, float_graph, "explicit", graph_digest(float_graph)) for e in target.engines]
    eights = int8_candidates(flow, student, schemes)
    scores = _scores(flow, target, student, [*floats, *eights])
    _, more = tail(flow, target, student, finetuned_path, [*floats, *eights], scores)
    scores |= _scores(flow, target, student, more)
    rows: dict[str, Any] = {}
    for c in (*eights, *more):
        scheme = c.graph.history[-1].plan["scheme"] + (AWARE if c.aware else "")
        files = {f"{scheme}{Path(name).suffix}": data for name, data in c.graph.files.items()}
        for name, data in files.items():
            write_atomic(flow.work.folder / name, data)
        rows[scheme] = {"files": sorted(files), "settings": c.graph.scheme, **msgspec.to_builtins(scores[c.name])}
    return rows


def _scores(flow: Flow, target: Target, path: Path, found: list[Candidate]) -> dict[str, StageScore]:
    """Return what candidates score through their engines, against a float student."""
    student = load_student(path)
    reference = torch_predictions(flow, "student", path, student.vit, student.pixel)
    return {
        c.name: score(
            c.graph.precision, engine_predictions(flow, c, target, student.pixel), reference,
            params=count_params(student.vit), macs=count_macs(student.vit.shape), size_bytes=c.graph.size_bytes,
            label_names=student.labels,
        )
        for c in found
    }  # fmt: skip


def _with_student(plan: Plan, student: Student, finetuned_path: Path | None, table: str, **at: Any) -> Flow:
    """Return the flow of a verb that trains a student on by one table of the plan; what cannot work is refused."""
    finetuned_teacher = read_finetuned(finetuned_path, plan, student.pixel) if finetuned_path else None
    flow = open_flow(plan, reads=student.vit.shape, **at)
    if finetuned_teacher is not None:
        check_guided(flow.inputs, table)
    for model in (student, finetuned_teacher):
        if model is not None:
            check_labels(model, flow.inputs)
    check_batches(plan, flow.inputs, table)
    return flow
