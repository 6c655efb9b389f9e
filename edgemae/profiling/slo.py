"""Limits of `--slo`: what they ask of a run, and whether a run has shown that they are met."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemae.profiling.records import Profile, SloVerdict, Start
from edgemae.profiling.scenarios import TAIL, ScenarioResult
from edgemae.profiling.stats.percentiles import PERCENTILES, percentile, runs_needed
from edgemae.spec.errors import BudgetGateError, InputError, MachineError, nearest

FORMS = "p99<33ms, age_p99<100ms, fps>25, drop<1% or cold<2s"
TIME_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
UNITS: dict[str, dict[str, float]] = {"fps": {"": 1.0, "fps": 1.0}, "drop": {"%": 0.01}, "cold": TIME_UNITS}
UNITS |= {f"{of}{name}": TIME_UNITS for of in ("", "age_") for name in PERCENTILES}
SCENARIOS = {"fps": ("offline", "camera"), "drop": ("camera",)}  # that have this figure; ages: camera
COLD_STARTS = runs_needed(0.5)  # 7: their slowest is the upper end of the median's interval
_SHAPE = re.compile(r"([a-z_]+[0-9.]*)\s*(<|>)=?\s*([0-9]*\.?[0-9]+)\s*([a-z%]*)")


@dataclass(frozen=True)
class Slo:
    """One limit. Times are in ms, a share of dropped frames is 0..1."""

    text: str
    metric: str
    limit: float

    @property
    def share(self) -> float | None:
        """The quantile that is limited, where it is one."""
        return PERCENTILES.get(self.metric.removeprefix("age_"))

    @property
    def runs(self) -> int:
        """Runs that it takes before this limit can be shown to be met."""
        if self.share is not None:
            return runs_needed(self.share)
        return math.ceil(math.log(TAIL) / math.log1p(-self.limit)) if self.metric == "drop" else 0


def parse_slo(text: str) -> Slo:
    """Return the limit that a text such as "p99<33ms" states. Raises InputError for anything else."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise _wrong(text, "it has another form")
    metric, sign, number, unit = match.groups()
    if metric not in UNITS:
        raise _wrong(text, f"there is no figure '{metric}'.{nearest(metric, list(UNITS))}")
    if sign != (">" if metric == "fps" else "<"):
        raise _wrong(text, f"'{metric}' is limited from {'below' if metric == 'fps' else 'above'}")
    if unit not in UNITS[metric]:
        units = " or ".join(name or "nothing" for name in UNITS[metric])
        raise _wrong(text, f"'{metric}' is given in {units}, not in '{unit}'" if unit else f"'{metric}' needs {units}")
    limit = float(number) * UNITS[metric][unit]
    if not 0 < limit < (1 if metric == "drop" else math.inf):
        raise _wrong(text, "no measurement can show that to be met")
    return Slo(text=text.strip(), metric=metric, limit=limit)


def runs_for(limits: Sequence[Slo], scenario: str, fps: float, runs: int | None) -> int:
    """Return how many runs the limits need. Raises InputError when this scenario or this many runs cannot show one."""
    for limit in limits:
        where = ("camera",) if limit.metric.startswith("age_") else SCENARIOS.get(limit.metric, (scenario,))
        if scenario not in where:
            raise InputError(
                f"the limit '{limit.text}' was asked of scenario '{scenario}', which has no such figure",
                expected=f"--scenario {' or '.join(where)}",
                fix="choose that scenario, or leave the limit out",
            )
        if limit.metric == "fps" and scenario == "camera" and limit.limit >= fps:
            raise InputError(
                f"the limit '{limit.text}' cannot be met behind a camera of {fps:g} frames a second",
                expected="a limit below the rate of the camera",
                fix=f"raise --fps above {limit.limit:g}, or lower the limit",
            )
        if runs is not None and runs < limit.runs:
            raise InputError(
                f"{runs} runs cannot show that '{limit.text}' is met",
                expected=f"at least {limit.runs} runs",
                fix=f"--runs {limit.runs}, or leave --runs out: then as many are taken as the limits need",
            )
    return max((limit.runs for limit in limits), default=0)


def evaluate_slo(limit: Slo, measurements: ScenarioResult, start: Start | None) -> SloVerdict:
    """Return whether the end of the figure's interval that is nearer to the limit is within it."""
    value, end, note = _figure(limit, measurements, start)
    above = limit.metric == "fps"
    passed = value is not None and end is not None and (end > limit.limit if above else end < limit.limit)
    return SloVerdict(text=limit.text, value=value, high=end, passed=passed, note=note)


def _figure(limit: Slo, measurements: ScenarioResult, start: Start | None) -> tuple[float | None, float | None, str]:
    """Return (value, end of its interval towards the limit, from what)."""
    if limit.share is not None:
        ns = measurements.ages if limit.metric.startswith("age_") else measurements.calls
        if ns is None or len(ns) < limit.runs:
            return None, None, f"needs {limit.runs} runs"
        value, _, high = percentile(np.sort(ns), limit.share)
        return value / 1e6, high / 1e6, f"{len(ns)} runs"
    if limit.metric == "cold":
        return (start.cold_ms, start.cold_high_ms, f"slowest of {start.runs} starts") if start else (None, None, "")
    if limit.metric == "drop":
        seen = measurements.camera
        return (seen.drop_share, seen.drop_high, f"{seen.frames} frames") if seen else (None, None, "")
    if measurements.camera is not None:
        return measurements.camera.fps, measurements.camera.fps_low, f"{measurements.samples.n} results"
    speed = measurements.throughput
    return (speed.fps, speed.low, f"{measurements.samples.n} runs") if speed else (None, None, "")


def exit_code(found: Profile) -> int:
    """Return 5 for figures that cannot be believed, else 4 when a limit was not shown to be met, else 0."""
    if found.verdict == "INVALID":
        return MachineError.exit_code
    return 0 if all(limit.passed for limit in found.slo) else BudgetGateError.exit_code


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"the limit '{text}' cannot be read: {why}", expected=FORMS, fix="correct --slo")
