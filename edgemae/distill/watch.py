"""What is watched while a training runs: losses that end, grow or do not count."""

from __future__ import annotations

import logging

log = logging.getLogger("edgemae")
WINDOW = 50  # steps that a mean is taken over
GROWN = 3.0  # times its best mean, and more than FIRST times where it began: the loss has diverged
FIRST = 1.5
SMALL = 0.01  # share of the loss under which a term teaches next to nothing


class Divergence:
    """Tell when a loss has left for good. Means of 50 steps, because a single hard batch says nothing."""

    def __init__(self) -> None:
        self._window: list[float] = []
        self._first = self._best = 0.0

    def seen(self, loss: float) -> str:
        """Take in the loss of a step; return what is wrong, or ""."""
        self._window.append(loss)
        if len(self._window) < WINDOW:
            return ""
        mean = sum(self._window) / WINDOW
        self._window.clear()
        if not self._first:
            self._first = self._best = mean
        self._best = min(self._best, mean)
        # Losses are sums of terms that are not negative; at 0 nothing can be told.
        if self._best <= 0 or mean <= max(GROWN * self._best, FIRST * self._first):
            return ""
        return (
            f"the loss has diverged: {mean:.4g} over the last {WINDOW} steps, {self._best:.4g} at its best, "
            f"{self._first:.4g} at the beginning"
        )


def small_terms(row: dict[str, float], terms: list[str]) -> dict[str, float]:
    """Return the terms, with their shares, that make up less than 1 % of an epoch's loss."""
    total = sum(abs(row[name]) for name in terms)
    if total == 0:
        return {}
    return {name: abs(row[name]) / total for name in terms if abs(row[name]) / total < SMALL}


def tell_small(job: str, epoch: int, small: dict[str, float]) -> None:
    """Warn of terms that hardly count."""
    for name, share in small.items():
        log.warning(
            "%s: term '%s' was %.2g %% of the loss in epoch %d: it teaches next to nothing; raise its weight in the "
            "plan, or leave it out", job, name, 100 * share, epoch,
        )  # fmt: skip
