"""Feature distillation: the teacher's pooled embedding and its patch tokens, for students that give embeddings.

Source: the token-level terms of Proteus (Zhang et al., ICLR 2025) without its masked one. Any teacher will do; the raw
features of an MAE are hardly separable by a line (He et al. 2022: 68 % linear probe against 84 % fine-tuned), so the
fine-tuned teacher is taken where there is one. Targets are normalised token by token, so that neither the loss nor the
share of a token in it depends on the scale of a teacher's last block.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.frozen_teacher import TeacherConfig, teacher_block
from edgemae.distill.recipe import Recipe
from edgemae.model.teacher import Teacher
from edgemae.model.vit import LAYER_NORM_EPS, ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import StepContext


class Feature(Recipe):
    """Train `student` to give the teacher's embedding and patch tokens through a LayerNorm and a Linear each."""

    from_finetuned = True

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__(student, teacher, pixel, plan)
        width, wanted = student.shape.width, teacher.vit.shape.width
        self.pooled = nn.Linear(width, wanted)  # behind the student's own final norm
        self.patch = nn.Sequential(nn.LayerNorm(width, eps=LAYER_NORM_EPS), nn.Linear(width, wanted))

    def teacher_config(self, student: ViT, teacher: Teacher) -> TeacherConfig:
        depth = teacher.vit.shape.depth
        return TeacherConfig(blocks=teacher_block(self.plan.teacher_block or depth, depth, student.shape.depth))

    def teacher_targets(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        teacher = self.view.vit
        tokens = self.cached("tokens", batch, self.view.tokens).to(teacher.norm.weight.dtype)
        patches = resample(tokens[:, int(teacher.shape.cls_token) :], self.student.shape.grid)
        return {"pooled": normalised(teacher.pool(tokens)), "patch": normalised(patches)}

    def forward(self, batch: Batch, targets: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        x = self.student.encode(batch.pixels, drop=drop)
        patches = x[:, int(self.student.shape.cls_token) :]
        pooled = F.mse_loss(self.pooled(self.student.pool(x)).float(), targets["pooled"])
        patch = F.mse_loss(self.patch(patches).float(), targets["patch"])
        return {"pooled": self.plan.pooled_weight * pooled, "patch": self.plan.patch_weight * patch}


def normalised(tokens: Tensor) -> Tensor:
    """Return tokens (..., D) with a mean of 0 and a variance of 1 over their values."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


def resample(tokens: Tensor, grid: int) -> Tensor:
    """Return patch tokens (B, N, D) of one square grid on another (B, grid^2, D), averaged where that is coarser."""
    old = round(tokens.shape[1] ** 0.5)
    if old == grid:
        return tokens
    square = tokens.transpose(1, 2).unflatten(2, (old, old))
    square = F.interpolate(square.float(), size=(grid, grid), mode="bilinear", antialias=True, align_corners=False)
    return square.flatten(2).transpose(1, 2)
