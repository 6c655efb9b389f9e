"""The members of a tar file, by its headers alone, and what is refused of one."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from edgemae.data.image_bytes import BLOCK
from edgemae.spec.errors import DataError

PACKERS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
PADDING_MOST = 1 << 20  # tar fills up to 10 KiB with zeros


class Member(NamedTuple):
    """A regular file in a tar: `head` and `tail` are its first and last blocks, at most 512 bytes of content each."""

    name: str
    start: int
    size: int
    head: bytes
    tail: bytes


def members(path: str) -> Iterator[Member]:
    """Yield the regular files of a tar. Raises DataError for one that is damaged, ends early or is compressed."""
    with open(path, "rb") as file:
        number = file.fileno()
        length = os.fstat(number).st_size
        with _open(path, file, length) as tar:
            while (info := _next(path, tar)) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                if info.issparse():
                    raise DataError(
                        f"'{path}' holds the sparse file '{info.name}'", expected="plain files", fix="pack it anew"
                    )
                start, size = info.offset_data, info.size if info.isreg() else 0
                if start + size > length:
                    _refuse_short(path, f"in the middle of '{info.name}'")
                if info.isreg():
                    last = max(0, (size - 1) // BLOCK) * BLOCK
                    head = os.pread(number, min(size, BLOCK), start)
                    tail = head if size <= BLOCK else os.pread(number, size - last, start + last)
                    yield Member(info.name, start, size, head, tail)
            _check_end(path, os.pread(number, PADDING_MOST, tar.offset), tar.offset)


def _open(path: str, file: object, length: int) -> tarfile.TarFile:
    beginning = os.pread(file.fileno(), BLOCK, 0)  # type: ignore[attr-defined]
    for mark, command in PACKERS.items():
        if beginning.startswith(mark):
            raise DataError(
                f"'{path}' is compressed",
                expected="plain tar files: a member of a compressed one cannot be reached alone",
                fix=f"unpack it with `{command}`; images are compressed already",
            )
    if length < BLOCK:
        _refuse_short(path, "before its first member")
    try:
        return tarfile.open(path, "r:", fileobj=file, errors="surrogateescape")  # type: ignore[call-overload]
    except tarfile.TarError as error:
        _refuse_unread(path, error, 0)


def _next(path: str, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except tarfile.TarError as error:
        _refuse_unread(path, error, tar.offset)


def _check_end(path: str, rest: bytes, at: int) -> None:
    """Refuse what `tarfile` takes for an end without a word: a damaged header, or no end mark at all."""
    if len(rest) < BLOCK:
        _refuse_short(path, "without an end mark")
    if rest[:BLOCK].strip(b"\0"):
        raise _damaged(path, "bad header", at)
    if rest.strip(b"\0"):
        raise DataError(
            f"'{path}' goes on behind its end mark at byte {at}",
            expected="one tar file",
            fix="joined with `cat`, tar files hide all but the first: unpack them with `tar -i`, and pack anew",
        )


def _refuse_unread(path: str, error: tarfile.TarError, at: int) -> NoReturn:
    if any(text in str(error) for text in ("unexpected end", "empty header", "truncated header")):
        _refuse_short(path, f"in the middle of the member at byte {at}")
    raise _damaged(path, str(error), at) from error


def _damaged(path: str, why: str, at: int) -> DataError:
    return DataError(
        f"'{path}' is damaged, or no tar file: {why} at byte {at}",
        expected="an uncompressed tar file",
        fix=f"copy it again; `tar -tf {path}` says whether it is whole",
    )


def _refuse_short(path: str, where: str) -> NoReturn:
    raise DataError(
        f"shard '{path}' ends early, {where}",
        expected="a whole tar file, with the end mark that `tar` writes",
        fix="copy or download it again, or leave it out",
    )
