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

import numpy as np

from edgemae.data.intact import check, quiet_opencv
from edgemae.spec.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SPLITS = {"train", "val", "valid", "validation", "test", "eval", "unlabelled", "unlabeled"}
log = logging.getLogger("edgemae.data")


@dataclass(frozen=True)
class ImageSet:
    """List images with labels and content hashes.

    `labels` is None for a flat folder; `skipped` pairs the path of a broken file with the reason.
    """

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

    Raises DataError when the folder is missing or cannot be read, holds no readable image, or mixes loose images with
    class folders.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        raise DataError(
            f"'{root}' is a file, not a folder" if os.path.isfile(root) else f"image folder '{root}' does not exist",
            expected="a folder with one sub-folder a class, or a flat folder of images",
            fix="check the path",
        )
    loose, by_class = _list(root)
    _refuse_layout(root, loose, by_class)
    classes = tuple(sorted(by_class))
    rows = [(path, -1) for path in loose]
    rows += [(path, label) for label, name in enumerate(classes) for path in by_class[name]]
    with quiet_opencv(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # cv2 and hashlib release the lock
        checked = list(pool.map(lambda row: check(row[0]), rows))
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
    """Return (loose images, images by top-level sub-folder), both sorted; links to folders are followed once."""
    loose: list[str] = []
    by_class: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    seen: set[str] = set()
    for where, folders, files in os.walk(root, onerror=_unreadable, followlinks=True):
        seen.add(os.path.realpath(where))
        folders[:] = sorted(
            name for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(where, name)) not in seen
        )  # fmt: skip
        shown = sorted(name for name in files if not name.startswith("."))
        found = [name for name in shown if name.lower().endswith(EXTENSIONS)]
        others.update(Path(name).suffix.lower() or name for name in shown if not name.lower().endswith(EXTENSIONS))
        if not found:
            continue
        part = Path(where).relative_to(root).parts
        rows = by_class.setdefault(part[0], []) if part else loose
        rows.extend(os.path.join(where, name) for name in found)
    if others:
        named = ", ".join(f"{ending} ({count})" for ending, count in others.most_common(5))
        log.info("%d files in %s are no images by their endings: %s", others.total(), root, named)
    return loose, by_class


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
    if "train" in by_class and SPLITS.issuperset(by_class):
        raise DataError(
            f"'{root}' holds {', '.join(sorted(by_class))}: parts of a data set, not classes",
            expected="one sub-folder a class",
            fix=f"pass '{root / 'train'}', and the other parts with options of their own",
        )


# ---------------------------------------------------------------- requirements


def require_labels(images: ImageSet, purpose: str) -> None:
    """Raise DataError unless the set has at least two classes with at least two images each."""
    if images.labels is None:
        raise DataError(
            f"'{images.folder}' has no class folders, and {purpose} needs labels",
            expected="one sub-folder for each class",
            fix="sort the images into class folders, or leave out the step that needs labels",
        )
    counts = Counter(label for label, _ in set(zip(images.labels, images.hashes, strict=True)))  # copies count once
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
            f"class '{small[0]}' in '{images.folder}' has {counts[images.classes.index(small[0])]} readable image(s)",
            expected="at least two different images in every class, so that one can be held out",
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
    """Return (rest, held-out part), stratified by class; files of equal content always land on the same side.

    Raises DataError when there is too little to hold any out, or a class would be left without images.
    """
    taken: set[str] = set()
    for label in sorted(set(images.labels or [-1])):
        rows = [h for i, h in enumerate(images.hashes) if images.labels is None or images.labels[i] == label]
        members = list(dict.fromkeys(rows))
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
    for i in rng.permutation(len(images)):
        groups.setdefault(-1 if images.labels is None else images.labels[i], []).append(int(i))
    chosen: list[int] = []
    while len(chosen) < min(count, len(images)):
        for label in sorted(groups):
            if groups[label] and len(chosen) < count:
                chosen.append(groups[label].pop())
    return images.pick(sorted(chosen))
