"""Ratios and shifts: planted slowdowns, drifts and published critical values."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.profiling.stats import comparison
from edgemae.profiling.stats.comparison import Blocks, Ratio, _rank_sum_cut, ratio, shift
from edgemae.spec.errors import InputError
from tests.support.timing import heavy_tail


@pytest.mark.parametrize(
    ("n", "m", "critical"), [(4, 4, 0), (5, 5, 2), (5, 8, 6), (8, 8, 13), (10, 10, 23), (20, 20, 127)]
)
def test_rank_sum_cuts_are_the_published_critical_values(n: int, m: int, critical: int) -> None:
    assert _rank_sum_cut(n, m, 0.025) == critical


def test_a_shift_is_found_and_nothing_is_found_in_nothing() -> None:
    rng = np.random.default_rng(3)

    def blocks(level: float) -> NDArray[np.float64]:
        return np.asarray(level * rng.lognormal(0, 0.03, 20) * np.where(rng.random(20) < 0.1, 1.5, 1.0))

    same = [shift(blocks(1.0), blocks(1.0)).different for _ in range(400)]
    slower = [shift(blocks(1.1), blocks(1.0)) for _ in range(200)]
    assert np.mean(same) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    assert np.mean([found.low > 1 for found in slower]) >= 0.95
    assert np.median([found.median for found in slower]) == pytest.approx(1.1, abs=0.01)


def simulate(rng: np.random.Generator, slowdown: float, rounds: int, runs: int = 8) -> Ratio:
    """Return the ratio of two interleaved candidates that share a wandering machine (3 % a block)."""
    blocks = np.repeat(np.arange(2 * rounds), runs)
    drift = np.cumsum(rng.normal(0, 0.03, 2 * rounds))

    def one(factor: float) -> Blocks:
        own = rng.normal(0, 0.015, 2 * rounds)
        return Blocks((factor * np.exp(drift + own)[blocks] * heavy_tail(rng, blocks.shape)).astype(np.int64), blocks)

    return ratio(one(slowdown), one(1.0))


@pytest.mark.parametrize("rounds", [8, 20])
def test_a_slowdown_of_5_percent_is_found_and_nothing_is_found_in_nothing(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    same = [simulate(rng, 1.0, rounds) for _ in range(400)]
    # 5 % and two standard errors of 400 trials; a plain bootstrap of the median would raise 9 % with 8 rounds.
    assert np.mean([found.different for found in same]) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    if rounds == 20:
        slower = [simulate(rng, 1.05, rounds) for _ in range(200)]
        assert np.mean([found.different and found.low > 1 for found in slower]) >= 0.95
        assert np.median([found.median for found in slower]) == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize(("n", "critical"), [(6, 0), (8, 3), (10, 8), (12, 13), (20, 52), (30, 137)])
def test_signed_rank_cuts_are_the_published_critical_values(n: int, critical: int) -> None:
    assert comparison._signed_rank_cut(n, 0.025) == critical


def test_a_linear_drift_cancels_within_a_round() -> None:
    blocks = np.repeat(np.arange(40), 3)
    # The machine slows down by 4 % a block; the order is A B B A, so A is taken at times 0 and 3 of every four.
    at = {"a": [4 * r + t for r in range(20) for t in (0, 3)], "b": [4 * r + t for r in range(20) for t in (1, 2)]}
    sets = {name: Blocks((1e6 * np.exp(0.04 * np.array(t)))[blocks].astype(np.int64), blocks) for name, t in at.items()}
    found = ratio(sets["a"], sets["b"])
    assert found.median == pytest.approx(1.0, abs=1e-5)


def test_too_few_rounds_are_refused() -> None:
    few = Blocks(np.full(30, 10**6), np.repeat(np.arange(10), 3))
    with pytest.raises(InputError, match="5 interleaved rounds"):
        ratio(few, few)
