"""Running mean of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Keep an exponential moving average of what a module trains (Polyak & Juditsky 1992).

    The decay begins low, min(decay, (1 + t) / (10 + t)) at step t, so that the random start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), list(self._live.values()), 1 - decay)

    def load(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the average into the module."""
        for name, p in self._live.items():
            p.copy_(self.values[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the average into the module for a while."""
        kept = {name: p.detach().clone() for name, p in self._live.items()}
        self.settle()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(kept[name])
