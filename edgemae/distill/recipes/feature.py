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
from edgemae.distill.moment import Moment
from edgemae.distill.recipe import Recipe
from edgemae.distill.view import Depth, teacher_block
from edgemae.model.teacher import Teacher
from edgemae.model.vit import LAYER_NORM_EPS, ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.sections import DistillPlan


class Feature(Recipe):
    """Train `student` to give the teacher's embedding and patch tokens through a LayerNorm and a Linear each."""

    from_tuned = True

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__(student, teacher, pixel, plan)
        width, wanted = student.shape.width, teacher.vit.shape.width
        self.pooled = nn.Linear(width, wanted)  # behind the student's own final norm
        self.patch = nn.Sequential(nn.LayerNorm(width, eps=LAYER_NORM_EPS), nn.Linear(width, wanted))

    def depth(self, student: ViT, teacher: Teacher) -> Depth:
        depth = teacher.vit.shape.depth
        return Depth(blocks=teacher_block(self.plan.teacher_block or depth, depth, student.shape.depth))

    def see(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        teacher = self.view.vit
        tokens = self.recall("tokens", batch, self.view.tokens).to(teacher.norm.weight.dtype)
        patches = resample(tokens[:, int(teacher.shape.cls_token) :], self.student.shape.grid)
        return {"pooled": teacher.pool(tokens), "patch": patches}

    def forward(self, batch: Batch, seen: dict[str, Tensor], moment: Moment) -> dict[str, Tensor]:
        shape = self.student.shape
        x = self.student.encode(batch.pixels, drop=moment.drop_path(shape.depth, self.plan.drop_path))
        return {
            "pooled": self.plan.pooled_weight * near(self.pooled(self.student.pool(x)), seen["pooled"]),
            "patch": self.plan.patch_weight * near(self.patch(x[:, int(shape.cls_token) :]), seen["patch"]),
        }


def near(mine: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error to a target whose last dimension is normalised to mean 0 and variance 1."""
    return F.mse_loss(mine.float(), F.layer_norm(wanted.float(), wanted.shape[-1:]))


def resample(tokens: Tensor, grid: int) -> Tensor:
    """Return patch tokens (B, N, D) of one square grid on another (B, grid^2, D), averaged where that is coarser."""
    old = round(tokens.shape[1] ** 0.5)
    if old == grid:
        return tokens
    square = tokens.transpose(1, 2).unflatten(2, (old, old))
    square = F.interpolate(square.float(), size=(grid, grid), mode="bilinear", antialias=True, align_corners=False)
    return square.flatten(2).transpose(1, 2)
