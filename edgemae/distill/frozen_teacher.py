"""What a frozen teacher sees: the student's own batch, brought to the teacher's resolution and normalisation."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemae.model.teacher import Teacher
from edgemae.model.vit import Block, ViT, resample_position
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract
from edgemae.train.distributed import bf16_is_fast

log = logging.getLogger("edgemae")


@dataclass(frozen=True)
class TeacherConfig:
    """State how a teacher is run: re-gridded to `grid` patches a side (0: its own), `blocks` deep (0: all)."""

    grid: int = 0
    blocks: int = 0
    bf16: bool = False  # its weights too, where the device multiplies bf16 natively


class FrozenTeacher(nn.Module):
    """Run a frozen teacher on a student's pixels, no deeper than `config` says; the blocks behind are not kept.

    Raises PlanError when the two disagree about channels or colour order.
    """

    mean: Tensor
    std: Tensor
    own_mean: Tensor
    own_std: Tensor

    def __init__(self, teacher: Teacher, pixel: PixelContract, config: TeacherConfig = TeacherConfig()) -> None:
        super().__init__()
        require_colours(teacher, pixel)
        self.config = config
        self.vit = _frozen(teacher.vit, config)
        self.shard = False  # spread its blocks over all processes, to be gathered one at a time (FSDP)
        self._ready = False
        for name, values in (
            ("mean", pixel.mean), ("std", pixel.std), ("own_mean", teacher.pixel.mean), ("own_std", teacher.pixel.std),
        ):  # fmt: skip
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def pixels(self, pixels: Tensor) -> Tensor:
        """Return the batch at the teacher's resolution, normalised its way."""
        self.settle(pixels.device)
        size = self.vit.shape.image_px
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
        if not (torch.equal(self.mean, self.own_mean) and torch.equal(self.std, self.own_std)):
            pixels = ((pixels * self.std + self.mean) - self.own_mean) / self.own_std
        return pixels.to(self.vit.patch_embed.weight.dtype)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        logits, _ = self.vit(self.pixels(pixels))
        assert logits is not None
        return logits.float()

    @torch.no_grad()
    def tokens(self, pixels: Tensor, keep: Tensor | None = None, blocks: int | None = None) -> Tensor:
        """Return tokens (B, N, D) behind the first `blocks` blocks, cls first where there is one."""
        return self.vit.encode(self.pixels(pixels), keep, blocks=blocks)

    @torch.no_grad()
    def relations(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return attention logits (B, heads, K, K) of the last kept block among visible patches only.

        One qkv projection stands for the last block: the rest of it is not needed.
        """
        last = self.vit.blocks[-1]
        x = self.tokens(pixels, keep, blocks=-1)
        skip = int(self.vit.shape.cls_token)
        return last.attn.logits(last.norm1(x))[:, :, skip:, skip:].float()

    @torch.no_grad()
    def received(self, pixels: Tensor) -> Tensor:
        """Return how much attention every patch receives (B, N), see `received`."""
        return received(self.vit, self.tokens(pixels, blocks=-1))

    def settle(self, device: torch.device) -> None:
        """Move to the device that the student trains on, once; a part of the teacher at a time where it is spread."""
        if self._ready:
            return
        self._ready = True
        if self.config.bf16 and bf16_is_fast(device):
            self.vit.to(torch.bfloat16)
        if self.shard:
            _shard(self.vit, device)
        self.to(device)


def require_colours(teacher: Teacher, pixel: PixelContract) -> None:
    """Raise PlanError unless a teacher reads the channels that a student reads, in the same order."""
    if (teacher.pixel.channels, teacher.pixel.color) != (pixel.channels, pixel.color):
        raise PlanError(
            f"the fine-tuned teacher reads {teacher.pixel.channels} channels ({teacher.pixel.color}), "
            f"the student {pixel.channels} ({pixel.color})",
            expected="the same channels and colour order",
            fix=f"use a fine-tuned teacher that reads {pixel.color}, such as its own one after `edgemae finetune`",
        )


def received(vit: ViT, x: Tensor) -> Tensor:
    """Return how much attention every patch receives in the last block, (B, N) with a mean of 1.

    `x` are the tokens before that block. The mean over heads, and over queries: of the cls token where there is one
    (Kakogeorgiou et al. 2022, section 3.2), else of all patches.
    """
    last, skip = vit.blocks[-1], int(vit.shape.cls_token)
    attention = last.attn.logits(last.norm1(x)).float().softmax(-1)
    rows = attention[:, :, 0, skip:] if skip else attention.mean(dim=2)
    seen = rows.mean(dim=1)
    return seen / seen.mean(dim=1, keepdim=True)


def teacher_block(asked: int, teacher_depth: int, student_depth: int) -> int:
    """Return the number of the teacher's block to learn from, counted from 1.

    0 asks for the last block for equal depth, else for three quarters of a deeper teacher (TinyMIM, Ren et al. 2023,
    table 6). Raises PlanError for a block that the teacher lacks.
    """
    if not 0 <= asked <= teacher_depth:
        raise PlanError(
            f"distill.teacher_block is {asked}, the teacher has {teacher_depth} blocks",
            expected=f"1 to {teacher_depth}, or 0 for the default",
            fix="pass --set distill.teacher_block=0",
        )
    return asked or (teacher_depth if teacher_depth <= student_depth else max(1, round(0.75 * teacher_depth)))


def _frozen(vit: ViT, config: TeacherConfig) -> ViT:
    """Return a copy that is cut to its depth and re-gridded, and never trained."""
    grid, blocks = config.grid or vit.shape.grid, config.blocks or vit.shape.depth
    shape = replace(
        vit.shape, image_px=grid * vit.shape.patch_px, heads=vit.shape.heads[:blocks], mlp=vit.shape.mlp[:blocks]
    )
    copy = ViT(shape)
    kept = copy.state_dict()
    state = {name: value for name, value in vit.state_dict().items() if name in kept}
    state["pos"] = resample_position(state["pos"], grid, shape.cls_token) if shape.learned_pos else copy.pos.data
    copy.load_state_dict(state)
    return copy.eval().requires_grad_(False)


def _shard(vit: ViT, device: torch.device) -> None:
    """Spread the blocks over all processes. The last one may be run in parts, so it stays whole, as do embeddings."""
    from torch.distributed import get_world_size, is_initialized
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not is_initialized():
        log.warning("scale.shard_teacher: this process is alone and holds the whole teacher")
        return
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for block in vit.blocks[:-1]:
        assert isinstance(block, Block)
        fully_shard(block, mesh=mesh, reshard_after_forward=True)  # blocks that are roots would stay whole
