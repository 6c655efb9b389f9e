"""Training views: where they are cut, and that without augmentation they are what the device sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemae.data.augment import EMPTY, GRAY_OPS, OPS, Augment, crop_box, view
from edgemae.device.preprocess import ImageBGR, crop, rotate
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract

RGB = PixelContract(image_px=32)
GRAY = PixelContract(image_px=32, channels=1, color="GRAY", mean=(0.5,), std=(0.5,))


def frame_of(height: int, width: int, seed: int = 0) -> ImageBGR:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(1, 600), st.integers(1, 600), st.floats(0.05, 0.999), st.integers(0, 2**31))
def test_crops_lie_inside_and_are_large_enough(height: int, width: int, crop_min: float, seed: int) -> None:
    top, left, h, w = crop_box(height, width, crop_min, np.random.default_rng(seed))
    assert top >= 0
    assert left >= 0
    assert 1 <= h <= height - top
    assert 1 <= w <= width - left
    if (top, left, h, w) != ((height - h) // 2, (width - w) // 2, min(height, width), min(height, width)):
        # Sides are whole pixels: each may be half a pixel off.
        assert (h + 0.5) * (w + 0.5) >= crop_min * height * width
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / (h - 0.5) >= 3 / 4


def test_a_long_picture_gives_its_central_square() -> None:
    assert crop_box(20, 400, 0.9, np.random.default_rng(0)) == (0, 190, 20, 20)


def test_crops_cover_the_picture() -> None:
    rng = np.random.default_rng(0)
    boxes = [crop_box(100, 100, 0.2, rng) for _ in range(300)]
    areas = [h * w / 1e4 for _, _, h, w in boxes]
    assert min(areas) < 0.25
    assert max(areas) > 0.9
    assert {top == 0 for top, *_ in boxes} == {True, False}
    assert max(top + h for top, _, h, _ in boxes) == 100


@pytest.mark.parametrize("pixel", [RGB, GRAY, PixelContract(image_px=32, resize="stretch", rotation_deg=90)])
@pytest.mark.parametrize("frame_hw", [(40, 60), (60, 40), (32, 32), (9, 7), (1, 1), (3, 200)])
def test_without_augmentation_a_view_is_the_evaluation_view(frame_hw: tuple[int, int], pixel: PixelContract) -> None:
    frame = frame_of(*frame_hw)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(view(frame, pixel, Augment(), rng), crop(frame, pixel))
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn


@pytest.mark.parametrize("pixel", [RGB, GRAY])
@pytest.mark.parametrize("frame_hw", [(1, 1), (2, 3), (7, 1), (31, 33), (500, 20)])
def test_any_picture_fills_the_view(frame_hw: tuple[int, int], pixel: PixelContract) -> None:
    for seed in range(20):
        picture = view(frame_of(*frame_hw), pixel, Augment(crop_min=0.2, flip=True), np.random.default_rng(seed))
        assert picture.shape == (32, 32, pixel.channels)
        assert picture.dtype == np.uint8


def test_colours_keep_their_order() -> None:
    frame = np.full((40, 50, 3), (10, 20, 200), np.uint8)  # red, in BGR
    picture = view(frame, RGB, Augment(crop_min=0.3), np.random.default_rng(0))
    assert picture.reshape(-1, 3).tolist() == [[200, 20, 10]] * 32 * 32


def test_half_of_the_views_are_mirrored() -> None:
    frame = frame_of(32, 32)
    plain = crop(frame, RGB)
    flipped = 0
    for seed in range(100):
        picture = view(frame, RGB, Augment(flip=True), np.random.default_rng(seed))
        assert np.array_equal(picture, plain) or np.array_equal(picture, plain[:, ::-1])
        flipped += not np.array_equal(picture, plain)
    assert 30 < flipped < 70


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
def test_a_turned_camera_is_turned_in_training_too(rotation_deg: int) -> None:
    frame, augment = frame_of(40, 60), Augment(crop_min=0.3)
    turned = PixelContract(image_px=32, rotation_deg=rotation_deg)
    seen = view(frame, turned, augment, np.random.default_rng(5))
    upright = view(rotate(frame, turned), RGB, augment, np.random.default_rng(5))
    np.testing.assert_array_equal(seen, upright)
    assert not np.array_equal(seen, view(frame, RGB, augment, np.random.default_rng(5)))


@pytest.mark.parametrize("crop_min", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(crop_min: float) -> None:
    with pytest.raises(PlanError, match="crop_min is"):
        Augment(crop_min=crop_min)


# ---------------------------------------------------------------- distortions


def picture_of(channels: int, side_px: int = 33) -> ImageBGR:
    """Return a smooth picture without black and white, so that every operation has something to do."""
    across, down = np.meshgrid(np.linspace(40, 160, side_px), np.linspace(0, 50, side_px))
    planes = [across + down * (k + 1) / channels for k in range(channels)]
    return np.dstack(planes).astype(np.uint8)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("channels", "name"), [(3, name) for name in OPS] + [(1, name) for name in GRAY_OPS])
def test_every_operation_changes_a_picture_and_keeps_its_form(channels: int, name: str, sign: int) -> None:
    picture = picture_of(channels)
    before = picture.copy()
    for strength in (0.3, 1.0):
        changed = OPS[name](picture, sign * strength).reshape(picture.shape)
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, picture)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["auto-contrast", "equalize", "brightness", "contrast", "sharpness", "solarize"])
def test_one_colour_does_not_break_an_operation(channels: int, name: str) -> None:
    flat = np.full((5, 5, channels), 77, np.uint8)
    assert np.unique(OPS[name](flat, 0.5)).size == 1


def test_operations_go_both_ways_and_grow() -> None:
    picture = picture_of(3)
    darker, brighter = (OPS["brightness"](picture, s).mean() for s in (-0.5, 0.5))
    assert darker < picture.mean() < brighter
    for name in ("shear-x", "shear-y", "translate-x", "translate-y", "rotate"):
        empty = [int((OPS[name](picture, s) == EMPTY).all(axis=2).sum()) for s in (0.5, 1.0)]
        assert 0 < empty[0] < empty[1], name
    moved = OPS["translate-x"](picture, 10 / (0.45 * 33))
    np.testing.assert_array_equal(moved[:, 10:], picture[:, :-10])
    level = picture_of(3)[:, :, :1]
    gray = np.dstack([level] * 3)
    np.testing.assert_array_equal(OPS["saturation"](gray, 1.0), gray)  # gray has no colour to strengthen
    quarter = OPS["posterize"](picture, 1.0)
    assert set(np.unique(quarter % 16)) == {0}


@pytest.mark.parametrize("pixel", [RGB, GRAY])
def test_distorted_views_repeat_and_differ(pixel: PixelContract) -> None:
    frame, augment = frame_of(40, 60), Augment(crop_min=0.3, flip=True, randaug=7)
    views = [view(frame, pixel, augment, np.random.default_rng(seed)) for seed in range(40)]
    again = [view(frame, pixel, augment, np.random.default_rng(seed)) for seed in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    plain = [view(frame, pixel, Augment(crop_min=0.3, flip=True), np.random.default_rng(seed)) for seed in range(40)]
    assert sum(np.array_equal(a, b) for a, b in zip(views, plain, strict=True)) <= 4
    assert {(v.shape, v.dtype.name) for v in views} == {((32, 32, pixel.channels), "uint8")}


def test_distortion_of_magnitude_zero_draws_nothing() -> None:
    frame, rngs = frame_of(40, 60), [np.random.default_rng(3) for _ in range(2)]
    plain = view(frame, RGB, Augment(crop_min=0.3, flip=True), rngs[0])
    off = view(frame, RGB, Augment(crop_min=0.3, flip=True, randaug=0.0), rngs[1])
    np.testing.assert_array_equal(plain, off)
    assert rngs[0].random() == rngs[1].random()
    # And what is on draws after crop and flip: the same part of the picture is seen.
    rng = np.random.default_rng(3)
    view(frame, RGB, Augment(crop_min=0.3, flip=True, randaug=5), rng)
    assert rng.random() != np.random.default_rng(3).random()


@pytest.mark.parametrize("magnitude", [-1.0, 10.5, float("nan")])
def test_a_magnitude_out_of_range_is_refused(magnitude: float) -> None:
    with pytest.raises(PlanError, match="randaug is"):
        Augment(randaug=magnitude)
