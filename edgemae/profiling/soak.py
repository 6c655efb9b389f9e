"""A long run: did it get slower from its first to its last minute?"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from edgemae.profiling.records import Soak
from edgemae.profiling.scenarios import ScenarioResult
from edgemae.profiling.stats.comparison import shift
from edgemae.profiling.stats.percentiles import runs_needed
from edgemae.spec.errors import InputError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
SHORTEST_S = 10.0
MINUTE_S, SHORT_S = 60.0, 120.0  # below two minutes, tenths are compared
# Few and long: a machine wanders by 1 % over 5 s to 30 s, and blocks that share a spell are no evidence of their own.
BLOCKS = 8
FEWEST_RUNS = runs_needed(0.5)  # of a median
# What still wanders between two minutes is no slow-down. Of soaks simulated with 1 % of wander, 13 % to 32 % were
# called slower before both; with both none of 120, and a slow-down of 5 % is found in 97 % and more.
LEAST_SLOWER = 1.02


def parse_soak(text: str) -> float:
    """Return the seconds of "90s", "10m" or "1h". Raises InputError for anything else and for less than 10 s."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([smh])", text.strip())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not SHORTEST_S <= seconds < math.inf:
        raise InputError(
            f"'{text}' is no length of a soak",
            expected=f"a number with s, m or h, at least {SHORTEST_S:g} s: 90s, 10m, 1h",
            fix="correct --soak",
        )
    return seconds


def first_against_last(measurements: ScenarioResult) -> Soak:
    """Return the first against the last minute (of less than two minutes: tenth) of the whole calls.

    The medians of up to 8 blocks of each are compared; slower is what is shown to be so by more than 2 %. Raises
    InputError when there are fewer than 7 runs in one.
    """
    at_s = (measurements.samples.at_ns - measurements.samples.at_ns[0]) / 1e9
    total = float(at_s[-1])
    part = MINUTE_S if total >= SHORT_S else total / 10
    first, last = measurements.calls[at_s < part], measurements.calls[at_s >= total - part]
    if min(len(first), len(last)) < FEWEST_RUNS:
        raise InputError(
            f"the first or last {part:.0f} s of the soak hold fewer than {FEWEST_RUNS} runs",
            expected=f"at least {FEWEST_RUNS} runs in each",
            fix="ask for a longer --soak",
        )
    found = shift(_medians(last), _medians(first))
    return Soak(
        minutes=total / 60, first_p50_ms=float(np.median(first)) / 1e6, last_p50_ms=float(np.median(last)) / 1e6,
        ratio=found.median, ratio_low=found.low, ratio_high=found.high, slower=found.low > LEAST_SLOWER,
    )  # fmt: skip


def _medians(ns: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.array([np.median(block) for block in np.array_split(ns, min(BLOCKS, len(ns)))])
