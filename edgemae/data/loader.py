"""Batches: decoding and augmentation in worker processes, reproducible from (seed, epoch, image) alone."""

from __future__ import annotations

import logging
import multiprocessing
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgemae.data.augment import Augment
from edgemae.data.decode_worker import Request, Views, decode, joined, start
from edgemae.data.decoded_images import DecodedImages, decoded_images
from edgemae.data.image_bytes import shown
from edgemae.data.image_set import ImageSet
from edgemae.device.preprocess import normalise_into
from edgemae.spec.errors import DataError, MachineError, PlanError
from edgemae.spec.graph import PixelContract

log = logging.getLogger("edgemae.data.loader")
CORRUPT_FEW = 10  # corrupt images in shards that are put up with in any case
PREFETCH = 4  # batches that each worker may be ahead: 3.5 MB each at 128 x 96 px
PREFETCH_BYTES = 2 << 30  # and all of them together: 4,096 x 224 px are 616 MB


@dataclass(frozen=True)
class Batch:
    """Hold pixels (B, C, H, W) float32, labels (B,) int64 (-1: none) and positions (B,) in the ImageSet.

    `view` numbers the view of every image in it: an image with the same number looks the same in any epoch, so that
    what a teacher says of it can be kept. -1: nothing repeats.
    """

    pixels: Tensor
    labels: Tensor
    indices: Tensor
    view: int = -1

    def part(self, rows: slice, device: torch.device) -> Batch:
        """Return some rows, on a device."""
        pixels, labels = (t[rows].to(device, non_blocking=True) for t in (self.pixels, self.labels))
        return Batch(pixels, labels, self.indices[rows], self.view)


@dataclass(frozen=True)
class Loader:
    """Describe a way through an ImageSet, epoch after epoch. `train` shuffles and drops the last partial batch.

    `batch` counts the images of a step over all `world` processes; the one numbered `rank` gets its rows of it, in one
    piece. Every step's batch is the same for any `world`. With `views` above 0 an image has that many views, which
    return epoch after epoch.

    What is not for training is decoded once for each pixel contract and kept, within `decoded_images.LIMIT_BYTES`.
    """

    images: ImageSet
    pixel: PixelContract
    batch: int
    augment: Augment = Augment()
    seed: int = 0
    workers: int = 0
    train: bool = True
    rank: int = 0
    world: int = 1
    views: int = 0
    raw: bool = False  # pixels as (B, H, W, C) uint8, not normalised

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise PlanError(
                f"a batch of {self.batch} images cannot be divided among {self.world} processes",
                expected=f"a multiple of {self.world}",
                fix=f"take {-(-self.batch // self.world) * self.world} images a batch, or other processes",
            )
        if not 0 <= self.rank < self.world or self.views < 0:
            raise PlanError(
                f"rank {self.rank} of {self.world} processes, with {self.views} views an image",
                expected="a rank from 0 to one less than the processes, and 0 views or more",
                fix="correct the launcher's settings, or the plan's number of views",
            )

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        if self.train:
            return max(1, len(self.images) // self.batch)
        return -(-len(self.images) // self.batch)

    @property
    def prefetched(self) -> int:
        """Number of batches that are decoded before they are asked for: some for each worker, in bounded memory."""
        size = self.batch // self.world * self.pixel.image_px**2 * self.pixel.channels
        return max(1, min(PREFETCH * self.workers, PREFETCH_BYTES // size))

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from batch number `first` on."""
        return self.batches(epoch * self.steps + first, (epoch + 1) * self.steps)

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        """Yield batches number `first` to `stop` - 1, counted through all epochs, in the same workers.

        A view depends on (seed, epoch, image), not on workers or on where reading began. Raises DataError for an image
        that cannot be read any more, MachineError when a worker process dies.
        """
        asked, corrupt = self._asked(first, stop), CorruptImageCounter()
        kept = None if self.train else decoded_images(self.images, self.pixel)
        found = self._views(asked, stop - first) if kept is None else self._kept_views(list(asked), kept)
        for ask, views in found:
            yield self._batch(ask, views, corrupt)

    def _kept_views(self, asked: list[_Ask], kept: DecodedImages) -> Generator[tuple[_Ask, Views], None, None]:
        """Yield requests with their views, in order; what is not kept yet is decoded and kept."""
        missing = [ask for ask in asked if not kept.has(ask.indices)]
        decoded = self._views(iter(missing), len(missing))
        for ask in asked:
            if not kept.has(ask.indices):
                kept.put(ask.indices, next(decoded)[1].images)
            yield ask, Views(kept.get(ask.indices))

    def _views(self, asked: Iterator[_Ask], count: int) -> Generator[tuple[_Ask, Views], None, None]:
        """Yield `count` requests with their views, in order, decoded here or by workers."""
        if not self.workers or count < 2:
            for ask in asked:
                yield ask, decode(ask.request)
            return
        pool = _workers(min(self.workers, count))
        waiting: deque[tuple[_Ask, list[Future[Views]]]] = deque()
        most = self.prefetched
        try:
            for ask in asked:
                # Where fewer batches than workers may wait, the workers share each of them.
                parts = ask.request.divided(1 if most >= self.workers else self.workers)
                waiting.append((ask, [pool.submit(decode, part) for part in parts]))
                if len(waiting) > most:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        except BrokenProcessPool as error:
            raise MachineError(
                "a worker process that decodes images died",
                expected="worker processes that live as long as the work; the kernel ends some when memory runs out",
                fix="free some memory, or decode in this process with --set workers=0; finished work is kept",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # some are left when the reader had enough

    def _asked(self, first: int, stop: int) -> Iterator[_Ask]:
        order: NDArray[np.int64] = np.arange(len(self.images))
        rows = self.batch // self.world
        for step in range(first, stop):
            epoch, number = divmod(step, self.steps)
            if self.train and (step == first or number == 0):
                order = self.images.order(self.seed, epoch, self.batch)
            begin = number * self.batch + self.rank * rows
            indices = order[begin : min(begin + rows, (number + 1) * self.batch)].tolist()
            yield _Ask(epoch, indices, self._request(epoch, indices))

    def _request(self, epoch: int, indices: list[int]) -> Request:
        view = epoch % self.views if self.views else epoch
        return Request(
            paths=tuple(self.images.paths[i] for i in indices),
            keys=tuple((self.seed, view, i) for i in indices),
            pixel=self.pixel,
            augment=self.augment,
            go_on=self.train and not self.images.checked,
        )

    def _batch(self, ask: _Ask, views: Views, corrupt: CorruptImageCounter) -> Batch:
        corrupt.served += len(ask.indices)
        for row in views.corrupt:
            ask.indices[row], views.images[row] = self._instead(ask, ask.indices[row], corrupt)
        pixels = torch.from_numpy(views.images if self.raw else self._normalised(views.images))
        labels = [-1 if self.images.labels is None else self.images.labels[i] for i in ask.indices]
        return Batch(
            pixels, torch.tensor(labels, dtype=torch.int64),
            torch.tensor(ask.indices, dtype=torch.int64), ask.epoch % self.views if self.views else -1,
        )  # fmt: skip

    def _normalised(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = np.empty((len(images), self.pixel.channels, *images.shape[1:3]), np.float32)
        for planes, image in zip(pixels, images, strict=True):
            normalise_into(planes, image, self.pixel)
        return pixels

    def _instead(self, ask: _Ask, index: int, corrupt: CorruptImageCounter) -> tuple[int, NDArray[np.uint8]]:
        """Return (position, view) of the next readable image after a corrupt one, which is its neighbour in the shard.

        Shards are not decoded while indexing: 14 million images would take hours before the first step. An error
        here would end a training after days because of one image, and a black one would teach nonsense under its
        label. The choice depends on the set alone, so the same step gives the same batch again.
        """
        while True:
            corrupt.log(self.images.paths[index])
            index = (index + 1) % len(self.images)
            views = decode(self._request(ask.epoch, [index]))
            if not views.corrupt:
                return index, views.images[0]


@dataclass(frozen=True)
class _Ask:
    """Hold the number of an epoch, positions in the ImageSet, and the request for their views."""

    epoch: int
    indices: list[int]
    request: Request


@dataclass
class CorruptImageCounter:
    """Count corrupt images that others stood in for."""

    served: int = 0
    corrupt: int = 0

    def log(self, reference: str) -> None:
        """Name a corrupt image in the log. Raises DataError when they are more than a few and 1 % of all."""
        self.corrupt += 1
        if self.corrupt <= CORRUPT_FEW or self.corrupt % 100 == 0:
            log.warning(
                "%s is not a readable image: the next one takes its place (%d of %d so far)",
                shown(reference), self.corrupt, self.served,
            )  # fmt: skip
        if self.corrupt > max(CORRUPT_FEW, self.served // 100):
            raise DataError(
                f"{self.corrupt} of {self.served} images are corrupt, the last {shown(reference)}",
                expected=f"{CORRUPT_FEW} at most, or 1 % of all",
                fix="the shards are damaged, or were changed after they were indexed: copy or pack them again",
            )


def _next(waiting: deque[tuple[_Ask, list[Future[Views]]]]) -> tuple[_Ask, Views]:
    ask, parts = waiting.popleft()
    return ask, joined([part.result() for part in parts])


def _workers(count: int) -> ProcessPoolExecutor:
    """Start decoding processes.

    They are forked from a small server that has no threads. A fork of this process would copy the locks of torch's and
    OpenCV's threads as they stand, and hang now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgemae.data.decode_worker"])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=start)
    # A new process imports the caller's script, to find functions in it: a script without a main guard would run twice.
    # All that is called here lies in edgemae, so the processes get no script.
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        for _ in range(count):
            pool.submit(len, ())  # starts the processes
    finally:
        sys.modules["__main__"] = script
    return pool
