"""The index of tar shards: where each picture lies, how large it is, and its label; kept in edgemae's cache."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.data.image_bytes import BLOCK, close_shards, content_key
from edgemae.data.tar_reader import Member, members
from edgemae.device.camera.image_header import IMAGE_SUFFIXES
from edgemae.device.engine_cache import cache_folder
from edgemae.spec.atomic_file import replace_file
from edgemae.spec.errors import DataError
from edgemae.terminal.progress import progress

FORMAT = 1  # of an index in the cache
READERS = 16  # headers are read side by side, because a network's disk answers late
log = logging.getLogger("edgemae.data")


@dataclass(frozen=True)
class Index:
    """List the pictures of one shard.

    `starts`, `sizes` in bytes (N,) int64; `keys` (N,) uint64 digests of size, first and last block, which tell pictures
    apart without reading them; `labels` (N,) int32 positions in `names`, -1 for none; `digest` over all that.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    keys: NDArray[np.uint64]
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    digest: str


def indexes(paths: list[str]) -> list[Index]:
    """Return the index of every shard, in order.

    Each has a file of its own in the cache: an interrupted run, or an added shard, costs only what is missing.
    """
    close_shards()
    with ThreadPoolExecutor(max_workers=READERS) as pool, progress("index shards", len(paths)) as shown:
        found: list[Index] = []
        for index in pool.map(_index, paths):
            found.append(index)
            shown.advance(images=shown.figures.get("images", 0) + len(index.starts))
    return found


def _index(path: str) -> Index:
    facts = os.stat(path)
    key = repr((FORMAT, os.path.abspath(path), facts.st_size, facts.st_mtime_ns))
    kept = cache_folder() / "shards" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    try:
        # A zip, which knows the checksums of its parts.
        with open(kept, "rb") as file, np.load(file, allow_pickle=False) as data:
            return Index(
                data["starts"], data["sizes"], data["keys"], data["labels"],
                tuple(data["names"].tolist()), str(data["digest"]),
            )  # fmt: skip
    except (OSError, ValueError, LookupError, zipfile.BadZipFile):
        index = read_index(path)
    _keep(kept, index)
    return index


def _keep(path: Path, index: Index) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer, starts=index.starts, sizes=index.sizes, keys=index.keys, labels=index.labels,
        names=np.array(index.names, str), digest=np.array(index.digest),
    )  # fmt: skip
    try:
        replace_file(path, [buffer.getvalue()], private=True)
    except OSError as error:
        log.warning("the index of shards is not kept in '%s' (%s): every start reads their headers", path.parent, error)


# ---------------------------------------------------------------- samples


def read_index(path: str) -> Index:
    """Read the headers of a shard. Raises DataError for one that ends early, holds no picture or is no plain tar."""
    with open(path, "rb", buffering=0) as file:
        return _Samples(path, file.fileno()).index()


def _cls_label(data: bytes) -> str | None:
    if not (text := data.decode().strip()):
        raise ValueError("empty")
    return text


def _json_label(data: bytes) -> str | None:
    """Return what stands under "label"; None when nothing does, for the file may tell of other things."""
    found = msgspec.json.decode(data, type=dict).get("label")
    if found is not None and (not isinstance(found, (str, int)) or isinstance(found, bool)):
        raise ValueError("no label")
    return None if found is None else str(found)


LABELS = {".cls": _cls_label, ".json": _json_label}


@dataclass
class _Samples:
    """Gather members into samples: files in a row whose names are equal up to the first dot, as WebDataset has it."""

    path: str
    number: int
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def index(self) -> Index:
        sample: list[Member] = []
        stem = ""
        for member in members(self.path):
            folder, _, name = member.name.rpartition("/")
            if name.startswith("."):  # what macOS adds
                continue
            mine = f"{folder}/{name.partition('.')[0]}"
            if mine != stem:
                self._close(sample)
                sample, stem = [], mine
            sample.append(member)
        self._close(sample)
        if not self.rows:
            seen = ", ".join(f"{ending} ({count})" for ending, count in self.others.most_common(5))
            raise DataError(
                f"shard '{self.path}' holds no image" + (f", only {seen}" if seen else ""),
                expected=f"members ending in {', '.join(IMAGE_SUFFIXES)}",
                fix="leave it out, or pack it anew",
            )
        starts, sizes, keys, labels = zip(*self.rows, strict=True)
        return Index(
            np.array(starts, np.int64), np.array(sizes, np.int64), np.array(keys, np.uint64),
            np.array(labels, np.int32), tuple(self.names), self.digest.hexdigest()[:32],
        )  # fmt: skip

    def _close(self, sample: list[Member]) -> None:
        by_ending = {"." + member.name.rpartition("/")[2].partition(".")[2].lower(): member for member in sample}
        pictures = [member for ending, member in by_ending.items() if ending in IMAGE_SUFFIXES]
        self.others.update(ending for ending in by_ending if ending not in (*IMAGE_SUFFIXES, *LABELS))
        if not pictures:
            return
        if len(pictures) > 1:
            raise DataError(
                f"a sample in '{self.path}' has two pictures, '{pictures[0].name}' and '{pictures[1].name}'",
                expected="names that are equal up to the first dot only for a picture and its label",
                fix="pack one of them, or give them names of their own",
            )
        picture = pictures[0]
        label = self._label(by_ending)
        number = -1 if label is None else self.names.setdefault(label, len(self.names))
        key = content_key(picture.size, picture.head, picture.tail)
        self.rows.append((picture.start, picture.size, key, number))
        self.digest.update(repr((picture.name, picture.start, picture.size, key, label)).encode())

    def _label(self, by_ending: dict[str, Member]) -> str | None:
        ending = next((ending for ending in LABELS if ending in by_ending), None)
        if ending is None:
            return None
        member = by_ending[ending]
        data = os.pread(self.number, member.size, member.start) if member.size > BLOCK else member.head
        try:
            return LABELS[ending](data)
        except (ValueError, msgspec.DecodeError) as error:
            raise DataError(
                f"'{member.name}' in '{self.path}' holds no label",
                expected='a number or a name in .cls, {"label": a number or a name} in .json',
                fix="pack the shard anew",
            ) from error
