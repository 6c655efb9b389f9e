"""Galleries of whole folders: build one, search it, score images against a reference set (normal images).

Runs on a device, without torch.

`load_options` is what `edgemae.load` takes beside the bundle: engine and target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec

from edgemae.data.decode_worker import read_image
from edgemae.data.image_set import ImageSet
from edgemae.data.shards import images_at
from edgemae.device.camera.image_header import is_image
from edgemae.device.model import Model, load
from edgemae.device.preprocess import ImageBGR
from edgemae.retrieval.anomaly import AnomalyDetector
from edgemae.retrieval.gallery import Gallery
from edgemae.retrieval.heatmap import overlay
from edgemae.spec.atomic_file import write_atomic
from edgemae.spec.printable import printable_line
from edgemae.spec.user_paths import require_apart, require_outside
from edgemae.terminal.progress import progress


def build(
    bundle: Path, folder: str, output: Path, load_options: Mapping[str, Any], *, as_reference: bool = False,
    held_out: str | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write a labelled gallery of class folders, or a reference set; return what it holds.

    A reference set is made of a flat folder, of class folders with `as_reference`, and whenever `held_out` is given.
    `settings` are those of `AnomalyDetector.fit`. Raises DataError, BundleError, StorageError, and GalleryError when a
    reference set is wanted of a bundle without tokens.
    """
    require_apart([output], [bundle, folder, *([held_out] if held_out else [])])
    images = images_at(folder, checked=True)
    others = None if held_out is None else images_at(held_out, checked=True)
    with load(bundle, **load_options) as model:
        if images.labels is not None and not as_reference and others is None:
            built = _gallery(model, images, output)
        else:
            built = _reference_set(model, images, others, output, settings)
    skipped = len(images.skipped) + len(others.skipped if others else ())
    return {**built, "size_bytes": output.stat().st_size, "skipped_files": skipped}


def _gallery(model: Model, images: ImageSet, output: Path) -> dict[str, Any]:
    """Add every image under its folder's name, its metadata {"file": path below the folder}."""
    gallery, labels = Gallery(model), [images.classes[k] for k in images.labels or ()]
    for i, frame_bgr in enumerate(_frames("gallery", images, model)):
        gallery.add(frame_bgr, labels[i], {"file": _name(images, i)})
    gallery.save(output)
    return {"gallery": str(output), "entries": len(gallery), "labels": {name: labels.count(name) for name in labels}}


def _reference_set(
    model: Model, images: ImageSet, others: ImageSet | None, output: Path, settings: Mapping[str, Any]
) -> dict[str, Any]:
    held_out = None if others is None else _frames("held out", others, model)
    detector = AnomalyDetector.fit(model, _frames("normal", images, model), held_out=held_out, **settings)
    detector.save(output)
    return {
        "reference_set": str(output), "frames": detector.normal_frames, "patches": detector.patches_seen,
        "core_set_bytes": detector.size_bytes, "threshold": msgspec.to_builtins(detector.calibration),
    }  # fmt: skip


def search(bundle: Path, gallery: Path, image: str, load_options: Mapping[str, Any], *, top: int) -> dict[str, Any]:
    """Return the nearest entries of a gallery to one image."""
    with load(bundle, **load_options) as model:
        opened = Gallery.load(gallery, model)
        found = opened.search(read_image(image, model.pixel), top)
    return {"image": image, "entries": len(opened), "matches": [msgspec.to_builtins(match) for match in found]}


def score(
    bundle: Path, reference: Path, source: str, load_options: Mapping[str, Any], *, save: Path | None = None
) -> dict[str, Any]:
    """Return the anomaly score of one image or of a folder's, the most unusual first.

    With `save` each is written there with its heat map drawn over it, `a/b.jpg` as `a/b.jpg.png`. Raises InputError for
    a `save` among the images: the maps would be scored the next time.
    """
    if save is not None:
        require_outside(save, source)
    with load(bundle, **load_options) as model:
        detector = AnomalyDetector.load(reference, model)
        if not Path(source).is_dir() and is_image(source):
            images = ImageSet(str(Path(source).parent), (source,), (source,), None)
        else:
            images = images_at(source, checked=True)
        rows = []
        for i, frame_bgr in enumerate(_frames("score", images, model)):
            anomaly = detector(frame_bgr)
            rows.append({"file": _name(images, i), "score": anomaly.score, "is_anomaly": anomaly.is_anomaly})
            if save is not None:
                rows[-1]["map"] = str(_draw(save / f"{rows[-1]['file']}.png", overlay(frame_bgr, anomaly.map)))
    return {
        "reference_set": str(reference), "threshold": msgspec.to_builtins(detector.calibration), "frames": len(rows),
        "anomalies": sum(row["is_anomaly"] for row in rows), "skipped_files": len(images.skipped),
        "scores": sorted(rows, key=lambda row: -row["score"]),
    }  # fmt: skip


def _frames(label: str, images: ImageSet, model: Model) -> Iterator[ImageBGR]:
    with progress(label, len(images)) as counted:
        for path in images.paths:
            yield read_image(path, model.pixel)
            counted.advance()


def _name(images: ImageSet, i: int) -> str:
    """Return the path of an image below its folder."""
    path = Path(images.paths[i])
    return printable_line(path.relative_to(images.folder) if path.is_relative_to(images.folder) else path.name)


def _draw(path: Path, image_bgr: ImageBGR) -> Path:
    """Write a PNG in one step, over a link rather than through it."""
    write_atomic(path, cv2.imencode(".png", image_bgr)[1].tobytes())
    return path
