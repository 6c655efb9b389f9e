"""What a teacher contents of fixed views, kept on disk.

A file of fp16 rows for each kind of output, one row for every (view, image), and a file of checksums: a row that is not
there yet, or was torn by a kill, has none that fits and is made again. Rows are written and read one by one, so that a
full disk is an error message (a mapped file would end the process), and several processes may share the files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from edgemae.data.loader import Batch, Loader
from edgemae.distill.frozen_teacher import FrozenTeacher
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.errors import StorageError
from edgemae.spec.plan_schema import Plan

log = logging.getLogger("edgemae")


class TeacherCache:
    """Keep a teacher's outputs in `folder` for `images` x `views`; the folder stands for teacher, images and views."""

    def __init__(self, folder: Path, images: int, views: int) -> None:
        self.folder, self.images, self.views = folder, images, views
        self._files: dict[str, tuple[int, int]] = {}
        self.computed = 0  # rows that the teacher had to be asked for

    def cached(self, name: str, batch: Batch, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `compute(pixels)` for a batch, from disk where every row is there.

        Always as rounded to fp16, so that a training does not depend on what was kept before.
        """
        rows = (batch.view * self.images + batch.indices).tolist()
        try:
            found = self._read(name, rows)
            if found is None:
                found = compute(batch.pixels).half().cpu().numpy()
                self.computed += len(found)
                self._write(name, rows, found)
        except OSError as error:
            raise self._refused(error.strerror or str(error)) from error
        return torch.from_numpy(found).to(batch.pixels.device).float()

    def _read(self, name: str, rows: list[int]) -> np.ndarray | None:
        """Return the rows, or None when one of them is not there."""
        shape = self._shape(name)
        if shape is None:
            return None
        data, sums = self._open(name, shape)
        size = 2 * int(np.prod(shape))
        parts = []
        for row in rows:
            part, stored = os.pread(data, size, row * size), os.pread(sums, 4, row * 4)
            if len(part) < size or stored != _checksum(part):
                return None
            parts.append(part)
        return np.frombuffer(b"".join(parts), np.float16).reshape(len(rows), *shape).copy()

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a row as it was written down, if it was."""
        try:
            return tuple(int(n) for n in (self.folder / f"{name}.shape").read_text().split()) or None
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, name: str, rows: list[int], values: np.ndarray) -> None:
        data, sums = self._open(name, values.shape[1:])
        size = 2 * int(np.prod(values.shape[1:]))
        for row, value in zip(rows, values, strict=True):
            part = np.ascontiguousarray(value).tobytes()
            os.pwrite(data, part, row * size)
            os.pwrite(sums, _checksum(part), row * 4)

    def _open(self, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return file descriptors of data and checksums, after making room sure when they are new."""
        if name not in self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = not (self.folder / f"{name}.f16").exists()
            size = 2 * int(np.prod(shape)) * self.images * self.views
            if new and shutil.disk_usage(self.folder).free < size:
                raise self._refused(f"{size / 2**20:.0f} MiB are needed")
            if new:
                log.info("teacher outputs '%s' of %d views are kept in %s: %.0f MiB",
                         name, self.views, self.folder, size / 2**20)  # fmt: skip
            flags = os.O_RDWR | os.O_CREAT
            data, sums = (os.open(self.folder / f"{name}.{end}", flags, 0o644) for end in ("f16", "crc"))
            if self._shape(name) != shape:
                write_atomic(self.folder / f"{name}.shape", " ".join(map(str, shape)).encode())
            self._files[name] = data, sums
        return self._files[name]

    def _refused(self, why: str) -> StorageError:
        return _refused(self.folder, why, f"a folder with room for {self.views} views of {self.images} images")

    def close(self) -> None:
        for pair in self._files.values():
            for file in pair:
                os.close(file)
        self._files.clear()


def require_folder(place: str) -> None:
    """Make the folder for views that a plan names, if any. Raises StorageError where nothing can be written into it."""
    if not place:
        return
    root = Path(place)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise _refused(root, error.strerror or str(error), "a folder that can be written into") from error


def _refused(folder: Path, why: str, expected: str) -> StorageError:
    return StorageError(
        f"the teacher's outputs cannot be kept in '{folder}': {why}",
        expected=expected,
        fix="name another place with --set scale.views_folder=..., free some space, or ask for fewer views with "
        "--set distill.views=... (and distill.finetune.views); 0 runs the teacher in every step",
    )


def views_root(plan: Plan, checkpoint: Path | None) -> Path | None:
    """Return where teacher outputs of fixed views are kept: the plan's folder, or beside the checkpoint."""
    if plan.scale.views_folder:
        return Path(plan.scale.views_folder)
    return checkpoint.parent if checkpoint is not None else None


@contextmanager
def kept_views(root: Path | None, view: FrozenTeacher | None, loader: Loader) -> Iterator[TeacherCache | None]:
    """Lend a cache for a teacher and a loader with fixed views; None when views do not repeat.

    It lies in `root`, under a name that stands for teacher, images and views, and stays there; without a root it is
    temporary.
    """
    if not loader.views or view is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="edgemae-views-") as temporary:
        cache = TeacherCache((root or Path(temporary)) / _name(view, loader), len(loader.images), loader.views)
        try:
            yield cache
        finally:
            cache.close()


def _name(view: FrozenTeacher, loader: Loader) -> str:
    """Return a digest of all that decides a teacher's outputs: its weights and shape, the images and their views."""
    contents = (view.vit.shape.as_dict(), view.config, msgspec.to_builtins(loader.pixel),
            msgspec.to_builtins(loader.augment), loader.seed, loader.views, loader.images.sequence)  # fmt: skip
    digest = hashlib.sha256(repr(contents).encode())
    state = view.vit.state_dict() | {"mean": view.own_mean, "std": view.own_std}
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return f"teacher-views-{digest.hexdigest()[:16]}"


def _checksum(part: bytes) -> bytes:
    """Return four bytes that are never those of a hole in a file."""
    return (zlib.crc32(part) or 1).to_bytes(4, "little")
