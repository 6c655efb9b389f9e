"""Loss terms of supervised training and of knowledge distillation."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edgemae.train.step_context import StepContext


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return mean cross-entropy against target distributions (B, K)."""
    return -(target * logits.float().log_softmax(-1)).sum(-1).mean()


def smooth_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return (B, K) one-hot targets with label smoothing (Szegedy et al. 2016)."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of softened logits (Hinton et al. 2015, section 2)."""
    target = (teacher.float() / temperature).softmax(-1)
    log_probability = (student.float() / temperature).log_softmax(-1)
    return F.kl_div(log_probability, target, reduction="batchmean") * temperature**2


def mix(pixels: Tensor, target: Tensor, mixup: float, cutmix: float, context: StepContext) -> tuple[Tensor, Tensor]:
    """Return a batch mixed with its neighbours: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha), 0 is off; with both on, a fair coin takes one for the
    step. Every image is mixed with the one beside it (0 with 1, 2 with 3), so a step that is divided among processes
    mixes the same pairs. The teacher must be given the same mixed pixels.
    """
    if mixup <= 0 and cutmix <= 0:
        return pixels, target
    cut = cutmix > 0 and (mixup <= 0 or context.flip() < 0.5)
    rng = np.random.default_rng(int(context.flip() * 2**32))  # torch's Beta knows no generator of its own
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    order = torch.arange(len(pixels), device=pixels.device) ^ 1
    order = order.clamp(max=len(pixels) - 1)
    if not cut:
        mixed = share * pixels + (1 - share) * pixels[order]
    else:
        top, left, h, w = _box(pixels.shape[-2], pixels.shape[-1], 1 - share, rng)
        mixed = pixels.clone()
        mixed[:, :, top : top + h, left : left + w] = pixels[order][:, :, top : top + h, left : left + w]
        share = 1 - h * w / (pixels.shape[-2] * pixels.shape[-1])
    return mixed, share * target + (1 - share) * target[order]


def _box(height: int, width: int, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a box of the image's aspect that lies inside it."""
    h, w = round(height * area**0.5), round(width * area**0.5)
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
