"""Whether a file is a whole picture: asked once for every file while a folder is scanned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from writing its own traces of broken files, which are named in the log."""
    logging_of_cv2 = cv2.utils.logging
    before = logging_of_cv2.setLogLevel(logging_of_cv2.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging_of_cv2.setLogLevel(before)


def check(path: str) -> tuple[str, str]:
    """Return (content hash, reason to skip or "")."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"
    if not data:
        return "", "empty file"
    digest = hashlib.sha256(data).hexdigest()
    if _ends_early(data):
        return digest, "truncated: the end of the JPEG is missing"
    # An eighth of the size decodes several times faster and meets the same headers and streams, but OpenCV makes
    # nothing of a picture below 8 px that way.
    fine = any(_decodes(data, flags) for flags in (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_COLOR))
    return digest, "" if fine else "not a readable image"


def _decodes(data: bytes, flags: int) -> bool:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) is not None
    except cv2.error:
        return False


def _ends_early(data: bytes) -> bool:
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
