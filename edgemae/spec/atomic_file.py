"""Write files and folders that appear whole or not at all: write beside the target, sync, rename over it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from edgemae.spec.errors import StorageError


def write_atomic(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the whole new one, also after a kill or on a full disk.

    Raises StorageError; then the old file is as it was.
    """
    try:
        replace_file(path, parts)
    except OSError as error:
        raise unwritable(path, error, sum(map(len, parts))) from error


def replace_file(path: Path, parts: Iterable[bytes | memoryview], *, private: bool = False) -> None:
    """Do what `write_atomic` does, raising OSError: for callers to whom a file that cannot be kept is no error.

    A `private` file is readable by its owner only, and so is a parent folder that has to be made.
    """
    draft = _draft(path)
    try:
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as file:
            file.writelines(parts)
            _sync(file)
        os.replace(draft, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # it may never have been made: the parent can be a file
            draft.unlink()
        raise


def require_replaceable(path: Path) -> None:
    """Raise OSError for a device, a pipe or a socket: a file put in its place would take it away from everyone."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket, not a file", str(path))


def write_folder_atomic(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write entries, by their path below the folder, as a folder that appears whole; an earlier one is replaced.

    Raises StorageError; then an earlier folder is as it was.
    """
    draft = _draft(path)
    old = draft.with_suffix(".old")
    try:
        for name, data in entries.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with (draft / name).open("xb") as file:
                file.write(data)
                _sync(file)
        for folder in {(draft / name).parent for name in entries}:
            _sync_folder(folder)
        if path.exists():
            os.rename(path, old)
        os.rename(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise unwritable(path, error, sum(map(len, entries.values()))) from error
    shutil.rmtree(old, ignore_errors=True)


def unwritable(path: Path, error: OSError, size_bytes: int = 0) -> StorageError:
    """Return the error for a file or folder of `size_bytes` that the disk refuses."""
    room = f"{size_bytes / 2**20:.1f} MiB free" if size_bytes else "enough free space"
    return StorageError(
        f"'{path}' cannot be written: {error.strerror}",
        expected=f"a writable folder with {room}",
        fix="free some space or choose another --output; what was finished before is kept",
    )


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
