"""Early stopping against exact counting, and intervals that hold the truth on simulated runs."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemae.profiling.stats import bootstrap
from edgemae.profiling.stats.bootstrap import mean_interval
from edgemae.profiling.stats.comparison import _rank_sum_cut, shift
from edgemae.profiling.stats.early_stopping import estimate, multi_stream, overlatency_allowed, queries_needed

# ---------------------------------------------------------------- early stopping


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


# ---------------------------------------------------------------- means of runs in a row


def in_a_row(rng: np.random.Generator, trials: int, n: int) -> NDArray[np.float64]:
    """Return latencies of 5 ms that share disturbances of about 8 runs, with a second mode and a Pareto tail."""
    noise = rng.normal(size=(trials, n))
    state = noise.copy()
    keep = np.exp(-1 / 8)
    for i in range(1, n):
        state[:, i] = keep * state[:, i - 1] + (1 - keep**2) ** 0.5 * noise[:, i]
    base = 5e6 * np.exp(0.1 * state) * np.where(state > 1, 1.3, 1.0)
    return base + np.where(rng.random((trials, n)) < 0.05, 1e6 * rng.pareto(3.0, (trials, n)), 0.0)


def test_throughput_intervals_hold_the_truth_where_single_draws_do_not() -> None:
    rng = np.random.default_rng(0)
    truth = in_a_row(rng, 400, 5000).mean()
    runs = in_a_row(rng, 300, 1500)

    def covered(pairs: list[tuple[float, float]]) -> float:
        return float(np.mean([low <= truth <= high for low, high in pairs]))

    blocks = covered([mean_interval(row)[1:3] for row in runs])
    single = covered([(row.mean() - 1.96 * e, row.mean() + 1.96 * e) for row in runs for e in [row.std() / 1500**0.5]])
    assert blocks >= 0.945  # 96.8 % of 500
    assert covered([mean_interval(row[:600])[1:3] for row in runs]) >= 0.92  # 94.8 % of 500
    assert single < 0.75


def test_a_mean_of_equal_runs_has_no_width() -> None:
    late = np.zeros(1007)
    late[[0, 3, 7, 12]] = 1  # among the first few, which are no whole block: frames dropped at the start count as well
    assert mean_interval(late).high > 2 * late.mean()
    assert mean_interval(np.full(100, 7.0)) == (7.0, 7.0, 7.0, 100 // bootstrap.BLOCKS)


@given(st.integers(bootstrap.FEWEST, 400), st.integers(0, 2**31))
def test_the_interval_stays_within_the_runs(n: int, seed: int) -> None:
    runs = np.random.default_rng(seed).pareto(1.1, n)
    found = mean_interval(runs)
    assert runs.min() <= found.low <= found.high <= runs.max()
    assert mean_interval(runs) == found  # the same runs, the same interval


# ---------------------------------------------------------------- first against last minute


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
