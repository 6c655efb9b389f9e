"""Quantization-aware training: a student trained on with its linears rounded as the int8 graph rounds them.

Forward, a linear multiplies integers; backward, rounding counts as identity inside the range and as constant outside
(Jacob et al. 2018, section 3). What comes out is an ordinary float student and the very scales that it was trained for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgemae.distill.stages import Images, heal_embedding, train_further
from edgemae.model.student import Student
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT
from edgemae.spec.graph import Grid, Scales
from edgemae.spec.plan_schema import Plan
from edgemae.train.job import Curve

# Ends of ranges move in log scale by that many times the rate of the weights: 1e-2 a step, as in TQT. Digits with four
# channels 64 times too loud: float 98.6 %, PTQ 95.4 %; after 8 epochs 98.7 %, with ranges frozen as calibrated 96.5 %.
RANGE_SPEED = 40.0
MIN_SCALE = 2.0**-20  # keeps the scale of a dead row above zero, in fp16 too
NORM_BEFORE = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}  # linears that read a LayerNorm which nothing else reads


class RoundedLinear(nn.Linear):
    """Compute y = x W^T + b on integers, as the int8 graph does.

    Inputs (..., in), weights and, without `symmetric`, the bias become integers, so the float32 sums are exact (below
    2^24) and the output differs from an int32 kernel's by the last rounding alone. `bend` (2,) moves both ends of the
    input's range, in log scale: Jain et al. 2020 (TQT, section 3.2); its gradient is weighted as in Esser et al. 2020
    (LSQ, section 2.2). `fold` (out, 1) is what the graph multiplies rows of the weight by.
    """

    start: Tensor
    ends: Tensor
    fold: Tensor

    def __init__(self, linear: nn.Linear, grid: Grid, symmetric: bool, folded_rows: int = 0, fold: float = 1.0) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.symmetric, self.levels = symmetric, 127 if symmetric else 64
        self.first, self.last = (-127, 127) if symmetric else (0, 255)
        self.register_buffer("start", linear.weight.new_tensor(grid.scale), persistent=False)
        ends = linear.weight.new_tensor([grid.zero - self.first, self.last - grid.zero])
        self.register_buffer("ends", ends, persistent=False)  # in steps below and above zero: exact, unlike values
        rows = linear.weight.new_ones(linear.out_features, 1)
        rows[:folded_rows] = fold
        self.register_buffer("fold", rows, persistent=False)
        self.bend = nn.Parameter(linear.weight.new_zeros(2))

    def input_grid(self, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return (scale, zero point) of the input; the gradient that reaches `bend` is multiplied by `weight`."""
        bend = RANGE_SPEED * (weight * self.bend + (1 - weight) * self.bend.detach())
        below, above = self.ends * bend.exp()
        if self.symmetric:
            scale = (self.start * (above / 127)).clamp(min=MIN_SCALE)
            return scale + (_half(scale) - scale).detach(), torch.zeros_like(scale)
        scale = (self.start * ((below + above) / 255)).clamp(min=MIN_SCALE)
        return scale, _round(255 * below / (below + above))

    @torch.no_grad()
    def weight_scale(self) -> Tensor:
        """Return (out, 1) scales of the folded weight: the largest value of each row is the last level."""
        scale = ((self.weight * self.fold).abs().amax(1, keepdim=True) / self.levels).clamp(min=MIN_SCALE)
        return _half(scale) if self.symmetric else scale

    def forward(self, x: Tensor) -> Tensor:
        # Integers up to 2^24 are exact in fp32 and not in bf16.
        with torch.autocast(x.device.type, enabled=False):
            return self._forward(x.float())

    def _forward(self, x: Tensor) -> Tensor:
        # By the values of one image, so that a part of a batch learns at the rate of the whole.
        scale, zero = self.input_grid((x[0].numel() * self.last) ** -0.5)
        step = self.weight_scale()
        integers = (_round(x / scale) + zero).clamp(self.first, self.last) - zero
        weight = _round(self.weight * self.fold / step).clamp(-self.levels, self.levels)
        unit = scale * (step / self.fold)[:, 0]
        if self.symmetric:  # GPUs add the bias as a float
            return F.linear(integers, weight) * unit + self.bias
        return F.linear(integers, weight, _round(self.bias / unit)) * unit

    @torch.no_grad()
    def grid(self) -> Grid:
        """Return what the graph is to use."""
        scale, zero = self.input_grid()
        return Grid(scale=float(scale), zero=int(zero), weight_scale=tuple(self.weight_scale()[:, 0].tolist()))


def train_quantized(
    student: Student, start: Scales, divisors: Mapping[str, NDArray[np.float32]], plan: Plan, images: Images,
    finetuned: Teacher | None, checkpoint: Path | None = None,
) -> tuple[Student, Curve]:  # fmt: skip
    """Return the student after QAT, with its scales, and the loss curve. The input is not changed.

    `start` and `divisors` come from calibration: ranges, and what moves from a LayerNorm into its linear first. With
    labels it learns from them and from the logits of `finetuned`, by default the float student's own; without, it keeps
    to the float student's embeddings.
    """
    vit = copy.deepcopy(student.vit)
    _smooth(vit, divisors)
    begin = replace(student, vit=round_linears(vit, start))
    settings = plan.quantize.qat
    if images.labelled is None:
        trained, curve = heal_embedding(begin, student, settings, plan, images.unlabelled, checkpoint, "qat")
    else:
        finetuned = finetuned or Teacher(student.vit, student.pixel, student.labels)
        trained, curve = train_further(begin, settings, plan, images, finetuned, checkpoint, "qat")
    vit, scales = plain_linears(trained.vit, start.symmetric)
    return replace(trained, vit=vit.eval(), scales=scales), curve


def round_linears(vit: ViT, scales: Scales) -> ViT:
    """Return a copy whose linears named in `scales` compute as the int8 graph does."""
    vit = copy.deepcopy(vit)
    for name, grid in scales.linears.items():
        linear = vit.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        rows, fold = 0, 1.0
        if name.endswith("attn.qkv"):  # the graph folds the softmax scale into the rows of q
            attn = vit.blocks[int(name.split(".")[1])].attn
            rows, fold = attn.heads * attn.head_dim, attn.scale
        vit.set_submodule(name, RoundedLinear(linear, grid, scales.symmetric, rows, fold))
    return vit


def plain_linears(vit: ViT, symmetric: bool) -> tuple[ViT, Scales]:
    """Return a copy with ordinary linears of the same weights, and the scales that they were trained for."""
    vit, grids = copy.deepcopy(vit), {}
    for name, module in list(vit.named_modules()):
        if isinstance(module, RoundedLinear):
            plain = nn.Linear(module.in_features, module.out_features, device="meta")
            plain.weight, plain.bias = module.weight, module.bias
            vit.set_submodule(name, plain)
            grids[name] = module.grid()
    return vit, Scales(symmetric=symmetric, linears=grids)


@torch.no_grad()
def _smooth(vit: ViT, divisors: Mapping[str, NDArray[np.float32]]) -> None:
    """Divide LayerNorms and multiply their linears by `divisors`: the same outputs, flatter inputs."""
    for name, values in divisors.items():
        block, _, part = name.removeprefix("blocks.").partition(".")
        norm, linear = vit.get_submodule(f"blocks.{block}.{NORM_BEFORE[part]}"), vit.get_submodule(name)
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(linear, nn.Linear)
        divisor = torch.from_numpy(values)
        norm.weight.div_(divisor)
        norm.bias.div_(divisor)
        linear.weight.mul_(divisor)


def _round(x: Tensor) -> Tensor:
    """Round half to even, as QuantizeLinear does; the gradient passes straight through."""
    return x + (x.round() - x).detach()


def _half(scale: Tensor) -> Tensor:
    """Return scales that fp16 holds exactly: an fp16 graph divides by the very same numbers."""
    return scale.half().float()
