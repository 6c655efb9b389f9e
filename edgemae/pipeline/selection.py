"""Which graph ships on which engine, and why. int8 must earn its place: faster than float here, and as right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.profiling.compare.graph_benchmark import Latencies, Machine
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.report import EngineLatency, StageScore
from edgemae.spec.target import Target

MAX_INT8_DROP = 0.005  # share of images that int8 may lose against the float graph it replaces
MIN_COSINE = 0.99  # of embeddings, where there are no labels to judge by


@dataclass(frozen=True)
class Choice:
    """One variant: a candidate and why it stands there."""

    candidate: Candidate
    reason: str


def choose(
    target: Target, plan: QuantizePlan, found: list[Candidate], scores: Mapping[str, StageScore],
    latency: Latencies, machine: Machine,
) -> list[Choice]:  # fmt: skip
    """Return the variants in order of preference, by what a machine measured.

    They are each engine's choice in the target's order, then the float graphs behind int8 choices.
    """
    first, behind = [], []
    for engine in target.engines:
        mine = [c for c in found if c.engine == engine]
        choice, spare = _for_engine(target, plan, mine, scores, latency, machine)
        first.append(choice)
        if spare is not None:
            behind.append(
                Choice(spare, f"float behind {choice.candidate.graph.precision}, for devices where that fails")
            )
    return first + behind


def table(
    choices: list[Choice], scores: Mapping[str, StageScore], latency: Mapping[str, EngineLatency], places: int
) -> tuple[EngineLatency, ...]:  # fmt: skip
    """Return the measured rows in their order, the first `places` variants marked as chosen, with the reason."""
    reasons = {choice.candidate.name: choice.reason for choice in choices[:places]}
    rows = []
    for name, row in latency.items():
        verdict = "" if row.verdict in ("TRUSTED", "") else f"{row.verdict.lower()} machine while measuring"
        reason = "; ".join(part for part in (reasons.get(name, ""), verdict) if part)
        score = scores.get(name)
        own = {"cosine": score.cosine, "top1": score.top1} if score else {}
        rows.append(msgspec.structs.replace(row, chosen=name in reasons, reason=reason, **own))
    return tuple(rows)


def unmeasured(choices: list[Choice], latency: Mapping[str, EngineLatency], places: int) -> tuple[EngineLatency, ...]:
    """Return rows of 0 runs for the chosen variants that could not run here: what was not measured passes no limit."""
    return tuple(
        EngineLatency(
            engine=choice.candidate.engine, precision=choice.candidate.graph.precision, p50_ms=0.0, n=0,
            ratio_to_torch_eager=0.0, chosen=True,
        )
        for choice in choices[:places] if choice.candidate.name not in latency
    )  # fmt: skip


def _for_engine(
    target: Target, plan: QuantizePlan, mine: list[Candidate], scores: Mapping[str, StageScore],
    latency: Latencies, machine: Machine,
) -> tuple[Choice, Candidate | None]:  # fmt: skip
    """Return the choice of one engine and the float candidate behind it, if the choice is int8."""
    floats = [c for c in mine if c.graph.precision != "int8"]
    eights = [c for c in mine if c.graph.precision == "int8"]
    best = min(floats, key=lambda c: _p50(c, latency))
    if not eights:
        return Choice(best, "the target lists no int8"), None
    right = [c for c in eights if _is_right(scores[c.name], scores[best.name])]
    if not right:
        worst = min(eights, key=lambda c: _p50(c, latency))
        return Choice(
            best, f"int8 is not right enough ({_figures(scores[worst.name], scores[best.name])}): kept float"
        ), None
    eight = min(right, key=lambda c: _p50(c, latency))
    figures = _figures(scores[eight.name], scores[best.name])
    unlike = machine.mismatch(target) if eight.engine in machine.engines else f"the machine does not run {eight.engine}"
    if unlike:
        wanted = next(p for p in target.precisions if p == "int8" or p == best.graph.precision)
        seen = _speed_text(eight, best, latency)
        note = f"by the target's order, latency did not decide: {unlike}{seen}; {figures}"
        return (Choice(eight, note), best) if wanted == "int8" else (Choice(best, note), None)
    gain = latency.gains[eight.name][best.name]
    if gain < plan.min_speedup:
        return Choice(best, f"int8 {gain:.2f}x on {machine.isa}: kept float"), None
    return Choice(eight, f"int8 {gain:.2f}x as fast as float on {machine.isa}; {figures}"), best


def is_hurt(found: list[Candidate], scores: Mapping[str, StageScore]) -> bool:
    """Tell whether there are int8 candidates and none is as right as the float graph of its engine."""
    eights = [c for c in found if c.graph.precision == "int8"]
    floats = {c.engine: scores[c.name] for c in reversed(found) if c.graph.precision != "int8"}
    return bool(eights) and not any(_is_right(scores[c.name], floats[c.engine]) for c in eights)


def _is_right(eight: StageScore, float_score: StageScore) -> bool:
    if eight.top1 is not None and float_score.top1 is not None:
        return eight.top1 >= float_score.top1 - MAX_INT8_DROP - 1e-9
    return eight.cosine is not None and eight.cosine >= MIN_COSINE


def _figures(eight: StageScore, float_score: StageScore) -> str:
    cosine = "" if eight.cosine is None else f", cosine {eight.cosine:.4f}"
    if eight.top1 is None or float_score.top1 is None:
        return f"no labels{cosine}"
    return f"top-1 {100 * eight.top1:.2f} % against {100 * float_score.top1:.2f} %{cosine}"


def _p50(candidate: Candidate, latency: Latencies) -> float:
    return latency.rows[candidate.name].p50_ms if candidate.name in latency.rows else 0.0


def _speed_text(eight: Candidate, best: Candidate, latency: Latencies) -> str:
    gain = latency.gains.get(eight.name, {}).get(best.name)
    return "" if gain is None else f" (there int8 ran at {gain:.2f}x of float)"
