"""THE pixel definition: how a frame becomes a tensor. Training, calibration, evaluation and the device all use it.

Nothing else in edgemae resizes, crops, reorders or normalises pixels. `cv2` is the only library involved, so the same
bytes come out on a workstation and on a device (OpenCV's 8-bit INTER_AREA and INTER_LINEAR are integer-exact).
"""

from __future__ import annotations

from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera.image_header import why_refused
from edgemae.spec.errors import InputError
from edgemae.spec.graph import PixelContract

ImageBGR = NDArray[np.uint8]  # (H, W, 3)
T = TypeVar("T", np.uint8, np.float32)
MOST_PIXELS = 1 << 26  # to which a frame is grown: one of 1 x 16384 took 2.4 GB and 8 s to become 224 px high
_ROTATE: dict[int, int] = {
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
_TO_BGR: dict[str, int | None] = {
    "BGR": None,
    "RGB": cv2.COLOR_RGB2BGR,
    "GRAY": cv2.COLOR_GRAY2BGR,
    "BGRA": cv2.COLOR_BGRA2BGR,
    "RGBA": cv2.COLOR_RGBA2BGR,
}


def decode(data: bytes, pixel: PixelContract) -> ImageBGR | None:
    """Return encoded image bytes as a BGR (H, W, 3) uint8 frame with EXIF applied, or None when they are no image.

    None too for what `why_refused` names: another format, or more pixels than memory should be taken for.
    """
    if why_refused(data):
        return None
    flags = cv2.IMREAD_COLOR
    if pixel.exif == "ignore":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # type: ignore[return-value]
    except cv2.error:
        return None


def as_bgr(frame: NDArray[Any], color: str = "BGR") -> ImageBGR:
    """Return any uint8 frame as BGR (H, W, 3); `color` names its order: BGR, RGB, GRAY, BGRA or RGBA.

    A two-dimensional frame is gray and a four-channel one has alpha (dropped), whatever `color` says of the order.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        kind = getattr(frame, "dtype", type(frame).__name__)
        raise InputError(
            f"a frame of type {kind} was given",
            expected="a numpy array of uint8 with shape (H, W), (H, W, 3) or (H, W, 4)",
            fix="check the path: cv2.imread gives None for a file that it cannot read"
            if frame is None
            else "scale it to 0..255 and convert it: (x * 255).round().astype('uint8') for floats from 0 to 1",
        )
    if color not in _TO_BGR:
        raise InputError(f"unknown colour order '{color}'", expected=", ".join(_TO_BGR), fix="pass one of those")
    channels = 1 if frame.ndim == 2 else frame.shape[2] if frame.ndim == 3 else 0
    if channels not in (1, 3, 4) or 0 in frame.shape:
        raise InputError(
            f"a frame of shape {frame.shape} was given",
            expected="(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), none of them zero",
            fix="pass one image at a time, rows first",
        )
    if channels == 1:
        color = "GRAY"
    elif channels == 4:
        color = color.removesuffix("A") + "A"
    elif color in ("GRAY", "BGRA", "RGBA"):
        color = color.removesuffix("A").replace("GRAY", "BGR")
    code = _TO_BGR[color]
    return frame if code is None else cv2.cvtColor(frame, code)  # type: ignore[return-value]


def crop(frame_bgr: ImageBGR, pixel: PixelContract) -> NDArray[np.uint8]:
    """Return the (image_px, image_px, C) uint8 image that the model sees: 0..255, in `pixel.color` order."""
    frame_bgr = rotate(frame_bgr, pixel)
    size = pixel.image_px
    if pixel.kernel == "halve-linear" and pixel.resize != "stretch":  # what the crop leaves out is never computed
        side, top, left = _middle(frame_bgr.shape[:2], pixel)
        return recolor(resize(frame_bgr[top : top + side, left : left + side], (size, size), pixel), pixel)
    new_hw, top, left = placement(frame_bgr.shape[:2], pixel)
    if new_hw != frame_bgr.shape[:2]:
        frame_bgr = resize(frame_bgr, new_hw, pixel)
    return recolor(frame_bgr[top : top + size, left : left + size], pixel)


def placement(frame_hw: tuple[int, ...], pixel: PixelContract) -> tuple[tuple[int, int], int, int]:
    """Return (height and width that a rotated frame is resized to, top, left of the square that is cut from it)."""
    size = pixel.image_px
    if pixel.resize == "stretch":
        return (size, size), 0, 0
    (height, width), short = frame_hw[:2], round(size / pixel.crop_fraction)
    if pixel.kernel == "halve-linear":
        side, top, left = _middle(frame_hw, pixel)
        scale = size / side
        return (round(height * scale), round(width * scale)), round(top * scale), round(left * scale)
    scale = short / min(height, width)
    new_hw = (max(size, round(height * scale)), max(size, round(width * scale)))
    if new_hw[0] * new_hw[1] > max(height * width, MOST_PIXELS):
        raise InputError(
            f"a frame of {height} x {width} pixels would have to grow to {new_hw[0]} x {new_hw[1]}",
            expected=f"a shape whose short side reaches {short} px within {MOST_PIXELS:,} pixels",
            fix="cut the frame to the part that matters",
        )
    return new_hw, (new_hw[0] - size) // 2, (new_hw[1] - size) // 2


def _middle(frame_hw: tuple[int, ...], pixel: PixelContract) -> tuple[int, int, int]:
    """Return (side, top, left) of the square of a rotated frame that `halve-linear` cuts out before it resizes."""
    short = round(pixel.image_px / pixel.crop_fraction)
    side = max(1, round(min(frame_hw[:2]) * pixel.image_px / short))
    return side, (frame_hw[0] - side) // 2, (frame_hw[1] - side) // 2


def rotate(frame: ImageBGR, pixel: PixelContract) -> ImageBGR:
    """Turn a frame by the contract's `rotation_deg`."""
    return rotate_clockwise(frame, pixel.rotation_deg)


def rotate_clockwise(array: NDArray[T], degrees: int) -> NDArray[T]:
    """Return an (H, W) or (H, W, C) array turned by one of ROTATIONS_DEG; by 0 it is the array itself."""
    return cv2.rotate(array, _ROTATE[degrees]) if degrees else array  # type: ignore[return-value]


def resize(frame: ImageBGR, new_hw: tuple[int, int], pixel: PixelContract) -> ImageBGR:
    """Resize with the contract's kernel."""
    kernel = pixel.kernel
    if kernel == "halve-linear":
        frame, kernel = halve(frame, new_hw), "linear"
    if kernel == "area-linear":
        kernel = "area" if new_hw[0] * new_hw[1] < frame.shape[0] * frame.shape[1] else "linear"
    flag = {"area": cv2.INTER_AREA, "linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}[kernel]
    return cv2.resize(frame, (new_hw[1], new_hw[0]), interpolation=flag)  # type: ignore[return-value]


def halve(frame: ImageBGR, least_hw: tuple[int, int]) -> ImageBGR:
    """Halve each side as long as it stays at `least_hw` or above: rounded means of 2 x 2 pixels, an odd last one cut.

    OpenCV has that kernel in integers: 1080p to 270 px takes 0.5 ms, one step of INTER_AREA to 224 px 9 ms.
    """
    while True:
        height, width = frame.shape[:2]
        by_y, by_x = (2 if side >= 2 * least else 1 for side, least in zip((height, width), least_hw, strict=True))
        if by_y == by_x == 1:
            return frame
        new_hw = height // by_y, width // by_x
        frame = cv2.resize(
            frame[: by_y * new_hw[0], : by_x * new_hw[1]], (new_hw[1], new_hw[0]), interpolation=cv2.INTER_AREA
        )  # type: ignore[assignment]


def recolor(frame_bgr: ImageBGR, pixel: PixelContract) -> NDArray[np.uint8]:
    """Return (H, W, C) in the tensor's channel order."""
    if pixel.channels == 1:
        return cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2GRAY)[:, :, None]  # type: ignore[return-value]
    if pixel.color == "RGB":
        return cv2.cvtColor(frame_bgr, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
    return frame_bgr


def normalise(image: NDArray[np.uint8], pixel: PixelContract) -> NDArray[np.float32]:
    """Return an (H, W, C) uint8 image as a contiguous (1, C, H, W) float32 tensor: (x / 255 - mean) / std."""
    planes = np.empty((1, pixel.channels, *image.shape[:2]), np.float32)
    normalise_into(planes[0], image, pixel)
    return planes


def normalise_into(planes: NDArray[np.float32], image: NDArray[np.uint8], pixel: PixelContract) -> None:
    """Fill (C, H, W) as `normalise` does: a batch of 64 x 96 px in place takes 0.85 ms, by way of copies 1.1."""
    # One multiplication and one subtraction a value, on planes that lie in one piece: 0.10 ms at 224 px, where strided
    # channels take 0.15 ms, the textbook order 0.6 ms and blobFromImage, whose rounding is another, 0.8 ms.
    scale = np.float32(1.0) / (np.float32(255.0) * np.asarray(pixel.std, np.float32))
    shift = np.asarray(pixel.mean, np.float32) / np.asarray(pixel.std, np.float32)
    for plane, values, factor, offset in zip(planes, cv2.split(image), scale, shift, strict=True):
        plane[...] = values
        plane *= factor
        plane -= offset


def preprocess(frame_bgr: ImageBGR, pixel: PixelContract, dtype: str = "float32") -> NDArray[Any]:
    """Return one BGR uint8 frame as the graph's input: (1, C, H, W) float32.

    A graph whose input is uint8 normalises by itself and takes the image as it is, (1, H, W, C).
    """
    image = crop(frame_bgr, pixel)
    return np.ascontiguousarray(image)[None] if dtype == "uint8" else normalise(image, pixel)
