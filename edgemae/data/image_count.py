"""How many images a place holds: names only, nothing is read but the index of shards."""

from __future__ import annotations

import os

from edgemae.data.shard_index import indexes
from edgemae.data.shards import shards_at
from edgemae.device.camera.image_header import IMAGE_SUFFIXES


def count_images(where: str) -> int:
    """Return the number of images in a folder or in shards; 0 where there is nothing, which is refused later."""
    shards = shards_at(where)
    if shards is not None:
        return sum(len(index.starts) for index in indexes(shards))
    names = (name for _, _, files in os.walk(where) for name in files)
    return sum(name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") for name in names)
