"""Unmasked relation distillation: query-key and value-value relations of all patches.

Source: TinyMIM (Ren et al., CVPR 2023), sections 3.2 and 3.3. As there, the projection that is compared has the
teacher's number of heads, and a deeper teacher is read at three quarters of its depth. Unlike there, that projection is
an extra one behind the student's last block, as in D2-MAE: TinyMIM's own last block gets no gradient but for its qkv.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.frozen_teacher import TeacherConfig, teacher_block
from edgemae.distill.recipe import Recipe
from edgemae.distill.recipes.relation import probe
from edgemae.model.teacher import Teacher
from edgemae.model.vit import LAYER_NORM_EPS, Attention, ViT
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import StepContext


class RelationFull(Recipe):
    """Train `student` to relate all patches as the teacher's chosen block does. No labels are used."""

    all_used = False  # the final norm comes after what is compared

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__(student, teacher, pixel, plan)
        if student.shape.patches < 2:
            raise PlanError(
                f"the student's images of {student.shape.image_px} px are a single patch",
                expected="2 or more: one patch alone has no relation that could be learnt",
                fix="make patches smaller, with --set student.patch_px=...",
            )
        width, heads = student.shape.width, self.view.vit.shape.heads[-1]
        if width < heads:
            raise PlanError(
                f"the teacher's block has {heads} heads, the student is only {width} wide",
                expected="at least one value a head",
                fix=f"set student.width to {heads} or more, or use --set distill.recipe=relation",
            )
        self.probe_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.probe = probe(width, heads, width // heads)

    def teacher_config(self, student: ViT, teacher: Teacher) -> TeacherConfig:
        blocks = teacher_block(self.plan.teacher_block, teacher.vit.shape.depth, student.shape.depth)
        return TeacherConfig(student.shape.grid, blocks)

    def teacher_targets(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        teacher, last = self.view.vit, self.view.vit.blocks[-1]
        # What goes into the teacher's block is kept, being smaller than the relations that come out of it.
        tokens = self.cached("before", batch, lambda pixels: self.view.tokens(pixels, blocks=-1))
        x = last.norm1(tokens.to(last.norm1.weight.dtype))
        query_key, value = relations(last.attn, x, int(teacher.shape.cls_token))
        return {"query_key": query_key.float().log_softmax(-1), "value": value.float().log_softmax(-1)}

    def forward(self, batch: Batch, targets: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        x = self.student.encode(batch.pixels, drop=drop)
        query_key, value = relations(self.probe, self.probe_norm(x), int(self.student.shape.cls_token))
        return {
            "query_key": self.plan.query_key_weight * divergence(query_key, targets["query_key"]),
            "value": self.plan.value_weight * divergence(value, targets["value"]),
        }


def relations(attention: Attention, x: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """Return scaled query-key and value-value products (B, heads, N, N) among patches, the first `skip` left out."""
    q, k, v = (part[:, :, skip:] for part in attention.split(x))
    return (q * attention.scale) @ k.transpose(-2, -1), (v * attention.scale) @ v.transpose(-2, -1)


def divergence(mine: Tensor, wanted: Tensor) -> Tensor:
    """Return KL(wanted || softmax(mine)), the mean over images, heads and patches.

    `mine` are logits (B, H, N, N), `wanted` log-probabilities.

    Each image counts in units of what its teacher says at all, KL from the even distribution: as in `relation`, an
    ignorant student loses 1 by each term, whatever the teacher.
    """
    missed = F.kl_div(mine.float().log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)
    information = (wanted.exp() * wanted).sum(-1) + math.log(wanted.shape[-1])
    floor = 1e-4  # rounding leaves it 1e-6 off
    return (missed.mean(dim=(1, 2)) / information.mean(dim=(1, 2)).clamp(min=floor)).mean()
