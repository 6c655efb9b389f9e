"""Whether a latency can be believed: what else the machine did while it was taken.

For every run: was this process switched out against its will, and was a short fixed loop beside it as fast as it can
be? One such sign alone condemns no run: with two engine threads on the two hyperthreads of a quiet core, 58 % of runs
of 20 ms saw a switch, and the loop took 1.7 times as long beside the engine's own waiting threads, and runs with a
switch took 6 % longer than the others. Disturbed is a run that shows such a sign and that is slow.

For the whole window: what others and the hypervisor took of the processors, what the kernel says of waiting,
throttling, frequency and heat (`system_counters`), and whether the clock itself stood firm (`clock_check`). On a
two-core cloud machine the median of clean runs varied by 1.0 % where that of all runs varied by 4.9 %.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.hardware.cpu_affinity import usable_cores
from edgemae.profiling.timing import clock_check, system_counters, system_monitor
from edgemae.profiling.timing.clock_check import ClockDrift
from edgemae.profiling.timing.system_counters import SystemCounters
from edgemae.profiling.timing.system_monitor import SystemMonitor, SystemSample, SystemTimeline, grown, share
from edgemae.spec.report import Record

if sys.platform == "win32":

    def involuntary_switches() -> int:
        return 0
else:
    import resource

    def involuntary_switches() -> int:
        """Return how often any thread of this process was switched out against its will; 1 microsecond."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


CANARY_LOOPS = 4000  # about 0.1 ms of pure Python
CANARY_SLACK = 1.10  # slower than this times its best tenth: somebody shares the core
SLOW_RUN = 1.10  # slower than this times the runs without a sign of interference
FEWEST_CLEAN = 7  # runs that such a median is taken of
CLEAN_TRUSTED, CLEAN_INVALID = 0.90, 0.50
OTHERS_NOISY, OTHERS_INVALID = 0.05, 0.50  # share of the usable processors that others used
STEAL_NOISY, STEAL_INVALID = 0.02, 0.10
SPREAD_NOISY = 0.10  # interquartile range / median
# Pressure counts everybody's waiting, also on processors that we do not use: it warns, and never condemns alone.
PRESSURE_NOISY = 0.10
THROTTLED_NOISY, THROTTLED_INVALID = 0.01, 0.10  # share of the window in which a quota stopped us
FREQUENCY_NOISY = 0.10
NEVER = float("inf")
SHORTEST_WINDOW_S = 0.5  # /proc/stat counts in 10 ms ticks: below this its shares are off by more than 2 %
VERDICTS = ("TRUSTED", "NOISY", "INVALID")  # from best to worst


class Interference(Record, frozen=True):
    """State the evidence of one measurement; None where this machine does not tell, which `absent` lists."""

    verdict: str
    reasons: tuple[str, ...]
    clean_fraction: float  # runs without a sign of interference, or that were as fast as those
    switched_runs: int
    slow_canaries: int
    others_share: float | None
    steal_share: float | None
    spread: float
    window_s: float
    p50_clean_ms: float | None = None  # of the runs without a sign of interference
    pressure_share: float | None = None  # of the window, in which some task waited for a processor (PSI)
    throttled_share: float | None = None  # of the window, in which the quota of our control group was used up
    frequency_drop: float | None = None  # largest fall of the fastest processor's within the window, 0..1
    temperature_c: float | None = None  # of the hottest zone, at its hottest
    temperature_slope: float | None = None  # C a minute
    heat_throttles: int | None = None  # slow-downs that the processor counted
    slowed_by_heat: bool = False  # a zone is at the temperature from which the kernel slows the processor down
    clock_jump_ms: float | None = None  # of the clock that times the runs
    suspended_s: float | None = None
    wall_step_s: float = 0.0  # noted only: nothing is timed with the wall clock
    absent: tuple[str, ...] = ()  # indicators that this machine does not have
    timeline: SystemTimeline = SystemTimeline()  # the same, stretch by stretch


def canary_ns() -> int:
    """Return how long a fixed loop takes now; it slows down when a core, its cache or its clock is shared."""
    total = 0
    start = time.perf_counter_ns()
    for step in range(CANARY_LOOPS):
        total += step
    return time.perf_counter_ns() - start


class WindowReading(NamedTuple):
    """What the machine did during a window."""

    seconds: float
    others_share: float | None
    steal_share: float | None
    before: SystemCounters
    after: SystemCounters
    clock_drift: ClockDrift
    frequency_fell: float = 0.0  # in between
    hottest_c: float | None = None
    slowed_by_heat: bool = False
    timeline: SystemTimeline = SystemTimeline()


class Window:
    """Read what the machine did between its creation and `close()`; `sample` between two runs sees what came and went.

    `processes` are others that belong to the measurement, and with `children` so do those that this process starts and
    waits for: what they use is not others' use.
    """

    def __init__(self, processes: tuple[int, ...] = (), *, children: bool = False) -> None:
        self._processes, self._children, self._next_s = processes, children, 0.0
        self._monitor = SystemMonitor(self._sample(), len(usable_cores()))

    def sample(self) -> None:
        """Read the system again when a quarter of a second has passed since the last sample; cheap otherwise."""
        if time.monotonic() >= self._next_s:
            self._monitor.take(self._sample())

    def close(self) -> WindowReading:
        """Return what was observed; the shares of processors are None for a window shorter than 0.5 s."""
        seen = self._monitor
        seen.take(self._sample())
        first, last = seen.first, seen.last
        seconds = last.at_s - first.at_s
        others, steal = seen.shares(first, last) if seconds >= SHORTEST_WINDOW_S else (None, None)
        return WindowReading(
            seconds, others, steal, first.counters, last.counters, seen.clock_drift(), seen.fell, seen.hottest_c,
            seen.slowed_by_heat, seen.timeline(),
        )  # fmt: skip

    def _sample(self) -> SystemSample:
        start_s = time.thread_time()  # of the processor: beside other work a look lasts longer, and costs no more
        own_s = _own_cpu_s(self._children) + sum(map(_cpu_s_of, self._processes))
        found = SystemSample(
            time.monotonic(), system_counters.read_system_counters(), clock_check.read(), own_s, _cpu_seconds()
        )
        cost_s = system_monitor.COSTS * (time.thread_time() - start_s)
        self._next_s = time.monotonic() + min(max(system_monitor.EVERY_S, cost_s), system_monitor.SELDOM_S)
        return found


def clean_runs(ns: NDArray[np.int64], switches: NDArray[np.int64], canaries: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which runs were not both suspect and slow; `canaries` (n + 1,) as for `assess_interference`.

    Slow is what takes 10 % longer than the median of the runs that are not suspect, or than the fastest quarter where
    these are too few.
    """
    free = ~_suspect(switches, canaries)
    usual = np.median(ns[free]) if free.sum() >= FEWEST_CLEAN else np.quantile(ns, 0.25)
    clean: NDArray[np.bool_] = free | (ns <= SLOW_RUN * usual)
    return clean


def _suspect(switches: NDArray[np.int64], canaries: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which runs were switched out or beside a slow canary."""
    found: NDArray[np.bool_] = (switches > 0) | (np.maximum(canaries[:-1], canaries[1:]) > _fast(canaries))
    return found


def assess_interference(
    ns: NDArray[np.int64], switches: NDArray[np.int64], canaries: NDArray[np.int64], window: Window
) -> Interference:
    """Return the evidence and its verdict. `canaries` (n + 1,) are the loops before each run and after the last."""
    seen = window.close()
    clean, free = clean_runs(ns, switches, canaries), ~_suspect(switches, canaries)
    low, middle, high = np.quantile(ns, (0.25, 0.5, 0.75))
    evidence = Interference(
        verdict="", reasons=(), clean_fraction=float(clean.mean()), switched_runs=int((switches > 0).sum()),
        slow_canaries=int((canaries > _fast(canaries)).sum()), others_share=seen.others_share,
        steal_share=seen.steal_share, spread=float((high - low) / middle), window_s=seen.seconds,
        p50_clean_ms=float(np.median(ns[free]) / 1e6) if free.sum() >= FEWEST_CLEAN else None,
        pressure_share=share(seen.before.pressure_us, seen.after.pressure_us, seen.seconds),
        throttled_share=share(seen.before.throttled_us, seen.after.throttled_us, seen.seconds),
        frequency_drop=_drop(seen),
        temperature_c=seen.after.temperature_c if seen.hottest_c is None else seen.hottest_c,
        temperature_slope=_slope(seen.before.temperature_c, seen.after.temperature_c, seen.seconds),
        heat_throttles=grown(seen.before.heat_throttles, seen.after.heat_throttles),
        slowed_by_heat=seen.after.slowed_by_heat or seen.slowed_by_heat, timeline=seen.timeline,
        clock_jump_ms=seen.clock_drift.jump_ms, suspended_s=seen.clock_drift.suspended_s,
        wall_step_s=seen.clock_drift.wall_step_s, absent=_absent(seen),
    )  # fmt: skip
    return with_verdict(evidence)


def disturbances(window: Window) -> tuple[str, ...]:
    """Return what disturbed a window in which nothing was timed run by run.

    Not the waiting of tasks and the fall of the frequency: what starts a process and builds an engine causes both.
    """
    seen = window.close()
    evidence = Interference(
        verdict="", reasons=(), clean_fraction=1.0, switched_runs=0, slow_canaries=0, others_share=seen.others_share,
        steal_share=seen.steal_share, spread=0.0, window_s=seen.seconds,
        throttled_share=share(seen.before.throttled_us, seen.after.throttled_us, seen.seconds),
        heat_throttles=grown(seen.before.heat_throttles, seen.after.heat_throttles),
        clock_jump_ms=seen.clock_drift.jump_ms, suspended_s=seen.clock_drift.suspended_s,
    )  # fmt: skip
    return with_verdict(evidence).reasons


def with_verdict(e: Interference, noisy: tuple[str, ...] = ()) -> Interference:
    """Return the evidence with the verdict that it carries and one reason for each indicator against it.

    `noisy` are further reasons not to trust it.
    """
    found: list[tuple[str, str]] = [("NOISY", reason) for reason in noisy]

    def weigh(value: float | None, noisy: float, invalid: float, text: Callable[[float], str]) -> None:
        if value is not None and value > noisy:
            found.append(("INVALID" if value > invalid else "NOISY", text(value)))

    weigh(abs(e.clock_jump_ms or 0.0), 0, 0, lambda v: f"the clock jumped by {v:.0f} ms against the raw clock")
    weigh(e.suspended_s, 0, 0, lambda v: f"the machine slept for {v:.1f} s")
    weigh(1 - e.clean_fraction, 1 - CLEAN_TRUSTED, 1 - CLEAN_INVALID, lambda v: f"{v:.0%} of the runs were disturbed")
    weigh(e.others_share, OTHERS_NOISY, OTHERS_INVALID, lambda v: f"others used {v:.0%} of the processors")
    weigh(e.steal_share, STEAL_NOISY, STEAL_INVALID, lambda v: f"the hypervisor took {v:.0%} of the time")
    weigh(e.pressure_share, PRESSURE_NOISY, NEVER, lambda v: f"tasks waited for a processor {v:.0%} of the time")
    weigh(e.throttled_share, THROTTLED_NOISY, THROTTLED_INVALID,
          lambda v: f"a processor quota stopped this process {v:.0%} of the time")  # fmt: skip
    weigh(e.frequency_drop, FREQUENCY_NOISY, NEVER, lambda v: f"the processor's frequency fell by {v:.0%}")
    weigh(e.heat_throttles, 0, NEVER, lambda v: f"the processor slowed down {v:.0f} times for its heat")
    weigh(
        float(e.slowed_by_heat), 0, NEVER, lambda _: f"at {e.temperature_c:.0f} C the kernel slows the processor down"
    )
    weigh(e.spread, SPREAD_NOISY, NEVER, lambda v: f"half of the runs spread over {v:.0%} of the median")
    return msgspec.structs.replace(
        e, verdict=combined_verdict(*(verdict for verdict, _ in found)), reasons=tuple(reason for _, reason in found)
    )


def combined_verdict(*verdicts: str) -> str:
    """Return the worst of some verdicts; TRUSTED when there is none."""
    return max(verdicts, key=VERDICTS.index, default="TRUSTED")


def _fast(canaries: NDArray[np.int64]) -> float:
    return float(np.quantile(canaries, 0.1)) * CANARY_SLACK


def _absent(seen: WindowReading) -> tuple[str, ...]:
    found = [] if sys.platform != "win32" else ["involuntary context switches"]
    if seen.others_share is None:
        short = seen.seconds < SHORTEST_WINDOW_S
        found.append("load of others and steal" + (f" (below {SHORTEST_WINDOW_S} s)" if short else ""))
    clocks = zip(clock_check.CLOCKS, (seen.clock_drift.jump_ms, seen.clock_drift.suspended_s), strict=True)
    return (*found, *seen.after.absent, *(name for name, value in clocks if value is None))


def _drop(seen: WindowReading) -> float | None:
    before, after = seen.before.frequency_mhz, seen.after.frequency_mhz
    return None if not before or after is None else max(0.0, 1 - after / before, seen.frequency_fell)


def _slope(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else (after - before) * 60 / max(seconds, 1e-3)


def _own_cpu_s(children: bool) -> float:
    times = os.times()
    return times.user + times.system + (times.children_user + times.children_system if children else 0.0)


def _cpu_s_of(pid: int) -> float:
    """Return the processor seconds of another process, 0 where /proc does not tell."""
    try:
        cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    except OSError:
        return 0.0
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds() -> tuple[float, float] | None:
    """Return (busy, stolen) seconds summed over the usable processors, None where /proc/stat is missing."""
    cpus = {f"cpu{number}" for number in usable_cores()}
    try:
        with open("/proc/stat") as file:
            rows = [line.split() for line in file if line.split(" ", 1)[0] in cpus]
    except OSError:
        return None
    counts = [[int(cell) for cell in row[1:]] for row in rows]  # user nice system idle iowait irq softirq steal ...
    busy = sum(sum(row[:3]) + sum(row[5:7]) for row in counts)
    tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
    return busy * tick_s, sum(row[7] for row in counts if len(row) > 7) * tick_s
