"""The index of shards: what is listed, what decides it, and when it is made anew."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from edgemae.data import shard_index as index_module
from edgemae.data.image_bytes import content
from edgemae.data.shards import images_at
from edgemae.device.engine_cache import cache_folder
from tests.support.shard_files import pictures, write, write_set


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


def test_json_without_a_label_is_no_label(tmp_path: Path) -> None:
    rows = [{"jpg": data, "json": {"caption": "x"}} for data in pictures(2)]
    assert images_at(str(write(tmp_path / "a.tar", rows))).labels is None


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
