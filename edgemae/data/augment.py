"""Augmentation with OpenCV on uint8 frames: random resized crop and flip."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edgemae.device.preprocess import Frame, crop, recolor, resize, rotate
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract


class Augment(msgspec.Struct, frozen=True, kw_only=True):
    """State how a training view is cut: `crop_min` is the least share of the area, 1.0 the evaluation view."""

    crop_min: float = 1.0
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop_min <= 1:
            raise PlanError(
                f"crop_min is {self.crop_min}",
                expected="more than 0, and 1 at most",
                fix="0.2 is usual for pretraining, 1.0 switches random crops off",
            )


def view(frame_bgr: Frame, pixel: PixelContract, augment: Augment, rng: np.random.Generator) -> Frame:
    """Return an (image_px, image_px, C) uint8 view: random resized crop (aspect 3/4 to 4/3), then a random flip."""
    if augment.crop_min >= 1.0:
        picture = crop(frame_bgr, pixel)
    else:
        frame_bgr = rotate(frame_bgr, pixel)
        top, left, h, w = crop_box(frame_bgr.shape[0], frame_bgr.shape[1], augment.crop_min, rng)
        part = resize(frame_bgr[top : top + h, left : left + w], (pixel.image_px, pixel.image_px), pixel)
        picture = recolor(part, pixel)
    return picture[:, ::-1] if augment.flip and rng.random() < 0.5 else picture


def crop_box(height: int, width: int, crop_min: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of a crop with area in [crop_min, 1] (Szegedy et al. 2015, section 6).

    The central square when ten draws do not fit, which a picture three times as long as high can bring about.
    """
    for _ in range(10):
        area = height * width * rng.uniform(crop_min, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
