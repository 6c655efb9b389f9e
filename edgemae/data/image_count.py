"""How many images a place holds: only the index of shards and the beginnings of files of unknown endings are read."""

from __future__ import annotations

import os

from edgemae.data.shard_index import indexes
from edgemae.data.shards import shards_at
from edgemae.device.camera.image_header import is_image


def count_images(where: str) -> int:
    """Return the number of images in a folder or in shards; 0 where there is nothing, which is refused later."""
    shards = shards_at(where)
    if shards is not None:
        return sum(len(index.starts) for index in indexes(shards))
    found = ((folder, name) for folder, _, files in os.walk(where) for name in files if not name.startswith("."))
    return sum(is_image(os.path.join(folder, name)) for folder, name in found)
