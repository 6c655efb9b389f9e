"""What pruning scores heads and MLP units by: the loss whose gradient tells what matters, and the images for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from edgemae.data.augment import Augment
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Loader
from edgemae.distill.frozen_teacher import FrozenTeacher
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.plan_schema import Plan
from edgemae.train.losses import distillation


def pruning_loss(student: Student, teacher: Teacher | None) -> Callable[[ViT, Tensor, Tensor | None], Tensor]:
    """Return `loss(vit, pixels, labels)`: labels and teacher logits, or one direction of the embedding.

    Without labels what moves the embedding along one fixed random direction is kept. Its size would say nothing: the
    final LayerNorm holds it nearly constant. A teacher without a head is left out.
    """
    frozen = FrozenTeacher(teacher, student.pixel) if teacher is not None and teacher.vit.head is not None else None
    direction = torch.randn(student.vit.shape.width, generator=torch.Generator().manual_seed(0))

    def loss(vit: ViT, pixels: Tensor, labels: Tensor | None) -> Tensor:
        logits, embedding = vit(pixels)
        if labels is None or logits is None:
            return (embedding * direction).mean()
        value = F.cross_entropy(logits, labels)
        return value if frozen is None else value + distillation(logits, frozen.logits(pixels), 1.0)

    return loss


def pruning_batches(images: ImageSet, student: Student, plan: Plan) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield `plan.prune.score_batches` batches of (pixels, labels or None), not augmented."""
    loader = Loader(images, student.pixel, min(64, len(images)), Augment(), plan.seed, plan.workers)
    for number, batch in enumerate(loader.epoch()):
        if number == plan.prune.score_batches:
            return
        yield batch.pixels, batch.labels if images.labels is not None else None
