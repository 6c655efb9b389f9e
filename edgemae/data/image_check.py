"""Whether a file is a whole image: asked once for every file while a folder is scanned."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import cv2
import numpy as np

from edgemae.data.image_bytes import content
from edgemae.device.camera.image_header import why_refused


class ImageCheck(NamedTuple):
    """Say what was found: the hash of all bytes, the reason to skip or "", the shorter side, 0 when there is none.

    The side is exact below 128 px; above, up to 7 px off.
    """

    digest: str
    why: str = ""
    side_px: int = 0


def check(reference: str) -> ImageCheck:
    """Decode an image once. Raises DataError for a shard that has become shorter."""
    try:
        data = content(reference)
    except OSError as error:
        return ImageCheck("", f"cannot be read ({error.strerror})")
    digest = hashlib.sha256(data).hexdigest() if data else ""
    if why := why_refused(data):
        return ImageCheck(digest, why)
    if ends_early(data):
        return ImageCheck(digest, "truncated: the end of the JPEG is missing")
    # An eighth of the size decodes several times faster and meets the same headers and streams, but OpenCV makes
    # nothing of an image below 8 px that way.
    side_px = 8 * _side(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    if side_px <= 128:
        side_px = _side(data, cv2.IMREAD_COLOR) or side_px
    return ImageCheck(digest, "" if side_px else "not a readable image", side_px)


def _side(data: bytes, flags: int) -> int:
    """Return the shorter side of an image as decoded with OpenCV's flags, 0 when it cannot be."""
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return 0
    return 0 if frame is None else min(frame.shape[:2])


def ends_early(data: bytes) -> bool:
    """Tell whether a JPEG lacks its end marker: OpenCV 4 decodes such a file without a word, the rest of it gray.

    Headers are stepped over, because a thumbnail in them has an end marker of its own; in the scan itself there is none
    but the last.
    """
    if data[:3] != b"\xff\xd8\xff":
        return False
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        fill = data[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data.find(b"\xff\xd9", at) < 0
