"""The answer drawn into the image: labels with bars at the bottom, freshness at the top."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult

LEAST_PX = 360  # a smaller image is enlarged first: text would cover all of one of 28 px
MOST_PX = 4096  # to which that may make its long side: encoders of video take no more, and 1 x 2000 would become 800 MB
ROWS = 3
WHITE, SOFT, BLUE, GRAY = (255, 255, 255), (200, 200, 200), (233, 180, 86), (90, 90, 90)  # BGR
TRUETYPE = hasattr(cv2, "FontFace")  # OpenCV 5; the stroke font of OpenCV 4 knows ASCII only


def draw(seen: StreamResult[Result], fps: float) -> NDArray[np.uint8]:
    """Return a copy of the frame, (H, W, 3) BGR, with what the model says of it, how old it is and the rate."""
    frame = seen.frame.array_bgr
    times = min(-(-LEAST_PX // min(frame.shape[:2])), max(MOST_PX // max(frame.shape[:2]), 1))
    image = frame.copy()
    if times > 1:
        image = cv2.resize(frame, None, fx=times, fy=times, interpolation=cv2.INTER_NEAREST)
    height, width = image.shape[:2]
    unit = max(round(min(height, width) / 27), 13)  # height of a line's text
    rate = [f"{fps:.1f} fps"] if fps else []
    _status_line(image, "   ".join([*rate, f"{seen.age_ms:.0f} ms old"]), unit)
    rows = seen.result.topk[:ROWS]
    top = height - int(unit * (1.9 * len(rows) + 0.9))
    if rows:
        _darken(image, (0, top), (width, height))
    for i, (label, share) in enumerate(rows):
        _row(image, (label, share), top + int(unit * (1.9 * i + 1.75)), unit, first=i == 0)
    return image


def _row(image: cv2.typing.MatLike, row: tuple[str, float], base: int, unit: int, *, first: bool) -> None:
    width = image.shape[1]
    left, right = int(0.42 * width), int(width - 5.2 * unit)
    label, share = row
    colour = WHITE if first else SOFT
    most = max(int((left - unit) / (0.62 * unit)), 4)
    _write(image, label if len(label) <= most else label[: most - 1] + "…", (unit, base), unit, colour)
    middle, half = base - int(0.36 * unit), max(unit // 5, 2)
    cv2.rectangle(image, (left, middle - half), (right, middle + half), GRAY, -1)
    end = left + int(share * (right - left))
    if end > left:
        cv2.rectangle(image, (left, middle - half), (end, middle + half), BLUE if first else SOFT, -1)
    _write(image, f"{100 * share:.1f} %", (right + unit // 2, base), unit, colour)


def _status_line(image: cv2.typing.MatLike, text: str, unit: int) -> None:
    small = max(round(0.75 * unit), 11)
    _darken(image, (0, 0), (min(int(small * (0.62 * len(text) + 1.6)), image.shape[1]), int(1.9 * small)))
    _write(image, text, (int(0.7 * small), int(1.35 * small)), small, WHITE)


def _darken(image: cv2.typing.MatLike, start: tuple[int, int], end: tuple[int, int]) -> None:
    part = image[start[1] : end[1], start[0] : end[0]]
    np.multiply(part, 0.35, out=part, casting="unsafe")


def _write(image: cv2.typing.MatLike, text: str, at: tuple[int, int], px: int, colour: tuple[int, int, int]) -> None:
    if TRUETYPE:
        # Not in the types of every OpenCV that this runs with.
        cv2.putText(image, text, at, colour, _font(), px, 500)  # type: ignore[call-overload]
        return
    plain = unicodedata.normalize("NFKD", text.replace("…", "...")).encode("ascii", "ignore").decode()
    cv2.putText(image, plain, at, cv2.FONT_HERSHEY_DUPLEX, px / 30, colour, max(px // 20, 1), cv2.LINE_AA)


def _font() -> object:
    return cv2.FontFace("sans")
