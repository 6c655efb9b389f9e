"""Files and folders appear whole or not at all, whatever the disk does in between."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from edgemae.profiling.records import writable
from edgemae.spec import atomic_file
from edgemae.spec.atomic_file import replace_file, write_atomic, write_folder_atomic
from edgemae.spec.errors import StorageError


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write_atomic(path, b"new")
    assert caught.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m"]


def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write_atomic(path, b"old")
    with open(path, "rb") as reader:
        write_atomic(path, b"a longer new one")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"a longer new one"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "file" / "m", b"data")


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    write_folder_atomic(path, {"a": b"old", "b/c": b"old"})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_file.os, "fsync", full)
    with pytest.raises(StorageError) as caught:
        write_folder_atomic(path, {"a": b"new"})
    assert str(path) in caught.value.what
    assert {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()} == {"a": b"old", "c": b"old"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_new_folder_takes_the_place_of_all_of_the_old_one(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "bundle", {"a": b"old", "b/c": b"old"})
    write_folder_atomic(tmp_path / "bundle", {"b/d": b"new"})
    assert [p.name for p in (tmp_path / "bundle").rglob("*") if p.is_file()] == ["d"]
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_private_file_is_its_owners_only(tmp_path: Path) -> None:
    replace_file(tmp_path / "new" / "m", [b"a", memoryview(b"b")], private=True)
    assert (tmp_path / "new" / "m").read_bytes() == b"ab"
    assert stat.S_IMODE((tmp_path / "new" / "m").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    replace_file(tmp_path / "shared", [b"a"])
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o666 & ~_umask()


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Siblings: /dev/null and /dev/stdout, which a process of root would take away, also through a link."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(StorageError, match="not a file"):
            write_atomic(tmp_path / name, b"x")
        with pytest.raises(StorageError, match="not a file"):
            writable(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link").is_symlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
