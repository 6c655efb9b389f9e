"""Intervals for shares and for differences of shares, and how many images a claim needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from edgemae.spec.errors import InternalError

_MOST_IMAGES = 100_000_000  # beyond this "more images" is no advice


def z_of(confidence: float) -> float:
    """Return the two-sided normal quantile: 1.96 for 0.95."""
    if not 0 < confidence < 1:
        raise InternalError(f"confidence is {confidence}", expected="between 0 and 1", fix="report this as a bug")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return (low, high) of a share k / n, both in 0..1.

    Score interval of Wilson (1927). At n = 40 and p = 0.97 the usual p +- z*s covers 70 %, this one 95 %.
    """
    if not (n > 0 and 0 <= k <= n):
        raise InternalError(f"{k} of {n} images", expected="0 <= k <= n and n > 0", fix="report this as a bug")
    z = z_of(confidence)
    share, z2 = k / n, z * z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At k = 0 and k = n one end is exactly 0 or 1; rounding must not move it.
    return (0.0 if k == 0 else max(0.0, middle - half)), (1.0 if k == n else min(1.0, middle + half))


def paired_interval(lost: float, gained: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return (low, high) of the drop (lost - gained) / n in -1..1, for two models scored on the same n images.

    Score interval of Tango, Statistics in Medicine 17 (1998) 891-908: the drops that a score test with the nuisance
    share at its restricted maximum likelihood does not reject. With no discordant image it is +-z^2 / (n + z^2), where
    the interval of Newcombe (method 10) and McNemar's collapse to nothing at a share of one half.
    """
    if not (n > 0 and lost >= 0 and gained >= 0 and lost + gained <= n):
        raise InternalError(
            f"{lost} lost and {gained} gained of {n} images", expected="counts within n", fix="report this as a bug"
        )
    z, drop = z_of(confidence), (lost - gained) / n

    def statistic(delta: float) -> float:
        a, b, c = 2 * n, (2 * n - lost + gained) * delta - lost - gained, -gained * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of images gained, given a drop of delta
        variance = n * (2 * share + delta * (1 - delta))
        gap = lost - gained - n * delta
        return math.copysign(math.inf, gap) if variance <= 0 else gap / math.sqrt(variance)

    low = -1.0 if drop <= -1 else _crossing(lambda d: statistic(d) <= z, -1.0, drop)
    high = 1.0 if drop >= 1 else _crossing(lambda d: statistic(d) <= -z, drop, 1.0)
    return low, high


def _crossing(reached: Callable[[float], bool], low: float, high: float) -> float:
    """Return the point of (low, high) from which on `reached` holds, to 1e-12."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
        if high - low < 1e-12:
            break
    return (low + high) / 2


def images_for_drop(lost: float, gained: float, n: int, limit: float, confidence: float) -> int | None:
    """Return how many images would show a drop <= limit (0..1) at the rates seen so far; None when none would."""
    if (lost - gained) / n >= limit:
        return None

    def is_shown(images: int) -> bool:
        return paired_interval(lost * images / n, gained * images / n, images, confidence)[1] <= limit

    return _fewest(is_shown, n)


def images_for_share(k: float, n: int, limit: float, confidence: float) -> int | None:
    """Return how many images would show a share >= limit (0..1) at the share seen so far; None when none would."""
    if k / n <= limit:
        return None
    return _fewest(lambda images: wilson(k * images / n, images, confidence)[0] >= limit, n)


def _fewest(is_shown: Callable[[int], bool], start: int) -> int | None:
    """Return the smallest count >= start for which `is_shown` holds, or None beyond any sensible count."""
    high = start
    while not is_shown(high):
        high *= 2
        if high > _MOST_IMAGES:
            return None
    low = start - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_shown(middle) else (middle, high)
    return high
