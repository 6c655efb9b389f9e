"""Small ViTs and their pixel contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.graph import PixelContract


def build(**changes: Any) -> ViT:
    """Return a seeded ViT whose blocks differ in heads and MLP units, no parameter at its fresh value."""
    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"image_px": 32, "patch_px": 8, "width": 32, "heads": (2, 3), "head_dim": 16}
    sizes |= {"mlp": (64, 80), "classes": 10}
    torch.manual_seed(0)
    vit = ViT(ViTShape(**(sizes | changes)))
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name != "pos" or vit.shape.learned_pos:
                parameter += 0.05 * torch.randn_like(parameter)
    return vit


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., ViT]:
    return build


@pytest.fixture(scope="session")
def pixel() -> PixelContract:
    return PixelContract(image_px=32)


@pytest.fixture(scope="session")
def vit() -> ViT:
    return build()
