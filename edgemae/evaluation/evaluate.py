"""Evaluate a bundle or a model file on images. A bundle goes through its engine, without torch, so on a device too."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.data.decode_worker import read_picture
from edgemae.data.image_set import ImageSet
from edgemae.data.shards import images_at
from edgemae.data.validation import known_classes
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.evaluation.accuracy import Predictions, predict, score
from edgemae.spec.bundle import is_bundle
from edgemae.spec.errors import InputError
from edgemae.spec.graph import PixelContract
from edgemae.spec.report import StageScore
from edgemae.terminal.progress import progress

log = logging.getLogger("edgemae")
Batches = Iterator[tuple[NDArray[Any], NDArray[Any] | None]]
BATCH = 32  # of a model file under torch; engines of a bundle take one picture at a time


def evaluate_path(path: Path, eval_data: str, loading: Mapping[str, Any], heads: int = 0) -> dict[str, Any]:
    """Return accuracy of a bundle (through its engine, no torch) or of a model file (through torch).

    `loading`: keyword arguments of `load`.
    """
    if is_bundle(path):
        with load(path, **loading) as model:
            images = known_classes(images_at(eval_data, checked=True), model.labels)
            found = predict(model.session, _frames(images, model.pixel, model.manifest.io.dtype))
            here = {"bundle": str(path), "engine": model.variant.engine, "precision": model.variant.precision}
            return _answer(here, found, images, labels=model.labels, size_bytes=_size(path))
    from edgemae.model.import_teacher import load_teacher
    from edgemae.model.vit import count_macs, count_params

    require_model_path(path)
    teacher = load_teacher(path, heads=heads)
    images = known_classes(images_at(eval_data, checked=True), teacher.labels)
    found = predict(_torch_run(teacher.vit), _batches(images, teacher.pixel))
    about: dict[str, Any] = {"model": str(path), "engine": "torch", "precision": "fp32"}
    about |= {"params": count_params(teacher.vit), "macs": count_macs(teacher.vit.shape)}
    return _answer(about, found, images, labels=teacher.labels, size_bytes=_size(path))


def _answer(
    about: dict[str, Any], found: Predictions, images: ImageSet, *, labels: tuple[str, ...], size_bytes: int
) -> dict[str, Any]:
    row: StageScore = score("", found, None, params=0, macs=0, size_bytes=size_bytes, label_names=labels)
    figures = {
        "top1_low": row.top1_low, "top1_high": row.top1_high, "confidence": row.confidence, "per_class": row.per_class,
        "size_bytes": size_bytes, "skipped_files": len(images.skipped),
    }  # fmt: skip
    if row.top1 is None:  # without labels there is nothing to be right about
        figures = {"size_bytes": size_bytes, "skipped_files": len(images.skipped)}
    return {"top1": row.top1, "n": row.n, "ece": row.ece, **about, **figures}


def _frames(images: ImageSet, pixel: PixelContract, dtype: str) -> Batches:
    with progress("evaluate", len(images)) as shown:
        for i, path in enumerate(images.paths):
            label = None if images.labels is None else np.array([images.labels[i]])
            yield preprocess(read_picture(path, pixel), pixel, dtype), label
            shown.advance()


def _batches(images: ImageSet, pixel: PixelContract) -> Batches:
    from edgemae.data.loader import Loader

    with progress("evaluate", len(images)) as shown:
        for batch in Loader(images, pixel, BATCH, train=False).epoch():
            yield batch.pixels.numpy(), None if images.labels is None else batch.labels.numpy()
            shown.advance(len(batch.pixels))


def _torch_run(vit: Any) -> Any:
    import torch

    def run(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            logits, embedding = vit.eval()(torch.from_numpy(pixels))
        return {"embedding": embedding.numpy()} | ({} if logits is None else {"logits": logits.numpy()})

    return run


def require_model_path(path: Path) -> None:
    """Raise InputError for a path where nothing is."""
    if not path.exists():
        raise InputError(f"'{path}' does not exist", expected="a bundle or a model file", fix="check the path")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
