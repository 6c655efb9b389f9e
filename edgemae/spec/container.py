"""The two containers of a bundle: a folder, and a stored zip whose every byte follows from names and contents.

Reading a zip here is not parsing: each header is rebuilt from what the manifest promises and compared byte for byte,
so there is no field an attacker or a flipped bit could hide in. `docs/bundle-format.md` says why.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import BundleCorruptError, BundleError

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
MAX_MANIFEST_BYTES = 4 << 20  # a manifest with 200 history steps takes 0.2 MiB
MAX_FILES = 1000
MAX_BYTES = 2 << 30  # all of it is held in memory; it also keeps zip64, with its second set of sizes, out of the format
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_MIDNIGHT_1980 = 0x0021  # the first date a zip can hold: contents alone decide the bytes


def corrupt(what: str, expected: str = "the bytes that `edgemae compile` wrote") -> BundleCorruptError:
    """Return the error for a container that is not what its manifest promises."""
    return BundleCorruptError(
        what, expected=expected, fix="copy the bundle again from where it was built, or rebuild it"
    )


def local_header(name: str, crc: int, size: int) -> bytes:
    """Return the one local header that a stored entry may have."""
    return _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, _MIDNIGHT_1980, crc, size, size, len(name), 0) + name.encode("ascii")


def zip_tail(entries: list[tuple[str, int, int]]) -> bytes:
    """Return central directory and end record for (name, crc32, size) entries in file order."""
    central, offset = b"", 0
    for name, crc, size in entries:
        mode = (stat.S_IFREG | 0o644) << 16
        made_by = (3 << 8) | 20  # unix, zip 2.0
        sizes = (crc, size, size, len(name))
        central += _CENTRAL.pack(b"PK\1\2", made_by, 20, 0, 0, 0, _MIDNIGHT_1980, *sizes, 0, 0, 0, 0, mode, offset)
        central += name.encode("ascii")
        offset += _LOCAL.size + len(name) + size
    return central + _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(central), offset, 0)


def zip_size(sizes: Mapping[str, int]) -> int:
    """Return how many bytes the zip of these entries takes."""
    return sum(size + _LOCAL.size + _CENTRAL.size + 2 * len(name) for name, size in sizes.items()) + _END.size


def check_total(sizes: Mapping[str, int]) -> None:
    """Raise BundleCorruptError when a bundle would take more memory than any student needs."""
    if (total := sum(sizes.values())) > MAX_BYTES:
        raise corrupt(f"the bundle holds {total >> 20} MiB", f"at most {MAX_BYTES >> 20} MiB")


class Source(Protocol):
    """Read the entries of one container in canonical order: manifest, digest, then the files sorted by name."""

    def take(self, name: str, size: int | None = None) -> bytes: ...
    def expect(self, sizes: Mapping[str, int]) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def open_source(path: Path) -> Source:
    """Return a reader for a bundle path. Raises BundleError when nothing readable is there."""
    try:
        if path.is_dir():
            return FolderSource(path)
        if not path.exists():
            raise BundleError(
                f"there is no bundle at '{path}'",
                expected="a .edgemae file or folder",
                fix="check the path of the bundle",
            )
        if not stat.S_ISREG(path.stat().st_mode):
            raise corrupt(f"'{path}' is neither a file nor a folder")
        return ZipSource(path)
    except OSError as error:
        raise BundleError(
            f"the bundle '{path}' cannot be read: {error.strerror}",
            expected="read permission",
            fix="check its permissions",
        ) from error


class ZipSource:
    """Read a canonical zip front to back; `take` refuses a header or checksum that is not the canonical one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        self._entries: list[tuple[str, int, int]] = []

    def take(self, name: str, size: int | None = None) -> bytes:
        header = self._read(_LOCAL.size + len(name), f"the header of '{name}'")
        _, _, flags, method, _, _, _, packed, declared, _, _ = _LOCAL.unpack_from(header)
        if header[:4] != b"PK\3\4":
            raise corrupt(
                f"'{self._path}' holds no entry '{name}' where one must be", "an edgemae bundle, nothing before it"
            )
        if method != 0 or flags & 1:
            raise corrupt(f"entry '{name}' is compressed or encrypted", "stored entries only")
        if size is None:
            size = int(declared)
        if size > MAX_MANIFEST_BYTES and name in (MANIFEST, DIGEST):
            raise corrupt(f"'{name}' claims {size} bytes", f"at most {MAX_MANIFEST_BYTES}")
        if (packed, declared) != (size, size):
            raise corrupt(f"entry '{name}' claims {declared} bytes", f"{size} bytes")
        data = self._read(size, f"'{name}'")
        crc = zlib.crc32(data)
        if header != local_header(name, crc, size):
            raise corrupt(f"the zip header of entry '{name}' is not the canonical one")
        self._entries.append((name, crc, size))
        return data

    def expect(self, sizes: Mapping[str, int]) -> None:
        check_total(sizes)
        if (total := zip_size(sizes)) != self._size:
            raise corrupt(f"'{self._path}' is {self._size} bytes long", f"{total} bytes by its manifest")

    def finish(self) -> None:
        tail = zip_tail(self._entries)
        if self._read(len(tail), "the central directory") != tail or self._file.read(1):
            raise corrupt(f"the central directory of '{self._path}' is not the canonical one")

    def close(self) -> None:
        self._file.close()

    def _read(self, size: int, what: str) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise corrupt(f"'{self._path}' ends inside {what}", "a whole bundle")
        return data


class FolderSource:
    """Read a folder that holds regular, singly linked files and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}
        self._folders: set[str] = set()
        self._walk(path, "")

    def _walk(self, folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                facts = entry.stat(follow_symlinks=False)
                if len(self._sizes) + len(self._folders) > 2 * MAX_FILES or prefix.count("/") > 8:
                    raise corrupt(f"'{self._path}' holds more files than a bundle can", f"at most {MAX_FILES}")
                if stat.S_ISDIR(facts.st_mode):
                    self._folders.add(name)
                    self._walk(Path(entry.path), name + "/")
                elif not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
                    raise corrupt(f"'{name}' is a link or a special file", "regular files with one name each")
                else:
                    self._sizes[name] = facts.st_size

    def take(self, name: str, size: int | None = None) -> bytes:
        if name not in self._sizes:
            raise corrupt(f"'{self._path}' holds no '{name}'")
        if size is None:
            size = self._sizes[name]
            if size > MAX_MANIFEST_BYTES:
                raise corrupt(f"'{name}' has {size} bytes", f"at most {MAX_MANIFEST_BYTES}")
        # Whatever is swapped in after the walk is hashed like everything else: bytes, never paths, leave this module.
        fd = os.open(self._path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            data = file.read(size + 1)
        if len(data) != size:
            raise corrupt(f"'{name}' changed its size while it was read", f"{size} bytes")
        return data

    def expect(self, sizes: Mapping[str, int]) -> None:
        check_total(sizes)
        folders = {parent for name in sizes for parent in _parents(name)}
        for name in sorted((set(self._sizes) ^ set(sizes)) | (self._folders ^ folders)):
            state = "is not listed in the manifest" if name in self._sizes or name in self._folders else "is missing"
            raise corrupt(f"'{name}' {state}", "exactly the files of the manifest")
        for name, size in sizes.items():
            if self._sizes[name] != size:
                raise corrupt(f"'{name}' has {self._sizes[name]} bytes", f"{size} bytes")

    def finish(self) -> None:
        return None

    def close(self) -> None:
        return None


def _parents(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def write_zip(path: Path, entries: Mapping[str, bytes]) -> None:
    """Write entries, in their order, as a canonical zip that appears whole or not at all."""
    write_atomic(path, *_zip_parts(entries))


def _zip_parts(entries: Mapping[str, bytes]) -> Iterator[bytes]:
    index = []
    for name, data in entries.items():
        index.append((name, zlib.crc32(data), len(data)))
        yield local_header(*index[-1])
        yield data
    yield zip_tail(index)
