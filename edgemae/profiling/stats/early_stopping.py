"""Percentiles as MLPerf's loadgen estimates them from a run that was stopped early.

The rule is that of mlcommons/inference, loadgen/early_stopping.cc and results.cc, with confidence c = 0.99 and
tolerance d = 0: with t queries over the estimate among n, P(Binomial(n, 1 - p) <= t) <= 1 - c. The estimate is the t-th
slowest query for the largest such t >= 1, and an upper bound of the percentile. Loadgen asks for t = 1 to begin with
(64 queries for p90, 662 for p99) although it then takes the slowest query, which t = 0 would allow from 44 and 459 on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemae.profiling.stats.percentiles import binomial_cdf

CONFIDENCE = 0.99
SINGLE_STREAM, MULTI_STREAM = 0.90, 0.99  # the percentile of each scenario
SAMPLES_A_QUERY = 8  # of MultiStream
OFFLINE_SAMPLES = 24_576  # fewest of Offline, which has no percentile and no early stopping: samples a second


def overlatency_allowed(n: int, share: float, confidence: float = CONFIDENCE) -> int:
    """Return the largest t with P(at most t of n queries exceed the `share` percentile) <= 1 - confidence.

    -1 when not even t = 0 holds.
    """
    return int(np.searchsorted(binomial_cdf(n, 1.0 - share), 1.0 - confidence, side="right")) - 1


def queries_needed(share: float, confidence: float = CONFIDENCE) -> int:
    """Return the fewest queries that allow an estimate: those with t = 1."""
    n, late = 2, 1.0 - share
    while share**n + n * late * share ** (n - 1) > 1.0 - confidence:
        n += 1
    return n


def estimate(ns: ArrayLike, share: float, confidence: float = CONFIDENCE) -> float | None:
    """Return the early-stopping estimate of a percentile of query latencies, in their unit; None for too few."""
    data = np.sort(np.asarray(ns, np.float64))
    allowed = overlatency_allowed(len(data), share, confidence) if len(data) else -1
    return float(data[len(data) - allowed]) if allowed >= 1 else None


def multi_stream(ns: ArrayLike) -> NDArray[np.float64]:
    """Return the latencies of MultiStream queries: 8 consecutive samples each, as a session takes one at a time."""
    data = np.asarray(ns, np.float64)
    whole = len(data) // SAMPLES_A_QUERY * SAMPLES_A_QUERY
    queries: NDArray[np.float64] = data[:whole].reshape(-1, SAMPLES_A_QUERY).sum(axis=1)
    return queries
