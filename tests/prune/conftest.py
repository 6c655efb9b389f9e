"""Students to cut: 32 px, patch 8, D=32, 4 heads of 8, depth 3; no bias is zero and no LayerNorm is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from edgemae.model.student import Student
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.graph import PixelContract, Step


def make_vit(seed: int = 0, **changes: Any) -> ViT:
    sizes: dict[str, Any] = {
        "image_px": 32, "patch_px": 8, "width": 32, "heads": (4, 4, 4), "head_dim": 8, "mlp": (64, 64, 64),
        "classes": 5,
    }  # fmt: skip
    torch.manual_seed(seed)
    vit = ViT(ViTShape(**{**sizes, **changes}))
    with torch.no_grad():
        for p in vit.parameters():  # biases and LayerNorms start at 0 and 1, which would hide mistakes
            p.add_(0.1 * torch.randn_like(p))
    return vit.eval()


@pytest.fixture
def rough_vit() -> Callable[..., ViT]:
    return make_vit


@pytest.fixture
def rough_student() -> Callable[..., Student]:
    def make(seed: int = 0, **changes: Any) -> Student:
        vit = make_vit(seed, **changes)
        pixel = PixelContract(image_px=vit.shape.image_px, channels=vit.shape.channels)
        labels = tuple("abcdefghij"[: vit.shape.classes])
        return Student(vit, pixel, labels, (Step(stage="distill", scores={"loss": 1.0}),))

    return make
