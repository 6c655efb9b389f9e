"""Where the bytes of an image lie: references to members of shards, and reading them."""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemae.data import shards as shards_module
from edgemae.data.decode_worker import read_image
from edgemae.data.image_bytes import close_shards, part_of, shown
from edgemae.data.image_set import sample
from edgemae.data.shards import ShardSet, images_at
from edgemae.spec.errors import DataError
from tests.support.shard_files import PIXEL, training


def test_references_name_shard_place_and_member(shards: Path) -> None:
    images = images_at(str(shards))
    part = part_of(images.paths[14])
    assert part is not None
    assert part.shard == str(shards / "train-000001.tar")
    assert shown(images.paths[14]) == f"'000001.jpg' in '{part.shard}'"
    assert images.paths[-1] == list(images.paths)[37]
    assert list(images.paths[3:9:2]) == [images.paths[i] for i in (3, 5, 7)]
    assert part_of("/a/b@c+d.jpg") is None
    assert read_image(images.paths[0], PIXEL).shape == (20, 24, 3)


def test_millions_of_references_take_no_strings() -> None:
    count = 300_000
    parts = shards_module.Parts(
        ("a.tar",), np.zeros(count, np.int32), np.arange(count, dtype=np.int64), np.ones(count, np.int64)
    )
    images = ShardSet("many", parts, np.arange(count, dtype=np.uint64), None)  # type: ignore[arg-type]
    assert sum(values.nbytes for values in (parts.shard, parts.starts, parts.sizes)) <= 20 * count
    order = images.order(0, 0, 512)
    assert len(order) == count // 512 * 512
    assert len(np.unique(order)) == len(order)
    assert parts[299_999] == "a.tar@299999+1"
    assert len(sample(images, 10, 0)) == 10


def test_a_picture_is_read_without_opening_a_file(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_at(str(shards))
    close_shards()
    opened: list[str] = []

    def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *more, **options: (opened.append(str(path)), plain(path, *more, **options))[1]

    monkeypatch.setattr(builtins, "open", counted(builtins.open))
    monkeypatch.setattr(os, "open", counted(os.open))
    assert sum(len(batch.indices) for batch in training(images).batches(0, 12)) == 72
    assert sorted(Path(path).name for path in opened) == [f"train-{k:06d}.tar" for k in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_shrinks_or_goes_is_an_error(shards: Path, workers: int) -> None:
    images = images_at(str(shards))
    os.truncate(shards / "train-000002.tar", 1024)
    close_shards()
    with pytest.raises(DataError, match=r"train-000002.tar' ends early: \d+ bytes from \d+ on were there"):
        list(training(images, workers=workers).batches(0, 12))
    shutil.rmtree(shards)
    close_shards()
    with pytest.raises(DataError, match="cannot be read any more: No such file"):
        list(training(images, workers=workers).batches(0, 12))
