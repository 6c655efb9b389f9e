"""Tar shards: what WebDataset writes is read pixel by pixel, in an order that no process and no restart changes."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from edgemae.data import shards as shards_module
from edgemae.data.image_bytes import content
from edgemae.data.image_set import sample, scan, split
from edgemae.data.loader import Batch, Loader
from edgemae.data.shards import ShardSet, images_at
from edgemae.data.validation import require_labels, same_classes
from edgemae.spec.errors import DataError
from tests.support.shard_files import AUGMENT, PIXEL, add, pictures, same, training, write, write_set

Make = Callable[..., Path]


# ---------------------------------------------------------------- what is in them


def test_a_folder_and_its_shards_give_the_same_pixels_and_labels(image_folder: Make, tmp_path: Path) -> None:
    folder = scan(image_folder(classes=("ant", "bee"), per_class=5, suffix=".jpg"))
    pattern = str(tmp_path / "packed-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as sink:
        for number, (path, label) in enumerate(zip(folder.paths, folder.labels or (), strict=True)):
            data = Path(path).read_bytes()
            sink.write({"__key__": f"{number:06d}", "jpg": data, "cls": folder.classes[label]})
    packed = images_at(str(tmp_path / "packed-{000000..000002}.tar"))
    assert packed.classes == folder.classes
    assert list(packed.labels or ()) == list(folder.labels or ())
    whole = [Loader(images, PIXEL, 4, train=False) for images in (folder, packed)]
    for a, b in zip(*(loader.epoch() for loader in whole), strict=True):
        assert same(a, b)
    assert [content(reference) for reference in packed.paths] == [Path(path).read_bytes() for path in folder.paths]
    np.testing.assert_array_equal(packed.keys(), folder.keys())


def test_what_webdataset_reads_is_what_is_read(shards: Path) -> None:
    theirs: list[tuple[bytes, bytes]] = []
    for path in sorted(shards.iterdir()):
        with open(path, "rb") as stream:  # its own opener leaves files to the garbage collector, which warns
            found = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            theirs += [(row["jpg"], row["cls"]) for row in webdataset.tariterators.group_by_keys(found)]
    images = images_at(str(shards))
    assert [content(reference) for reference in images.paths] == [data for data, _ in theirs]
    assert list(images.labels or ()) == [int(label) for _, label in theirs]
    assert images.classes == ("0", "1", "2")
    assert len(images) == 38


# ---------------------------------------------------------------- classes


def test_classes_txt_names_numbers_and_orders_names(tmp_path: Path) -> None:
    data = pictures(4)
    write(tmp_path / "a.tar", [{"jpg": x, "cls": label} for x, label in zip(data, (2, 0, 2, 0), strict=True)])
    (tmp_path / "classes.txt").write_text("zebra\n\nunused\nant\n")
    images = images_at(str(tmp_path))
    assert images.classes == ("zebra", "ant")
    assert list(images.labels or ()) == [1, 0, 1, 0]
    require_labels(images, "training")
    (tmp_path / "classes.txt").write_text("zebra\nant\n")
    with pytest.raises(DataError, match=r"label '2' in .* is not in classes.txt"):
        images_at(str(tmp_path))
    (tmp_path / "classes.txt").write_text("zebra\nant\nzebra\n")
    with pytest.raises(DataError, match="'zebra' twice"):
        images_at(str(tmp_path))


def test_numbers_count_as_numbers(tmp_path: Path) -> None:
    rows = [{"jpg": x, "cls": k} for x, k in zip(pictures(6), ("10", "9", "010", "2", "2", "9"), strict=True)]
    images = images_at(str(write(tmp_path / "a.tar", rows)))
    assert images.classes == ("2", "9", "10")
    assert list(images.labels or ()) == [2, 1, 2, 0, 0, 1]
    other = images_at(str(write(tmp_path / "b.tar", rows[1:2] + rows[5:])))
    assert list(same_classes(images, other).labels or ()) == [1, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([{"cls": "ant"}, {}], r"1 of 2 images in .* have no label, .*'000001.jpg' in", id="missing"),
        pytest.param([{"cls": "ant"}, {"cls": "7"}], r"partly numbers \('7'\) and partly names \('ant'\)", id="mixed"),
        pytest.param([{"cls": " "}], "'000000.cls' in .* holds no label", id="empty"),
        pytest.param([{"json": b"[1]"}], "'000000.json' in .* holds no label", id="no object"),
        pytest.param([{"json": b'{"label": 1.5}'}], "'000000.json' in .* holds no label", id="fraction"),
        pytest.param([{"png": b"x"}], "two images, '000000.jpg' and '000000.png'", id="two pictures"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, (row, data) in enumerate(zip(rows, pictures(len(rows)), strict=True)):
            for ending, value in {"jpg": data, **row}.items():
                raw = value if isinstance(value, bytes) else value.encode()
                add(tar, f"{number:06d}.{ending}", raw)
    with pytest.raises(DataError, match=message):
        images_at(str(path))


# ---------------------------------------------------------------- order


def test_an_epoch_shows_each_picture_once_and_drops_less_than_a_batch(shards: Path) -> None:
    images = images_at(str(shards))
    orders = []
    for epoch in range(3):
        loader = training(images)
        assert loader.steps == 6
        seen = torch.cat([batch.indices for batch in loader.epoch(epoch)]).tolist()
        assert len(seen) == len(set(seen)) == 36
        orders.append(seen)
    assert orders[0] != orders[1]
    assert set().union(*orders) == set(range(38))
    other = Loader(images, PIXEL, 6, AUGMENT, seed=4).epoch(0)
    assert torch.cat([batch.indices for batch in other]).tolist() != orders[0]


def test_a_process_reads_its_own_shards(tmp_path: Path) -> None:
    """Four equal shards, four lanes: every batch has a quarter of each shard, and a rank of two sees two of them."""
    images = images_at(str(write_set(tmp_path / "even", (12, 12, 12, 12))))
    assert isinstance(images, ShardSet)
    for epoch in range(3):
        rows = images.parts.shard[images.order(0, epoch, 8)].reshape(6, 4, 2)
        assert all(len(np.unique(rows[:, lane])) == 1 for lane in range(4))
        halves = [set(rows[:, :2].ravel().tolist()), set(rows[:, 2:].ravel().tolist())]
        assert [len(half) for half in halves] == [2, 2]
        assert not halves[0] & halves[1]
    assert len({tuple(images.parts.shard[images.order(0, epoch, 8)][::2][:4].tolist()) for epoch in range(9)}) > 3


def test_shuffling_stays_inside_its_window(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "WINDOW", 4)
    images = images_at(str(shards / "train-000002.tar"))
    order = images.order(0, 0, 2)
    assert order.tolist() != list(range(14))
    assert all(abs(int(place) - k) < 4 for k, place in enumerate(order))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_step_can_be_the_first(shards: Path, workers: int) -> None:
    images = images_at(str(shards))
    whole = list(training(images).batches(0, 14))
    again = list(training(images_at(str(shards)), workers=workers).batches(5, 14))
    assert all(same(a, b) for a, b in zip(whole[5:], again, strict=True))


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_processes_share_the_same_batches(shards: Path, image_folder: Make, kind: str, world: int) -> None:
    images = images_at(str(shards)) if kind == "shards" else scan(image_folder(per_class=13))
    ranks = [list(training(images, rank=rank, world=world).batches(2, 9)) for rank in range(world)]
    for number, whole in enumerate(training(images).batches(2, 9)):
        parts = [batches[number] for batches in ranks]
        assert {len(part.indices) for part in parts} == {6 // world}
        joined = Batch(*(torch.cat([getattr(p, n) for p in parts]) for n in ("pixels", "labels", "indices")))
        assert same(joined, whole)


# ---------------------------------------------------------------- shards that cannot be used


def test_what_is_not_there_is_named(shards: Path) -> None:
    (shards / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar' does not exist \(2 of the 4"):
        images_at(str(shards / "train-{000000..000003}.tar"))
    with pytest.raises(DataError, match=r"other.tar' does not exist"):
        images_at(str(shards / "other.tar"))
    with pytest.raises(DataError, match="does not exist"):
        images_at(str(shards / "nowhere"))


def test_mixtures_are_refused(shards: Path, image_folder: Make) -> None:
    shutil.copy(shards / "train-000000.tar", (shards / "more").with_suffix(".tar.gz"))
    with pytest.raises(DataError, match=r"more.tar.gz' is compressed") as caught:
        images_at(str(shards))
    assert "gunzip" in caught.value.fix
    (shards / "more.tar.gz").unlink()
    loose = image_folder(classes=(), per_class=1)
    shutil.copytree(loose, shards / "ant")
    with pytest.raises(DataError, match="mixes 3 tar files with 1 images"):
        images_at(str(shards))
    with pytest.raises(DataError, match="cannot be mixed"):
        scan(loose).joined(images_at(str(shards / "train-000000.tar")).unlabelled())


# ---------------------------------------------------------------- what folders can, shards can


def test_parts_of_shards(shards: Path, tmp_path: Path) -> None:
    images = images_at(str(shards))
    rest, held = split(images, 0.25, seed=0)
    assert (len(rest), len(held)) == (28, 10)
    assert not {*rest.paths} & {*held.paths}
    assert {*rest.paths, *held.paths} == {*images.paths}
    assert set(held.labels or ()) == {0, 1, 2}
    chosen = sample(images, 6, seed=0)
    assert Counter(chosen.labels) == {0: 2, 1: 2, 2: 2}
    assert next(Loader(rest, PIXEL, 4, AUGMENT).epoch()).pixels.shape == (4, 3, 16, 16)
    more = write_set(tmp_path / "more", (5,), seed=7)
    shutil.copy(shards / "train-000000.tar", more / "again.tar")
    both = images.unlabelled().joined(images_at(str(more)).unlabelled())
    assert len(both) == 38 + 5
    assert len({content(reference) for reference in both.paths}) == 43
    assert sum(len(batch.indices) for batch in training(both).epoch()) == 42


@pytest.mark.parametrize("where", ["https://store/train-{0000..0003}.tar", "pipe:curl https://a/b.tar", "s3://photos"])
def test_only_local_places_are_read(where: str) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        images_at(where)
    assert "only local paths are read" in caught.value.fix


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("{0..9999}{0..9999}{0..9999}.tar", "1,000,000,000,000"), ("x-{0..999999999999}.tar", "1,000,000,000,000"),
     ("{0..99999999}.tar", "100,000,000"), ("x-{5..1}.tar", "0"), ("{0..999999999}" * 9 + ".tar", "2^")],
)  # fmt: skip
def test_a_pattern_is_counted_before_it_is_expanded(pattern: str, count: str) -> None:
    with pytest.raises(DataError) as caught:
        images_at(pattern)
    assert count in caught.value.what
