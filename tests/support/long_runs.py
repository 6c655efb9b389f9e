"""Runs of a planted course, for tests of scenarios."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgemae.profiling.scenarios import (
    ScenarioResult,
)
from edgemae.profiling.timing.timer import Samples, measure

MS = 1_000_000


def long_run(
    seconds: float, levels: Callable[[NDArray[np.float64]], NDArray[np.float64]], rate: int = 50
) -> ScenarioResult:
    rng = np.random.default_rng(0)
    at = np.arange(int(seconds * rate)) / rate
    ns = (5 * MS * levels(at / seconds) * rng.lognormal(0, 0.05, len(at))).astype(np.int64)
    evidence = measure(int, min_runs=20, min_seconds=0).interference
    samples = Samples(ns, np.zeros_like(ns), (at * 1e9).astype(np.int64) + 77, rng.random(len(ns)) > 0.1, evidence)
    return ScenarioResult(samples, ns, {})
