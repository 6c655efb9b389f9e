"""Clocks that jump, sleep and are set, in the hands of a faked time module."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from edgemae.profiling.timing import clock_check
from edgemae.profiling.timing.clock_check import ClockDrift
from edgemae.profiling.timing.timer import measure

S = 1_000_000_000


@dataclass
class Faked:
    """Hold what each clock is ahead of the real one."""

    run: int = 0
    raw: int = 0
    boot: int = 0
    wall: int = 0


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    ahead, real, real_clock = Faked(), time.perf_counter_ns, time.clock_gettime_ns

    def read(number: int) -> int:
        return real_clock(number) + {time.CLOCK_MONOTONIC_RAW: ahead.raw, time.CLOCK_BOOTTIME: ahead.boot}[number]

    monkeypatch.setattr(time, "perf_counter_ns", lambda: real() + ahead.run)
    monkeypatch.setattr(time, "clock_gettime_ns", read)
    monkeypatch.setattr(time, "time_ns", lambda wall=time.time_ns: wall() + ahead.wall)
    return ahead


pytestmark = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux has all of these clocks")


@pytest.mark.parametrize(
    ("steps", "trouble"),
    [
        ({}, (0.0, 0.0, 0.0)),
        ({"run": 3 * S, "boot": 3 * S}, (3000.0, 0.0, -3.0)),
        ({"run": -S // 10, "boot": -S // 10}, (-100.0, 0.0, 0.1)),
        ({"boot": 60 * S, "wall": 60 * S}, (0.0, 60.0, 60.0)),
        ({"wall": -3600 * S}, (0.0, 0.0, -3600.0)),
        ({"raw": 100_000, "wall": 1_000_000}, (0.0, 0.0, 0.0)),  # as NTP does all the time
    ],
)
def test_each_clock_is_compared_with_one_that_fails_otherwise(
    faked: Faked, steps: dict[str, int], trouble: tuple[float, float, float]
) -> None:
    before = clock_check.read()
    for name, ns in steps.items():
        setattr(faked, name, ns)
    found = clock_check.clock_drift(before, clock_check.read())
    assert (found.jump_ms, found.suspended_s, found.wall_step_s) == pytest.approx(trouble, abs=1e-2)


def test_a_clock_that_jumps_in_the_middle_makes_the_measurement_invalid(faked: Faked) -> None:
    turns = 0

    def run() -> None:
        nonlocal turns
        turns += 1
        if turns == 30:
            faked.run += S // 2

    found = measure(run, min_runs=50, min_seconds=0, warmup=4).interference
    assert found.verdict == "INVALID"
    assert found.reasons[0] == "the clock jumped by 500 ms against the raw clock"


def test_a_wall_clock_that_is_set_harms_nothing(faked: Faked) -> None:
    def run() -> None:
        faked.wall -= S

    found = measure(run, min_runs=20, min_seconds=0, warmup=4).interference
    assert found.wall_step_s == pytest.approx(-20, abs=0.1)
    assert not any("clock" in reason for reason in found.reasons)


def test_a_clock_that_does_not_exist_is_none(faked: Faked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.delattr(time, "CLOCK_MONOTONIC_RAW")
    before = clock_check.read()
    faked.run += S
    assert clock_check.clock_drift(before, clock_check.read()) == ClockDrift(
        jump_ms=None, suspended_s=None, wall_step_s=pytest.approx(-1, abs=0.01)
    )
    assert {"raw clock", "boot clock"} <= set(measure(int, min_runs=20, min_seconds=0).interference.absent)
