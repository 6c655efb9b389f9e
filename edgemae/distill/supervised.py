"""Supervised training: fine-tuning a teacher, stage 2 of distillation, and healing after pruning are the same job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgemae.data.augment import Augment
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.distill.frozen_teacher import FrozenTeacher
from edgemae.distill.teacher_cache import kept_views
from edgemae.model.vit import ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import FinetunePlan, ScalePlan
from edgemae.train.distributed import ProcessGroup
from edgemae.train.job import Curve, Job
from edgemae.train.loop import fit
from edgemae.train.losses import distillation, mix, smooth_targets, soft_cross_entropy
from edgemae.train.schedule import layer_decay_groups
from edgemae.train.step_context import StepContext

log = logging.getLogger("edgemae")


@dataclass(frozen=True)
class Run:
    """State where a training reads from and writes to."""

    images: ImageSet
    pixel: PixelContract
    seed: int = 0
    workers: int = 0
    scale: ScalePlan = ScalePlan()
    checkpoint: Path | None = None
    evaluation: ImageSet | None = None  # scored for the curve only; nothing is chosen by it
    views_root: Path | None = None  # where teacher outputs of fixed views are kept
    checkpoint_identity: dict[str, Any] = field(default_factory=dict)  # what else its checkpoint must agree with


DRAWN, SMALLEST = "drawn", "smallest"  # what the terms of an elastic student's sub-networks begin with
AGREEMENT = "in-place"  # the term for how far they are from the largest: small where they agree
Learn = Callable[[Tensor], dict[str, Tensor]]  # logits -> what they cost
Inner = Callable[[Tensor, Tensor, Learn, StepContext], dict[str, Tensor]]


def train_classifier(
    vit: ViT, plan: FinetunePlan, run: Run, teacher: FrozenTeacher | None, name: str, inner: Inner | None = None
) -> Curve:
    """Train `vit` in place on labels, half of the loss being the teacher's logits when there is one.

    `inner(pixels, logits, learn, context)` adds the terms of sub-networks, which may `learn` the same and from `vit`.
    """
    loader = Loader(
        run.images, run.pixel, fitting(plan.batch, run.images, run.scale),
        Augment(crop_min=plan.crop_min, flip=plan.flip, randaug=plan.randaug), run.seed, run.workers,
        views=plan.views if teacher is not None else 0,  # nothing to keep
    )  # fmt: skip

    def taught(batch: Batch, mixed: Tensor) -> Tensor:
        assert teacher is not None
        return teacher.logits(mixed) if cache is None else cache.cached("logits", batch, teacher.logits)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        target = smooth_targets(batch.labels, vit.shape.classes, plan.label_smoothing)
        pixels, target = mix(batch.pixels, target, plan.mixup, plan.cutmix, context)
        keep = None
        if plan.token_keep < 1.0 and context.flip() < 0.5:
            keep = context.keep(vit.shape.grid, 1 - plan.token_keep, "random")
        logits, _ = vit(pixels, keep, context.drop_path(vit.shape.depth, plan.drop_path))
        teacher_logits = None if teacher is None else taught(batch, pixels)

        def learn(logits: Tensor) -> dict[str, Tensor]:
            if teacher_logits is None:
                return {"label": soft_cross_entropy(logits, target)}
            share, terms = plan.teacher_weight, dict[str, Tensor]()
            if share < 1:
                terms["label"] = (1 - share) * soft_cross_entropy(logits, target)
            if share > 0:
                terms["teacher"] = share * distillation(logits, teacher_logits, plan.teacher_temperature)
            return terms

        return learn(logits) if inner is None else learn(logits) | inner(pixels, logits.detach(), learn, context)

    job = Job(
        name=name, module=vit, groups=layer_decay_groups(vit, plan.weight_decay, plan.layer_decay), loss=loss,
        loader=loader, epochs=plan.epochs, lr=plan.lr, warmup_fraction=plan.warmup_fraction, seed=run.seed,
        bf16=plan.bf16, betas=(0.9, 0.999), ema=plan.ema, scale=run.scale, checkpoint=run.checkpoint,
        validate=(lambda: top1(vit, run)) if run.evaluation is not None else None,
        off=(AGREEMENT, DRAWN, SMALLEST), checkpoint_identity=run.checkpoint_identity,
    )  # fmt: skip
    with kept_views(run.views_root, teacher, loader) as cache:
        return fit(job)


def fitting(batch: int, images: ImageSet, scale: ScalePlan) -> int:
    """Return the plan's batch, or about all images where they are fewer, which is logged."""
    processes = ProcessGroup()
    found = processes.fitting(batch, len(images), scale.accumulate)
    if found != batch and processes.first:
        log.warning("a batch of %d is more than the %d images: %d of them make one, and the rate goes by its size",
                    batch, len(images), found)  # fmt: skip
    return found


@torch.inference_mode()
def top1(vit: ViT, run: Run) -> float:
    """Return accuracy on `run.evaluation`, 0..1."""
    assert run.evaluation is not None
    vit.eval()
    right, device = 0, next(vit.parameters()).device
    for batch in Loader(run.evaluation, run.pixel, 64, workers=run.workers, train=False).epoch():
        logits, _ = vit(batch.pixels.to(device))
        right += int((logits.argmax(-1).cpu() == batch.labels).sum())
    return right / len(run.evaluation)
