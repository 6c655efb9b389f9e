"""Whether a latency can be believed: what else the machine did while it was taken.

Three witnesses. For every run: was this process switched out against its will, and was a short fixed loop beside it as
fast as it can be? For the whole window: how much of the processors did others take, and how much did the hypervisor?
On a two-core cloud machine the median of clean runs varied by 1.0 % where that of all runs varied by 4.9 %.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.device.latency.machine import usable_cpus
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
CLEAN_TRUSTED, CLEAN_INVALID = 0.90, 0.50
OTHERS_NOISY, OTHERS_INVALID = 0.05, 0.50  # share of the usable processors that others used
STEAL_NOISY, STEAL_INVALID = 0.02, 0.10
SPREAD_NOISY = 0.10  # interquartile range / median
SHORTEST_WINDOW_S = 0.5  # /proc/stat counts in 10 ms ticks: below this its shares are off by more than 2 %
VERDICTS = ("TRUSTED", "NOISY", "INVALID")  # from best to worst


class Interference(Record, frozen=True):
    """State the evidence of one measurement; None where this machine does not tell."""

    verdict: str
    reasons: tuple[str, ...]
    clean_fraction: float  # runs without an involuntary switch and beside a fast canary
    switched_runs: int
    slow_canaries: int
    others_share: float | None
    steal_share: float | None
    spread: float
    window_s: float
    p50_clean_ms: float | None = None


def canary_ns() -> int:
    """Return how long a fixed loop takes now; it slows down when a core, its cache or its clock is shared."""
    total = 0
    start = time.perf_counter_ns()
    for step in range(CANARY_LOOPS):
        total += step
    return time.perf_counter_ns() - start


class Window:
    """Read what the processors did between its creation and `shares()`.

    `processes` are others that belong to the measurement: what they use is not others' use.
    """

    def __init__(self, processes: tuple[int, ...] = ()) -> None:
        self._processes = processes
        self._start_s, self._own_s, self._stat = time.monotonic(), self._used_s(), _cpu_ticks()

    def _used_s(self) -> float:
        return _own_cpu_s() + sum(map(_cpu_s_of, self._processes))

    def shares(self) -> tuple[float, float | None, float | None]:
        """Return (seconds, share of the usable processors used by others, share stolen by the hypervisor)."""
        seconds = time.monotonic() - self._start_s
        stat = _cpu_ticks()
        if stat is None or self._stat is None or seconds < SHORTEST_WINDOW_S:
            return seconds, None, None
        cores = len(usable_cpus())
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        busy_s, stolen_s = ((now - then) * tick_s for now, then in zip(stat, self._stat, strict=True))
        others_s = max(0.0, busy_s - (self._used_s() - self._own_s))
        return seconds, others_s / seconds / cores, stolen_s / seconds / cores


def judge(
    ns: NDArray[np.int64], switches: NDArray[np.int64], canaries: NDArray[np.int64], window: Window
) -> Interference:
    """Return the evidence and its verdict. `canaries` (n + 1,) are the loops before each run and after the last."""
    fast = np.quantile(canaries, 0.1) * CANARY_SLACK
    slow = np.maximum(canaries[:-1], canaries[1:]) > fast
    clean = (switches == 0) & ~slow
    low, middle, high = np.quantile(ns, (0.25, 0.5, 0.75))
    seconds, others, steal = window.shares()
    evidence = Interference(
        verdict="", reasons=(), clean_fraction=float(clean.mean()), switched_runs=int((switches > 0).sum()),
        slow_canaries=int((canaries > fast).sum()), others_share=others, steal_share=steal,
        spread=float((high - low) / middle), window_s=seconds,
        p50_clean_ms=float(np.median(ns[clean]) / 1e6) if clean.sum() >= 7 else None,
    )  # fmt: skip
    return with_verdict(evidence)


def with_verdict(e: Interference, noisy: tuple[str, ...] = ()) -> Interference:
    """Return the evidence with the verdict that it carries and one reason for each witness against it.

    `noisy` are further reasons not to trust it.
    """
    found: list[tuple[str, str]] = [("NOISY", reason) for reason in noisy]

    def weigh(value: float | None, noisy: float, invalid: float, text: Callable[[float], str]) -> None:
        if value is not None and value > noisy:
            found.append(("INVALID" if value > invalid else "NOISY", text(value)))

    weigh(1 - e.clean_fraction, 1 - CLEAN_TRUSTED, 1 - CLEAN_INVALID, lambda v: f"{v:.0%} of the runs were disturbed")
    weigh(e.others_share, OTHERS_NOISY, OTHERS_INVALID, lambda v: f"others used {v:.0%} of the processors")
    weigh(e.steal_share, STEAL_NOISY, STEAL_INVALID, lambda v: f"the hypervisor took {v:.0%} of the time")
    weigh(e.spread, SPREAD_NOISY, float("inf"), lambda v: f"half of the runs spread over {v:.0%} of the median")
    return msgspec.structs.replace(
        e, verdict=worst(*(verdict for verdict, _ in found)), reasons=tuple(reason for _, reason in found)
    )


def worst(*verdicts: str) -> str:
    """Return the worst of some verdicts; TRUSTED when there is none."""
    return max(verdicts, key=VERDICTS.index, default="TRUSTED")


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _cpu_s_of(pid: int) -> float:
    """Return the processor seconds of another process, 0 where /proc does not tell."""
    try:
        cells = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold spaces
    except OSError:
        return 0.0
    return (int(cells[11]) + int(cells[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_ticks() -> tuple[int, int] | None:
    """Return (busy, stolen) ticks summed over the usable processors, None where /proc/stat is missing."""
    cpus = {f"cpu{number}" for number in usable_cpus()}
    try:
        with open("/proc/stat") as file:
            rows = [line.split() for line in file if line.split(" ", 1)[0] in cpus]
    except OSError:
        return None
    counts = [[int(cell) for cell in row[1:]] for row in rows]  # user nice system idle iowait irq softirq steal ...
    busy = sum(sum(row[:3]) + sum(row[5:7]) for row in counts)
    return busy, sum(row[7] for row in counts if len(row) > 7)
