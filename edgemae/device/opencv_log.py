"""Keep OpenCV's own log quiet for a while: edgemae logs the same once, with the name of the file or the source."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2


class _QuietLog:
    """Count who wants silence, in any thread: the first sets OpenCV's level, the last puts the old one back."""

    def __init__(self) -> None:
        self._lock, self._count, self._level = threading.Lock(), 0, 0

    def change(self, by: int) -> None:
        logging = cv2.utils.logging
        with self._lock:
            if self._count == 0:
                self._level = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
            self._count += by
            if self._count == 0:
                logging.setLogLevel(self._level)


_quiet = _QuietLog()


def silence_opencv() -> None:
    """Silence OpenCV's log until `restore_opencv_log` has been called as often."""
    _quiet.change(1)


def restore_opencv_log() -> None:
    """End one `silence_opencv`."""
    _quiet.change(-1)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Silence OpenCV's log within a `with` block."""
    silence_opencv()
    try:
        yield
    finally:
        restore_opencv_log()
