"""Augmentation with OpenCV on uint8 frames: random resized crop, flip, and changes of colour and shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.preprocess import ImageBGR, crop, recolor, resize, rotate
from edgemae.spec.errors import PlanError
from edgemae.spec.graph import PixelContract


class Augment(msgspec.Struct, frozen=True, kw_only=True):
    """State how a training view is made.

    `crop_min` is the least share of the area, 1.0 the evaluation view; `randaug` the magnitude of `distort`, 0 is off.
    """

    crop_min: float = 1.0
    flip: bool = False
    randaug: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.crop_min <= 1:
            raise PlanError(
                f"crop_min is {self.crop_min}",
                expected="more than 0, and 1 at most",
                fix="0.2 is usual for pretraining, 1.0 switches random crops off",
            )
        if not 0 <= self.randaug <= MAGNITUDE_MOST:
            raise PlanError(
                f"randaug is {self.randaug}",
                expected=f"0 (off) to {MAGNITUDE_MOST}",
                fix="5 is mild, 9 usual for large models; a tiny student is better off with 0",
            )


def view(frame_bgr: ImageBGR, pixel: PixelContract, augment: Augment, rng: np.random.Generator) -> ImageBGR:
    """Return an (image_px, image_px, C) uint8 view: random resized crop (aspect 3/4 to 4/3), flip, then distortions.

    What is off draws nothing, and distortions draw last: crops and flips of a seed are the same with and without them.
    """
    if augment.crop_min >= 1.0:
        picture = crop(frame_bgr, pixel)
    else:
        frame_bgr = rotate(frame_bgr, pixel)
        top, left, h, w = crop_box(frame_bgr.shape[0], frame_bgr.shape[1], augment.crop_min, rng)
        part = resize(frame_bgr[top : top + h, left : left + w], (pixel.image_px, pixel.image_px), pixel)
        picture = recolor(part, pixel)
    if augment.flip and rng.random() < 0.5:
        picture = picture[:, ::-1]
    return distort(picture, augment.randaug, rng) if augment.randaug else picture


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


# ---------------------------------------------------------------- distortions

MAGNITUDE_MOST = 10
OPS_PER_VIEW = 2
EMPTY = 128  # what a shifted or turned picture shows where it has nothing
Op = Callable[[ImageBGR, float], ImageBGR]


def distort(picture: ImageBGR, magnitude: float, rng: np.random.Generator) -> ImageBGR:
    """Return a (H, W, C) uint8 picture after two random operations of one strength (RandAugment, Cubuk et al. 2020).

    `magnitude` 0..10 spans the ranges of AutoAugment (Cubuk et al. 2019, table 6). Each operation gets a strength in
    -1..1, whose sign is drawn: darker or brighter, to the left or to the right.
    """
    ops = GRAY_OPS if picture.shape[2] == 1 else OPS
    names = list(ops)
    for choice, sign in zip(
        rng.integers(len(names), size=OPS_PER_VIEW), rng.choice((-1, 1), OPS_PER_VIEW), strict=True
    ):
        changed = ops[names[choice]](np.ascontiguousarray(picture), float(sign) * magnitude / MAGNITUDE_MOST)
        picture = changed.reshape(picture.shape)  # OpenCV drops a last axis of one channel
    return picture


def _mapped(picture: ImageBGR, curve: NDArray[np.floating]) -> ImageBGR:
    """Return the picture with each value v replaced by curve[v], (256,)."""
    return cv2.LUT(picture, np.clip(np.round(curve), 0, 255).astype(np.uint8))  # type: ignore[return-value]


_VALUES = np.arange(256, dtype=np.float32)


def _auto_contrast(picture: ImageBGR, strength: float) -> ImageBGR:
    del strength  # it stretches each channel to 0..255, neither more nor less
    # Channel by channel: 0.03 ms at 96 px, where a minimum over the first two axes takes numpy 0.4 ms.
    low, high = np.array([cv2.minMaxLoc(plane)[:2] for plane in cv2.split(picture)]).T
    scale = 255 / np.maximum(high - low, 1)
    return cv2.transform(picture, np.column_stack((np.diag(scale), -low * scale)))  # type: ignore[return-value]


def _equalize(picture: ImageBGR, strength: float) -> ImageBGR:
    del strength
    return np.dstack([cv2.equalizeHist(np.ascontiguousarray(picture[:, :, c])) for c in range(picture.shape[2])])


def _brightness(picture: ImageBGR, strength: float) -> ImageBGR:
    return _mapped(picture, _VALUES * (1 + 0.9 * strength))


def _contrast(picture: ImageBGR, strength: float) -> ImageBGR:
    mean = float(picture.mean())
    return _mapped(picture, mean + (_VALUES - mean) * (1 + 0.9 * strength))


def _saturation(picture: ImageBGR, strength: float) -> ImageBGR:
    # The plain mean of the channels serves RGB and BGR alike.
    gray = cv2.transform(picture, np.full((3, 3), 1 / 3, np.float32))
    factor = 1 + 0.9 * strength
    return cv2.addWeighted(picture, factor, gray, 1 - factor, 0)  # type: ignore[return-value]


def _sharpness(picture: ImageBGR, strength: float) -> ImageBGR:
    factor = 1 + 0.9 * strength
    return cv2.addWeighted(picture, factor, cv2.blur(picture, (3, 3)), 1 - factor, 0)  # type: ignore[return-value]


def _posterize(picture: ImageBGR, strength: float) -> ImageBGR:
    dropped = math.ceil(4 * abs(strength))  # of 8 bits
    return picture & np.uint8(0xFF << dropped & 0xFF)


def _solarize(picture: ImageBGR, strength: float) -> ImageBGR:
    return _mapped(picture, np.where(256 * (1 - abs(strength)) <= _VALUES, 255 - _VALUES, _VALUES))


def _moved(picture: ImageBGR, matrix: Sequence[Sequence[float]], shift: tuple[float, float]) -> ImageBGR:
    """Return the picture under x -> matrix (x - centre) + centre + shift, in pixels."""
    height, width = picture.shape[:2]
    centre = np.array(((width - 1) / 2, (height - 1) / 2))
    turn = np.array(matrix)
    affine = np.column_stack((turn, centre - turn @ centre + np.array(shift)))
    empty = (EMPTY,) * picture.shape[2]
    return cv2.warpAffine(picture, affine, (width, height), borderValue=empty)  # type: ignore[return-value]


def _shear_x(picture: ImageBGR, strength: float) -> ImageBGR:
    return _moved(picture, ((1, 0.3 * strength), (0, 1)), (0, 0))


def _shear_y(picture: ImageBGR, strength: float) -> ImageBGR:
    return _moved(picture, ((1, 0), (0.3 * strength, 1)), (0, 0))


def _translate_x(picture: ImageBGR, strength: float) -> ImageBGR:
    return _moved(picture, ((1, 0), (0, 1)), (0.45 * strength * picture.shape[1], 0))


def _translate_y(picture: ImageBGR, strength: float) -> ImageBGR:
    return _moved(picture, ((1, 0), (0, 1)), (0, 0.45 * strength * picture.shape[0]))


def _turn(picture: ImageBGR, strength: float) -> ImageBGR:
    angle = math.radians(30 * strength)
    return _moved(picture, ((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))), (0, 0))


GRAY_OPS: dict[str, Op] = {
    "auto-contrast": _auto_contrast, "equalize": _equalize, "brightness": _brightness, "contrast": _contrast,
    "sharpness": _sharpness, "posterize": _posterize, "solarize": _solarize, "shear-x": _shear_x, "shear-y": _shear_y,
    "translate-x": _translate_x, "translate-y": _translate_y, "rotate": _turn,
}  # fmt: skip
OPS: dict[str, Op] = GRAY_OPS | {"saturation": _saturation}
