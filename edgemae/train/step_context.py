"""Where a training step stands, and everything random in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgemae.model.mae import make_keep


class StepRandom:
    """Hold the random numbers of one step, in the order in which they are asked for.

    They are drawn once, and every accumulated part reads them from the start: masks of 4,096 images are not made for
    each of 16 parts.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._made, self._read = generator, list[Tensor](), 0

    def again(self) -> StepRandom:
        """Begin from the first one."""
        self._read = 0
        return self

    def take(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return the next one, drawing it where no part has come so far."""
        if self._read == len(self._made):
            self._made.append(draw(self._generator))
        self._read += 1
        return self._made[self._read - 1]


@dataclass(frozen=True)
class StepContext:
    """State one training step as one process sees it.

    `batch` counts the images of the whole step, over all processes and accumulated parts; `rows` are those of this
    call. What is random is drawn for the whole step and cut to the rows: the same images get the same masks however
    the step is divided.
    """

    batch: int
    rows: slice
    random: StepRandom
    step: int = 0
    steps: int = 1
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def done(self) -> float:
        """Share of the training that lies behind, 0..1."""
        return self.step / max(1, self.steps - 1)

    def rand(self, *shape: int) -> Tensor:
        """Return uniform noise (rows, *shape) in 0..1."""
        return self.random.take(lambda g: torch.rand(self.batch, *shape, generator=g))[self.rows].to(self.device)

    def flip(self) -> float:
        """Return one uniform number in 0..1 that all rows of the step share."""
        return float(self.random.take(lambda g: torch.rand((), generator=g)))

    def keep(self, grid: int, ratio: float, pattern: str) -> Tensor:
        """Return sorted indices (rows, K) of visible patches."""
        return self.random.take(lambda g: make_keep(self.batch, grid, ratio, pattern, g))[self.rows].to(self.device)

    def drop_path(self, depth: int, rate: float) -> Tensor | None:
        """Return factors (rows, depth, 2) of stochastic depth for `ViT.encode`; None when it is off.

        The rate grows in a straight line from 0 to `rate` with depth (Huang et al. 2016, section 3.2).
        """
        if rate <= 0:
            return None
        keep = 1 - rate * torch.arange(depth, device=self.device) / max(1, depth - 1)
        return (self.rand(depth, 2) < keep[:, None]) / keep[:, None]


def whole(batch: int, generator: torch.Generator) -> StepContext:
    """Return a context in which one process sees the whole step."""
    return StepContext(batch, slice(0, batch), StepRandom(generator))
