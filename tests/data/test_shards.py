"""Tar shards: what WebDataset writes is read pixel by pixel, in an order that no process and no restart changes."""

from __future__ import annotations

import builtins
import gzip
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import webdataset

from edgemae.data import shard_index as index_module
from edgemae.data import shards as shards_module
from edgemae.data.augment import Augment
from edgemae.data.decode_worker import read_image
from edgemae.data.image_bytes import close_shards, content, key_of_file, part_of, shown
from edgemae.data.image_set import ImageSet, sample, scan, sift, split
from edgemae.data.loader import Batch, Loader
from edgemae.data.shards import ShardSet, images_at
from edgemae.data.validation import require_disjoint, require_labels, require_size, same_classes
from edgemae.device.engine_cache import cache_folder
from edgemae.spec.errors import DataError
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=16)
AUGMENT = Augment(crop_min=0.3, flip=True)
Make = Callable[..., Path]


def pictures(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return [cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames]


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Write one shard with WebDataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for number, fields in enumerate(samples):
            sink.write({"__key__": f"{number:06d}"} | fields)
    return path


def write_set(root: Path, sizes: tuple[int, ...] = (13, 11, 14), seed: int = 0, *, labels: bool = True) -> Path:
    """Write `train-00000N.tar` of so many pictures each, in three classes that follow one another."""
    every = pictures(sum(sizes), seed)
    for number, size in enumerate(sizes):
        mine, every = every[:size], every[size:]
        rows = [{"jpg": data} | ({"cls": i % 3} if labels else {}) for i, data in enumerate(mine)]
        write(root / f"train-{number:06d}.tar", rows)
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_set(tmp_path / "shards")


def training(images: ImageSet, batch: int = 6, **more: Any) -> Loader:
    return Loader(images, PIXEL, batch, AUGMENT, seed=3, **more)


def same(a: Batch, b: Batch) -> bool:
    return a.view == b.view and all(
        torch.equal(x, y) for x, y in ((a.pixels, b.pixels), (a.labels, b.labels), (a.indices, b.indices))
    )


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


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_of_any_length_folders_and_other_members(tmp_path: Path, form: int) -> None:
    source = tmp_path / "source"
    deep = source / ("d" * 80) / ("e" * 60 if form == tarfile.USTAR_FORMAT else "é" * 60)
    deep.mkdir(parents=True)
    data = pictures(3)
    for number, name in enumerate(("a.jpg", "b" * 90 + ".JPG", "c.png")):
        (deep / name).write_bytes(data[number])
    (deep / "a.json").write_text('{"label": "ant", "caption": "' + "x" * 900 + '"}')
    (deep / ("b" * 90 + ".json")).write_text('{"label": 12}'.replace("12", '"bee"'))
    (deep / "c.cls").write_text("ant\n")
    (deep / "c.seg.png").write_bytes(b"a mask, no picture")
    (deep / "c.txt").write_text("a caption")
    (deep / "._a.jpg").write_bytes(b"of macOS")
    (deep / "d.npy").write_bytes(b"")
    with tarfile.open(tmp_path / "one.tar", "w", format=form) as tar:
        tar.add(source, "source", filter=lambda info: info)
    images = images_at(str(tmp_path / "one.tar"))
    assert sorted(content(reference) for reference in images.paths) == sorted(data)
    assert Counter(images.classes[label] for label in images.labels or ()) == {"ant": 2, "bee": 1}


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
        pytest.param([{"cls": "ant"}, {}], r"1 of 2 pictures in .* have no label, .*'000001.jpg' in", id="missing"),
        pytest.param([{"cls": "ant"}, {"cls": "7"}], r"partly numbers \('7'\) and partly names \('ant'\)", id="mixed"),
        pytest.param([{"cls": " "}], "'000000.cls' in .* holds no label", id="empty"),
        pytest.param([{"json": b"[1]"}], "'000000.json' in .* holds no label", id="no object"),
        pytest.param([{"json": b'{"label": 1.5}'}], "'000000.json' in .* holds no label", id="fraction"),
        pytest.param([{"png": b"x"}], "two pictures, '000000.jpg' and '000000.png'", id="two pictures"),
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


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    import io

    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_json_without_a_label_is_no_label(tmp_path: Path) -> None:
    rows = [{"jpg": data, "json": {"caption": "x"}} for data in pictures(2)]
    assert images_at(str(write(tmp_path / "a.tar", rows))).labels is None


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


# ---------------------------------------------------------------- shards that cannot be used


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


# ---------------------------------------------------------------- broken pictures


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
    sound = list(training(images).batches(0, 6))
    break_pictures(images, [20, 21, 37], content(images.paths[0])[:400])  # OpenCV would fill the rest with gray
    found = list(training(images, workers=workers).batches(0, 6))
    assert f"'000007.jpg' in '{shards / 'train-000001.tar'}' is not a readable image" in caplog.text
    served = 0
    for before, after in zip(sound, found, strict=True):
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
    with pytest.raises(DataError, match=r"11 of \d+ pictures are broken, the last '0000\d\d.jpg' in"):
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
    with pytest.raises(DataError, match=r"no readable image in .* \(38 broken files\)"):
        sift(images)


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


# ---------------------------------------------------------------- index


def test_the_index_is_kept_and_made_anew_for_what_changed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = images_at(str(shards))
    read: list[str] = []
    plain = index_module.read_index
    monkeypatch.setattr(index_module, "read_index", lambda path: (read.append(path), plain(path))[1])
    again = images_at(str(shards))
    assert (read, again.fingerprint, list(again.paths)) == ([], first.fingerprint, list(first.paths))
    write(shards / "train-000001.tar", [{"jpg": data, "cls": 1} for data in pictures(5, seed=9)])
    changed = images_at(str(shards))
    assert [Path(path).name for path in read] == ["train-000001.tar"]
    assert (len(changed), changed.fingerprint == first.fingerprint) == (32, False)
    for kept in (cache_folder() / "shards").iterdir():
        kept.write_bytes(kept.read_bytes()[:-30])
    assert images_at(str(shards)).fingerprint == changed.fingerprint
    assert len(read) == 4


def test_a_cache_that_cannot_be_written_is_said(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "file"))
    assert len(images_at(str(shards))) == 38
    assert "every start reads their headers" in caplog.text


def test_fingerprints_are_of_contents_and_labels(shards: Path, tmp_path: Path) -> None:
    images = images_at(str(shards))
    shutil.copytree(shards, tmp_path / "moved")
    assert images_at(str(tmp_path / "moved")).fingerprint == images.fingerprint
    repacked = write_set(tmp_path / "again")  # other times in the headers
    assert images_at(str(repacked)).fingerprint == images.fingerprint
    others = [images.unlabelled(), images.pick(range(37)), images_at(str(write_set(tmp_path / "other", seed=1)))]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 4


# ---------------------------------------------------------------- what folders can, shards can


def test_labels_are_required_of_shards_too(tmp_path: Path) -> None:
    one, two = pictures(2)
    rows = [{"jpg": one, "cls": 0}, {"jpg": two, "cls": 0}, {"jpg": one, "cls": 1}, {"jpg": one, "cls": 1}]
    with pytest.raises(DataError, match=r"class '1' in .* has 1 different image"):
        require_labels(images_at(str(write(tmp_path / "a.tar", rows))), "training")
    with pytest.raises(DataError, match=r"one class only \(0\)"):
        require_labels(images_at(str(write(tmp_path / "b.tar", rows[:2]))), "training")


def test_overlap_is_found_between_shards_and_folders(shards: Path, tmp_path: Path) -> None:
    images, folder = images_at(str(shards)), tmp_path / "judge"
    folder.mkdir()
    for number, data in enumerate(pictures(4, seed=5)):
        (folder / f"{number}.jpg").write_bytes(data)
    require_disjoint(images, scan(folder))
    require_disjoint(scan(folder), images)
    require_disjoint(images, images_at(str(write_set(tmp_path / "other", seed=1))))
    (folder / "copy.jpg").write_bytes(content(images.paths[14]))
    assert key_of_file(str(folder / "copy.jpg")) == images.keys()[14]
    with pytest.raises(DataError, match=r"1 images of .* \(same content, for example '000001.jpg' in"):
        require_disjoint(images, scan(folder))
    with pytest.raises(DataError, match=r"1 images of .* for example '.*copy.jpg'"):
        require_disjoint(scan(folder), images)
    # Equal at both ends and in size, and not in between: read, compared, and found to be another.
    data = bytearray((folder / "copy.jpg").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "copy.jpg").write_bytes(bytes(data))
    assert key_of_file(str(folder / "copy.jpg")) == images.keys()[14]
    require_disjoint(images, scan(folder))


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


def test_small_pictures_in_shards_are_found_by_a_sample(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = images_at(str(shards))
    require_size(images, 60, 0)
    assert caplog.text == ""
    with pytest.raises(DataError, match=r"38 of 38 images .* than a third of the 64 px .*'\d+.jpg' in .* 20 px"):
        require_size(images, 64, 0)


@pytest.mark.parametrize("where", ["https://store/train-{0000..0003}.tar", "pipe:curl https://a/b.tar", "s3://photos"])
def test_only_local_places_are_read(where: str) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        images_at(where)
    assert "only local paths are read" in caught.value.fix
