"""Corrupt images in shards: named, replaced in training, and left out beforehand in evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgemae.data.image_bytes import close_shards, content, part_of
from edgemae.data.image_set import ImageSet, sift
from edgemae.data.loader import Loader
from edgemae.data.shards import images_at
from edgemae.spec.errors import DataError
from tests.support.shard_files import PIXEL, same, training


def break_pictures(images: ImageSet, rows: list[int], data: bytes = b"no picture at all") -> None:
    for row in rows:
        part = part_of(images.paths[row])
        assert part is not None
        with open(part.shard, "r+b") as file:
            file.seek(part.start)
            file.write(data.ljust(part.size, b"\0")[: part.size])
    close_shards()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named_and_its_neighbour_takes_its_place(
    shards: Path, caplog: pytest.LogCaptureFixture, workers: int
) -> None:
    images = images_at(str(shards))
    valid = list(training(images).batches(0, 6))
    break_pictures(images, [20, 21, 37], content(images.paths[0])[:400])  # OpenCV would fill the rest with gray
    found = list(training(images, workers=workers).batches(0, 6))
    assert f"'000007.jpg' in '{shards / 'train-000001.tar'}' is not a readable image" in caplog.text
    served = 0
    for before, after in zip(valid, found, strict=True):
        for row, index in enumerate(before.indices.tolist()):
            instead = {20: 22, 21: 22, 37: 0}.get(index, index)
            assert int(after.indices[row]) == instead
            assert int(after.labels[row]) == (images.labels or ())[instead]
            if instead == index:
                assert torch.equal(after.pixels[row], before.pixels[row])
            served += instead != index
    assert served >= 1
    later = list(training(images).batches(3, 6))
    assert all(same(a, b) for a, b in zip(found[3:], later, strict=True))


def test_many_broken_pictures_end_the_training(shards: Path) -> None:
    images = images_at(str(shards))
    break_pictures(images, list(range(12)))
    with pytest.raises(DataError, match=r"11 of \d+ images are corrupt, the last '0000\d\d.jpg' in"):
        list(training(images).batches(0, 6))


def test_evaluation_leaves_broken_pictures_out_beforehand_and_never_replaces_them(shards: Path) -> None:
    images = images_at(str(shards))
    break_pictures(images, [5])
    with pytest.raises(DataError, match=r"'000005.jpg' in .* is not a readable image"):
        list(Loader(images, PIXEL, 6, train=False).epoch())
    checked = images_at(str(shards), checked=True)
    assert len(checked) == 37
    assert [path for path, _ in checked.skipped] == [images.paths[5]]
    assert sum(len(batch.indices) for batch in Loader(checked, PIXEL, 6, train=False).epoch()) == 37
    assert set(checked.sides_px) == {20}
    break_pictures(images, list(range(38)))
    with pytest.raises(DataError, match=r"no readable image in .* \(38 corrupt files\)"):
        sift(images)
