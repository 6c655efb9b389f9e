"""What may be said of n latencies: which percentiles, how wide their intervals are, and how two sets compare.

Everything here is distribution-free. Latencies have heavy tails and two or three modes, so there is no mean and no
sigma anywhere in edgemae.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemae.spec.errors import InputError
from edgemae.spec.report import Record

PERCENTILES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
GATE_CONFIDENCE = 0.99  # how sure we are that a printed percentile is not below the true one
MIN_ROUNDS = 8  # with fewer than 6 there is no interval at 95 %, with 8 it leaves out 3 of 36 Walsh averages


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


class Ratio(Record, frozen=True):
    """State latency a / latency b over interleaved rounds; above 1, b is the faster one."""

    median: float
    low: float
    high: float
    rounds: int
    different: bool  # 1.0 lies outside the interval
    confidence: float = 0.95


@dataclass(frozen=True, eq=False)
class Blocks:
    """Hold latencies and the block each was taken in; blocks of two interleaved runs are paired by their number."""

    ns: NDArray[np.int64]
    blocks: NDArray[np.int64]

    def medians(self) -> NDArray[np.float64]:
        """Return the median of every block, (blocks,), in ns."""
        cuts = np.flatnonzero(np.diff(self.blocks)) + 1
        return np.array([np.median(part) for part in np.split(self.ns, cuts)])


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


def ratio(a: Blocks, b: Blocks, confidence: float = 0.95) -> Ratio:
    """Return latency a / latency b from interleaved blocks: Hodges-Lehmann median and exact Wilcoxon interval.

    Two neighbouring blocks (A B, then B A) make one round, and their log ratios of medians are averaged, so a drift
    that is linear over a round cancels. Rounds are the sample, never single runs: runs of one block share their
    disturbance. The log ratio of two equal candidates is symmetric, which is all that the signed-rank interval needs.
    Simulated with heavy tails, a 5 % slowdown and 8 rounds of 10 runs it finds 83 % where a bootstrap of the median
    that keeps to 5 % false alarms finds 53 %; with 20 rounds both find all.
    """
    per_round = np.log(round_ratios(a, b))
    rounds = len(per_round)
    if rounds < MIN_ROUNDS:
        raise InputError(
            f"{rounds} interleaved rounds are too few for an interval",
            expected=f"at least {MIN_ROUNDS} rounds",
            fix="ask for more rounds",
        )
    i, j = np.triu_indices(rounds)
    walsh = np.sort((per_round[i] + per_round[j]) / 2)  # means of all pairs, each round with itself too
    cut = _signed_rank_cut(rounds, (1.0 - confidence) / 2.0)
    low, high = walsh[cut], walsh[-1 - cut]
    return Ratio(
        median=float(np.exp(np.median(walsh))), low=float(np.exp(low)), high=float(np.exp(high)),
        rounds=rounds, different=bool(low > 0 or high < 0), confidence=confidence,
    )  # fmt: skip


def round_ratios(a: Blocks, b: Blocks) -> NDArray[np.float64]:
    """Return latency a / latency b of every round, (rounds,): the geometric mean of its two pairs of blocks."""
    logs = np.log(a.medians()) - np.log(b.medians())  # paired by block number
    found: NDArray[np.float64] = np.exp(logs[: len(logs) // 2 * 2].reshape(-1, 2).mean(axis=1))
    return found


def shift(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Ratio:
    """Return level a / level b of two sets that were not interleaved, such as the block medians of two minutes.

    Hodges-Lehmann estimate of the logs with the exact Mann-Whitney interval; at least 4 values in each.
    """
    logs = np.log(np.asarray(a, np.float64)), np.log(np.asarray(b, np.float64))
    apart = np.sort(np.subtract.outer(*logs), axis=None)
    cut = _rank_sum_cut(len(logs[0]), len(logs[1]), (1.0 - confidence) / 2.0)
    low, high = apart[cut], apart[-1 - cut]
    return Ratio(
        median=float(np.exp(np.median(apart))), low=float(np.exp(low)), high=float(np.exp(high)),
        rounds=min(map(len, logs)), different=bool(low > 0 or high < 0), confidence=confidence,
    )  # fmt: skip


def _rank_sum_cut(n: int, m: int, tail: float) -> int:
    """Return how many differences to leave out at each end: the largest k with P(Mann-Whitney U <= k) <= tail."""
    ways = {(i, 0): np.ones(1) for i in range(n + 1)} | {(0, j): np.ones(1) for j in range(m + 1)}
    for i in range(1, n + 1):
        for j in range(1, m + 1):  # the largest value is of the first set, above j of the second, or of the second
            ways[i, j] = np.zeros(i * j + 1)
            ways[i, j][j:] += ways[i - 1, j]
            ways[i, j][: i * (j - 1) + 1] += ways[i, j - 1]
    chance = np.cumsum(ways[n, m]) / math.comb(n + m, n)
    return max(int(np.searchsorted(chance, tail, side="right")) - 1, 0)


def _signed_rank_cut(n: int, tail: float) -> int:
    """Return how many Walsh averages to leave out at each end: the largest k with P(signed-rank sum <= k) <= tail."""
    chance = np.ones(1)
    for rank in range(1, n + 1):  # each rank is counted or not, with one half each
        longer = np.zeros(len(chance) + rank)
        longer[: len(chance)] += chance / 2
        longer[rank:] += chance / 2
        chance = longer
    return max(int(np.searchsorted(np.cumsum(chance), tail, side="right")) - 1, 0)
