"""Early stopping against exact counting."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from edgemae.profiling.stats.early_stopping import estimate, multi_stream, overlatency_allowed, queries_needed


def exact_allowed(n: int, late: Fraction) -> int:
    """Return the largest t with P(Binomial(n, late) <= t) <= 1/100, in exact fractions; -1 for none."""
    chance = Fraction(0)
    for t in range(n + 1):
        chance += comb(n, t) * late**t * (1 - late) ** (n - t)
        if chance > Fraction(1, 100):
            return t - 1
    return n


@pytest.mark.parametrize("n", [1, 43, 44, 63, 64, 80, 81, 100, 126, 127, 331, 458, 459, 661, 662, 837, 838])
@pytest.mark.parametrize("percent", [90, 99])
def test_overlatency_queries_are_those_of_the_exact_binomial(n: int, percent: int) -> None:
    assert overlatency_allowed(n, percent / 100) == exact_allowed(n, 1 - Fraction(percent, 100))


@pytest.mark.parametrize(("share", "needed"), [(0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_the_first_estimate_takes_as_many_queries_as_in_loadgen(share: float, needed: int) -> None:
    assert queries_needed(share) == needed
    assert estimate(np.arange(needed - 1), share) is None
    assert estimate(np.arange(needed), share) == needed - 1  # t = 1: the slowest one


def test_the_estimate_is_the_order_statistic_that_loadgen_takes() -> None:
    rng = np.random.default_rng(0)
    # Loadgen's own figure: of 10,000 queries, p99 leaves t = 77 and takes the 77th slowest.
    assert estimate(rng.permutation(10_000), 0.99) == 10_000 - 77
    assert estimate([], 0.9) is None


def test_the_estimate_is_above_the_true_percentile_in_99_of_100_runs() -> None:
    rng = np.random.default_rng(1)
    truth = np.exp(1.2815515655446004)  # p90 of a log-normal
    above = [(estimate(rng.lognormal(size=200), 0.9) or 0) >= truth for _ in range(3000)]
    assert np.mean(above) >= 0.99 - 2 * (0.01 * 0.99 / 3000) ** 0.5


def test_a_multi_stream_query_is_eight_samples() -> None:
    assert multi_stream(np.arange(20)).tolist() == [sum(range(8)), sum(range(8, 16))]
    assert len(multi_stream(np.ones(7))) == 0
