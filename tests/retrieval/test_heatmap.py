"""Heat maps lie over the pixels that their patches were cut from."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edgemae.device.preprocess import crop
from edgemae.retrieval.heatmap import overlay, spread
from edgemae.spec.errors import InputError
from edgemae.spec.graph import PixelContract


@pytest.mark.parametrize("frame_hw", [(64, 64), (90, 160), (200, 70)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"resize": "stretch"}, {"crop_fraction": 0.8}, *({"rotation_deg": turn} for turn in (90, 180, 270))],
    ids=str,
)
def test_a_map_points_at_the_pixels_that_a_patch_was_cut_from(
    frame_hw: tuple[int, int], changes: dict[str, Any]
) -> None:
    """A bright patch of what the model sees, found again in the frame by its own map."""
    pixel = PixelContract(image_px=64, **changes)
    row, column = np.mgrid[: frame_hw[0], : frame_hw[1]].astype(np.float32)
    places = np.zeros((*frame_hw, 3), np.uint8)  # each pixel says where it is
    places[..., 0], places[..., 1] = row / frame_hw[0] * 255, column / frame_hw[1] * 255
    seen = crop(places, msgspec.structs.replace(pixel, color="BGR"))
    for i, j in ((1, 1), (2, 6), (5, 3)):
        patches = np.zeros((8, 8), np.float32)
        patches[i, j] = 1.0
        heat = spread(patches, frame_hw, pixel)
        assert heat.shape == frame_hw
        weight = heat / heat.sum()
        middle = (weight * row).sum() / frame_hw[0] * 255, (weight * column).sum() / frame_hw[1] * 255
        told = seen[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].reshape(64, 3).mean(axis=0)
        assert abs(middle[0] - told[0]) < 6
        assert abs(middle[1] - told[1]) < 6
    if changes == {} and frame_hw == (90, 160):
        assert not spread(np.ones((8, 8), np.float32), frame_hw, pixel)[:, :30].any(), "what was cut away is not seen"


def test_an_overlay_is_drawn_where_it_is_hot() -> None:
    frame_bgr, heat = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), np.float32)
    heat[5, 7] = 1.0
    drawn = overlay(frame_bgr, heat)
    assert drawn.dtype == np.uint8
    assert (drawn != 90).any(axis=2).sum() == 1
    assert (drawn[5, 7] != 90).any()
    assert overlay(frame_bgr[:, :, 0], heat).shape == (20, 30, 3)
    with pytest.raises(InputError, match=r"\(8, 8\)"):
        overlay(frame_bgr, heat[:8, :8])
