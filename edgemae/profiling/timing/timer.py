"""Measure latencies: one run after another, or several candidates interleaved so that they share their disturbances."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemae.profiling.stats.comparison import Blocks
from edgemae.profiling.timing.interference import (
    Interference,
    Window,
    assess_interference,
    canary_ns,
    clean_runs,
    involuntary_switches,
)

log = logging.getLogger(__name__)
Run = Callable[[], object]
Note = Callable[[int, Any], None]  # gets the number of a run that was kept and what it returned, between two runs
CAPACITY = 1_000_000  # runs that one measurement keeps at most: 40 MB
CANARY_EVERY_NS = 2_000_000  # at most 5 % of the time goes to a loop of 0.1 ms
STRETCH_NS = 40_000_000  # of runs back to back, between two canaries
BLOCK_MS = 40.0
BLOCK_RUNS = (3, 50)  # shortest and longest block of an interleaved measurement
LEAD_RUNS = 1  # untimed at the head of a block: caches still hold the other candidate
IDLE_STEP_S, IDLE_LIMIT_S = 0.004, 0.5
IDLE_STEPS = 2  # quiet ones in a row: beside other work a spinning thread may not run at all for one step
LINE_EVERY_S = 15.0  # a log line, not a bar: the thread that redraws a bar would disturb the runs


@dataclass(frozen=True, eq=False)
class Samples(Blocks):
    """Hold latencies in ns, the block each was taken in, and what else the machine did meanwhile."""

    at_ns: NDArray[np.int64]  # start of every run, on time.perf_counter_ns
    clean: NDArray[np.bool_]  # without a sign of interference, or as fast as such runs
    interference: Interference
    every: int = 1  # one run of this many was kept

    @property
    def n(self) -> int:
        return len(self.ns)


class Recorder:
    """Time runs into arrays that exist before the first one: nothing is allocated between two clock reads."""

    def __init__(self, capacity: int, note: Note | None = None) -> None:
        self.n = 0
        self.ns, self.at_ns, self.switches, self.blocks = (np.zeros(capacity, np.int64) for _ in range(4))
        self.canaries = np.zeros(capacity + 1, np.int64)
        self._note = note
        self._canary_ns, self._canary_at_ns = canary_ns(), time.perf_counter_ns()

    @property
    def full(self) -> bool:
        return self.n == len(self.ns)

    def once(self, run: Run, block: int = 0, *, watch: bool = True) -> None:
        """Time one run, with the canary before it; without `watch` the caller has just run it."""
        if watch:
            self.watch()
        before = involuntary_switches()
        start = time.perf_counter_ns()
        found = run()
        self._keep(start, time.perf_counter_ns(), involuntary_switches() - before, block)
        if self._note is not None:
            self._note(self.n - 1, found)

    def stretch(self, run: Run, count: int, block: int = 0) -> None:
        """Time `count` runs back to back: each lasts until the next one starts, so nothing is left out of their sum."""
        self.watch()
        before, start = involuntary_switches(), time.perf_counter_ns()
        for _ in range(min(count, len(self.ns) - self.n)):
            found = run()
            switches, end = involuntary_switches(), time.perf_counter_ns()
            self.canaries[self.n] = self._canary_ns
            self._keep(start, end, switches - before, block)
            if self._note is not None:
                self._note(self.n - 1, found)
            before, start = switches, end

    def measurements(self) -> dict[str, NDArray[np.int64]]:
        """Return what was taken so far, (n,) each, and canaries (n + 1,) with one after the last run."""
        self._canary_at_ns = 0
        self.watch()
        columns = {name: getattr(self, name)[: self.n].copy() for name in ("ns", "at_ns", "switches", "blocks")}
        return columns | {"canaries": self.canaries[: self.n + 1].copy()}

    def samples(self, window: Window, every: int = 1) -> Samples:
        return samples_of(self.measurements(), window, every)

    def _keep(self, start: int, end: int, switches: int, block: int) -> None:
        n = self.n
        self.ns[n], self.at_ns[n], self.switches[n], self.blocks[n] = end - start, start, switches, block
        self.n = n + 1

    def watch(self) -> None:
        """Note the canary's time before run n; a loop that is younger than 2 ms is not repeated."""
        now = time.perf_counter_ns()
        if now - self._canary_at_ns > CANARY_EVERY_NS:
            self._canary_ns, self._canary_at_ns = canary_ns(), now
        self.canaries[self.n] = self._canary_ns


def samples_of(measurements: Mapping[str, NDArray[np.int64]], window: Window, every: int = 1) -> Samples:
    """Return what a recorder took, with the verdict on it."""
    evidence = assess_interference(measurements["ns"], measurements["switches"], measurements["canaries"], window)
    clean = clean_runs(measurements["ns"], measurements["switches"], measurements["canaries"])
    return Samples(measurements["ns"], measurements["blocks"], measurements["at_ns"], clean, evidence, every)


class StopCondition:
    """Say whether a measurement goes on: until both its runs and its seconds are reached. Long ones are logged."""

    def __init__(self, min_runs: int, min_seconds: float) -> None:
        self._runs, self._seconds = min_runs, min_seconds
        self._start_s = self._line_s = time.monotonic()

    def more(self, done: int) -> bool:
        now = time.monotonic()
        if now - self._line_s >= LINE_EVERY_S:
            self._line_s = now
            log.info("%.0f of %.0f s, %d of %d runs", now - self._start_s, self._seconds, done, self._runs)
        return done < self._runs or now - self._start_s < self._seconds


def measure(
    run: Run, *, min_runs: int = 100, min_seconds: float = 3.0, warmup: int = 10, note: Note | None = None,
    back_to_back: bool = False,
) -> Samples:  # fmt: skip
    """Time `run` until both `min_runs` and `min_seconds` are reached.

    `min_seconds=0` takes exactly `min_runs`. The `warmup` runs are not kept. Of more than a million runs one of so many
    is kept that a million is not passed. `note` gets every kept run's number and result. `back_to_back` leaves nothing
    between the runs of a stretch of 40 ms, so that their sum is the time that they took.
    """
    typical_s = warm(run, warmup)
    # Thinned for runs twice as fast as the warm-up: it is the slowest part of a process' life. What is not used of the
    # room costs no memory: the kernel gives pages when they are first written.
    room = max(CAPACITY, min_runs) if min_seconds else min_runs
    every = max(1, math.ceil(2 * min_seconds / typical_s / room))
    count = max(1, math.ceil(STRETCH_NS / 1e9 / typical_s)) if back_to_back else 1
    recorder = Recorder(room, note)
    window, until = Window(), StopCondition(min_runs, min_seconds)
    while not recorder.full and until.more(recorder.n):
        window.sample()
        for _ in range((every - 1) * count):
            run()
        if back_to_back:
            recorder.stretch(run, min(count, min_runs - recorder.n) if not min_seconds else count, recorder.n // count)
        else:
            recorder.once(run)
    return recorder.samples(window, every)


def interleave(
    runs: Mapping[str, Run], rounds: int = 20, *, block_ms: float = BLOCK_MS, warmup: int = 5
) -> dict[str, Samples]:
    """Time several candidates interleaved: A B B A, A B B A, ... (A B C C B A for three), one block each.

    A block lasts about `block_ms` and holds 3 to 50 runs. Before the candidate changes, `wait_until_idle` waits until
    the threads of the last one have stopped spinning, so two engines' pools never compete for the cores.
    Blocks of all candidates carry the same numbers: hand two of the results to `ratio`.
    """
    lengths = {}
    for name, run in runs.items():
        lengths[name] = block_length(warm(run, warmup), block_ms)
        wait_until_idle()
    recorders = {name: Recorder(2 * rounds * lengths[name]) for name in runs}
    window = Window()
    for block, name, following in interleaved_order(list(runs), rounds):
        window.sample()
        for _ in range(LEAD_RUNS):
            runs[name]()
        for _ in range(lengths[name]):
            recorders[name].once(runs[name], block)
        if following != name:
            wait_until_idle()
    return {name: recorder.samples(window) for name, recorder in recorders.items()}


def block_length(typical_s: float, block_ms: float = BLOCK_MS) -> int:
    """Return how many runs make a block of about `block_ms`."""
    return min(max(math.ceil(block_ms / 1e3 / typical_s), BLOCK_RUNS[0]), BLOCK_RUNS[1])


def interleaved_order(names: list[str], rounds: int) -> Iterator[tuple[int, str, str]]:
    """Yield (block, name, name of the next block or ""): A B B A, A B B A, ..."""
    order = [name for _ in range(rounds) for name in (*names, *reversed(names))]
    for position, (name, following) in enumerate(pairwise([*order, ""])):
        yield position // len(names), name, following


def wait_until_idle() -> bool:
    """Wait until this process uses no processor, at most 0.5 s; False when something in it keeps running.

    Engines let their threads spin for up to 200 ms after a run, in the hope of the next one.
    """
    end, quiet = time.monotonic() + IDLE_LIMIT_S, 0
    while quiet < IDLE_STEPS:
        if time.monotonic() > end:
            return False
        before = time.process_time_ns()
        time.sleep(IDLE_STEP_S)
        quiet = quiet + 1 if time.process_time_ns() - before < IDLE_STEP_S * 1e9 / 10 else 0
    return True


def warm(run: Run, warmup: int) -> float:
    """Run `warmup` times, at least twice, and return the median seconds of the second half."""
    times: NDArray[np.float64] = np.empty(max(warmup, 2))
    for i in range(len(times)):
        start = time.perf_counter_ns()
        run()
        times[i] = time.perf_counter_ns() - start
    return max(float(np.median(times[len(times) // 2 :])) / 1e9, 1e-7)
