"""Heat maps: values of patches laid back over the frame that they were cut from, and drawn on it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.preprocess import ImageBGR, as_bgr, placement, rotate_clockwise
from edgemae.spec.errors import InputError
from edgemae.spec.graph import PixelContract

Heat = NDArray[np.float32]


def spread(patches: Heat, frame_hw: tuple[int, ...], pixel: PixelContract) -> Heat:
    """Return patch values (G, G) as a map (H, W) of the frame: interpolated; 0 where a crop cut the frame away."""
    turned = pixel.rotation_deg in (90, 270)
    height, width = (frame_hw[1], frame_hw[0]) if turned else frame_hw[:2]
    new_hw, top, left = placement((height, width), pixel)
    down, across = height / new_hw[0], width / new_hw[1]  # frame pixels a model pixel
    y, x = round(top * down), round(left * across)
    box_h = min(height - y, max(1, round(pixel.image_px * down)))
    box_w = min(width - x, max(1, round(pixel.image_px * across)))
    heat = np.zeros((height, width), np.float32)
    heat[y : y + box_h, x : x + box_w] = cv2.resize(patches, (box_w, box_h), interpolation=cv2.INTER_LINEAR)
    return rotate_clockwise(heat, -pixel.rotation_deg % 360)


def overlay(frame_bgr: NDArray[np.uint8], heat: Heat, strength: float = 0.6, color: str = "BGR") -> ImageBGR:
    """Return the frame as BGR with a heat map (H, W) of 0..1 drawn over it: blue to red, the cold parts see-through.

    Raises InputError when the map is not of the frame's size.
    """
    frame_bgr = as_bgr(frame_bgr, color)
    if heat.shape != frame_bgr.shape[:2]:
        raise InputError(
            f"a map of shape {heat.shape} for a frame of {frame_bgr.shape[:2]}", expected="one size",
            fix="pass the frame that was scored, or score it with frame_hw=frame.shape",
        )  # fmt: skip
    heat = np.clip(heat, 0.0, 1.0)
    colors = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    share = (strength * heat)[:, :, None]
    drawn: ImageBGR = np.rint(frame_bgr * (1 - share) + colors * share).astype(np.uint8)
    return drawn
