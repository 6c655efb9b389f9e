"""Image folders: what is in them, what is corrupt, what each file's content hash is, and how they are split.

A folder is either labelled (one sub-folder a class) or flat. Files are decoded once while scanning, so that a corrupt,
empty or mislabelled file is named before the first training step and never met later.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from edgemae.data.image_bytes import key_of_file
from edgemae.data.image_check import ImageCheck, check
from edgemae.device.camera.image_header import FORMATS, OTHER_SUFFIXES, is_image
from edgemae.device.opencv_log import quiet_opencv
from edgemae.spec.errors import DataError
from edgemae.spec.printable import printable_line

CHOICE_MOST = 200_000  # images that a sample is drawn from, themselves drawn at random: millions take too long
SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev",
          "unlabelled", "unlabeled"}  # fmt: skip
# Folders that systems leave behind: thumbnails of a NAS, recycle bins, resource forks of an unpacked archive.
LEFTOVERS = {"@eadir", "#recycle", "$recycle.bin", "recycler", "system volume information", "__macosx", "lost+found",
             "thumbs", "__pycache__"}  # fmt: skip
log = logging.getLogger("edgemae.data")


@dataclass(frozen=True)
class ImageSet:
    """List images with labels and content hashes.

    `labels` is None for a flat folder; `skipped` pairs the path of a corrupt file with the reason; `sides_px` are the
    shorter sides as far as they are known. `checked` tells whether every image was decoded once.
    """

    folder: str
    paths: Sequence[str]
    hashes: Sequence[Hashable]
    labels: Sequence[int] | None
    classes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    sides_px: tuple[int, ...] = ()
    checked: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def fingerprint(self) -> str:
        """Return a digest of contents and labels; independent of where the folder lies."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for row in sorted(zip(self.hashes, self.labels or [-1] * len(self), strict=True)):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:32]

    @cached_property
    def sequence(self) -> str:
        """Return a digest of contents in their order: names decide it, and it decides steps and views."""
        if not self.checked:
            return self.fingerprint  # that of shards knows the order
        return hashlib.sha256(repr(tuple(self.hashes)).encode()).hexdigest()[:32]

    def pick(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            hashes=tuple(self.hashes[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            sides_px=tuple(self.sides_px[i] for i in indices) if self.sides_px else (),
        )

    def unlabelled(self) -> ImageSet:
        return replace(self, labels=None, classes=())

    def order(self, seed: int, epoch: int, batch: int) -> NDArray[np.int64]:
        """Return the positions of an epoch's images in the order of training, (N,) or up to the last whole batch."""
        del batch
        return np.random.default_rng((seed, epoch)).permutation(len(self))

    def different(self) -> Counter[int]:
        """Count the images of each label; those of equal content count once."""
        return Counter(label for label, _ in set(zip(self.labels or (), self.hashes, strict=True)))

    def keys(self) -> NDArray[np.uint64]:
        """Return the `content_key` of every image, by which files and members of shards can be compared, (N,)."""
        return np.array([key_of_file(path) for path in self.paths], np.uint64)

    def joined(self, other: ImageSet) -> ImageSet:
        """Return both without labels as one set; an image that is in both is taken once. Raises DataError."""
        if type(self) is not type(other):
            raise DataError(
                f"'{self.folder}' and '{other.folder}' are a folder of images and tar shards: they cannot be mixed",
                expected="both as folders, or both as shards",
                fix="pack the folder into shards too",
            )
        known = set(self.hashes)
        other = other.pick([i for i, digest in enumerate(other.hashes) if digest not in known])
        return replace(
            self, folder=f"{self.folder} and {other.folder}", paths=(*self.paths, *other.paths), labels=None,
            hashes=(*self.hashes, *other.hashes), skipped=self.skipped + other.skipped, classes=(),
            sides_px=self.sides_px + other.sides_px,
        )  # fmt: skip


def only_local(where: str) -> str:
    """Return what to do about a place that is not on this machine's disks; "" for a path."""
    if "://" not in where and not where.startswith("pipe:"):
        return ""
    return "only local paths are read: copy the files, or mount their store, and pass that path"


def scan(folder: str | Path) -> ImageSet:
    """Return the images of a folder; corrupt files are skipped, counted and named in the log.

    Raises DataError when the folder is missing or cannot be read, holds no readable image, or mixes loose images with
    class folders.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        raise DataError(
            f"'{root}' is a file, not a folder" if os.path.isfile(root) else f"image folder '{root}' does not exist",
            expected="a folder with one sub-folder a class, or a flat folder of images",
            fix=only_local(str(folder)) or "check the path",
        )
    loose, by_class, left_out = _list(root)
    _refuse_layout(root, loose, by_class)
    classes = tuple(sorted(by_class))
    _refuse_names(root, classes)
    rows = [(path, -1) for path in loose]
    rows += [(path, label) for label, name in enumerate(classes) for path in by_class[name]]
    paths, labels = tuple(path for path, _ in rows), tuple(label for _, label in rows)
    found = _checked(paths)
    images = ImageSet(str(root), paths, tuple(c.digest for c in found), labels if classes else None, classes)
    _refuse_lost_classes(images, found, left_out if classes else {})
    valid = _valid_only(images, found)
    others = tuple((path, f"it is no {FORMATS}") for paths in left_out.values() for path in paths)
    return replace(valid, skipped=(*valid.skipped, *others))


def sift(images: ImageSet) -> ImageSet:
    """Decode every image once and return the set without the corrupt ones, which are named in the log.

    Raises DataError when none is left.
    """
    return _valid_only(images, _checked(images.paths))


def _checked(paths: Sequence[str]) -> list[ImageCheck]:
    with quiet_opencv(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # cv2 and hashlib release the lock
        return list(pool.map(check, paths))


def _valid_only(images: ImageSet, found: list[ImageCheck]) -> ImageSet:
    good = [i for i, c in enumerate(found) if not c.why]
    skipped = tuple((images.paths[i], c.why) for i, c in enumerate(found) if c.why)
    for path, why in skipped[:10]:
        log.warning("skipped %s: %s", path, why)
    if skipped:
        log.warning("%d of %d files in %s were skipped", len(skipped), len(found), images.folder)
    if not good:
        raise DataError(
            f"no readable image in '{images.folder}' ({len(skipped)} corrupt file{'s' if len(skipped) > 1 else ''})"
            if skipped else f"no image in '{images.folder}'",
            expected=f"{FORMATS} files",
            fix="check the path and the files",
        )  # fmt: skip
    return replace(images.pick(good), skipped=skipped, sides_px=tuple(found[i].side_px for i in good))


def _list(root: Path) -> tuple[list[str], dict[str, list[str]], dict[str, list[str]]]:
    """Return loose images, images by top-level sub-folder, and images of other formats by it ("": loose), all sorted.

    Links to folders are followed once.
    """
    loose: list[str] = []
    left_out: dict[str, list[str]] = {}
    by_class: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for where, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        seen.add(os.path.realpath(where))
        real = {name: os.path.realpath(os.path.join(where, name)) for name in folders}
        folders[:] = sorted(
            name for name in folders
            if not name.startswith(".") and name.lower() not in LEFTOVERS and real[name] not in seen
        )  # fmt: skip
        shown = sorted(name for name in files if not name.startswith("."))
        found = [name for name in shown if is_image(os.path.join(where, name))]
        rest = sorted(set(shown) - set(found))
        others.update(Path(name).suffix.lower() or name for name in rest)
        part = Path(where).relative_to(root).parts
        lost = [os.path.join(where, name) for name in rest if name.lower().endswith(OTHER_SUFFIXES)]
        if lost:
            left_out.setdefault(part[0] if part else "", []).extend(lost)
        if not found:
            continue
        rows = by_class.setdefault(part[0], []) if part else loose
        rows.extend(os.path.join(where, name) for name in found)
    if others:
        named = ", ".join(f"{ending} ({count})" for ending, count in others.most_common(5))
        log.info("%d files in %s are no %s: %s", others.total(), root, FORMATS, named)
    for name, paths in left_out.items():
        log.warning("left out of %s: %d images that are no %s, such as %s", f"class '{name}'" if name else root,
                    len(paths), FORMATS, paths[0])  # fmt: skip
    return loose, by_class, left_out


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"folder '{error.filename}' cannot be read: {error.strerror}",
        expected="a folder that you may list and read",
        fix="change its permissions, or leave it out",
    ) from error


def _refuse_layout(root: Path, loose: list[str], by_class: dict[str, list[str]]) -> None:
    if loose and by_class:
        raise DataError(
            f"'{root}' mixes {len(loose)} loose images with class folders {', '.join(sorted(by_class)[:5])}",
            expected="either one sub-folder a class, or only loose images",
            fix="move the loose images into a class folder, or into a folder of their own for unlabelled data",
        )
    trains = max(by_class, key=lambda name: name.lower().startswith("train"), default="")
    if len(by_class) > 1 and SPLITS.issuperset(map(str.lower, by_class)):
        raise DataError(
            f"'{root}' holds {', '.join(sorted(by_class))}: parts of a data set, not classes",
            expected="one sub-folder a class",
            fix=f"pass '{root / trains}', and the other parts with options of their own",
        )


def _refuse_names(root: Path, classes: tuple[str, ...]) -> None:
    """Refuse names of classes that cannot be written into a report, and two that look alike, before hours of work."""
    by_form: dict[str, str] = {}
    for name in classes:
        alike = by_form.setdefault(normalize("NFC", name), name)
        if printable_line(name) != name:
            raise DataError(
                f"class folder {name!a} of '{root}' has a name that cannot be printed",
                expected="names in UTF-8 without control characters",
                fix="rename the folder",
            )
        if alike != name:
            raise DataError(
                f"'{root}' has two class folders '{name}', spelt {alike!a} and {name!a}",
                expected="one folder per class: Unicode writes some letters in two ways, which look alike",
                fix="move the images of one into the other",
            )


def _refuse_lost_classes(images: ImageSet, found: list[ImageCheck], left_out: dict[str, list[str]]) -> None:
    """Refuse a class that loses most of its images: what is left would not be what its folder holds."""
    kept: Counter[str] = Counter()
    lost = Counter({name: len(paths) for name, paths in left_out.items() if name})
    for label, checked in zip(images.labels or (), found, strict=False):
        (lost if checked.why else kept)[images.classes[label]] += 1
    for name, count in sorted(lost.items()):
        if count > kept[name]:
            example = next(iter(left_out.get(name, ())), "") or next(
                path for path, label, checked in zip(images.paths, images.labels or (), found, strict=True)
                if checked.why and images.classes[label] == name
            )  # fmt: skip
            raise DataError(
                f"class '{name}' of '{images.folder}' would lose {count} of its {count + kept[name]} images, such as "
                f"'{example}'",
                expected=f"most images of every class as whole {FORMATS} files",
                fix="convert them to PNG or JPEG, or move them out of the folder",
            )


# ---------------------------------------------------------------- splits


def split(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return (rest, held-out part), stratified by class; files of equal content always land on the same side.

    Raises DataError when there is too little to hold any out, or a class would be left without images.
    """
    taken: set[Hashable] = set()
    contents: dict[int, dict[Hashable, None]] = {}
    for i, digest in enumerate(images.hashes):
        contents.setdefault(-1 if images.labels is None else images.labels[i], {})[digest] = None
    for label in sorted(contents):
        members = list(contents[label])
        order = np.random.default_rng((seed, label + 1)).permutation(len(members))
        goal = min(len(members) - 1, max(1, round(len(members) * fraction)))
        taken |= {members[k] for k in order[:goal]}
    rest = images.pick([i for i, h in enumerate(images.hashes) if h not in taken])
    held = images.pick([i for i, h in enumerate(images.hashes) if h in taken])
    if not len(rest) or not len(held) or set(rest.labels or ()) != set(images.labels or ()):
        raise DataError(
            f"'{images.folder}' has too few different images to hold some out for evaluation",
            expected="at least two in every class that are in no other class",
            fix="add images, or pass evaluation images of their own with --eval-data",
        )
    return rest, held


def sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return up to `count` images, spread evenly over the classes, the same ones for the same seed."""
    rng = np.random.default_rng((seed, 7))
    groups: dict[int, list[int]] = {}
    for i in rng.permutation(len(images))[-CHOICE_MOST:]:
        groups.setdefault(-1 if images.labels is None else images.labels[i], []).append(int(i))
    chosen: list[int] = []
    while len(chosen) < min(count, len(images)):
        for label in sorted(groups):
            if groups[label] and len(chosen) < count:
                chosen.append(groups[label].pop())
    return images.pick(sorted(chosen))
