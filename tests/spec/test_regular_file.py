"""Regular files are read, in part or whole; everything else is an error at once, and leaves no descriptor behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgemae.spec.regular_file import open_regular, read_regular


def test_a_file_is_read_in_part_or_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    assert (read_regular(tmp_path / "a"), read_regular(tmp_path / "link", 2)) == (b"12345", b"12")
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(tmp_path / "link", follow=False)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_no_file_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no regular file"):
        open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before
