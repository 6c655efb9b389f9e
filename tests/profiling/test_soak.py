"""A long run: slower at its end or not, and how long it is asked to be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.profiling.soak import first_against_last, parse_soak
from edgemae.spec.errors import InputError
from tests.support.long_runs import long_run


def test_a_machine_that_gets_hot_is_slower_in_its_last_minute() -> None:
    found = first_against_last(long_run(600, lambda share: np.where(share > 0.6, 1.2, 1.0)))
    assert found.slower
    assert 1.19 < found.ratio_low < found.ratio < found.ratio_high < 1.22
    assert found.minutes == pytest.approx(10, abs=0.01)
    assert found.last_p50_ms / found.first_p50_ms == pytest.approx(1.2, abs=0.02)
    steady = first_against_last(long_run(600, np.ones_like))
    assert not steady.slower
    assert steady.ratio == pytest.approx(1.0, abs=0.02)
    assert not first_against_last(long_run(600, lambda share: np.where(share < 0.1, 1.2, 1.0))).slower  # faster


def test_of_less_than_two_minutes_the_tenths_are_compared() -> None:
    assert first_against_last(long_run(30, lambda share: np.where(share > 0.89, 1.3, 1.0))).slower
    assert not first_against_last(long_run(30, lambda share: np.where(abs(share - 0.5) < 0.3, 1.3, 1.0))).slower
    with pytest.raises(InputError, match="fewer than 7 runs"):
        first_against_last(long_run(30, np.ones_like, rate=2))  # six runs have no median


@pytest.mark.parametrize("tau_s", [5.0, 15.0, 30.0])
def test_a_machine_that_wanders_by_a_percent_did_not_get_slower(tau_s: float) -> None:
    """Speeds are shared for as long as a mood of the machine lasts: its blocks are no evidence of their own."""
    rng, keep, trials = np.random.default_rng(4), np.exp(-0.5 / tau_s), 60
    moods = rng.normal(size=(trials, 360))
    for i in range(1, 360):  # three minutes, every half second
        moods[:, i] = keep * moods[:, i - 1] + (1 - keep**2) ** 0.5 * moods[:, i]

    def slower(mood: NDArray[np.float64], by: float) -> bool:
        levels = np.repeat(np.exp(0.01 * mood), 25) * np.where(np.arange(9000) < 4500, 1.0, by)
        return first_against_last(long_run(180, lambda share: levels[: len(share)])).slower

    assert sum(slower(mood, 1.0) for mood in moods) <= 1
    assert sum(slower(mood, 1.06) for mood in moods[:20]) >= 18


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h", 3600), ("0.5 m", 30), ("10s", 10)])
def test_the_length_of_a_soak_is_read(text: str, seconds: float) -> None:
    assert parse_soak(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 min", "-5m", "9s", "0m", "1d", "nan s"])
def test_no_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no length of a soak") as caught:
        parse_soak(text)
    assert "90s, 10m, 1h" in caught.value.expected
