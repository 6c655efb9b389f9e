"""Tar files that end early, are damaged, or are none."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from edgemae.data.image_bytes import part_of
from edgemae.data.shards import images_at
from edgemae.spec.errors import DataError
from tests.support.shard_files import pictures, write


@pytest.mark.parametrize("keep", [1300, 600, -10240, 512, 100, 0])
def test_a_shard_that_ends_early_is_refused(shards: Path, keep: int) -> None:
    path = shards / "train-000001.tar"
    data = path.read_bytes()
    end = max(i for i in range(0, len(data), 512) if data[i : i + 512].strip(b"\0")) + 512
    path.write_bytes(data[: end if keep == -10240 else keep])
    with pytest.raises(DataError, match=r"shard '.*train-000001.tar' ends early"):
        images_at(str(shards))


def test_a_shard_cut_in_the_middle_of_a_picture_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [{"jpg": data} for data in pictures(3)])
    part = part_of(images_at(str(path)).paths[1])
    assert part is not None
    path.write_bytes(path.read_bytes()[: part.start + part.size // 2])
    with pytest.raises(DataError, match=r"in the middle of '000001.jpg'") as caught:
        images_at(str(path))
    assert "download" in caught.value.fix


def spoilt(path: Path, kind: str) -> None:
    data = path.read_bytes()
    if kind == "gzip":
        path.write_bytes(gzip.compress(data))
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "bit":
        path.write_bytes(data[:5] + b"X" + data[6:])
    elif kind == "later bit":  # tarfile itself takes it for the end
        start = data.index(b"000005.jpg")
        path.write_bytes(data[:start] + b"X" + data[start + 1 :])
    elif kind == "joined":
        path.write_bytes(data + data)
    else:
        write(path, [{"txt": "no picture"}])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        pytest.param("gzip", "is compressed", id="gzip"),
        pytest.param("noise", "is damaged, or no tar file", id="noise"),
        pytest.param("bit", "is damaged, or no tar file: .* at byte 0", id="bit"),
        pytest.param("later bit", r"is damaged, or no tar file: bad (header|checksum) at byte \d{4}", id="later bit"),
        pytest.param("joined", "goes on behind its end mark", id="joined"),
        pytest.param("empty", r"holds no image, only \.txt \(1\)", id="no image"),
    ],
)
def test_files_that_are_no_shards(shards: Path, kind: str, message: str) -> None:
    spoilt(shards / "train-000000.tar", kind)
    with pytest.raises(DataError, match=message):
        images_at(str(shards))
