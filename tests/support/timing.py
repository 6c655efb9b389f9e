"""Runs that spin, and machines in a known state, for tests of timing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemae.profiling.timing.system_counters import SystemCounters


def heavy_tail(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return latencies in ns of 5 ms with a second mode and a Pareto tail, as an engine on a shared machine has."""
    base = 5e6 * rng.lognormal(0, 0.03, shape)
    base *= np.where(rng.random(shape) < 0.2, 1.3, 1.0)
    return base + np.where(rng.random(shape) < 0.05, 1e6 * rng.pareto(1.5, shape), 0.0)


def spin(ns: int) -> Callable[[], None]:
    """Return a function that computes for a fixed amount of work of about `ns`."""
    loops = max(1, ns // 40)

    def run() -> None:
        total = 0
        for i in range(loops):
            total += i

    return run


IDLE = SystemCounters(pressure_us=0, throttled_us=0, frequency_mhz=3000.0, temperature_c=50.0, heat_throttles=0)
