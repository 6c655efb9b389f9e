"""Tiny teachers, images and plans: 32 px, width 32, two blocks, two colours to separate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edgemae.data.image_set import ImageSet, scan
from edgemae.model.mae import MAE, DecoderShape
from edgemae.model.teacher import Teacher
from edgemae.model.vit import ViT, ViTShape
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.plan_schema import Plan

PIXEL = PixelContract(image_px=32)
SMALL = {
    "workers": 0, "threads": 1,
    **{f"{who}.{size}": value for who in ("teacher", "student") for size, value in
       {"image_px": 32, "patch_px": 8, "width": 32, "depth": 2, "heads": 2, "head_dim": 16}.items()},
    **{f"{part}.{name}": value for part in ("pretrain", "distill") for name, value in
       {"epochs": 2, "batch": 8, "decoder_width": 16, "decoder_heads": 2, "lr": 0.01}.items()},
    **{f"{part}.{name}": value for part in ("finetune", "distill.finetune", "prune.heal") for name, value in
       {"epochs": 2, "batch": 8, "lr": 0.01}.items()},
    # The same arithmetic on every processor: where it multiplies bf16, that is what a plan has by default.
    **{f"{part}.bf16": False for part in ("pretrain", "finetune", "distill", "distill.finetune", "prune.heal")},
}  # fmt: skip


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 12 images, reddish and bluish noise."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for channel, name in ((0, "blue"), (2, "red")):
        (root / name).mkdir()
        for i in range(12):
            frame_bgr = rng.integers(0, 96, (36, 44, 3), dtype=np.uint8)
            frame_bgr[..., channel] += 128
            assert cv2.imwrite(str(root / name / f"{i:02d}.png"), frame_bgr)
    return root


@pytest.fixture(scope="session")
def pictures(picture_folder: Path) -> ImageSet:
    return scan(picture_folder)


@pytest.fixture
def plan_with() -> Callable[..., Plan]:
    """Return a maker of plans: small everywhere, any field changed by its dotted name with two underscores for dots."""

    def make(**changes: Any) -> Plan:
        return load_plan(None, (), SMALL | {k.replace("__", "."): v for k, v in changes.items()})

    return make


@pytest.fixture
def teacher_with() -> Callable[..., Teacher]:
    """Return a maker of teachers with random weights; `decoder` adds an MAE decoder, `labels` a head."""

    def make(
        *, decoder: bool = False, labels: tuple[str, ...] = (), pixel: PixelContract = PIXEL, seed: int = 1,
        **changes: Any,
    ) -> Teacher:  # fmt: skip
        torch.manual_seed(seed)
        sizes = {
            "image_px": pixel.image_px,
            "patch_px": 8,
            "width": 32,
            "depth": 2,
            "heads": 2,
            "channels": pixel.channels,
        }
        vit = ViT(ViTShape.uniform(**(sizes | changes), classes=len(labels))).eval()
        mae = None
        if decoder:
            mae = MAE(vit, DecoderShape(16, 1, 2), loss_kind="norm-pixel", mean=pixel.mean, std=pixel.std).eval()
        return Teacher(vit, pixel, labels, (), mae, "test licence")

    return make
