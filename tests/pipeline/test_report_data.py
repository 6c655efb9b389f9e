"""The figures of a report: which int8 row it shows, which attention form it marks, and what a foreign machine shows."""

from __future__ import annotations

import msgspec

from edgemae.pipeline import report_data
from edgemae.pipeline.benchmark import LOCAL
from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.spec.graph import Graph, IoContract
from edgemae.spec.plan_loading import load_plan
from edgemae.spec.report import EngineLatency, StageScore
from edgemae.spec.target import find_target

IO = IoContract(inputs=(), outputs=())


def candidate(engine: str, precision: str, scheme: str = "", form: str = "explicit") -> Candidate:
    return Candidate(engine, Graph({"model.onnx": b""}, IO, precision, scheme), form, engine + scheme + form)


def latency(found: Candidate, p50_ms: float) -> EngineLatency:
    return EngineLatency(
        engine=found.engine, precision=found.graph.precision, p50_ms=p50_ms, n=100, ratio_to_torch_eager=2.0,
        p90_ms=1.1 * p50_ms, p90_high_ms=1.2 * p50_ms, chosen=True,
    )  # fmt: skip


FLOAT, FUSED = candidate("openvino", "fp32"), candidate("openvino", "fp32", form="fused")
SLOW, FAST = candidate("openvino", "int8", "slow"), candidate("openvino", "int8", "fast")
OTHER = candidate("onnxruntime", "int8", "ort-static")
LATENCY = {c.name: latency(c, p50_ms) for c, p50_ms in ((FLOAT, 3.0), (FUSED, 2.0), (SLOW, 2.5), (FAST, 1.0))}
SCORES = {
    c.name: StageScore(stage=c.stage, top1=0.9, n=10, params=1, macs=1, size_bytes=size)
    for size, c in enumerate((SLOW, FAST, OTHER))
}


def test_the_int8_row_is_what_ships_else_the_fastest_of_the_first_engine() -> None:
    graphs = [FLOAT, SLOW, FAST, OTHER]
    assert report_data.int8_row(SLOW, graphs, SCORES, LATENCY) == (SCORES[SLOW.name],)
    assert report_data.int8_row(FLOAT, graphs, SCORES, LATENCY) == (SCORES[FAST.name],)
    assert report_data.int8_row(candidate("tensorrt", "fp16"), [OTHER], SCORES, LATENCY) == (SCORES[OTHER.name],)
    assert report_data.int8_row(FLOAT, [FLOAT], SCORES, LATENCY) == ()


def test_the_faster_form_of_attention_is_marked() -> None:
    rows = report_data.attention_rows([FLOAT, FUSED, FAST], LATENCY)
    assert [(row["form"], row["chosen"]) for row in rows] == [("explicit", False), ("fused", True)]


def test_a_latency_of_other_arithmetic_than_the_targets_meets_no_limit() -> None:
    plan = load_plan(None, ("gates.p90_ms=100", "gates.size_mib=1"))
    stages, engines = (SCORES[FAST.name],), (LATENCY[FAST.name],)
    here = {g.gate: g for g in report_data.gate_verdicts(plan, stages, engines, "", 1000)}
    assert here["p90_ms"].passed
    there = {g.gate: g for g in report_data.gate_verdicts(plan, stages, engines, "the machine has avx2", 1000)}
    assert not there["p90_ms"].passed
    assert "the machine has avx2" in there["p90_ms"].note
    assert there["size_mib"] == here["size_mib"]


def test_notes_name_a_mismatch_and_what_was_off() -> None:
    elsewhere = msgspec.structs.replace(find_target("laptop-x86-avx2"), arch="riscv64")
    (mismatch, pruning) = report_data.notes(elsewhere, LOCAL, pruned=False)
    assert elsewhere.title in mismatch
    assert "riscv64" in mismatch
    assert "Pruning was off" in pruning
