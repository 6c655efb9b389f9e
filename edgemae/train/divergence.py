"""What is watched while a training runs: losses that end, grow or do not count."""

from __future__ import annotations

import logging
import math
from typing import Any

log = logging.getLogger("edgemae")
WINDOW = 50  # steps that a mean is taken over
GROWN = 3.0  # times its best mean, and more than FIRST times where it began: the loss has diverged
FIRST = 1.5
AGAIN = 0.9  # of the mean where it began, for BACK windows after it had come to half of that: nothing learnt is left
BACK = 5
SMALL = 0.01  # share of the loss under which a term teaches next to nothing


class Divergence:
    """Tell when a loss has left for good. Means of 50 steps, because a single hard batch says nothing.

    The first fifth of the training, and 200 steps at least, only say where it began: a model that is healed starts next
    to no loss and gets more while the rate warms up.
    """

    def __init__(self, steps: int) -> None:
        self.state: dict[str, Any] = {
            "window": [], "means": 0, "start": 0.0, "first": 0.0, "best": math.inf, "proved": 0,
            "back": 0, "logged": False,
        }  # fmt: skip
        self._quiet = max(4, math.ceil(steps / 5 / WINDOW))

    def check(self, loss: float) -> str:
        """Take in the loss of a step; return what is wrong, or ""."""
        state = self.state
        state["window"].append(loss)
        if len(state["window"]) < WINDOW:
            return ""
        mean = sum(state["window"]) / WINDOW
        state["window"] = []
        state["means"] += 1
        state["start"] = state["start"] or mean
        state["best"] = min(state["best"], mean)
        again = mean >= AGAIN * state["start"] and state["best"] < state["start"] / 2
        state["back"] = state["back"] + 1 if again else 0
        if state["means"] <= self._quiet:
            state["first"] = max(state["first"], mean)
        elif self._left(mean):
            return self._message(mean)
        state["proved"] = state["means"] * WINDOW
        return ""

    def forgotten(self) -> str:
        """Return, once, that the loss has come back to where it began, or above, and stays there; else "".

        It may be a model that gives the same answer to everything, or one that was healed next to no loss: no error.
        """
        state = self.state
        if state["logged"] or state["back"] < BACK:
            return ""
        state["logged"] = True
        return (
            f"for {BACK * WINDOW} steps the loss has not been below {AGAIN:g} times where it began, "
            f"{state['start']:.4g}, after {state['best']:.4g} at its best: what was learnt may be lost"
        )

    def proved(self, done: int) -> int:
        """Return how many of the first `done` steps are known to be in order, when the next one's loss is not finite.

        All of them, unless the last ones had grown already.
        """
        last = self.state["window"]
        grown = self.state["means"] >= self._quiet and last and self._left(sum(last) / len(last))
        return int(self.state["proved"]) if grown else done

    def _left(self, mean: float) -> bool:
        # Losses are sums of terms that are not negative; at 0 nothing can be told.
        best = self.state["best"]
        return bool(best > 0 and mean > max(GROWN * best, FIRST * self.state["first"]))

    def _message(self, mean: float) -> str:
        state = self.state
        return (
            f"the loss has diverged: {mean:.4g} over the last {WINDOW} steps, {state['best']:.4g} at its best, "
            f"{state['first']:.4g} in the beginning"
        )


def small_terms(row: dict[str, float], terms: list[str]) -> dict[str, float]:
    """Return the terms, with their shares, that make up less than 1 % of an epoch's loss; all of one that is 0."""
    total = sum(abs(row[name]) for name in terms)
    return {name: abs(row[name]) / (total or 1.0) for name in terms if row[name] == 0 or abs(row[name]) < SMALL * total}


def log_small_terms(job: str, epoch: int, small: dict[str, float]) -> None:
    """Warn of terms that hardly count."""
    for name, share in small.items():
        log.warning(
            "%s: term '%s' was %.2g %% of the loss in epoch %d: it teaches next to nothing; raise its weight in the "
            "plan, or leave it out", job, name, 100 * share, epoch,
        )  # fmt: skip
