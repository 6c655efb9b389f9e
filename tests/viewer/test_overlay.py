"""The answer in the image: it is there, the frame itself stays as it was, no image is too small or too large."""

from __future__ import annotations

import numpy as np
import pytest

from edgemae.viewer import overlay
from tests.viewer.samples import TOPK, seen

BLUE = np.array(overlay.BLUE)


@pytest.mark.parametrize("truetype", sorted({overlay.TRUETYPE, False}))
@pytest.mark.parametrize("image_hw", [(360, 640), (28, 36), (1, 1), (1080, 400), (361, 2000)])
def test_bars_and_words_are_drawn(image_hw: tuple[int, int], truetype: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "TRUETYPE", truetype)
    frame = np.full((*image_hw, 3), 120, np.uint8)
    before = frame.copy()
    image = overlay.draw(seen(frame), 24.8)
    np.testing.assert_array_equal(frame, before)
    assert image.dtype == np.uint8
    assert min(image.shape[:2]) >= min(image_hw)
    bar = np.abs(image.astype(int) - BLUE).max(axis=2) < 3
    assert bar.any()
    columns = np.flatnonzero(bar.any(axis=0))
    assert np.ptp(columns) > 0.05 * image.shape[1]
    assert (image[: image.shape[0] // 3] > 230).any()  # rate and age, white
    assert (image[-image.shape[0] // 3 :, : image.shape[1] // 3] > 230).any()  # the label


@pytest.mark.parametrize("image_hw", [(1, 2000), (16384, 1), (2, 5000)])
def test_a_strip_does_not_become_a_wall(image_hw: tuple[int, int]) -> None:
    image = overlay.draw(seen(np.zeros((*image_hw, 3), np.uint8)), 10.0)
    assert max(image.shape) <= max(overlay.MOST_PX, *image_hw)


def test_a_share_is_as_long_as_it_is_large() -> None:
    frame = np.zeros((400, 800, 3), np.uint8)

    def length(share: float) -> int:
        bar = np.abs(overlay.draw(seen(frame, topk=[("a", share)]), 0.0).astype(int) - BLUE).max(axis=2) < 3
        return int(bar.any(axis=0).sum())

    assert length(0.5) == pytest.approx(length(1.0) / 2, rel=0.05)
    assert length(0.0) == 0


def test_without_labels_only_rate_and_age_are_drawn() -> None:
    frame = np.full((400, 800, 3), 120, np.uint8)
    image = overlay.draw(seen(frame, topk=[]), 10.0)
    assert (image[200:] == 120).all()
    long = [("x" * 500, 0.9), *TOPK]
    assert (overlay.draw(seen(frame, topk=long), 0.0)[:200, 400:] == 120).all()
