"""Batches: decoding and augmentation in worker processes, reproducible from (seed, epoch, image) alone."""

from __future__ import annotations

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
from edgemae.data.decode import Request, decode, start
from edgemae.data.images import ImageSet
from edgemae.device.preprocess import normalise
from edgemae.spec.errors import MachineError
from edgemae.spec.graph import PixelContract

AHEAD = 4  # batches that each worker may be ahead: 3.5 MB each at 128 x 96 px


@dataclass(frozen=True)
class Batch:
    """Hold pixels (B, C, H, W) float32, labels (B,) int64 (-1: none) and positions (B,) in the ImageSet."""

    pixels: Tensor
    labels: Tensor
    indices: Tensor

    def part(self, rows: slice, device: torch.device) -> Batch:
        """Return some rows, on a device."""
        pixels, labels = (t[rows].to(device, non_blocking=True) for t in (self.pixels, self.labels))
        return Batch(pixels, labels, self.indices[rows])


@dataclass(frozen=True)
class Loader:
    """Describe a way through an ImageSet, epoch after epoch. `train` shuffles and drops the last partial batch."""

    images: ImageSet
    pixel: PixelContract
    batch: int
    augment: Augment = Augment()
    seed: int = 0
    workers: int = 0
    train: bool = True
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        if self.train:
            return max(1, len(self.images) // self.batch)
        return -(-len(self.images) // self.batch)

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from batch number `first` on."""
        return self.batches(epoch * self.steps + first, (epoch + 1) * self.steps)

    def batches(self, first: int, stop: int) -> Generator[Batch, None, None]:
        """Yield batches number `first` to `stop` - 1, counted through all epochs, in the same workers.

        A view depends on (seed, epoch, image), not on workers or on where reading began. Raises DataError for an image
        that cannot be read any more, MachineError when a worker process dies.
        """
        plan = self._plan(first, stop)
        if not self.workers or stop - first < 2:
            for indices, request in plan:
                yield self._batch(indices, decode(request))
            return
        pool = _workers(min(self.workers, stop - first))
        waiting: deque[tuple[list[int], Future[NDArray[np.uint8]]]] = deque()
        try:
            for indices, request in plan:
                waiting.append((indices, pool.submit(decode, request)))
                if len(waiting) > AHEAD * self.workers:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        except BrokenProcessPool as error:
            raise MachineError(
                "a worker process that decodes images died",
                expected="worker processes that live as long as the work; the kernel ends some when memory runs out",
                fix="free some memory, or decode in this process with --set workers=0; finished work is kept",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # some are left when the reader had enough

    def _plan(self, first: int, stop: int) -> Iterator[tuple[list[int], Request]]:
        """Yield (positions in the ImageSet, request) for every batch."""
        order: NDArray[np.int64] = np.arange(len(self.images))
        for step in range(first, stop):
            epoch, number = divmod(step, self.steps)
            if self.train and (step == first or number == 0):
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            indices = order[number * self.batch : (number + 1) * self.batch].tolist()
            part = self.batch // self.world
            indices = indices[self.rank * part : (self.rank + 1) * part] if self.world > 1 else indices
            yield (
                indices,
                Request(
                    paths=tuple(self.images.paths[i] for i in indices),
                    keys=tuple((self.seed, epoch, i) for i in indices),
                    pixel=self.pixel,
                    augment=self.augment,
                ),
            )

    def _next(self, waiting: deque[tuple[list[int], Future[NDArray[np.uint8]]]]) -> Batch:
        indices, future = waiting.popleft()
        return self._batch(indices, future.result())

    def _batch(self, indices: list[int], views: NDArray[np.uint8]) -> Batch:
        pixels = np.concatenate([normalise(picture, self.pixel) for picture in views])
        labels = [-1 if self.images.labels is None else self.images.labels[i] for i in indices]
        return Batch(torch.from_numpy(pixels), torch.tensor(labels), torch.tensor(indices))


def _workers(count: int) -> ProcessPoolExecutor:
    """Start decoding processes.

    They are forked from a small server that has no threads. A fork of this process would copy the locks of torch's and
    OpenCV's threads as they stand, and hang now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["edgemae.data.decode"])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=start)
    # A new process imports the caller's script, to find functions in it: a script without a main guard would run twice.
    # All that is called here lies in edgemae, so the processes are told of no script.
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        for _ in range(count):
            pool.submit(len, ())  # starts the processes
    finally:
        sys.modules["__main__"] = script
    return pool
