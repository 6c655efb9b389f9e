"""What a decoding process does: image files in, uint8 views out.

No torch here, so that such a process starts in half a second and needs some 60 MiB instead of 250.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.augment import Augment, view
from edgemae.device.preprocess import read_frame
from edgemae.spec.errors import DataError
from edgemae.spec.graph import PixelContract


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for one batch: `paths`, and for each the `keys` that seed its view."""

    paths: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    pixel: PixelContract
    augment: Augment


def decode(request: Request) -> NDArray[np.uint8]:
    """Return views (B, H, W, C) uint8 of a batch. Raises DataError for a file that cannot be read any more."""
    rows = zip(request.paths, request.keys, strict=True)
    return np.stack([_view(path, key, request) for path, key in rows])


def _view(path: str, key: tuple[int, ...], request: Request) -> NDArray[np.uint8]:
    try:
        frame = read_frame(path, request.pixel)
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read any more: {error.strerror}",
            expected="every image where it was when the folder was scanned",
            fix="put it back and run the same command again, or leave it out and start anew",
        ) from error
    return view(frame, request.pixel, request.augment, np.random.default_rng(key))


def start() -> None:
    """Prepare a decoding process: one thread, deaf to Ctrl-C, and gone when its parent is, also after kill -9."""
    cv2.setNumThreads(1)  # OpenCV's own pool would fight the trainer for the cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends this one
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
