"""Masked attention-relation distillation: how visible patches attend to each other, plus MAE's own pixel loss.

Source: MAE-Lite and D2-MAE (Wang et al., ICML 2023 and IJCV 2025). The student's attention logits come from a
throw-away extra qk projection behind its last block, so that every block that ships is trained by the teacher; a
one-block decoder reads at two thirds of the depth, so that pixels train the lower blocks. A bias-free 1x1 convolution
maps heads to heads. The teacher sees the visible patches only.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.frozen_teacher import TeacherConfig, teacher_block
from edgemae.distill.masking import masking
from edgemae.distill.recipe import Recipe
from edgemae.model.mae import Decoder, DecoderShape, patch_loss
from edgemae.model.teacher import Teacher
from edgemae.model.vit import LAYER_NORM_EPS, Attention, ViT
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import DistillPlan
from edgemae.train.step_context import StepContext


class Relation(Recipe):
    """Train `student` to relate visible patches as the teacher's chosen block does. No labels are used."""

    all_used = False  # the final norm comes after what is compared
    whole_views = False

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__(student, teacher, pixel, plan)
        shape = student.shape
        self.masking = masking(plan, "distill", shape.patches, least=2)
        self.read_norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        decoder = DecoderShape(plan.decoder_width, 1, plan.decoder_heads)
        self.decoder = Decoder(decoder, shape.width, shape.grid, shape.patch_px**2 * shape.channels, shape.cls_token)
        self.probe_norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.probe = probe(shape.width, shape.heads[-1], shape.head_dim)
        self.adapter = nn.Conv2d(shape.heads[-1], self.view.vit.shape.heads[-1], 1, bias=False)

    def teacher_config(self, student: ViT, teacher: Teacher) -> TeacherConfig:
        blocks = teacher_block(self.plan.teacher_block, teacher.vit.shape.depth, student.shape.depth)
        return TeacherConfig(student.shape.grid, blocks)

    def student_taps(self, pixels: Tensor, keep: Tensor, drop: Tensor | None = None) -> dict[str, Tensor]:
        """Return predicted hidden patches (B, N - K, P*P*C) and adapted relations (B, teacher heads, K, K)."""
        read_at = max(1, round(self.student.shape.depth * 2 / 3))
        x = self.student.encode(pixels, keep, read_at, drop)
        predicted = self.decoder(self.read_norm(x), keep, hidden_only=True)
        for i, block in enumerate(self.student.blocks[read_at:], read_at):
            x = block(x, None if drop is None else drop[:, i])
        skip = int(self.student.shape.cls_token)
        relations = self.probe.logits(self.probe_norm(x))[:, :, skip:, skip:]
        return {"predicted": predicted, "relations": self.adapter(relations)}

    def teacher_targets(self, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        keep = self.masking.keep(batch.pixels, self.student.shape.grid, context, self.view.received)
        return {"keep": keep, "relations": self.view.relations(batch.pixels, keep)}

    def forward(self, batch: Batch, targets: dict[str, Tensor], drop: Tensor | None = None) -> dict[str, Tensor]:
        return self.loss(self.student_taps(batch.pixels, targets["keep"], drop), targets, batch.pixels)

    def loss(self, student: dict[str, Tensor], targets: dict[str, Tensor], pixels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms: normalised pixels on hidden patches, squared error of attention logits.

        Logits are centred row by row, because a softmax does not see what is the same for a whole row, and measured in
        units of the teacher's own spread: an ignorant student loses 1, whatever the teacher, where raw logits begin
        with 4 or whatever a teacher's scale is.
        """
        mine, wanted = (centred(side["relations"]) for side in (student, targets))
        spread = wanted.square().mean(dim=(2, 3), keepdim=True)
        patch_px = self.student.shape.patch_px
        relation = ((mine - wanted).square() / (spread + 1e-6)).mean()
        return {
            "pixel": self.plan.pixel_weight * patch_loss(student["predicted"], pixels, targets["keep"], patch_px),
            "relation": self.plan.relation_weight * relation,
        }


def centred(logits: Tensor) -> Tensor:
    """Return logits (..., N) with the mean of every row taken off."""
    logits = logits.float()
    return logits - logits.mean(dim=-1, keepdim=True)


def probe(width: int, heads: int, head_dim: int) -> Attention:
    """Return a throw-away attention of which only queries, keys and values are used."""
    attention = Attention(width, heads, head_dim)
    attention.proj.requires_grad_(False)
    attention.softmaxed = False
    return attention
