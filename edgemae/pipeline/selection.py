"""Which graph ships on which engine, and why: int8 where it is faster than float and within the accuracy limit."""

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
    target: Target, plan: QuantizePlan, candidates: list[Candidate], scores: Mapping[str, StageScore],
    latency: Latencies, machine: Machine,
) -> list[Choice]:  # fmt: skip
    """Return the variants in order of preference, by what a machine measured.

    They are each engine's choice in the target's order, then the float graphs behind int8 choices.
    """
    first, behind = [], []
    for engine in target.engines:
        mine = [c for c in candidates if c.engine == engine]
        choice, spare = _for_engine(target, plan, mine, scores, latency, machine)
        first.append(choice)
        if spare is not None:
            behind.append(
                Choice(spare, f"float behind {choice.candidate.graph.precision}, for devices where that fails")
            )
    return first + behind


def latency_table(
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


def unmeasured_rows(
    choices: list[Choice], latency: Mapping[str, EngineLatency], places: int
) -> tuple[EngineLatency, ...]:
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
    float_graphs = [c for c in mine if c.graph.precision != "int8"]
    int8_graphs = [c for c in mine if c.graph.precision == "int8"]
    best = min(float_graphs, key=lambda c: _p50(c, latency))
    if not int8_graphs:
        return Choice(best, "the target lists no int8"), None
    accurate = [c for c in int8_graphs if _is_accurate(scores[c.name], scores[best.name])]
    if not accurate:
        fastest = min(int8_graphs, key=lambda c: _p50(c, latency))
        return Choice(
            best, f"int8 loses accuracy ({_figures(scores[fastest.name], scores[best.name])}): kept float"
        ), None
    int8 = min(accurate, key=lambda c: _p50(c, latency))
    figures = _figures(scores[int8.name], scores[best.name])
    mismatch = machine.mismatch(target) if int8.engine in machine.engines else f"the machine does not run {int8.engine}"
    if mismatch:
        preferred = next(p for p in target.precisions if p == "int8" or p == best.graph.precision)
        speed = _speed_text(int8, best, latency)
        note = f"by the target's order, latency did not decide: {mismatch}{speed}; {figures}"
        return (Choice(int8, note), best) if preferred == "int8" else (Choice(best, note), None)
    gain = latency.gains[int8.name][best.name]
    if gain < plan.min_speedup:
        return Choice(best, f"int8 {gain:.2f}x on {machine.isa}: kept float"), None
    return Choice(int8, f"int8 {gain:.2f}x as fast as float on {machine.isa}; {figures}"), best


def int8_loses_accuracy(candidates: list[Candidate], scores: Mapping[str, StageScore]) -> bool:
    """Return whether there are int8 candidates, and none is within the accuracy limit of its engine's float graph."""
    int8_graphs = [c for c in candidates if c.graph.precision == "int8"]
    float_graphs = {c.engine: scores[c.name] for c in reversed(candidates) if c.graph.precision != "int8"}
    return bool(int8_graphs) and not any(_is_accurate(scores[c.name], float_graphs[c.engine]) for c in int8_graphs)


def _is_accurate(int8: StageScore, float_score: StageScore) -> bool:
    if int8.top1 is not None and float_score.top1 is not None:
        return int8.top1 >= float_score.top1 - MAX_INT8_DROP - 1e-9
    return int8.cosine is not None and int8.cosine >= MIN_COSINE


def _figures(int8: StageScore, float_score: StageScore) -> str:
    cosine = "" if int8.cosine is None else f", cosine {int8.cosine:.4f}"
    if int8.top1 is None or float_score.top1 is None:
        return f"no labels{cosine}"
    return f"top-1 {100 * int8.top1:.2f} % against {100 * float_score.top1:.2f} %{cosine}"


def _p50(candidate: Candidate, latency: Latencies) -> float:
    return latency.rows[candidate.name].p50_ms if candidate.name in latency.rows else 0.0


def _speed_text(int8: Candidate, best: Candidate, latency: Latencies) -> str:
    gain = latency.gains.get(int8.name, {}).get(best.name)
    return "" if gain is None else f" (there int8 ran at {gain:.2f}x of float)"
