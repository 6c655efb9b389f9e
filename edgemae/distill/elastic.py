"""Elastic students: nested sub-networks, any of which is taken out as a plain Student.

A sub-network is a ViTShape: fewer blocks, the first heads and MLP units of each, a smaller image. Its weights are
slices of the full network's, so it runs as the plain ViT that it becomes; only the rows of qkv are gathered. Fewer
tokens come from a smaller image and not from dropped patches: choosing patches would need code on the device and is
no gain (on photos, by variance, 62.8 % against 73.3 % for a random half); a smaller image is another number in the
pixel contract, and resizing gets cheaper with it. How they are trained: `edgemae.distill.elastic_training`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from edgemae.data.image_set import ImageSet
from edgemae.distill.supervised import Run, top1
from edgemae.model.model_file import load_exactly
from edgemae.model.student import Student
from edgemae.model.vit import ViT, ViTShape, count_macs, count_params, resample_position, sincos_position
from edgemae.spec.errors import CheckpointError, PlanError
from edgemae.spec.graph import Step
from edgemae.spec.plan_schema import ElasticPlan
from edgemae.train.step_context import StepContext

STAGE = "elastic"  # the history step of a student whose sub-networks are trained
SIZES = ("depth", "heads", "mlp", "image_px")


@dataclass(frozen=True)
class Space:
    """Hold the sizes that sub-networks of `full` may have, each in growing order, the full one last."""

    full: ViTShape
    depth: tuple[int, ...]
    heads: tuple[int, ...]
    mlp: tuple[int, ...]
    image_px: tuple[int, ...]

    def at(self, depth: int, heads: int, mlp: int, image_px: int) -> ViTShape:
        """Return the shape of one sub-network."""
        return replace(self.full, image_px=image_px, heads=(heads,) * depth, mlp=(mlp,) * depth)

    @cached_property
    def shapes(self) -> tuple[ViTShape, ...]:
        """All sub-networks, the cheapest first."""
        return tuple(sorted((self.at(*sizes) for sizes in product(*self.sizes)), key=count_macs))

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        return self.depth, self.heads, self.mlp, self.image_px

    def as_dict(self) -> dict[str, list[int]]:
        return {name: list(values) for name, values in zip(SIZES, self.sizes, strict=True)}

    @property
    def full_size_images(self) -> Space:
        """The sub-networks that see images of the full size."""
        return replace(self, image_px=(self.full.image_px,))

    def draw(self, context: StepContext) -> ViTShape:
        """Return one sub-network, each size drawn evenly and alike for all rows of the step."""
        return self.at(*(values[int(context.flip() * len(values))] for values in self.sizes))

    def cost(self, samples: int) -> float:
        """Return the expected MACs of a step, as a multiple of one of the largest alone."""
        macs = [count_macs(shape) for shape in self.shapes]
        return 1 + (macs[0] + samples * sum(macs) / len(macs)) / macs[-1]

    def find(self, wanted: tuple[int, ...]) -> ViTShape:
        """Return the sub-network of (depth, heads, mlp, image_px). Raises PlanError with the nearest one."""
        near = [min(values, key=lambda v: (abs(v - size), -v)) for values, size in zip(self.sizes, wanted, strict=True)]
        if tuple(near) != tuple(wanted):
            raise PlanError(
                f"no sub-network has {_named(wanted)}",
                expected="; ".join(f"{name} {', '.join(map(str, v))}" for name, v in self.as_dict().items()),
                fix=f"the nearest one has {_named(near)}",
            )
        return self.at(*near)


def space_of(plan: ElasticPlan, full: ViTShape) -> Space:
    """Return the space that a plan asks for. Raises PlanError for sizes that are not nested in `full`."""
    px, patch, depth, heads, mlp = full.image_px, full.patch_px, full.depth, full.heads[0], full.mlp[0]
    return Space(
        full,
        _sizes("depths", plan.depths or _spread(depth), depth),
        _sizes("heads", plan.heads or _spread(heads), heads),
        _sizes("mlp_ratios", [round(r * full.width) for r in plan.mlp_ratios] or [mlp // 2, mlp * 3 // 4], mlp),
        _sizes("image_pxs", plan.image_pxs or [patch * max(1, round(px / patch * 0.75))], px, patch),
    )


def _spread(most: int) -> list[int]:
    """Return half and three quarters of a count."""
    return [max(1, -(-most * part // 4)) for part in (2, 3)]


def _sizes(name: str, values: Iterable[int], full: int, multiple: int = 1) -> tuple[int, ...]:
    values = sorted({*values, full})
    if values[0] < 1 or values[-1] > full or any(v % multiple for v in values):
        raise PlanError(
            f"elastic.{name} gives the sizes {values}",
            expected=f"1 to {full}, the student's own" + (f", in multiples of {multiple}" if multiple > 1 else ""),
            fix=f"correct --set elastic.{name}=[...], or leave it out",
        )
    return tuple(values)


def sizes_of(shape: ViTShape) -> tuple[int, int, int, int]:
    """Return (depth, heads, mlp, image_px) of a sub-network."""
    return shape.depth, shape.heads[0], shape.mlp[0], shape.image_px


def _named(sizes: Iterable[int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in zip(SIZES, sizes, strict=True))


# ---------------------------------------------------------------- nesting


def kept_blocks(depth: int, full_depth: int) -> list[int]:
    """Return which blocks a sub-network of `depth` has: nested, evenly spread, first and last first."""
    order = [0, full_depth - 1][:full_depth]
    while len(order) < full_depth:
        rest = [i for i in range(full_depth) if i not in order]
        order.append(max(rest, key=lambda i: min(abs(i - chosen) for chosen in order)))
    return sorted(order[:depth])


def slices(vit: ViT, shape: ViTShape) -> dict[str, Tensor]:
    """Return the weights of a sub-network, named as in its own ViT: views of those of `vit`, gradients flow back."""
    found: dict[str, Tensor] = {name: p for name, p in vit.named_parameters() if not name.startswith("blocks.")}
    if shape.grid != vit.shape.grid:
        found["pos"] = _position(vit, shape)
    for i, (number, heads, hidden) in enumerate(
        zip(kept_blocks(shape.depth, vit.shape.depth), shape.heads, shape.mlp, strict=True)
    ):
        block, inner = vit.blocks[number], heads * shape.head_dim
        mine: dict[str, Tensor] = dict(block.named_parameters())
        for part in ("weight", "bias"):
            qkv = mine[f"attn.qkv.{part}"].unflatten(0, (3, -1))  # q heads, k heads, v heads
            mine[f"attn.qkv.{part}"] = qkv[:, :inner].flatten(0, 1)
            mine[f"mlp.fc1.{part}"] = mine[f"mlp.fc1.{part}"][:hidden]
        mine["attn.proj.weight"] = mine["attn.proj.weight"][:, :inner]
        mine["mlp.fc2.weight"] = mine["mlp.fc2.weight"][:, :hidden]
        found |= {f"blocks.{i}.{name}": value for name, value in mine.items()}
    return found


def _position(vit: ViT, shape: ViTShape) -> Tensor:
    """Return positions for another grid than the full network's."""
    if shape.learned_pos:
        return resample_position(vit.pos, shape.grid, shape.cls_token)
    # The same place in the image has the same position at every size: 1.5 points of top-1 on digits, the
    # mean of eight sub-networks, against positions counted from 0 at each size.
    return sincos_position(shape.width, shape.grid, shape.cls_token, vit.shape.grid).to(vit.pos)


def run_at(vit: ViT, shape: ViTShape, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return (logits, embedding) of a sub-network for pixels (B, C, H, W) of its own size."""
    outputs: tuple[Tensor | None, Tensor] = functional_call(plain(shape), slices(vit, shape), (pixels,))
    return outputs


@cache  # building one takes as long as running it on a small batch
def plain(shape: ViTShape) -> ViT:
    """Return a ViT without memory, to be run on weights from elsewhere."""
    with torch.device("meta"):
        return ViT(shape)


def shrink(pixels: Tensor, image_px: int) -> Tensor:
    """Return the images of a step at a sub-network's size."""
    if pixels.shape[-1] == image_px:
        return pixels
    return F.interpolate(pixels, size=(image_px, image_px), mode="bilinear", antialias=True, align_corners=False)


# ---------------------------------------------------------------- taking out


def extract(student: Student, sizes: tuple[int, ...]) -> Student:
    """Return the sub-network of (depth, heads, mlp, image_px) of an elastic student as a student of its own.

    Raises CheckpointError for a student that was not trained so, or was changed since; PlanError for another shape.
    """
    shape = space_from(student).find(sizes)
    with torch.device("meta"):
        vit = ViT(shape)
    load_exactly(vit, {name: p.detach() for name, p in slices(student.vit, shape).items()}, "the sub-network")
    pixel = msgspec.structs.replace(student.pixel, image_px=shape.image_px)
    step = Step(stage="extract", plan=dict(zip(SIZES, sizes, strict=True)))
    return replace(student, vit=vit.eval(), pixel=pixel, history=(*student.history, step))


def space_from(student: Student) -> Space:
    """Return the space that an elastic student was trained in. Raises CheckpointError for any other student."""
    last = student.history[-1] if student.history else None
    if last is None or last.stage != STAGE:
        raise CheckpointError(
            "the student's sub-networks are not trained, or not to the end"
            + (f": its last step is '{last.stage}'" if last else ""),
            expected="a student as `edgemae distill --elastic` left it",
            fix="distill with --elastic; prune and heal only what was taken out",
        )
    return Space(student.vit.shape, *(tuple(last.plan[name]) for name in SIZES))


def curve(student: Student, images: ImageSet, workers: int = 0, points: int = 12) -> list[dict[str, Any]]:
    """Return rows (sizes, MACs, parameters, top-1 on `images`) of sub-networks from the smallest to the largest."""
    shapes = space_from(student).shapes
    count = min(points, len(shapes))
    picked = [shapes[round(i * (len(shapes) - 1) / max(1, count - 1))] for i in range(count)]
    rows = []
    for shape in picked:
        small = extract(student, sizes_of(shape))
        run = Run(images, small.pixel, workers=workers, evaluation=images)
        row: dict[str, Any] = dict(zip(SIZES, sizes_of(shape), strict=True))
        row |= {"macs": count_macs(shape), "params": count_params(small.vit), "top1": top1(small.vit, run)}
        rows.append(row)
    return rows
