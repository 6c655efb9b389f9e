"""What came and went while it was measured is seen."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable

import numpy as np
import pytest

from edgemae.profiling.timing import interference
from edgemae.profiling.timing.clock_check import ClockDrift, Reading
from edgemae.profiling.timing.interference import Window, assess_interference
from edgemae.profiling.timing.system_monitor import SystemMonitor, SystemSample
from edgemae.profiling.timing.timer import measure
from tests.support.timing import IDLE, spin


def moment(at_s: float, ahead_ns: int = 0, busy_s: float = 0.0, **look: object) -> SystemSample:
    ns = round(at_s * 1e9)
    reading = Reading(run_ns=ns + ahead_ns, raw_ns=ns, boot_ns=ns + ahead_ns, wall_ns=ns, slack_ns=10_000)
    return SystemSample(at_s, dataclasses.replace(IDLE, **look), reading, 0.0, (busy_s, 0.0))  # type: ignore[arg-type]


def watched(moments: Iterable[SystemSample]) -> SystemMonitor:
    first, *rest = moments
    found = SystemMonitor(first, cores=2)
    for one in rest:
        found.take(one)
    return found


def judged(seen: SystemMonitor) -> interference.Interference:
    window = Window()
    window._monitor, window._sample = seen, lambda: seen.last._replace(at_s=seen.last.at_s + 1e-3)  # type: ignore[method-assign]
    return assess_interference(np.full(200, 10**6), np.zeros(200, np.int64), np.full(201, 10**5), window)


def test_what_came_and_went_in_between_is_seen() -> None:
    """Ten seconds in quarters; from the fourth to the sixth one thing is wrong, and at the end all is as before."""
    slow = {i: {"frequency_mhz": 2100.0} for i in range(16, 25)}
    hot = {i: {"temperature_c": 97.0, "slowed_by_heat": True} for i in range(16, 25)}

    def over(changes: dict[int, dict[str, object]]) -> interference.Interference:
        return judged(watched(moment(i / 4, **changes.get(i, {})) for i in range(41)))

    assert over({}).verdict == "TRUSTED"
    assert over(slow).reasons == ("the processor's frequency fell by 30%",)
    assert over({20: {"frequency_mhz": 2100.0}}).verdict == "TRUSTED"  # one reading of a governor at work
    assert over(hot).reasons == ("at 97 C the kernel slows the processor down",)
    found = over(slow).timeline
    assert (len(found.at_s), min(found.frequency_mhz), found.frequency_mhz[-1]) == (40, 2100.0, 3000.0)


def test_a_jump_that_is_short_beside_the_window_is_seen() -> None:
    """20 ms within 100 s are less than a thousandth of it, and no matter of NTP."""
    found = judged(watched(moment(i / 4, ahead_ns=20_000_000 if i > 200 else 0) for i in range(401)))
    assert (found.verdict, found.clock_jump_ms) == ("INVALID", pytest.approx(20.0))
    slept = watched(moment(i / 4) for i in range(401))
    slept._drifts.append(ClockDrift(jump_ms=0.0, suspended_s=0.02, wall_step_s=0.0))
    assert judged(slept).suspended_s == pytest.approx(0.02)


def test_stretches_are_joined_when_there_are_too_many() -> None:
    # One of two processors is busy with something else for the second half.
    found = watched(
        moment(i / 4, busy_s=max(0, i - 1000) / 4, temperature_c=50 + i / 100) for i in range(2001)
    ).timeline()
    assert 240 < len(found.at_s) <= 481
    assert found.at_s[-1] == 500.0
    assert len(found.others_share) == len(found.temperature_c) == len(found.at_s)
    middle = np.searchsorted(found.at_s, 250.0)
    assert max(found.others_share[: middle - 1]) == 0
    assert found.others_share[middle + 2 :] == pytest.approx([0.5] * (len(found.at_s) - middle - 2))
    assert max(found.temperature_c) == 70


def test_a_measurement_looks_four_times_a_second_and_no_more() -> None:
    found = measure(spin(500_000), min_runs=20, min_seconds=1.6, warmup=3).interference.timeline
    assert 2 <= len(found.at_s) <= 7
    assert list(found.at_s) == sorted(found.at_s)
    if sys.platform == "linux":
        assert len(found.others_share) == len(found.at_s)
