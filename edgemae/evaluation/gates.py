"""Gates: evaluate each limit of the plan. A limit that the measurements do not prove to be met counts as missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgemae.evaluation.intervals import images_for_drop, images_for_share, paired_interval, wilson
from edgemae.profiling.stats.percentiles import runs_needed
from edgemae.spec.errors import AccuracyGateError, BudgetGateError
from edgemae.spec.plan_schema import GatePlan
from edgemae.spec.report import EngineLatency, GateVerdict, StageScore

P90_RUNS = runs_needed(0.9)  # 44: with 99 % confidence the slowest of them lies above the true p90
ACCURACY_GATES = ("max_drop_pts", "min_agreement")
_FLOAT_STAGES = ("pruned", "student")


def evaluate_gates(
    gates: GatePlan, stages: Sequence[StageScore], engines: Sequence[EngineLatency], bundle_size: int
) -> tuple[GateVerdict, ...]:
    """Return one verdict for each limit that is set: 0 is one, None is off.

    Accuracy limits are tested on the stage of every chosen engine (the last stage when none is chosen) and pass only
    when the end of the interval at `gates.confidence` is within the limit. Latency is tested on every chosen engine.
    `bundle_size` is in bytes, of what the device runs: the report is not in it, for it carries this verdict.
    """
    shipped = shipped_stages(stages, engines)
    verdicts = []
    sure = gates.confidence
    if (limit := gates.max_drop_pts) is not None:
        verdicts.append(_combined([_drop(limit, sure, stage) for stage in shipped], "max_drop_pts", limit))
    if (limit := gates.min_agreement) is not None:
        verdicts.append(_combined([_agreement(limit, sure, stage) for stage in shipped], "min_agreement", limit))
    if (limit := gates.p90_ms) is not None:
        chosen = [engine for engine in engines if engine.chosen]
        verdicts.append(_combined([_latency(limit, engine) for engine in chosen], "p90_ms", limit))
    if (limit := gates.size_mib) is not None:
        mib = bundle_size / 2**20
        passed = mib <= limit
        note = "graphs and golden frames, without the report"
        verdicts.append(GateVerdict(gate="size_mib", limit=limit, value=mib, passed=passed, note=note))
    return tuple(verdicts)


def status_of(verdicts: Sequence[GateVerdict]) -> Literal["passed", "failed", "untested"]:
    """Return the status of a bundle: nothing passes where nothing was asked for."""
    if not verdicts:
        return "untested"
    return "passed" if all(verdict.passed for verdict in verdicts) else "failed"


def exit_code(verdicts: Sequence[GateVerdict]) -> int:
    """Return 0 when all passed, 3 when an accuracy limit was missed, else 4."""
    missed = {verdict.gate for verdict in verdicts if not verdict.passed}
    if missed & set(ACCURACY_GATES):
        return AccuracyGateError.exit_code
    return BudgetGateError.exit_code if missed else 0


def stage_of(engine: EngineLatency, stages: Sequence[StageScore]) -> StageScore | None:
    """Return the stage whose weights an engine runs: int8 for int8, else the pruned or else the float student."""
    wanted = ("int8 (QAT)", "int8") if engine.precision == "int8" else _FLOAT_STAGES
    return next((stage for name in wanted for stage in stages if stage.stage == name), None)


def shipped_stages(stages: Sequence[StageScore], engines: Sequence[EngineLatency]) -> list[StageScore]:
    """Return the stages of the chosen engines, in order; the last stage when no engine is chosen."""
    chosen = [stage_of(engine, stages) for engine in engines if engine.chosen]
    shipped = [stage for stage in stages if any(stage is other for other in chosen)]
    return shipped or list(stages[-1:])


def _combined(verdicts: list[GateVerdict], gate: str, limit: float) -> GateVerdict:
    """Return a missed verdict if there is one, else the last; without a verdict the limit is missed."""
    if not verdicts:
        return GateVerdict(gate=gate, limit=limit, value=None, passed=False, note="nothing was measured")
    return next((verdict for verdict in verdicts if not verdict.passed), verdicts[-1])


def _drop(limit: float, confidence: float, stage: StageScore) -> GateVerdict:
    percent = f"{confidence * 100:g} %"

    def verdict(value: float | None, passed: bool, note: str) -> GateVerdict:
        return GateVerdict(gate="max_drop_pts", limit=limit, value=value, passed=passed, note=f"{stage.stage}: {note}")

    if stage.stage == "student":
        return verdict(0.0, True, "the float student itself ships")
    if stage.drop_pts is None or stage.lost is None or stage.gained is None:
        return verdict(
            None, False, "no labels, so no drop can be shown; give labelled --eval-data or use min_agreement"
        )
    low, high = (100 * end for end in paired_interval(stage.lost, stage.gained, stage.n, confidence))
    evidence = f"{percent} interval {low:+.2f} to {high:+.2f} points on {stage.n} images"
    if high <= limit:
        return verdict(stage.drop_pts, True, evidence)
    needed = images_for_drop(stage.lost, stage.gained, stage.n, limit / 100, confidence)
    return verdict(stage.drop_pts, False, f"{evidence}; {_advice(needed, limit, 'points')}")


def _agreement(limit: float, confidence: float, stage: StageScore) -> GateVerdict:
    percent = f"{confidence * 100:g} %"

    def verdict(value: float | None, passed: bool, note: str) -> GateVerdict:
        return GateVerdict(gate="min_agreement", limit=limit, value=value, passed=passed, note=f"{stage.stage}: {note}")

    if stage.stage == "student":
        return verdict(1.0, True, "the float student itself ships")
    if stage.agreement is None:
        return verdict(None, False, "the model has no head, so there are no labels to agree on")
    agreed = round(stage.agreement * stage.n)
    low, high = wilson(agreed, stage.n, confidence)
    evidence = f"{percent} interval {low:.4f} to {high:.4f} on {stage.n} images"
    if low >= limit:
        return verdict(stage.agreement, True, evidence)
    needed = images_for_share(agreed, stage.n, limit, confidence)
    return verdict(stage.agreement, False, f"{evidence}; {_advice(needed, limit, 'agreement')}")


def _advice(needed: int | None, limit: float, unit: str) -> str:
    if needed is None:
        return f"the measured value itself misses {limit:g} {unit}, more images would not help"
    return f"too few images: at these rates {needed} would show {limit:g} {unit}"


def _latency(limit_ms: float, engine: EngineLatency) -> GateVerdict:
    """Return whether the upper end of the interval of p90 is within the limit, on a machine quiet enough."""
    name, value, passed = f"{engine.engine} {engine.precision}", engine.p90_ms, False
    if engine.n < P90_RUNS:
        value, note = None, f"{engine.n} runs; a p90 needs {P90_RUNS}"
    elif value is None:
        note = "p90 was not measured"
    elif engine.verdict == "INVALID":
        note = f"p90 of {engine.n} runs on a machine too busy to measure; compile again when it is quiet"
    elif engine.p90_high_ms is None:
        note = f"p90 of {engine.n} runs, too few for the upper end of its interval"
    else:
        passed = engine.p90_high_ms <= limit_ms
        note = f"p90 of {engine.n} runs, 95 % interval up to {engine.p90_high_ms:.4g} ms"
    return GateVerdict(gate="p90_ms", limit=limit_ms, value=value, passed=passed, note=f"{name}: {note}")
