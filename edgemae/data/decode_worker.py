"""What a decoding process does: image files or members of shards in, uint8 views out.

No torch here, so that such a process starts in half a second and needs some 60 MiB instead of 250.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.augment import Augment, view
from edgemae.data.image_bytes import content, read_ahead, shown
from edgemae.data.image_check import ends_early
from edgemae.device.camera.image_header import FORMATS, why_refused
from edgemae.device.preprocess import ImageBGR
from edgemae.device.preprocess import decode as decode_bytes
from edgemae.spec.errors import DataError
from edgemae.spec.graph import PixelContract


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for one batch: `paths`, and for each the `keys` that seed its view.

    `go_on`: leave the rows of corrupt images black and name them, instead of raising an error.
    """

    paths: tuple[str, ...]
    keys: tuple[tuple[int, ...], ...]
    pixel: PixelContract
    augment: Augment
    go_on: bool = False

    def divided(self, parts: int) -> list[Request]:
        """Return up to that many requests, in order, that ask for the same."""
        size = max(1, -(-len(self.paths) // parts))
        return [
            msgspec.structs.replace(self, paths=self.paths[at : at + size], keys=self.keys[at : at + size])
            for at in range(0, max(1, len(self.paths)), size)
        ]


class Views(NamedTuple):
    """Hold views (B, H, W, C) uint8 and the rows whose images are corrupt."""

    images: NDArray[np.uint8]
    corrupt: tuple[int, ...] = ()


def joined(parts: list[Views]) -> Views:
    """Return the views of a batch that was decoded in parts."""
    if len(parts) == 1:
        return parts[0]
    corrupt, before = list[int](), 0
    for part in parts:
        corrupt += [before + row for row in part.corrupt]
        before += len(part.images)
    return Views(np.concatenate([part.images for part in parts]), tuple(corrupt))


def decode(request: Request) -> Views:
    """Return the views of a batch. Raises DataError for a file that cannot be read any more."""
    pixel, corrupt = request.pixel, []
    images = np.zeros((len(request.paths), pixel.image_px, pixel.image_px, pixel.channels), np.uint8)
    read_ahead(request.paths)
    for row, (path, key) in enumerate(zip(request.paths, request.keys, strict=True)):
        frame = _frame(path, pixel)
        if not isinstance(frame, DataError):
            images[row] = view(frame, pixel, request.augment, np.random.default_rng(key))
        elif request.go_on:
            corrupt.append(row)
        else:
            raise frame
    return Views(images, tuple(corrupt))


def read_image(reference: str, pixel: PixelContract) -> ImageBGR:
    """Return an image, a file or a member of a shard, as a BGR frame. Raises DataError."""
    frame = _frame(reference, pixel)
    if isinstance(frame, DataError):
        raise frame
    return frame


def _frame(reference: str, pixel: PixelContract) -> ImageBGR | DataError:
    """Return an image as a BGR frame, or what is wrong with it: also one whose rest OpenCV would make up in gray.

    Raises DataError for a file that cannot be read any more.
    """
    try:
        data = content(reference)
    except OSError as error:
        raise DataError(
            f"{shown(reference)} cannot be read any more: {error.strerror}",
            expected="every image where it was when the folder was scanned",
            fix="put it back and run the same command again, or leave it out and start anew",
        ) from error
    frame = None if ends_early(data) else decode_bytes(data, pixel)
    if frame is not None:
        return frame
    why = why_refused(data)
    return DataError(
        f"{shown(reference)} is not a readable image{f': {why}' if why else ''}",
        expected=f"a whole {FORMATS}",
        fix="remove or replace it",
    )


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
