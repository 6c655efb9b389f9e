"""Learning-rate schedule and parameter groups."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgemae.model.vit import Attention, ViT


def rate_at(step: int, steps: int, peak: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017)."""
    warmup = max(1, round(steps * warmup_fraction))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def param_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: no weight decay on vectors (biases, norms) and on tokens."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        if p.requires_grad:
            (plain if p.ndim <= 1 or name.endswith(("cls", "pos", "mask_token")) else decay).append(p)
    return [
        {"params": decay, "weight_decay": weight_decay, "scale": 1.0},
        {"params": plain, "weight_decay": 0.0, "scale": 1.0},
    ]


def hold_key_biases(module: nn.Module) -> list[RemovableHandle]:
    """Keep the biases of attention keys as they are; remove the returned hooks to free them.

    A key's bias adds the same number to a whole row before the softmax, so its gradient is 0. What arrives is rounding,
    which AdamW turns into full-size steps: with 12 steps at a rate of 3e-4 two divisions of the same batch ended 3e-5
    apart in these biases and 1e-7 in most weights.
    """

    def held(heads: int, head_dim: int) -> Any:
        def hook(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[heads * head_dim : 2 * heads * head_dim] = 0
            return gradient

        return hook

    return [
        part.qkv.bias.register_hook(held(part.heads, part.head_dim))
        for part in module.modules()
        if isinstance(part, Attention) and part.softmaxed and part.qkv.bias.requires_grad
    ]


def layer_decay_groups(vit: ViT, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return groups whose rate shrinks by `layer_decay` a block from the head down.

    Source: Clark et al. 2020 (ELECTRA); He et al. 2022 (MAE), appendix A.1.
    """
    depth = vit.shape.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, p in vit.named_parameters():
        if not p.requires_grad:
            continue
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name.startswith(("patch_embed", "cls", "pos")) else depth + 1
        plain = p.ndim <= 1 or name in ("cls", "pos")
        row = groups.setdefault(
            (layer, plain),
            {
                "params": [],
                "weight_decay": 0.0 if plain else weight_decay,
                "scale": layer_decay ** (depth + 1 - layer),
            },
        )
        row["params"].append(p)
    return list(groups.values())
