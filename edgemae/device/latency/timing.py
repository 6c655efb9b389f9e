"""Take latencies: one run after another, or several candidates in turns so that they share their disturbances."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgemae.device.latency.interference import Interference, Window, canary_ns, involuntary_switches, judge
from edgemae.device.latency.quantiles import Blocks

Run = Callable[[], object]
CAPACITY = 1_000_000  # runs that one measurement keeps at most: 24 MB
CANARY_EVERY_NS = 2_000_000  # at most 5 % of the time goes to a loop of 0.1 ms
BLOCK_MS = 40.0
BLOCK_RUNS = (3, 50)  # shortest and longest block of an interleaved measurement
LEAD_RUNS = 1  # untimed at the head of a block: caches still hold the other candidate
PARK_STEP_S, PARK_LIMIT_S = 0.004, 0.5
PARK_STEPS = 2  # quiet ones in a row: beside other work a spinning thread may not run at all for one step


@dataclass(frozen=True, eq=False)
class Samples(Blocks):
    """Hold latencies in ns, the block each was taken in, and what else the machine did meanwhile."""

    interference: Interference

    @property
    def n(self) -> int:
        return len(self.ns)


class Recorder:
    """Time runs into arrays that exist before the first one: nothing is allocated between two clock reads."""

    def __init__(self, capacity: int) -> None:
        self.n = 0
        self.ns, self.switches, self.blocks = (np.zeros(capacity, np.int64) for _ in range(3))
        self.canaries = np.zeros(capacity + 1, np.int64)
        self._canary_ns, self._canary_at_ns = canary_ns(), time.perf_counter_ns()

    @property
    def full(self) -> bool:
        return self.n == len(self.ns)

    def once(self, run: Run, block: int = 0) -> None:
        self._watch()
        before = involuntary_switches()
        start = time.perf_counter_ns()
        run()
        self.ns[self.n] = time.perf_counter_ns() - start
        self.switches[self.n] = involuntary_switches() - before
        self.blocks[self.n] = block
        self.n += 1

    def taken(self) -> dict[str, NDArray[np.int64]]:
        """Return what was taken so far: ns, switches and blocks (n,), and canaries (n + 1,) with one after the last."""
        self._canary_at_ns = 0
        self._watch()
        n = self.n
        rows = {"ns": self.ns[:n], "switches": self.switches[:n], "blocks": self.blocks[:n]}
        return {name: values.copy() for name, values in (rows | {"canaries": self.canaries[: n + 1]}).items()}

    def samples(self, window: Window) -> Samples:
        return samples_of(self.taken(), window)

    def _watch(self) -> None:
        """Note the canary's time before run n; a loop that is younger than 2 ms is not repeated."""
        now = time.perf_counter_ns()
        if now - self._canary_at_ns > CANARY_EVERY_NS:
            self._canary_ns, self._canary_at_ns = canary_ns(), now
        self.canaries[self.n] = self._canary_ns


def samples_of(taken: Mapping[str, NDArray[np.int64]], window: Window) -> Samples:
    """Return what a recorder took, with the verdict on it."""
    evidence = judge(taken["ns"], taken["switches"], taken["canaries"], window)
    return Samples(taken["ns"], taken["blocks"], evidence)


def measure(run: Run, *, min_runs: int = 100, min_seconds: float = 3.0, warmup: int = 10) -> Samples:
    """Time `run` until both `min_runs` and `min_seconds` are reached (at most a million runs).

    `min_seconds=0` takes exactly `min_runs`. The `warmup` runs are not kept.
    """
    typical_s = warm(run, warmup)
    # Room for runs twice as fast as the warm-up: it is the slowest part of a process' life.
    wanted = max(min_runs, math.ceil(2 * min_seconds / typical_s))
    recorder = Recorder(min(wanted, max(CAPACITY, min_runs)))
    window, end = Window(), time.monotonic() + min_seconds
    while not recorder.full and (recorder.n < min_runs or time.monotonic() < end):
        recorder.once(run)
    return recorder.samples(window)


def interleave(
    runs: Mapping[str, Run], rounds: int = 20, *, block_ms: float = BLOCK_MS, warmup: int = 5
) -> dict[str, Samples]:
    """Time several candidates in turns: A B B A, A B B A, ... (A B C C B A for three), one block each.

    A block lasts about `block_ms` and holds 3 to 50 runs. Before the candidate changes, the process waits until the
    threads of the last one have stopped spinning (`park`), so two engines' pools never compete for the cores.
    Blocks of all candidates carry the same numbers: hand two of the results to `ratio`.
    """
    lengths = {}
    for name, run in runs.items():
        lengths[name] = block_length(warm(run, warmup), block_ms)
        park()
    recorders = {name: Recorder(2 * rounds * lengths[name]) for name in runs}
    window = Window()
    for block, name, following in turns(list(runs), rounds):
        for _ in range(LEAD_RUNS):
            runs[name]()
        for _ in range(lengths[name]):
            recorders[name].once(runs[name], block)
        if following != name:
            park()
    return {name: recorder.samples(window) for name, recorder in recorders.items()}


def block_length(typical_s: float, block_ms: float = BLOCK_MS) -> int:
    """Return how many runs make a block of about `block_ms`."""
    return min(max(math.ceil(block_ms / 1e3 / typical_s), BLOCK_RUNS[0]), BLOCK_RUNS[1])


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """Yield (block, whose turn, whose turn is next or ""): A B B A, A B B A, ..."""
    order = [name for _ in range(rounds) for name in (*names, *reversed(names))]
    for turn, (name, following) in enumerate(pairwise([*order, ""])):
        yield turn // len(names), name, following


def park() -> bool:
    """Wait until this process uses no processor, at most 0.5 s; False when something in it keeps running.

    Engines let their threads spin for up to 200 ms after a run, in the hope of the next one.
    """
    end, quiet = time.monotonic() + PARK_LIMIT_S, 0
    while quiet < PARK_STEPS:
        if time.monotonic() > end:
            return False
        before = time.process_time_ns()
        time.sleep(PARK_STEP_S)
        quiet = quiet + 1 if time.process_time_ns() - before < PARK_STEP_S * 1e9 / 10 else 0
    return True


def warm(run: Run, warmup: int) -> float:
    """Run `warmup` times and return the median seconds of the second half."""
    times: NDArray[np.float64] = np.empty(max(warmup, 2))
    for i in range(len(times)):
        start = time.perf_counter_ns()
        run()
        times[i] = time.perf_counter_ns() - start
    return max(float(np.median(times[len(times) // 2 :])) / 1e9, 1e-7)
