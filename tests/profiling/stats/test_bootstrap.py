"""Intervals of means that hold the truth on simulated runs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgemae.profiling.stats import bootstrap
from edgemae.profiling.stats.bootstrap import mean_interval


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
