"""Intervals: published values, corner cases, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemae.evaluation.intervals import images_for_drop, images_for_share, paired_interval, wilson, z_of
from edgemae.spec.errors import InternalError


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=6e-5)


def test_wilson_reaches_the_ends_exactly() -> None:
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0


def test_paired_interval_solves_tangos_equation() -> None:
    # Both ends must have a score statistic of exactly z; here it is computed with the nuisance share found by a
    # direct search of the likelihood instead of the closed form.
    lost, gained, n = 12, 5, 90
    for end, sign in zip(paired_interval(lost, gained, n), (1, -1), strict=True):
        shares = np.linspace(max(0, -end) + 1e-7, (1 - end) / 2 - 1e-7, 2_000_001)  # of gained images
        same = 1 - 2 * shares - end
        likelihood = lost * np.log(shares + end) + gained * np.log(shares) + (n - lost - gained) * np.log(same)
        share = shares[np.nanargmax(np.where(same > 0, likelihood, -np.inf))]
        variance = n * (2 * share + end * (1 - end))
        assert (lost - gained - n * end) / math.sqrt(variance) == pytest.approx(sign * z_of(0.95), abs=1e-3)


@pytest.mark.parametrize("n", [10, 341, 900])
def test_paired_interval_without_a_discordant_image(n: int) -> None:
    z2 = z_of(0.95) ** 2
    assert paired_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@pytest.mark.parametrize(("lost", "gained", "n"), [(5, 0, 5), (0, 5, 5), (3, 0, 40), (0, 3, 40), (20, 20, 40)])
def test_paired_interval_encloses_the_drop_and_mirrors(lost: int, gained: int, n: int) -> None:
    low, high = paired_interval(lost, gained, n)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert low < high
    assert paired_interval(gained, lost, n) == pytest.approx((-high, -low), abs=1e-9)


def test_more_confidence_is_wider() -> None:
    widths = [high - low for low, high in (paired_interval(7, 3, 200, c) for c in (0.8, 0.95, 0.99))]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


@pytest.mark.parametrize(("p_lost", "p_gained", "n"), [(0.03, 0.02, 341), (0.01, 0.01, 100), (0.1, 0.03, 80)])
def test_paired_interval_covers_the_true_drop(p_lost: float, p_gained: float, n: int) -> None:
    rng = np.random.default_rng(3)
    draws = rng.multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=3000)
    seen: dict[tuple[int, int], bool] = {}
    for lost, gained, _ in draws:
        if (lost, gained) not in seen:
            low, high = paired_interval(int(lost), int(gained), n)
            seen[lost, gained] = low <= p_lost - p_gained <= high
    covered = np.mean([seen[lost, gained] for lost, gained, _ in draws])
    assert 0.935 <= covered <= 0.995  # 0.95 wanted; the simulation's own error is 0.004


def test_wilson_covers_the_true_share_where_the_usual_interval_does_not() -> None:
    n, share = 40, 0.97
    counts = range(n + 1)
    chance = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in counts]
    covered = sum(p for k, p in zip(counts, chance, strict=True) if wilson(k, n)[0] <= share <= wilson(k, n)[1])
    half = [1.96 * math.sqrt(k / n * (1 - k / n) / n) for k in counts]
    usual = sum(p for k, p, h in zip(counts, chance, half, strict=True) if abs(k / n - share) <= h)
    assert covered > 0.93
    assert usual < 0.72


def test_images_for_drop_is_the_smallest_count_that_shows_it() -> None:
    needed = images_for_drop(2, 1, 300, 0.01, 0.95)
    assert needed is not None
    assert paired_interval(2 * needed / 300, needed / 300, needed)[1] <= 0.01
    assert paired_interval(2 * (needed - 1) / 300, (needed - 1) / 300, needed - 1)[1] > 0.01


def test_no_number_of_images_shows_what_is_not_so() -> None:
    assert images_for_drop(5, 1, 100, 0.03, 0.95) is None
    assert images_for_share(95, 100, 0.95, 0.95) is None
    assert images_for_share(96, 100, 0.95, 0.95) is not None


@pytest.mark.parametrize("call", [lambda: wilson(3, 2), lambda: wilson(0, 0), lambda: paired_interval(3, 3, 5)])
def test_impossible_counts_are_refused(call: object) -> None:
    with pytest.raises(InternalError):
        call()  # type: ignore[operator]
