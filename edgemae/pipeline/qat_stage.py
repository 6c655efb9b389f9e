"""The quantization-aware tail of a compile: when plain int8 hurts a student, it is trained on for the integers.

Its weights are for int8 only. Float graphs stay those of the student before the tail, so that the report compares int8
with what it replaces.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgemae.distill.qat import train_aware
from edgemae.model.student import load_student
from edgemae.pipeline.candidate_graphs import Candidate, calibration_of, graphs, int8_candidates
from edgemae.pipeline.selection import is_hurt
from edgemae.pipeline.stage_cache import file_digest
from edgemae.pipeline.training_stages import STUDENT, Flow, read_teacher
from edgemae.quantize.range_search import starting_scales
from edgemae.quantize.schemes import STATIC_SCHEMES, candidates
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.report import StageScore
from edgemae.spec.target import Target

log = logging.getLogger("edgemae")


def tail(
    flow: Flow, target: Target, student: Path, finetuned_path: Path | None, found: list[Candidate],
    scores: Mapping[str, StageScore],
) -> tuple[Path | None, list[Candidate]]:  # fmt: skip
    """Return the student after the tail and its int8 candidates; (None, []) when the tail does not run.

    It runs when no int8 candidate is right, or always if the plan says so, for the scales of the target's first static
    scheme. A student that has scales already is left alone.
    """
    kinds = [STATIC_SCHEMES[name] for name in _schemes(flow, target) if name in STATIC_SCHEMES]
    wanted = flow.plan.quantize.aware_when == "always" or is_hurt(found, scores)
    if not kinds or not wanted or flow.plan.quantize.aware.epochs == 0 or load_student(student).scales is not None:
        return None, []
    symmetric = kinds[0]
    log.info(
        "quantization-aware tail: %s", "int8 without it is not right enough" if is_hurt(found, scores) else "asked for"
    )
    trained = aware(flow, student, finetuned_path, symmetric)
    fitting = tuple(name for name in _schemes(flow, target) if STATIC_SCHEMES.get(name) is symmetric)
    return trained, int8_candidates(flow, trained, fitting)


def aware(flow: Flow, source: Path, finetuned_path: Path | None, symmetric: bool) -> Path:
    """Train a student on with rounded linears, as one cached stage; return its file."""
    plan, inputs = flow.plan, flow.inputs

    def make(folder: Path) -> None:
        student = load_student(source)
        calibration = calibration_of(inputs.calibration, student.pixel, plan.workers)
        start, divisors = starting_scales(graphs(flow, source)["explicit"], calibration, plan.quantize, symmetric)
        teacher = read_teacher(finetuned_path, plan) if finetuned_path else None
        trained, curve = train_aware(student, start, divisors, plan, flow.images, teacher, folder / "train.ckpt")
        flow.keep(folder / STUDENT, trained, {"aware": curve})

    settings = {name: plan_tree(plan.quantize)[name] for name in ("aware", "smooth_alphas", "percentile")}
    key = {"heads": plan.teacher_heads, "quantize": settings, "from": file_digest(source), "symmetric": symmetric,
           "guide": file_digest(finetuned_path) if finetuned_path else "",
           "calibration": inputs.calibration.fingerprint}  # fmt: skip
    return flow.work.run("aware", flow.key_with_labels(**key), make) / STUDENT


def before_tail(found: list[Candidate], scores: Mapping[str, StageScore]) -> StageScore:
    """Return the stage row of the best int8 candidate that was not trained for its integers."""
    rows = [scores[c.name] for c in found if c.graph.precision == "int8" and not c.aware]
    best = max(rows, key=lambda row: (row.top1 or 0.0, row.cosine or 0.0))
    return msgspec.structs.replace(best, stage="int8 before the tail")


def _schemes(flow: Flow, target: Target) -> tuple[str, ...]:
    return candidates(target, flow.plan.quantize)
