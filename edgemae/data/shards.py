"""Images in tar shards (WebDataset's layout): millions of images without one file access each.

The headers are read once, into an index in edgemae's cache; after that an image is one `pread` from an open shard.
Any order is computed and none replayed, so a training goes on at step 90,000 without reading what lies before.

Why WebDataset's own pipeline does not feed a training here (as of version 1.0.2): its shuffle is a buffer that fills
from the stream and holds no state that could be saved (`filters._shuffle`), so to go on at a step means to read all
before it; and shards are dealt to ranks and workers (`shardlists.split_by_node`), each of which shuffles and batches
its own, so that another number of processes gives other batches. Here a step's batch is a function of (seed, epoch).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from edgemae.data.image_bytes import Part, shown
from edgemae.data.image_set import ImageSet, only_local, scan, sift
from edgemae.data.shard_index import Index, indexes
from edgemae.device.camera.image_header import is_image
from edgemae.spec.errors import DataError

MOST_SHARDS = 1_000_000  # of a pattern: counted before it is expanded
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
LANES_MOST = 64  # shards that are read side by side
WINDOW = 4096  # samples of a lane that are shuffled among themselves: 0.5 GB of a shard at ImageNet's size
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, eq=False)
class Parts(Sequence[str]):
    """Refer to members of shards; a reference is made when it is asked for: 20 bytes an image, and no strings.

    `shard` (N,) int32 are positions in `shards`; `starts` and `sizes` (N,) int64 are bytes.
    """

    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Parts: ...
    def __getitem__(self, index: int | slice) -> str | Parts:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return Part(self.shards[self.shard[index]], int(self.starts[index]), int(self.sizes[index])).reference

    def take(self, rows: NDArray[np.int64]) -> Parts:
        return Parts(self.shards, self.shard[rows], self.starts[rows], self.sizes[rows])


@dataclass(frozen=True, eq=False)
class ShardSet(ImageSet):
    """List images in shards. `hashes` are keys of size, first and last block, not of all bytes; `digest` is theirs.

    Images were not decoded while indexing, which would read all of 14 million (see `edgemae.data.loader` for what
    happens to a corrupt one).
    """

    digest: str = ""
    checked = False

    @property
    def parts(self) -> Parts:
        assert isinstance(self.paths, Parts)
        return self.paths

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of names, sizes, places, labels, and first and last blocks of all images, not of all bytes.

        It depends on how samples lie in shards, and so does the order of an epoch.
        """
        digest = hashlib.sha256("\n".join((self.digest, *self.classes)).encode())
        for values in (self.parts.shard, self.parts.starts, np.asarray(self.labels or (), np.int32)):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()[:32]

    def pick(self, indices: Sequence[int]) -> ShardSet:
        rows = np.asarray(indices, np.int64)
        labels = None if self.labels is None else _array("i", np.asarray(self.labels)[rows])
        return replace(self, paths=self.parts.take(rows), hashes=_array("Q", self.keys()[rows]), labels=labels)

    def order(self, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
        """Return an epoch's images, batch after batch, so that each shard is read from its begin to its end.

        The shards, in random order, are one long row of samples. It is cut into equal lanes, at most `LANES_MOST`, as
        many as there are shards and a divisor of `batch`; each is shuffled within windows, and every batch takes
        batch / lanes samples from each in turn. So one of W processes reads one W-th of the row and no other shards.
        """
        rng = np.random.default_rng((seed, epoch))
        steps, shard = len(self) // batch, self.parts.shard
        place = rng.permutation(len(self.parts.shards))
        # In the smallest integers that hold it: numpy sorts 16 bits three times as fast.
        walk = np.argsort(place.astype(np.min_scalar_type(len(place)))[shard], kind="stable")
        if not steps:
            return walk
        most = min(int(np.count_nonzero(np.bincount(shard))), LANES_MOST)
        lanes = max(n for n in range(1, most + 1) if batch % n == 0)
        each = steps * batch // lanes
        walk = walk[: steps * batch]
        for lane in range(0, len(walk), each):
            for start in range(lane, lane + each, WINDOW):
                rng.shuffle(walk[start : min(start + WINDOW, lane + each)])
        return walk.reshape(lanes, steps, batch // lanes).transpose(1, 0, 2).reshape(-1)

    def different(self) -> Counter[int]:
        if self.labels is None:
            return Counter()
        labels = np.asarray(self.labels)
        # One number for each pair, by the golden ratio of 64 bits: sorting pairs takes 20 times as long.
        _, first = np.unique(
            self.keys() ^ (labels.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)), return_index=True
        )
        return +Counter(dict(enumerate(np.bincount(labels[first]).tolist())))  # + leaves out what does not occur

    def keys(self) -> NDArray[np.uint64]:
        return np.asarray(self.hashes, np.uint64)

    def joined(self, other: ImageSet) -> ImageSet:
        if not isinstance(other, ShardSet):
            return super().joined(other)
        rows = np.flatnonzero(~np.isin(other.keys(), self.keys()))
        a, b = self.parts, other.parts.take(rows)
        parts = Parts(
            a.shards + b.shards, np.concatenate((a.shard, b.shard + np.int32(len(a.shards)))),
            np.concatenate((a.starts, b.starts)), np.concatenate((a.sizes, b.sizes)),
        )  # fmt: skip
        return replace(
            self, folder=f"{self.folder} and {other.folder}", paths=parts, digest=self.digest + other.digest,
            hashes=_array("Q", np.concatenate((self.keys(), other.keys()[rows]))),
            skipped=(*self.skipped, *other.skipped), labels=None, classes=(),
        )  # fmt: skip


def _array(kind: str, values: NDArray[Any]) -> array[int]:
    """Return numbers as a sequence of Python's own: an empty one is false, and its items are plain ints."""
    return array(kind, np.ascontiguousarray(values, np.dtype(kind)).tobytes())


# ---------------------------------------------------------------- where they are


def images_at(where: str, *, checked: bool = False) -> ImageSet:
    """Return the images of a folder, or of shards: a folder of tar files, one, or `train-{000000..000146}.tar`.

    `checked` decodes those of shards too, as a folder's always are, and leaves corrupt ones out. Raises DataError.
    """
    paths = shards_at(where)
    if paths is None:
        return scan(where)
    images = _assemble(where, paths, indexes(paths))
    return sift(images) if checked else images


def shards_at(where: str) -> list[str] | None:
    """Return the paths of shards; None when `where` names none."""
    if os.path.isdir(where):
        return _shards_in(Path(where))
    _refuse_packed([where])
    if not where.endswith(".tar"):
        return None
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in _RANGE.findall(where))
    if not 0 < count <= MOST_SHARDS:
        raise DataError(
            f"the pattern '{where[:200]}' stands for {_count(count)} shards",
            expected=f"1 to {MOST_SHARDS}",
            fix="correct its ranges",
        )
    paths = list(_expanded(where))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        of = f" ({len(missing)} of the {len(paths)} of '{where}' are missing)" if len(paths) > 1 else ""
        raise DataError(
            f"shard '{missing[0]}' does not exist{of}",
            expected="every shard of the pattern",
            fix=only_local(where) or "check the path; for fewer shards write a smaller range",
        )
    return paths


def _shards_in(root: Path) -> list[str] | None:
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_file() and not entry.name.startswith("."))
    except OSError:
        return None  # a scan says what is wrong with it
    _refuse_packed([str(root / name) for name in names])
    shards = [str(root / name) for name in names if name.endswith(".tar")]
    if not shards:
        return None
    loose = [name for folder, _, files in os.walk(root) for name in files if is_image(os.path.join(folder, name))]
    if loose:
        raise DataError(
            f"'{root}' mixes {len(shards)} tar files with {len(loose)} images",
            expected="either tar shards, or images",
            fix="move one of them into a folder of its own",
        )
    return shards


def _refuse_packed(paths: list[str]) -> None:
    packed = [path for path in paths if path.endswith(PACKED)]
    if packed:
        raise DataError(
            f"'{packed[0]}' is compressed",
            expected="plain tar files: a member of a compressed one cannot be reached alone",
            fix=f"unpack it, for example with `gunzip {packed[0]}`; images are compressed already",
        )


def _count(count: int) -> str:
    """Return a number for a message; one of thousands of digits has no text in Python."""
    return f"{count:,}" if count < 10**30 else f"about 2^{count.bit_length()}"


def _expanded(pattern: str) -> Iterator[str]:
    """Yield the paths of a pattern with ranges such as {000..146}; a bound that begins with 0 keeps its width."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        width = len(first) if first.startswith("0") else 0
        yield from _expanded(f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}")


# ---------------------------------------------------------------- one set


def _assemble(where: str, paths: list[str], found: list[Index]) -> ShardSet:
    shard = np.repeat(np.arange(len(found), dtype=np.int32), [len(index.starts) for index in found])
    parts = Parts(
        tuple(paths), shard, np.concatenate([index.starts for index in found]),
        np.concatenate([index.sizes for index in found]),
    )  # fmt: skip
    hashes = _array("Q", np.concatenate([index.keys for index in found]))
    digest = hashlib.sha256("".join(index.digest for index in found).encode()).hexdigest()
    images = ShardSet(where, parts, hashes, None, digest=digest)
    bare = np.concatenate([index.labels < 0 for index in found])
    if bare.all():
        return images
    if bare.any():
        raise DataError(
            f"{int(bare.sum())} of {len(bare)} images in '{where}' have no label, "
            f"for example {shown(parts[int(bare.argmax())])}",
            expected="a .cls or .json file for every image, or for none",
            fix="pack those with labels into shards of their own, and pass the others with --unlabelled",
        )
    number, classes = _numbered(where, paths[0], {name for index in found for name in index.names})
    labels = [np.array([number[name] for name in index.names], np.int32)[index.labels] for index in found]
    return replace(images, labels=_array("i", np.concatenate(labels)), classes=classes)


def _numbered(where: str, shard: str, names: set[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the number of every label, and the classes that occur: numbers in their order, names by the alphabet.

    With a `classes.txt` beside the shards, of one name a line, numbers count its lines from 0, and its order holds.
    """
    numbers = {name for name in names if name.isdecimal()}
    listed = _listed(Path(shard).with_name("classes.txt"))
    if listed is None:
        if numbers and numbers != names:
            raise DataError(
                f"labels in '{where}' are partly numbers ('{min(numbers)}') and partly names "
                f"('{min(names - numbers)}')",
                expected="one kind, or a classes.txt beside the shards with one name a line",
                fix="write classes.txt, or pack the shards anew",
            )
        meaning = {name: str(int(name)) if numbers else name for name in names}
        classes = sorted(set(meaning.values()), key=int if numbers else str)
    else:
        meaning = {}
        for name in names:
            at = int(name) if name not in listed and name in numbers else -1
            if name not in listed and not 0 <= at < len(listed):
                raise DataError(
                    f"label '{name}' in '{where}' is not in classes.txt",
                    expected=f"one of its {len(listed)} lines, or a line's number from 0",
                    fix="correct classes.txt, or pack the shards anew",
                )
            meaning[name] = name if at < 0 else listed[at]
        used = set(meaning.values())
        classes = [name for name in listed if name in used]
    position = {name: k for k, name in enumerate(classes)}
    return {name: position[meaning[name]] for name in names}, tuple(classes)


def _listed(path: Path) -> list[str] | None:
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"'{path}' has the class '{twice[0]}' twice", expected="one class a line", fix="remove one of the lines"
        )
    return names
