"""Masked attention-relation distillation: how visible patches attend to each other, plus MAE's own pixel loss.

Source: MAE-Lite and D2-MAE (Wang et al., ICML 2023 and IJCV 2025). The student's attention logits come from a
throw-away extra qk projection behind its last block, so that every block that ships is trained by the teacher; a
one-block decoder reads at two thirds of the depth, so that pixels train the lower blocks. A bias-free 1x1 convolution
maps heads to heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgemae.data.loader import Batch
from edgemae.distill.moment import Moment
from edgemae.distill.view import TeacherView
from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.teacher import Teacher
from edgemae.model.vit import LAYER_NORM_EPS, Attention, ViT
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract
from edgemae.spec.sections import DistillPlan


class Relation(nn.Module):
    """Train `student` to relate visible patches as the teacher's chosen block does. No labels are used."""

    needs_head = False
    all_used = False  # the final norm comes after what is compared

    def __init__(self, student: ViT, teacher: Teacher, pixel: PixelContract, plan: DistillPlan) -> None:
        super().__init__()
        shape = student.shape
        self.student, self.plan = student, plan
        self.view = [TeacherView(teacher, pixel, shape.grid)]  # in a list: not a part of what is trained or saved
        self.block = plan.teacher_block or _default_block(teacher.vit.shape.depth, shape.depth)
        if not 1 <= self.block <= teacher.vit.shape.depth:
            raise PlanError(
                f"distill.teacher_block is {self.block}, the teacher has {teacher.vit.shape.depth} blocks",
                expected=f"1 to {teacher.vit.shape.depth}, or 0 for the default",
                fix="pass --set distill.teacher_block=0",
            )
        self.read_at = max(1, round(shape.depth * 2 / 3))
        self.read_norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        decoder = DecoderShape(plan.decoder_width, 1, plan.decoder_heads)
        self.mae = [MAE(student, decoder, loss_kind="norm-pixel", mean=pixel.mean, std=pixel.std)]
        self.decoder = self.mae[0].decoder
        self.probe_norm = nn.LayerNorm(shape.width, eps=LAYER_NORM_EPS)
        self.probe = Attention(shape.width, shape.heads[-1], shape.head_dim)
        self.probe.proj.requires_grad_(False)  # only its queries and keys are used
        self.probe.softmaxed = False
        self.adapter = nn.Conv2d(shape.heads[-1], teacher.vit.shape.heads[self.block - 1], 1, bias=False)

    def student_taps(self, pixels: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """Return predicted hidden patches (B, N - K, P*P*C) and adapted relations (B, teacher heads, K, K)."""
        x = self.student.encode(pixels, keep, blocks=self.read_at)
        predicted = self.decoder(self.read_norm(x), keep, hidden_only=True)
        for block in self.student.blocks[self.read_at :]:
            x = block(x)
        skip = int(self.student.shape.cls_token)
        relations = self.probe.logits(self.probe_norm(x))[:, :, skip:, skip:]
        return {"predicted": predicted, "relations": self.adapter(relations)}

    def teacher_taps(self, pixels: Tensor, keep: Tensor) -> dict[str, Tensor]:
        """Return the teacher's relations (B, teacher heads, K, K) on the same visible patches."""
        return {"relations": self.view[0].relations(pixels, keep, self.block)}

    def loss(
        self, student: dict[str, Tensor], teacher: dict[str, Tensor], pixels: Tensor, keep: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted terms: normalised pixels on hidden patches, squared error of attention logits."""
        relation = (student["relations"].float() - teacher["relations"].float()).square().mean()
        return {
            "pixel": self.plan.pixel_weight * self.mae[0].patch_loss(student["predicted"], pixels, keep),
            "relation": self.plan.relation_weight * relation,
        }

    def step(self, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        keep = moment.keep(self.student.shape.grid, self.plan.mask_ratio, self.plan.mask)
        taps = self.student_taps(batch.pixels, keep), self.teacher_taps(batch.pixels, keep)
        return self.loss(*taps, batch.pixels, keep)


def _default_block(teacher_depth: int, student_depth: int) -> int:
    """Return the last block for equal depth, else three quarters of a deeper teacher.

    Source: TinyMIM (Ren et al. 2023), table 6.
    """
    return teacher_depth if teacher_depth <= student_depth else max(1, round(0.75 * teacher_depth))
