"""Batches: decoding and augmentation in worker processes, reproducible from (seed, epoch, image) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgemae.data.augment import Augment, view
from edgemae.data.images import ImageSet
from edgemae.device.preprocess import normalise, read_frame
from edgemae.spec.graph import PixelContract


@dataclass(frozen=True)
class Batch:
    """Hold pixels (B, C, H, W) float32, labels (B,) int64 (-1: none) and positions (B,) in the ImageSet."""

    pixels: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Loader:
    """Describe a way through an ImageSet; `epoch(e, first)` yields its batches, from batch number `first` on."""

    images: ImageSet
    pixel: PixelContract
    batch: int
    augment: Augment = Augment()
    seed: int = 0
    workers: int = 0
    train: bool = True  # shuffle, and drop the last partial batch

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        if self.train:
            return max(1, len(self.images) // self.batch)
        return -(-len(self.images) // self.batch)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield batches; a view depends on (seed, epoch, image), not on workers or on where reading began."""
        order = np.arange(len(self.images))
        if self.train:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        chunks = [order[i * self.batch : (i + 1) * self.batch].tolist() for i in range(self.steps)][first:]
        yield from DataLoader(
            _Views(self, epoch),
            batch_sampler=chunks,
            num_workers=self.workers if len(chunks) > 1 else 0,
            collate_fn=_collate,
            prefetch_factor=4 if self.workers and len(chunks) > 1 else None,
            worker_init_fn=_one_thread,
        )


class _Views(Dataset[tuple[np.ndarray, int, int]]):
    def __init__(self, loader: Loader, epoch: int) -> None:
        self.loader, self.epoch = loader, epoch

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        loader = self.loader
        rng = np.random.default_rng((loader.seed, self.epoch, index))
        picture = view(read_frame(loader.images.paths[index], loader.pixel), loader.pixel, loader.augment, rng)
        label = -1 if loader.images.labels is None else loader.images.labels[index]
        return normalise(picture, loader.pixel), label, index


def _collate(rows: list[tuple[np.ndarray, int, int]]) -> Batch:
    pixels, labels, indices = zip(*rows, strict=True)
    return Batch(torch.from_numpy(np.concatenate(pixels)), torch.tensor(labels), torch.tensor(indices))


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)  # OpenCV's own pool would fight the trainer for the cores
    torch.set_num_threads(1)
