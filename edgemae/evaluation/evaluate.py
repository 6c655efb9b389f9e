"""The one evaluator: what a model predicts for images, and the accuracy of a bundle or of a model file.

A bundle goes through its engine, without torch, so on a device too. Torch is imported for a model file, and where
worker processes decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.data.decode_worker import read_image
from edgemae.data.image_set import ImageSet
from edgemae.data.shards import images_at
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.evaluation.accuracy import Predictions, Run, predict, score
from edgemae.spec.bundle import is_bundle
from edgemae.spec.errors import DataError
from edgemae.spec.graph import PixelContract
from edgemae.spec.report import StageScore
from edgemae.terminal.progress import progress

Batches = Iterator[tuple[NDArray[Any], NDArray[Any] | None]]
BATCH = 32  # of a model under torch; engines of a bundle take one image at a time
DECODED = 32  # images that workers decode in one piece


def predictions(
    run: Run, images: ImageSet, pixel: PixelContract, *, dtype: str = "float32", batch: int = 1,
    workers: int | None = None, shown: bool = False,
) -> Predictions:  # fmt: skip
    """Return what `run` predicts for every image, `batch` at a time, as inputs of `dtype` (float32 or uint8).

    `workers`: processes that decode, through the loader of trainings, which keeps what it decoded; None: this process
    decodes one image after the other, without torch. `shown`: with a progress bar. Raises DataError without images.
    """
    inputs = _one_by_one(images, pixel, dtype) if workers is None else _loaded(images, pixel, dtype, workers)
    with progress("evaluate", len(images), shown=shown) as counter:

        def counted() -> Batches:
            for pixels, labels in inputs:
                for i in range(0, len(pixels), batch):
                    yield pixels[i : i + batch], None if labels is None else labels[i : i + batch]
                counter.advance(len(pixels))

        return predict(run, counted())


def torch_run(vit: Any) -> Run:
    """Return a ViT under torch as what `predictions` runs: pixels in, {"embedding", "logits"} out, as arrays."""
    import torch

    def run(pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            logits, embedding = vit.eval()(torch.from_numpy(pixels))
        return {"embedding": embedding.numpy()} | ({} if logits is None else {"logits": logits.numpy()})

    return run


def evaluate_path(path: Path, eval_data: str, loading: Mapping[str, Any], heads: int = 0) -> dict[str, Any]:
    """Return accuracy of a bundle (through its engine, no torch) or of a model file (through torch).

    `loading`: keyword arguments of `load`.
    """
    if is_bundle(path):
        with load(path, **loading) as model:
            images = known_classes(images_at(eval_data, checked=True), model.labels)
            found = predictions(model.session, images, model.pixel, dtype=model.manifest.io.dtype, shown=True)
            here = {"bundle": str(path), "engine": model.variant.engine, "precision": model.variant.precision}
            return _answer(here, found, images, labels=model.labels, size_bytes=_size(path))
    from edgemae.model.import_teacher import load_teacher
    from edgemae.model.vit import count_macs, count_params

    teacher = load_teacher(path, heads=heads)
    images = known_classes(images_at(eval_data, checked=True), teacher.labels)
    found = predictions(torch_run(teacher.vit), images, teacher.pixel, batch=BATCH, workers=0, shown=True)
    about: dict[str, Any] = {"model": str(path), "engine": "torch", "precision": "fp32"}
    about |= {"params": count_params(teacher.vit), "macs": count_macs(teacher.vit.shape)}
    return _answer(about, found, images, labels=teacher.labels, size_bytes=_size(path))


def known_classes(images: ImageSet, labels: tuple[str, ...]) -> ImageSet:
    """Return the set with labels numbered as the model's; without labels for a model that has none.

    Raises DataError for a class that the model does not have.
    """
    if images.labels is None or not labels:
        return images.unlabelled()
    unknown = sorted(set(images.classes) - set(labels))
    if unknown:
        raise DataError(
            f"'{images.folder}' has the class '{unknown[0]}', which the model does not know",
            expected=f"class folders among {', '.join(labels)}",
            fix="rename or remove that folder",
        )
    number = [labels.index(name) for name in images.classes]
    return replace(images, labels=tuple(number[i] for i in images.labels), classes=labels)


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


def _one_by_one(images: ImageSet, pixel: PixelContract, dtype: str) -> Batches:
    for i, path in enumerate(images.paths):
        label = None if images.labels is None else np.array([images.labels[i]])
        yield preprocess(read_image(path, pixel), pixel, dtype), label


def _loaded(images: ImageSet, pixel: PixelContract, dtype: str, workers: int) -> Batches:
    from edgemae.data.loader import Loader

    for batch in Loader(images, pixel, DECODED, workers=workers, train=False, raw=dtype == "uint8").epoch():
        yield batch.pixels.numpy(), None if images.labels is None else batch.labels.numpy()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
