"""Figures of a report: what an MAE sees and makes of it, and how far scores can be trusted."""

from __future__ import annotations

import torch

from edgemae.data.image_set import ImageSet, sample
from edgemae.data.loader import Loader
from edgemae.evaluation.accuracy import Predictions
from edgemae.evaluation.report.plots import image_grid, reliability
from edgemae.model.mae import MASKS, make_keep
from edgemae.model.teacher import Teacher
from edgemae.pipeline.stage_files import ModelFile
from edgemae.pipeline.training_stages import StageContext
from edgemae.spec.plan_schema import Plan

SHOWN = 6


def reconstructions(teacher: Teacher, images: ImageSet, plan: Plan) -> bytes:
    """Return a PNG with rows of original, masked and reconstructed evaluation images."""
    assert teacher.mae is not None
    chosen = sample(images, SHOWN, plan.seed)
    batch = next(iter(Loader(chosen, teacher.pixel, len(chosen), train=False).epoch()))
    generator = torch.Generator().manual_seed(plan.seed)
    pattern = plan.pretrain.mask if plan.pretrain.mask in MASKS else "random"  # not a schedule, nor attention
    keep = make_keep(len(chosen), teacher.vit.shape.grid, plan.pretrain.mask_ratio, pattern, generator)
    masked, rebuilt = teacher.mae.reconstruct(batch.pixels, keep)
    original = (batch.pixels * teacher.mae.std + teacher.mae.mean).clamp(0, 1)
    rows = [tuple(x[i].permute(1, 2, 0).numpy() for x in (original, masked, rebuilt)) for i in range(len(chosen))]
    return image_grid(rows)  # type: ignore[arg-type]


def report_figures(
    context: StageContext, source: ModelFile | None, predictions: dict[str, Predictions]
) -> list[tuple[str, bytes]]:
    """Return reconstructions by the teacher's decoder and reliability diagrams, where there is what they need."""
    shown: list[tuple[str, bytes]] = []
    if source is not None:
        teacher = source.teacher
        if teacher.mae is not None:
            shown.append(
                ("Original, masked, reconstructed", reconstructions(teacher, context.inputs.evaluation, context.plan))
            )
    panels = [
        (name, found.logits, found.labels)
        for name, found in predictions.items()
        if found.logits is not None and found.labels is not None and (name in ("student", "pruned") or "int8" in name)
    ]
    if panels:
        shown.append(("Reliability before and after", reliability(panels[:4])))
    return shown
