"""Counting images by name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from edgemae.data.image_count import count_images
from edgemae.data.shards import images_at


def test_a_folder_is_counted_as_it_is_scanned(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = image_folder()
    before = len(images_at(str(folder)))
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    assert count_images(str(folder)) == before > 0
    assert count_images(str(tmp_path / "nowhere")) == 0


def test_shards_are_counted_by_their_index(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    pictures = sorted(image_folder().rglob("*.png"))[:5]
    with tarfile.open(tmp_path / "a-000000.tar", "w") as shard:
        for number, picture in enumerate(pictures):
            data = picture.read_bytes()
            member = tarfile.TarInfo(f"{number:06d}.png")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    assert count_images(str(tmp_path / "a-{000000..000000}.tar")) == 5
