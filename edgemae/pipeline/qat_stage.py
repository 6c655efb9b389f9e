"""Quantization-aware training (QAT) in a compile, for a student whose int8 graphs lose accuracy.

The trained weights are for int8 only. Float graphs stay those of the student before it, so that the report compares
int8 with what it replaces.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edgemae.distill.qat import train_quantized
from edgemae.pipeline.candidate_graphs import Candidate, calibration_of, float_graphs, int8_candidates
from edgemae.pipeline.selection import int8_loses_accuracy
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import STUDENT, StageContext
from edgemae.quantize.range_search import starting_scales
from edgemae.quantize.schemes import STATIC_SCHEMES, schemes_for
from edgemae.spec.plan_loading import plan_tree
from edgemae.spec.report import StageScore
from edgemae.spec.target import Target

log = logging.getLogger("edgemae")


def qat_stage(
    context: StageContext, target: Target, source: ModelFile, finetuned: ModelFile | None, candidates: list[Candidate],
    scores: Mapping[str, StageScore],
) -> tuple[ModelFile | None, list[Candidate]]:  # fmt: skip
    """Return the student after QAT and its int8 candidates; (None, []) when QAT does not run.

    It runs when no int8 candidate is within the accuracy limit, or always if the plan says so, for the scales of the
    target's first static scheme. A student that has scales already is left alone.
    """
    plan, schemes = context.plan.quantize, schemes_for(target, context.plan.quantize)
    kinds = [STATIC_SCHEMES[name] for name in schemes if name in STATIC_SCHEMES]
    lossy = int8_loses_accuracy(candidates, scores)
    runs = kinds and plan.qat.epochs and (lossy or plan.qat_when == "always")
    if not runs or source.student.scales is not None:
        return None, []
    symmetric = kinds[0]
    log.info("quantization-aware training: %s", "int8 without it loses accuracy" if lossy else "asked for")
    trained = _train(context, source, finetuned, symmetric)
    fitting = tuple(name for name in schemes if STATIC_SCHEMES.get(name) is symmetric)
    return trained, int8_candidates(context, trained, fitting)


def _train(context: StageContext, source: ModelFile, finetuned: ModelFile | None, symmetric: bool) -> ModelFile:
    """Train a student on with rounded linears, as one cached stage."""
    plan, inputs = context.plan, context.inputs

    def make(folder: Path) -> None:
        student = source.student
        calibration = calibration_of(inputs.calibration, student.pixel, plan.workers)
        graph = float_graphs(context, source)["explicit"]
        start, divisors = starting_scales(graph, calibration, plan.quantize, symmetric)
        teacher = finetuned.teacher if finetuned else None
        trained, curve = train_quantized(student, start, divisors, plan, context.images, teacher, folder / "train.ckpt")
        context.keep(folder / STUDENT, trained, {"qat": curve})

    settings = {name: plan_tree(plan.quantize)[name] for name in ("qat", "smooth_alphas", "percentile")}
    key = {"heads": plan.teacher_heads, "quantize": settings, "from": source.digest, "symmetric": symmetric,
           "finetuned": finetuned.digest if finetuned else "",
           "calibration": inputs.calibration.fingerprint}  # fmt: skip
    return context.model_stage("qat", context.key_with_labels(**key), make, STUDENT)


def ptq_row(candidates: list[Candidate], scores: Mapping[str, StageScore]) -> StageScore:
    """Return the stage row of the best int8 candidate of post-training quantization (PTQ)."""
    rows = [scores[c.name] for c in candidates if c.graph.precision == "int8" and not c.is_qat]
    best = max(rows, key=lambda row: (row.top1 or 0.0, row.cosine or 0.0))
    return msgspec.structs.replace(best, stage="int8 (PTQ)")
