"""Which percentiles so many runs allow, and how wide their intervals are."""

from __future__ import annotations

import numpy as np
import pytest

from edgemae.profiling.stats.percentiles import allowed_percentiles, rank_interval, summarise
from edgemae.spec.errors import InputError
from tests.support.timing import heavy_tail


@pytest.mark.parametrize(("name", "runs"), [("p50", 7), ("p90", 44), ("p95", 90), ("p99", 459), ("p99.9", 4603)])
def test_a_percentile_is_allowed_from_the_binomial_bound_on(name: str, runs: int) -> None:
    assert name in allowed_percentiles(runs)
    assert name not in allowed_percentiles(runs - 1)


@pytest.mark.parametrize(
    ("runs", "p90", "p99"),
    [(7, False, False), (43, False, False), (44, True, False), (458, True, False), (459, True, True)],
)
def test_percentiles_of_too_few_runs_are_withheld(runs: int, p90: bool, p99: bool) -> None:
    summary = summarise(np.arange(1, runs + 1) * 1e6)
    assert summary.n == runs
    assert summary.p50_low_ms <= summary.p50_ms <= summary.p50_high_ms
    for name, given, needed in (("p90", p90, 44), ("p99", p99, 459)):
        values = [getattr(summary, f"{name}{part}_ms") for part in ("", "_low", "_high")]
        assert all((value is not None) == given for value in values)
        assert summary.withheld.get(name) == (None if given else needed)


def test_a_median_of_six_runs_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(InputError, match="6 timed runs") as caught:
        summarise(np.ones(6))
    assert "7" in caught.value.expected


@pytest.mark.parametrize(("n", "share"), [(10, 0.5), (60, 0.5), (101, 0.5), (50, 0.9), (300, 0.9), (500, 0.99)])
def test_rank_intervals_cover_and_are_not_wasteful(n: int, share: float) -> None:
    rng = np.random.default_rng(0)
    truth = float(np.quantile(heavy_tail(rng, (2_000_000,)), share))
    low, high = rank_interval(n, share)
    data = np.sort(heavy_tail(rng, (4000, n)), axis=1)
    covered = float(np.mean((data[:, low] <= truth) & (truth <= data[:, high])))
    assert covered >= 0.94
    if high < n - 1 and low > 0 and n >= 50:
        narrower = float(np.mean((data[:, low + 3] <= truth) & (truth <= data[:, high - 3])))
        assert narrower < 0.94  # so the interval is as wide as it must be, not wider
