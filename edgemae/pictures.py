"""Pictures of what an MAE sees and what it makes of it."""

from __future__ import annotations

import torch

from edgemae.data.images import ImageSet, sample
from edgemae.data.loader import Loader
from edgemae.measure.plots import picture_grid
from edgemae.model.mae import make_keep
from edgemae.model.teacher import Teacher
from edgemae.spec.sections import Plan

SHOWN = 6


def reconstructions(teacher: Teacher, images: ImageSet, plan: Plan) -> bytes:
    """Return a PNG with rows of original, masked and reconstructed evaluation images."""
    assert teacher.mae is not None
    chosen = sample(images, SHOWN, plan.seed)
    batch = next(iter(Loader(chosen, teacher.pixel, len(chosen), train=False).epoch()))
    generator = torch.Generator().manual_seed(plan.seed)
    keep = make_keep(len(chosen), teacher.vit.shape.grid, plan.pretrain.mask_ratio, plan.pretrain.mask, generator)
    masked, made = teacher.mae.reconstruct(batch.pixels, keep)
    original = (batch.pixels * teacher.mae.std + teacher.mae.mean).clamp(0, 1)
    rows = [tuple(x[i].permute(1, 2, 0).numpy() for x in (original, masked, made)) for i in range(len(chosen))]
    return picture_grid(rows)  # type: ignore[arg-type]
