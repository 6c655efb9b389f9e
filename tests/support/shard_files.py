"""Tar shards of small images for tests, and a loader that trains on them."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset

from edgemae.data.augment import Augment
from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=16)


AUGMENT = Augment(crop_min=0.3, flip=True)


def pictures(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return [cv2.imencode(".jpg", frame)[1].tobytes() for frame in frames]


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    """Write one shard with WebDataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for number, fields in enumerate(samples):
            sink.write({"__key__": f"{number:06d}"} | fields)
    return path


def write_set(root: Path, sizes: tuple[int, ...] = (13, 11, 14), seed: int = 0, *, labels: bool = True) -> Path:
    """Write `train-00000N.tar` of so many pictures each, in three classes that follow one another."""
    every = pictures(sum(sizes), seed)
    for number, size in enumerate(sizes):
        mine, every = every[:size], every[size:]
        rows = [{"jpg": data} | ({"cls": i % 3} if labels else {}) for i, data in enumerate(mine)]
        write(root / f"train-{number:06d}.tar", rows)
    return root


def training(images: ImageSet, batch: int = 6, **more: Any) -> Loader:
    return Loader(images, PIXEL, batch, AUGMENT, seed=3, **more)


def same(a: Batch, b: Batch) -> bool:
    return a.view == b.view and all(
        torch.equal(x, y) for x, y in ((a.pixels, b.pixels), (a.labels, b.labels), (a.indices, b.indices))
    )


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    import io

    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
