"""A small exported ViT (unequal blocks) and smooth calibration images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgemae.export.to_onnx import to_onnx
from edgemae.model.vit import ViT, ViTShape
from edgemae.quantize.calibrate import Calibration
from edgemae.spec.graph import Graph, PixelContract


def smooth_images(count: int, size: int = 32, seed: int = 0) -> NDArray[np.float32]:
    """Return images of soft blobs, (count, 3, size, size)."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 6, 6, 3)).astype(np.float32)
    return np.stack([cv2.resize(c, (size, size), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1) for c in coarse])


@pytest.fixture(scope="session")
def graph() -> Graph:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ViTShape(image_px=32, patch_px=8, width=64, heads=(2, 3), head_dim=16, mlp=(128, 96), classes=10)
    vit = ViT(shape)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name != "pos":
                parameter += 0.02 * torch.randn_like(parameter)
        vit.blocks[0].norm1.weight[3] = 12.0  # the outlier channel that smoothing is for
    return to_onnx(vit.eval(), PixelContract(image_px=32), tokens=True)


@pytest.fixture(scope="session")
def calibration() -> Calibration:
    return Calibration.of(smooth_images(40))
