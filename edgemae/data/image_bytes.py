"""The bytes of an image: a file of its own, or a member of a tar file, named `train-000003.tar@1536+20481`."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from edgemae.device.camera.image_header import MAX_FILE_BYTES
from edgemae.spec.errors import DataError
from edgemae.spec.regular_file import open_regular, read_regular

# Of one process. An epoch reads 64 shards at a time at most, and the ones that follow them push the finished out.
OPEN_MOST = 128
BLOCK = 512  # of a tar file


class Part(NamedTuple):
    """Say where in a tar file the bytes of a member lie."""

    shard: str
    start: int
    size: int

    @property
    def reference(self) -> str:
        return f"{self.shard}@{self.start}+{self.size}"


class _Open:
    """Hold a file descriptor, closed when the last reader lets go of it: a cache may drop it at any time.

    All use is by methods, which hold on to it: a number alone might be closed, and stand for another file, when it is
    read. (Two threads that open a shard at once have two, of which the cache drops one.)
    """

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)

    def read(self, size: int, start: int) -> bytes:
        return os.pread(self._number, size, start)

    def ask_for(self, size: int, start: int) -> None:
        os.posix_fadvise(self._number, start, size, os.POSIX_FADV_WILLNEED)


@lru_cache(maxsize=OPEN_MOST)
def _opened(shard: str) -> _Open:
    return _Open(shard)


def close_shards() -> None:
    """Let go of all shards, so that one that was written anew is opened anew."""
    _opened.cache_clear()


def part_of(reference: str) -> Part | None:
    """Return what a reference points at; None for the path of a file, which ends as images do and so never looks it."""
    shard, at, numbers = reference.rpartition("@")
    start, plus, size = numbers.partition("+")
    if not (at and plus and start.isdecimal() and size.isdecimal()):
        return None
    return Part(shard, int(start), int(size))


def content(reference: str) -> bytes:
    """Return the bytes of an image. Raises OSError, and DataError for a shard that has become shorter."""
    part = part_of(reference)
    if part is None:
        return read_regular(reference, MAX_FILE_BYTES + 1)
    data = _opened(part.shard).read(part.size, part.start)
    if len(data) < part.size:
        raise DataError(
            f"shard '{part.shard}' ends early: {part.size} bytes from {part.start} on were there when it was indexed",
            expected="shards that stay as they are while they are in use",
            fix="put the shard back and run the same command again",
        )
    return data


def read_ahead(references: Iterable[str]) -> None:
    """Ask the kernel for the members of a batch at once: they come side by side while the first is decoded.

    A hint only: what fails here fails again, and says so, when it is read.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    for reference in references:
        part = part_of(reference)
        if part is not None:
            try:
                _opened(part.shard).ask_for(part.size, part.start)
            except OSError:
                return


def shown(reference: str) -> str:
    """Return a reference for people: a member's header, which lies before it, says what it was called."""
    part = part_of(reference)
    if part is None:
        return f"'{reference}'"
    try:
        header = _opened(part.shard).read(BLOCK, part.start - BLOCK)
        name = tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except (OSError, tarfile.HeaderError):
        name = f"byte {part.start}"
    return f"'{name}' in '{part.shard}'"


def content_key(size: int, head: bytes, tail: bytes) -> int:
    """Return a 64-bit digest of an image's size, first and last block: the end of a JPEG is as good as random."""
    return int.from_bytes(hashlib.blake2b(b"%d:" % size + head + tail, digest_size=8).digest(), "little")


def key_of_file(path: str) -> int:
    """Return the `content_key` of a file. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(BLOCK)
        file.seek(max(0, (size - 1) // BLOCK) * BLOCK)
        return content_key(size, head, file.read(BLOCK))
