"""Whether the clock that times the runs can be believed itself.

`time.perf_counter` follows CLOCK_MONOTONIC, which NTP may stretch by 0.05 % and which a broken clock source or a
migrated virtual machine can move by seconds. It is compared with two clocks that fail in other ways: the raw one, which
nobody adjusts, and the boot one, which goes on while the machine sleeps. The wall clock may be set at any time; nothing
here is measured with it.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from edgemae.spec.report import Record

TRIES, TIGHT_NS = 5, 20_000  # read all clocks again when something came between
SLACK_NS, SLACK_SHARE = 1_000_000, 1e-3  # of a comparison: twice what NTP may stretch
WALL_SLACK_NS = 10_000_000
CLOCKS = {"raw clock": "CLOCK_MONOTONIC_RAW", "boot clock": "CLOCK_BOOTTIME"}


class Reading(NamedTuple):
    """Hold all clocks at one moment, in ns; None where the system has no such clock."""

    run_ns: int
    raw_ns: int | None
    boot_ns: int | None
    wall_ns: int
    slack_ns: int  # how long reading all of them took


class ClockDrift(Record, frozen=True):
    """State how far the clocks came apart; 0 where they agree, None where there was nothing to compare with."""

    jump_ms: float | None  # of the clock that times the runs, against the raw one
    suspended_s: float | None
    wall_step_s: float


def read() -> Reading:
    """Return all clocks, read within 20 microseconds of each other where the machine lets us."""
    best = _read()
    for _ in range(TRIES - 1):
        if best.slack_ns <= TIGHT_NS:
            break
        best = min(best, _read(), key=lambda reading: reading.slack_ns)
    return best


def clock_drift(before: Reading, after: Reading) -> ClockDrift:
    """Compare what each clock made of the time between two readings."""
    passed = after.run_ns - before.run_ns
    slack = SLACK_NS + SLACK_SHARE * abs(passed) + before.slack_ns + after.slack_ns

    def apart(then: int | None, now: int | None, allowed: float) -> float | None:
        if then is None or now is None:
            return None
        ns = passed - (now - then)
        return float(ns) if abs(ns) > allowed else 0.0

    jump, asleep = apart(before.raw_ns, after.raw_ns, slack), apart(before.boot_ns, after.boot_ns, slack)
    stepped = apart(before.wall_ns, after.wall_ns, slack + WALL_SLACK_NS)
    return ClockDrift(
        jump_ms=None if jump is None else jump / 1e6,
        suspended_s=None if asleep is None else max(0.0, -asleep / 1e9),
        wall_step_s=-stepped / 1e9 if stepped else 0.0,
    )


def _read() -> Reading:
    start = time.perf_counter_ns()
    raw, boot = (_clock(name) for name in CLOCKS.values())
    wall = time.time_ns()
    end = time.perf_counter_ns()
    return Reading((start + end) // 2, raw, boot, wall, end - start)


def _clock(name: str) -> int | None:
    number = getattr(time, name, None)  # macOS has no boot clock, Windows neither
    return None if number is None else time.clock_gettime_ns(number)
