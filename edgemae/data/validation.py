"""What a set of images must be for a purpose: each is checked before the first step of the work that needs it."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from unicodedata import normalize

import numpy as np

from edgemae.data.image_bytes import content, shown
from edgemae.data.image_set import ImageSet, sample, sift
from edgemae.spec.errors import DataError

FEW = 3  # small images that no log line names
SAMPLED = 256
log = logging.getLogger("edgemae.data")


def require_labels(images: ImageSet, purpose: str, *, held_out: bool = False) -> None:
    """Raise DataError unless the set has two classes with two images each; some may have been `held_out` of it."""
    if images.labels is None:
        raise DataError(
            f"'{images.folder}' has no class folders, and {purpose} needs labels",
            expected="one sub-folder for each class",
            fix="sort the images into class folders, or leave out the step that needs labels",
        )
    counts = images.different()
    if len(images.classes) < 2 or len(counts) < 2:
        names = ", ".join(images.classes[label] for label in sorted(counts))
        raise DataError(
            f"'{images.folder}' has one class only ({names}), and {purpose} needs at least two",
            expected="two or more class folders with images",
            fix="add a second class (for example 'other')",
        )
    small = [label for label in range(len(images.classes)) if counts[label] < 2]
    if small:
        raise DataError(
            f"class '{images.classes[small[0]]}' in '{images.folder}' has {counts[small[0]]} different image(s)"
            + (" left, once a part is held out for judging" if held_out else ""),
            expected="at least two different images in every class: one says nothing of what they have in common",
            fix="add images, " + ("pass others with --eval-data, " if held_out else "") + "or remove the folder",
        )


def require_classes(who: str, labels: tuple[str, ...], images: ImageSet) -> None:
    """Raise DataError unless a model's labels are the classes of the set, in order."""
    if labels != images.classes:
        raise DataError(
            f"{who} knows {_shown(labels)}, '{images.folder}' has {_shown(images.classes)}",
            expected="the same classes in the same order",
            fix=f"fine-tune {who} on these images first, or pass the images it was trained on",
        )


def _shown(labels: tuple[str, ...]) -> str:
    if not labels:
        return "no named classes"
    return f"{len(labels)} classes ({', '.join(labels[:5])}{', ...' if len(labels) > 5 else ''})"


def require_disjoint(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Raise DataError when an image of the evaluation set, by content, is also used for calibration or training."""
    shared = _shared(calibration, evaluation)
    if not shared:
        return
    raise DataError(
        f"{len(shared)} images of '{calibration.folder}' are also in the evaluation set '{evaluation.folder}' "
        f"(same content, for example {shown(calibration.paths[shared[0]])})",
        expected="evaluation images that nothing was trained or calibrated on",
        fix="pass other folders, or leave --eval-data out and a part of the training data is held out",
    )


def _shared(a: ImageSet, b: ImageSet) -> list[int]:
    """Return the positions in `a` of images that `b` has too.

    Folders know the hash of all bytes. Shards know only size, first and last block, whose equality is then proved or
    refuted by reading those few images: nothing that is equal is missed, and nothing else is reported.
    """
    if a.checked and b.checked:
        known: set[Hashable] = set(b.hashes)
        return [i for i, digest in enumerate(a.hashes) if digest in known]
    mine, theirs = a.keys(), b.keys()
    known = {_digest(b.paths[i]) for i in np.flatnonzero(np.isin(theirs, mine)).tolist()}
    return [i for i in np.flatnonzero(np.isin(mine, theirs)).tolist() if _digest(a.paths[i]) in known]


def _digest(reference: str) -> bytes:
    return hashlib.sha256(content(reference)).digest()


def require_size(images: ImageSet, image_px: int, seed: int, patch_px: int = 1) -> None:
    """Refuse images most of which are smaller than a third of the model's input, or than a patch; warn of a few.

    Enlarged three times, an image holds a ninth of the values that the model reads: it would learn blur. Of shards, a
    sample of 256 is looked at. Raises DataError, also when none of the sample can be read.
    """
    if not images.sides_px:
        images = sift(sample(images, SAMPLED, seed))
    small = _small(images, image_px, patch_px)
    most = 2 * len(small) > len(images)
    if not small or (len(small) <= FEW and not most):
        return
    what = f"{len(small)} of {len(images)} images in '{images.folder}' are {_than(images, small, image_px, patch_px)}"
    if not most:
        log.warning("%s: they are enlarged", what)
        return
    raise _too_small(what)


def require_class_sizes(images: ImageSet, image_px: int, patch_px: int = 1) -> None:
    """Refuse a class all of whose images `require_size` would call small, however few: its blur would tell it.

    Of shards, of which a sample may have met two of a class, nothing is reported. Raises DataError.
    """
    if images.labels is None or not images.sides_px:
        return
    small = _small(images, image_px, patch_px)
    some, whole = Counter(images.labels[i] for i in small), Counter(images.labels)
    for label in sorted(some):
        if some[label] == whole[label]:
            own = [i for i in small if images.labels[i] == label]
            raise _too_small(
                f"all {len(own)} images of class '{images.classes[label]}' in '{images.folder}' are "
                + _than(images, own, image_px, patch_px)
            )


def _small(images: ImageSet, image_px: int, patch_px: int) -> list[int]:
    return [i for i, side_px in enumerate(images.sides_px) if 3 * side_px < image_px or side_px < patch_px]


def _than(images: ImageSet, small: list[int], image_px: int, patch_px: int) -> str:
    limit = f"a patch of {patch_px} px" if 3 * patch_px > image_px else f"a third of the {image_px} px"
    example = f"{shown(images.paths[small[0]])} with {images.sides_px[small[0]]} px"
    return f"smaller than {limit} that the model reads, for example {example}"


def _too_small(what: str) -> DataError:
    return DataError(
        what, expected="images about as large as the model's input, or larger",
        fix="pass larger images, or train a model with a smaller input and smaller patches (--set student.image_px=... "
        "and student.patch_px=...; `pretrain` reads those of teacher)",
    )  # fmt: skip


def same_classes(train: ImageSet, other: ImageSet) -> ImageSet:
    """Return `other` with its labels renumbered to the classes of `train`.

    Raises DataError for a class that the training set does not have.
    """
    return other if other.labels is None else _renumbered(other, train.classes, f"'{train.folder}' has not")


def known_classes(images: ImageSet, labels: tuple[str, ...]) -> ImageSet:
    """Return the set with labels numbered as the model's; without labels for a model that has none.

    Raises DataError for a class that the model does not have.
    """
    if images.labels is None or not labels:
        return images.unlabelled()
    return _renumbered(images, labels, "the model does not know")


def _renumbered(images: ImageSet, classes: tuple[str, ...], who_lacks_it: str) -> ImageSet:
    """Return a labelled set with the numbers of `classes`. Raises DataError for a class that is not among them."""
    assert images.labels is not None
    unknown = sorted(set(images.classes) - set(classes))
    if unknown:
        alike = [name for name in classes if normalize("NFC", name) == normalize("NFC", unknown[0])]
        spelled = f" (spelt {unknown[0]!a} here and {alike[0]!a} there)" if alike else ""
        raise DataError(
            f"'{images.folder}' has the class '{unknown[0]}'{spelled}, which {who_lacks_it}",
            expected=f"class folders among {', '.join(classes)}",
            fix="rename that folder" if alike else "rename or remove that folder",
        )
    number = [classes.index(name) for name in images.classes]
    return replace(images, labels=tuple(number[label] for label in images.labels), classes=classes)
