"""What a frozen teacher sees: the student's own batch, brought to the teacher's resolution and normalisation."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, resample_position
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract


class TeacherView(nn.Module):
    """Run a frozen teacher on a student's pixels.

    `grid` re-grids it to the token grid of the student, None keeps its own.
    Raises PlanError when the two disagree about channels or colour order.
    """

    mean: Tensor
    std: Tensor
    own_mean: Tensor
    own_std: Tensor

    def __init__(self, teacher: Teacher, pixel: PixelContract, grid: int | None = None) -> None:
        super().__init__()
        if (teacher.pixel.channels, teacher.pixel.color) != (pixel.channels, pixel.color):
            raise PlanError(
                f"the teacher reads {teacher.pixel.channels} channels ({teacher.pixel.color}), "
                f"the student {pixel.channels} ({pixel.color})",
                expected="the same channels and colour order",
                fix=f"set student.channels={teacher.pixel.channels}",
            )
        self.vit = _frozen_at(teacher.vit, grid or teacher.vit.shape.grid)
        for name, values in (
            ("mean", pixel.mean), ("std", pixel.std), ("own_mean", teacher.pixel.mean), ("own_std", teacher.pixel.std),
        ):  # fmt: skip
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def pixels(self, pixels: Tensor) -> Tensor:
        """Return the batch at the teacher's resolution, normalised its way."""
        size = self.vit.shape.image_px
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        if not (torch.equal(self.mean, self.own_mean) and torch.equal(self.std, self.own_std)):
            pixels = ((pixels * self.std + self.mean) - self.own_mean) / self.own_std
        return pixels

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        logits, _ = self.vit(self.pixels(pixels))
        assert logits is not None
        return logits

    @torch.no_grad()
    def relations(self, pixels: Tensor, keep: Tensor, block: int) -> Tensor:
        """Return attention logits (B, heads, K, K) of block number `block` (from 1) among visible patches only.

        The teacher runs no deeper than it must: `block - 1` blocks and one qkv projection.
        """
        x = self.vit.encode(self.pixels(pixels), keep, blocks=block - 1)
        last = self.vit.blocks[block - 1]
        skip = int(self.vit.shape.cls_token)
        return last.attn.logits(last.norm1(x))[:, :, skip:, skip:]


def _frozen_at(vit: ViT, grid: int) -> ViT:
    shape = replace(vit.shape, image_px=grid * vit.shape.patch_px)
    copy = ViT(shape)
    state = dict(vit.state_dict())
    state["pos"] = resample_position(state["pos"], grid, shape.cls_token) if shape.learned_pos else copy.pos.data
    copy.load_state_dict(state)
    return copy.eval().requires_grad_(False)
