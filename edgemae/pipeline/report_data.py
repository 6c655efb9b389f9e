"""The figures of a compile's report: the int8 row, verdicts of the gates, attention forms, evidence, notes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from edgemae.evaluation.gates import evaluate_gates
from edgemae.pipeline.benchmark import LOCAL, Benchmark
from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.profiling.layers.layer_profile import by_kind, profile_layers
from edgemae.spec.plan_schema import Plan
from edgemae.spec.report import EngineLatency, GateVerdict, StageScore
from edgemae.spec.target import Target

EXPECTED_GAIN = 2.0  # int8 over float on one engine; below it the report shows where the time goes


def int8_row(
    first: Candidate, candidates: list[Candidate], scores: dict[str, StageScore], latency: dict[str, EngineLatency]
) -> tuple[StageScore, ...]:
    """Return the stage row of the int8 graph that ships, or else of the fastest one of the first engine."""
    int8_graphs = [c for c in candidates if c.graph.precision == "int8"]
    if not int8_graphs:
        return ()
    mine = [c for c in int8_graphs if c.engine == first.engine] or int8_graphs
    shown = first if first in mine else min(mine, key=lambda c: latency[c.name].p50_ms if c.name in latency else 0.0)
    return (scores[shown.name],)


def gate_verdicts(
    plan: Plan, stages: tuple[StageScore, ...], engines: tuple[EngineLatency, ...], mismatch: str, size: int
) -> tuple[GateVerdict, ...]:
    """Return the gates' verdicts; a latency measured on other arithmetic than the target's shows nothing."""
    if not mismatch:
        return evaluate_gates(plan.gates, stages, engines, size)
    verdicts = evaluate_gates(plan.gates, stages, [msgspec.structs.replace(e, p90_ms=None) for e in engines], size)
    return tuple(
        msgspec.structs.replace(g, note=f"{g.note}: {mismatch}; profile on the device") if g.gate == "p90_ms" else g
        for g in verdicts
    )


def attention_rows(candidates: list[Candidate], latency: dict[str, EngineLatency]) -> list[dict[str, Any]]:
    """Return both exported forms of attention as measured on each engine, the faster one marked."""
    float_graphs = [c for c in candidates if c.graph.precision == "fp32" and c.name in latency]
    fastest = {
        e: min((c for c in float_graphs if c.engine == e), key=lambda c: latency[c.name].p50_ms)
        for e in {c.engine for c in float_graphs}
    }
    return [
        {
            "engine": c.engine, "form": c.form, "p50_ms": latency[c.name].p50_ms, "n": latency[c.name].n,
            "ratio_to_torch_eager": latency[c.name].ratio_to_torch_eager, "chosen": c is fastest[c.engine],
        }
        for c in float_graphs
    ]  # fmt: skip


def int8_evidence(
    target: Target, candidates: list[Candidate], latency: dict[str, EngineLatency], mismatch: str
) -> dict[str, Any]:
    """Return shares of time by operator, float beside int8, for engines where int8 gains less than EXPECTED_GAIN."""
    evidence: dict[str, Any] = {}
    for engine in target.engines:
        mine = [c for c in candidates if c.engine == engine and c.name in latency]
        float_graphs = [c for c in mine if c.graph.precision == "fp32"]
        int8_graphs = [c for c in mine if c.graph.precision == "int8"]
        if not float_graphs or not int8_graphs:
            continue
        best, int8 = (min(part, key=lambda c: latency[c.name].p50_ms) for part in (float_graphs, int8_graphs))
        gain = latency[best.name].p50_ms / latency[int8.name].p50_ms
        if gain >= EXPECTED_GAIN:
            continue
        pixels = np.zeros(best.graph.io.inputs[0].shape, best.graph.io.dtype)
        evidence[engine] = {
            "int8_gain": round(gain, 3),
            "why": mismatch or "share of time by operator, float beside int8",
            "float": by_kind(profile_layers(engine, best.graph.files, target, pixels, limits=False)),
            "int8": by_kind(profile_layers(engine, int8.graph.files, target, pixels, limits=False)),
        }
    return evidence


def notes(target: Target, benchmark: Benchmark, *, pruned: bool) -> list[str]:
    """Return what a reader of the figures has to know."""
    found = [] if benchmark is LOCAL else [f"Latencies were measured on {benchmark.name}, where there is no torch."]
    if mismatch := benchmark.machine.mismatch(target):
        found.append(f"Latencies do not speak for {target.title}: {mismatch}. Profile the bundle on the device.")
    if not pruned:
        found.append("Pruning was off: the pruned stage is the student itself.")
    return found
