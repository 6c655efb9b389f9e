"""The bytes of image files for tests."""

from __future__ import annotations

import cv2
import numpy as np


def encoded(suffix: str = ".jpg", side_px: int = 64, options: tuple[int, ...] = ()) -> bytes:
    frame_bgr = np.random.default_rng(side_px).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    return cv2.imencode(suffix, frame_bgr, options)[1].tobytes()
