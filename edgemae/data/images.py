"""Image folders: what is in them, what is broken, what each file's content hash is, and how they are split.

A folder is either labelled (one sub-folder a class) or flat. Files are decoded once while scanning, so that a corrupt,
empty or mislabelled file is named before the first training step and never met later.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from edgemae.spec.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
log = logging.getLogger("edgemae.data")


@dataclass(frozen=True)
class ImageSet:
    """List images with labels and content hashes. `labels` is None for a flat folder; `skipped` pairs path and reason."""

    folder: str
    paths: tuple[str, ...]
    hashes: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        """Return a digest of contents and labels; independent of where the folder lies."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for row in sorted(zip(self.hashes, self.labels or [-1] * len(self), strict=True)):
            digest.update(repr(row).encode())
        return digest.hexdigest()[:32]

    def pick(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            hashes=tuple(self.hashes[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
        )

    def unlabelled(self) -> ImageSet:
        return replace(self, labels=None, classes=())


def scan(folder: str | Path) -> ImageSet:
    """Return the images of a folder; broken files are skipped, counted and named in the log.

    Raises DataError when the folder is missing, holds no readable image, or mixes loose images with class folders.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"image folder '{root}' does not exist" if not root.exists() else f"'{root}' is a file, not a folder",
            expected="a folder with one sub-folder a class, or a flat folder of images",
            fix="check the path",
        )
    loose, by_class = _list(root)
    if loose and by_class:
        raise DataError(
            f"'{root}' mixes {len(loose)} loose images with class folders {', '.join(sorted(by_class)[:5])}",
            expected="either one sub-folder a class, or only loose images",
            fix="move the loose images into a class folder, or into a folder of their own for unlabelled data",
        )
    classes = tuple(sorted(by_class))
    rows = [(path, -1) for path in loose]
    rows += [(path, label) for label, name in enumerate(classes) for path in by_class[name]]
    with ThreadPoolExecutor(max_workers=2) as pool:  # cv2 and hashlib release the interpreter lock
        checked = list(pool.map(lambda row: _check(row[0]), rows))
    good = [(path, digest, label) for (path, label), (digest, why) in zip(rows, checked, strict=True) if not why]
    skipped = tuple((path, why) for (path, _), (_, why) in zip(rows, checked, strict=True) if why)
    for path, why in skipped[:10]:
        log.warning("skipped %s: %s", path, why)
    if skipped:
        log.warning("%d of %d files in %s were skipped", len(skipped), len(rows), root)
    if not good:
        raise DataError(
            f"no readable image in '{root}' ({len(skipped)} broken files)" if skipped else f"no image in '{root}'",
            expected=f"files ending in {', '.join(EXTENSIONS)}",
            fix="check the path and the files",
        )
    paths, hashes, labels = zip(*good, strict=True)
    return ImageSet(str(root), paths, hashes, labels if classes else None, classes, skipped)


def _list(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return (loose images, images by top-level sub-folder), both sorted."""
    loose: list[str] = []
    by_class: dict[str, list[str]] = {}
    for where, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = sorted(n for n in files if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
        if not found:
            continue
        part = Path(where).relative_to(root).parts
        rows = by_class.setdefault(part[0], []) if part else loose
        rows.extend(os.path.join(where, name) for name in found)
    return loose, by_class


def _check(path: str) -> tuple[str, str]:
    """Return (content hash, reason to skip or "")."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return "", f"cannot be read ({error.strerror})"
    if not data:
        return "", "empty file"
    digest = hashlib.sha256(data).hexdigest()
    # An eighth of the size decodes several times faster and meets the same headers and streams.
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except cv2.error:
        picture = None
    return digest, "" if picture is not None else "not a readable image"


# ---------------------------------------------------------------- requirements


def require_labels(images: ImageSet, purpose: str) -> None:
    """Raise DataError unless the set has at least two classes with at least two images each."""
    if images.labels is None:
        raise DataError(
            f"'{images.folder}' has no class folders, and {purpose} needs labels",
            expected="one sub-folder for each class",
            fix="sort the images into class folders, or leave out the step that needs labels",
        )
    counts = Counter(images.labels)
    if len(images.classes) < 2 or len(counts) < 2:
        names = ", ".join(images.classes[label] for label in sorted(counts))
        raise DataError(
            f"'{images.folder}' has one class only ({names}), and {purpose} needs at least two",
            expected="two or more class folders with images",
            fix="add a second class (for example 'other')",
        )
    small = [images.classes[label] for label in range(len(images.classes)) if counts[label] < 2]
    if small:
        raise DataError(
            f"class '{small[0]}' in '{images.folder}' has {counts[images.classes.index(small[0])]} readable image",
            expected="at least two images in every class, so that one can be held out",
            fix="add images or remove the folder",
        )


def same_classes(train: ImageSet, other: ImageSet) -> ImageSet:
    """Return `other` with its labels renumbered to the classes of `train`.

    Raises DataError for a class that the training set does not have.
    """
    if other.labels is None:
        return other
    unknown = sorted(set(other.classes) - set(train.classes))
    if unknown:
        raise DataError(
            f"'{other.folder}' has the class '{unknown[0]}', which '{train.folder}' has not",
            expected=f"classes among {', '.join(train.classes)}",
            fix="rename or remove that folder",
        )
    number = [train.classes.index(name) for name in other.classes]
    return replace(other, labels=tuple(number[label] for label in other.labels), classes=train.classes)


def require_disjoint(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Raise DataError when an image of the evaluation set, by content, is also used for calibration or training."""
    shared = set(calibration.hashes) & set(evaluation.hashes)
    if not shared:
        return
    example = next(p for p, h in zip(calibration.paths, calibration.hashes, strict=True) if h in shared)
    raise DataError(
        f"{len(shared)} images of '{calibration.folder}' are also in the evaluation set '{evaluation.folder}' "
        f"(same content, for example '{example}')",
        expected="evaluation images that nothing was trained or calibrated on",
        fix="pass other folders, or leave --eval-data out and a part of the training data is held out",
    )


# ---------------------------------------------------------------- splits


def split(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return (rest, held-out part), stratified by class; files of equal content always land on the same side."""
    held: list[int] = []
    taken: set[str] = set()
    for label in sorted(set(images.labels or [-1])):
        members = [i for i in range(len(images)) if images.labels is None or images.labels[i] == label]
        order = np.random.default_rng((seed, label + 1)).permutation(len(members))
        goal = min(len(members) - 1, max(1, round(len(members) * fraction)))
        chosen = [members[k] for k in order[:goal]]
        held += chosen
        taken |= {images.hashes[i] for i in chosen}
    inside = sorted(set(held) | {i for i in range(len(images)) if images.hashes[i] in taken})
    outside = sorted(set(range(len(images))) - set(inside))
    return images.pick(outside), images.pick(inside)


def sample(images: ImageSet, count: int, seed: int) -> ImageSet:
    """Return up to `count` images, spread evenly over the classes, the same ones for the same seed."""
    rng = np.random.default_rng((seed, 7))
    groups: dict[int, list[int]] = {}
    for i in rng.permutation(len(images)):
        groups.setdefault(-1 if images.labels is None else images.labels[i], []).append(int(i))
    chosen: list[int] = []
    while len(chosen) < min(count, len(images)):
        for label in sorted(groups):
            if groups[label] and len(chosen) < count:
                chosen.append(groups[label].pop())
    return images.pick(sorted(chosen))
