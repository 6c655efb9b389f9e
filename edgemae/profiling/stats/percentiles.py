"""What n latencies can show: which percentiles, and how wide their intervals are.

Everything here is distribution-free. Latencies have heavy tails and two or three modes, so there is no mean and no
sigma anywhere in edgemae.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemae.spec.errors import InputError
from edgemae.spec.report import Record

PERCENTILES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
GATE_CONFIDENCE = 0.99  # how sure we are that a printed percentile is not below the true one


class Summary(Record, frozen=True):
    """State the percentiles that `n` runs allow, each with its interval; None where `n` is too small for it."""

    n: int
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    min_ms: float
    max_ms: float
    p90_ms: float | None = None
    p90_low_ms: float | None = None
    p90_high_ms: float | None = None
    p99_ms: float | None = None
    p99_low_ms: float | None = None
    p99_high_ms: float | None = None
    withheld: dict[str, int] = msgspec.field(
        default_factory=dict
    )  # percentile that is not given -> runs that it would need
    confidence: float = 0.95  # of the intervals


def runs_needed(share: float, confidence: float = GATE_CONFIDENCE) -> int:
    """Return the smallest n whose slowest run lies above the `share` quantile with this confidence.

    1 - share ** n >= confidence (binomial bound with no slow run allowed, MLPerf's early stopping with t = 0).
    """
    return math.ceil(math.log(1.0 - confidence) / math.log(share))


def allowed_percentiles(n: int, confidence: float = GATE_CONFIDENCE) -> tuple[str, ...]:
    """Return the names among PERCENTILES that n runs may state."""
    return tuple(name for name, share in PERCENTILES.items() if n >= runs_needed(share, confidence))


def binomial_cdf(n: int, chance: float) -> NDArray[np.float64]:
    """Return P(at most k of n happen) for k = 0..n, each happening with this chance."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    log_pmf = log_factorial[n] - log_factorial - log_factorial[::-1] + k * math.log(chance)
    log_pmf += (n - k) * math.log1p(-chance)
    return np.cumsum(np.exp(log_pmf))


def rank_interval(n: int, share: float, confidence: float = 0.95) -> tuple[int, int]:
    """Return 0-based ranks (low, high) of the order statistics that enclose the `share` quantile with `confidence`.

    Each tail gets half of what is left. A rank that would fall outside the data is clipped to it; `runs_needed` keeps
    that from happening for any percentile that is printed.
    """
    below = binomial_cdf(n, share)  # below[k] = P(at most k of n runs are under the quantile)
    tail = (1.0 - confidence) / 2.0
    low = int(np.searchsorted(below, tail, side="right")) - 1  # largest k with below[k] <= tail
    high = int(np.searchsorted(below, 1.0 - tail, side="left"))  # smallest k with below[k] >= 1 - tail
    return max(low, 0), min(high, n - 1)


def percentile(data: ArrayLike, share: float, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (value, low, high) of one percentile of sorted data; see `runs_needed` for how many it takes."""
    data = np.asarray(data)
    low, high = rank_interval(len(data), share, confidence)
    return float(data[math.ceil(share * len(data)) - 1]), float(data[low]), float(data[high])


def summarise(ns: ArrayLike, confidence: float = 0.95) -> Summary:
    """Return the summary of latencies in ns. Raises InputError when even the median needs more runs."""
    data = np.sort(np.asarray(ns, np.float64)) / 1e6
    n = len(data)
    allowed = allowed_percentiles(n)
    if "p50" not in allowed:
        raise too_few(n)
    values: dict[str, float] = {}
    for name in ("p50", "p90", "p99"):
        if name in allowed:
            found = zip(("ms", "low_ms", "high_ms"), percentile(data, PERCENTILES[name], confidence), strict=True)
            values |= {f"{name}_{part}": value for part, value in found}
    withheld = {name: runs_needed(PERCENTILES[name]) for name in ("p90", "p99") if name not in allowed}
    return Summary(
        n=n, min_ms=float(data[0]), max_ms=float(data[-1]), withheld=withheld, confidence=confidence, **values
    )


def too_few(n: int) -> InputError:
    """Return the error for fewer runs than a median takes."""
    return InputError(
        f"{n} timed runs are too few for a median",
        expected=f"at least {runs_needed(0.5)} runs (p90 needs {runs_needed(0.9)}, p99 {runs_needed(0.99)})",
        fix="ask for more runs",
    )
