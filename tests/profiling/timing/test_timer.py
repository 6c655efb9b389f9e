"""Runs are kept as asked, interleaved in order, and rest is waited for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgemae.profiling.stats.comparison import ratio
from edgemae.profiling.timing import timer
from edgemae.profiling.timing.interference import combined_verdict
from edgemae.profiling.timing.timer import interleave, measure, wait_until_idle
from tests.support.timing import spin


def test_measure_keeps_exactly_the_runs_that_were_asked_for() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    samples = measure(run, min_runs=50, min_seconds=0, warmup=5)
    assert samples.n == 50
    assert calls == 55
    assert samples.ns.min() > 0
    assert not samples.blocks.any()


def test_measure_notes_what_every_kept_run_returned() -> None:
    seen: list[tuple[int, object]] = []
    turns = iter(range(1000))
    measure(lambda: next(turns), min_runs=5, min_seconds=0, warmup=3, note=lambda *row: seen.append(row))
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]


def test_runs_back_to_back_leave_nothing_out_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "STRETCH_NS", 2_000_000)
    measurements = measure(spin(200_000), min_runs=40, min_seconds=0, warmup=4, back_to_back=True)
    assert measurements.n == 40
    joined = measurements.at_ns[:-1] + measurements.ns[:-1] == measurements.at_ns[1:]
    assert joined[np.diff(measurements.blocks) == 0].all()
    assert len(set(measurements.blocks)) > 1  # a look at the machine between the stretches
    apart = measure(spin(200_000), min_runs=40, min_seconds=0, warmup=4)
    assert (apart.at_ns[:-1] + apart.ns[:-1] < apart.at_ns[1:]).all()


def test_of_too_many_runs_one_of_so_many_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "CAPACITY", 50)
    monkeypatch.setattr(timer, "warm", lambda run, warmup: 1e-3)
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    measurements = measure(run, min_runs=10, min_seconds=0.25)
    assert (measurements.n, measurements.every) == (50, 10)
    assert calls == 500
    # Room for half of 2 * 0.099 s / 1 ms / 50: rounded down, the room would be full before the time is over.
    assert measure(run, min_runs=10, min_seconds=0.099).every == 4


def test_measure_goes_on_until_the_seconds_are_over() -> None:
    start = time.monotonic()
    samples = measure(spin(500_000), min_runs=10, min_seconds=0.3, warmup=4)
    assert samples.n >= 10
    assert time.monotonic() - start > 0.3


def test_interleaving_takes_turns_in_abba_order() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "AB"}
    measurements = interleave(runs, rounds=8, block_ms=0.0, warmup=2)
    turns = "".join(name for name, before in zip(order, [" ", *order], strict=False) if name != before)
    assert turns.endswith("ABABABABABABABABA")  # A B | B A | A B: neighbours of one name merge
    # One untimed run leads every block, then three timed ones.
    assert len(order) == 2 * 2 + 2 * 16 * (1 + 3)
    for samples in measurements.values():
        assert samples.n == 16 * 3
        assert list(samples.blocks) == [block for block in range(16) for _ in range(3)]


def test_a_planted_slowdown_is_measured_and_a_against_a_is_one() -> None:
    base, slow = spin(400_000), spin(800_000)
    measurements = interleave({"slow": slow, "a": base, "b": base}, rounds=10, block_ms=2.0)
    planted, nothing = ratio(measurements["slow"], measurements["a"]), ratio(measurements["a"], measurements["b"])
    trusted = combined_verdict(*(samples.interference.verdict for samples in measurements.values())) == "TRUSTED"
    low, high = (1.8, 2.2) if trusted else (1.2, 3.5)  # what a machine with other work on it can still show
    assert low < planted.median < high
    assert low / 2 < nothing.median < high / 2


def test_park_waits_until_the_process_is_quiet_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic_ns()
    monkeypatch.setattr(time, "process_time_ns", lambda: 0)
    assert wait_until_idle()
    # One thread that spins for 100 ms more.
    monkeypatch.setattr(time, "process_time_ns", lambda: min(time.monotonic_ns(), start + 100_000_000))
    assert wait_until_idle()
    assert time.monotonic_ns() >= start + 100_000_000
    monkeypatch.setattr(time, "process_time_ns", time.monotonic_ns)
    start = time.monotonic_ns()
    assert not wait_until_idle()
    assert time.monotonic_ns() - start >= 0.4e9
