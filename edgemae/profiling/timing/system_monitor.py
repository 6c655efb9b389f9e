"""What the machine did while it was measured, stretch by stretch: a look every quarter of a second between two runs.

Two readings, at the start and at the end, would miss a processor that slowed down in the middle and recovered, and a
clock that jumped by less than a thousandth of an hour.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from edgemae.profiling.timing import clock_check
from edgemae.profiling.timing.clock_check import ClockDrift, Reading
from edgemae.profiling.timing.system_counters import SystemCounters
from edgemae.spec.report import Record

EVERY_S, SELDOM_S = 0.25, 1.0
COSTS = 200  # where a look takes more than 1.25 ms, as with 64 processors, half a percent of the time goes to looking
MOST = 240  # stretches that are kept; then neighbours are joined
SMOOTH = 3  # looks whose median counts as the frequency: one reading of a governor at work is no slow-down


class SystemSample(NamedTuple):
    """Hold everything that is read at one counters."""

    at_s: float
    counters: SystemCounters
    clocks: Reading
    own_s: float  # processor seconds that the measurement used so far
    ticks_s: tuple[float, float] | None  # processor seconds: busy, stolen; None where /proc/stat is missing


class SystemTimeline(Record, frozen=True):
    """What the machine did over the window, in stretches. All columns are equally long, and empty where it is silent.

    Shares are 0..1: of the usable processors for others and steal, of the time for waiting and throttling.
    """

    at_s: tuple[float, ...] = ()  # end of each stretch, since the window began
    others_share: tuple[float, ...] = ()
    steal_share: tuple[float, ...] = ()
    pressure_share: tuple[float, ...] = ()
    throttled_share: tuple[float, ...] = ()
    frequency_mhz: tuple[float, ...] = ()  # lowest of the stretch
    temperature_c: tuple[float, ...] = ()  # highest of the stretch


class _Stretch(NamedTuple):
    """Hold the columns of `SystemTimeline` for one stretch."""

    at_s: float
    seconds: float
    others: float | None
    steal: float | None
    pressure: float | None
    throttled: float | None
    mhz: float | None
    celsius: float | None


class SystemMonitor:
    """Take moments in their order, and tell what lay between them."""

    def __init__(self, first: SystemSample, cores: int) -> None:
        self.first = self.last = first
        self.fell = 0.0  # largest fall of the frequency from an earlier one, 0..1
        self.hottest_c = first.counters.temperature_c
        self.slowed_by_heat = first.counters.slowed_by_heat
        self._cores = cores
        self._drifts: list[ClockDrift] = []
        self._stretches: list[_Stretch] = []
        self._recent: deque[float] = deque(maxlen=SMOOTH)
        self._peak_mhz = 0.0
        self._heed(first.counters)

    def take(self, now: SystemSample) -> None:
        """Add a counters."""
        found = clock_check.clock_drift(self.last.clocks, now.clocks)
        if found.jump_ms or found.suspended_s:
            self._drifts.append(found)
        self._stretches.append(self._between(self.last, now))
        if len(self._stretches) > 2 * MOST:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=False)
            joined = [_joined(a, b) for a, b in pairs]
            self._stretches = joined + self._stretches[2 * len(joined) :]
        self.last = now
        self._heed(now.counters)

    def shares(self, a: SystemSample, b: SystemSample) -> tuple[float | None, float | None]:
        """Return what others and the hypervisor used of the processors between two looks."""
        if a.ticks_s is None or b.ticks_s is None or b.at_s <= a.at_s:
            return None, None
        room = (b.at_s - a.at_s) * self._cores
        busy, stolen = (now - then for then, now in zip(a.ticks_s, b.ticks_s, strict=True))
        return max(0.0, busy - (b.own_s - a.own_s)) / room, stolen / room

    def clock_drift(self) -> ClockDrift:
        """Return how far the clocks came apart, over the whole window or at any time of it."""
        whole = clock_check.clock_drift(self.first.clocks, self.last.clocks)
        jumps = [t.jump_ms for t in (whole, *self._drifts) if t.jump_ms is not None]
        sleeps = [t.suspended_s for t in self._drifts if t.suspended_s is not None]
        return ClockDrift(
            jump_ms=max(jumps, key=abs, default=None),
            suspended_s=None if whole.suspended_s is None else max(whole.suspended_s, sum(sleeps)),
            wall_step_s=whole.wall_step_s,
        )

    def timeline(self) -> SystemTimeline:
        """Return the columns of at most 480 stretches; a short last one is left out: the kernel counts in 10 ms."""
        kept = [s for s in self._stretches if s.seconds >= EVERY_S / 2]
        at, _, *columns = zip(*kept, strict=True) if kept else [()] * 8
        return SystemTimeline(tuple(round(s, 3) for s in at), *map(_column, columns))

    def _heed(self, counters: SystemCounters) -> None:
        self.slowed_by_heat |= counters.slowed_by_heat
        if counters.temperature_c is not None:
            self.hottest_c = max(self.hottest_c or counters.temperature_c, counters.temperature_c)
        if counters.frequency_mhz is None:
            return
        self._recent.append(counters.frequency_mhz)
        if len(self._recent) == SMOOTH:
            mhz = statistics.median(self._recent)
            self._peak_mhz = max(self._peak_mhz, mhz)
            self.fell = max(self.fell, 1 - mhz / self._peak_mhz if self._peak_mhz else 0.0)

    def _between(self, a: SystemSample, b: SystemSample) -> _Stretch:
        seconds = max(b.at_s - a.at_s, 1e-3)
        others, steal = self.shares(a, b)
        then, now = a.counters, b.counters
        return _Stretch(
            b.at_s - self.first.at_s, seconds, others, steal, share(then.pressure_us, now.pressure_us, seconds),
            share(then.throttled_us, now.throttled_us, seconds), now.frequency_mhz, now.temperature_c,
        )  # fmt: skip


def grown(before: int | None, after: int | None) -> int | None:
    """Return by how much a counter grew."""
    return None if before is None or after is None else max(0, after - before)


def share(before_us: int | None, after_us: int | None, seconds: float) -> float | None:
    """Return what a counter of microseconds grew by, as a share of the time."""
    more = grown(before_us, after_us)
    return None if more is None else min(1.0, more / 1e6 / max(seconds, 1e-3))


def _joined(a: _Stretch, b: _Stretch) -> _Stretch:
    def mean(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else (x + y) / 2

    mhz, celsius = ([v for v in pair if v is not None] for pair in ((a.mhz, b.mhz), (a.celsius, b.celsius)))
    return _Stretch(
        b.at_s, a.seconds + b.seconds, mean(a.others, b.others), mean(a.steal, b.steal), mean(a.pressure, b.pressure),
        mean(a.throttled, b.throttled), min(mhz, default=None), max(celsius, default=None),
    )  # fmt: skip


def _column(values: Sequence[float | None]) -> tuple[float, ...]:
    """Return a column without holes: a look that failed repeats the one before; empty when all of them did."""
    known = [value for value in values if value is not None]
    filled, last = [], known[0] if known else 0.0
    for value in values if known else ():
        last = last if value is None else value
        filled.append(round(last, 4))
    return tuple(filled)
