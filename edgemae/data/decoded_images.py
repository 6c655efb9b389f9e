"""Decoded pixels of sets that are read again and again: every epoch validates, every candidate is evaluated."""

from __future__ import annotations

import logging
from collections import OrderedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.image_set import ImageSet
from edgemae.spec.graph import PixelContract

log = logging.getLogger("edgemae.data")
LIMIT_BYTES = 512 << 20  # of all sets together: 341 photos at 96 px are 9 MB, 3,500 at 224 px just fit
_sets: OrderedDict[tuple[str, bytes], DecodedImages] = OrderedDict()


class DecodedImages:
    """Hold views of one set in one pixel contract, as far as they were decoded: (N, H, W, C) uint8.

    They are neither augmented nor normalised, so that graphs of either input type share them.
    """

    def __init__(self, count: int, pixel: PixelContract) -> None:
        self.pixels = np.empty((count, pixel.image_px, pixel.image_px, pixel.channels), np.uint8)
        self._known = np.zeros(count, bool)

    def has(self, indices: list[int]) -> bool:
        """Return whether all views at `indices` were decoded."""
        return bool(self._known[indices].all())

    def get(self, indices: list[int]) -> NDArray[np.uint8]:
        """Return a copy of the views at `indices`."""
        return self.pixels[indices]

    def put(self, indices: list[int], pixels: NDArray[np.uint8]) -> None:
        self.pixels[indices] = pixels
        self._known[indices] = True


def decoded_images(images: ImageSet, pixel: PixelContract) -> DecodedImages | None:
    """Return what this process has decoded of a set in a pixel contract; None for a set larger than LIMIT_BYTES.

    A set is known by its contents in their order. The set that was used longest ago makes room for a new one.
    """
    size = len(images) * pixel.image_px**2 * pixel.channels
    if size > LIMIT_BYTES:
        return None
    key = (images.sequence, msgspec.json.encode(pixel))
    if key not in _sets:
        while _sets and size + sum(one.pixels.nbytes for one in _sets.values()) > LIMIT_BYTES:
            _sets.popitem(last=False)
        _sets[key] = DecodedImages(len(images), pixel)
    _sets.move_to_end(key)
    return _sets[key]
