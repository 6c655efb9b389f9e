"""Loss terms of supervised training and of knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def mix(pixels: Tensor, target: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return mixup of a batch with itself reversed (Zhang et al. 2018); one Beta(alpha, alpha) draw a batch.

    The teacher must be given the same mixed pixels.
    """
    if alpha <= 0:
        return pixels, target
    # torch's Beta draws from the global generator only, which the training loop seeds a step.
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return share * pixels + (1 - share) * pixels.flip(0), share * target + (1 - share) * target.flip(0)
