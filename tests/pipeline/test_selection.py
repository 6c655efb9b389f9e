"""int8 ships only where it is faster and within the accuracy limit; what was not measured is named."""

from __future__ import annotations

import pytest

from edgemae.pipeline import selection
from edgemae.pipeline.candidate_graphs import Candidate
from edgemae.pipeline.selection import choose, latency_table
from edgemae.profiling.compare.graph_benchmark import Latencies, Machine
from edgemae.spec.graph import Graph, IoContract
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.report import EngineLatency, StageScore
from edgemae.spec.target import Target, find_target

IO = IoContract(inputs=(), outputs=())


def candidate(engine: str, precision: str, scheme: str = "", form: str = "explicit") -> Candidate:
    return Candidate(
        engine, Graph({"model.onnx": b""}, IO, precision, scheme), form, f"{engine}{precision}{scheme}{form}"
    )


def latency(found: Candidate, p50_ms: float, verdict: str = "TRUSTED") -> EngineLatency:
    return EngineLatency(
        engine=found.engine, precision=found.graph.precision, p50_ms=p50_ms, n=100, ratio_to_torch_eager=10 / p50_ms,
        verdict=verdict,
    )  # fmt: skip


def measured(rows: dict[str, EngineLatency]) -> Latencies:
    gains = {a: {b: rows[b].p50_ms / rows[a].p50_ms for b in rows} for a in rows}
    return Latencies(rows=rows, gains=gains)


def score(top1: float | None, cosine: float | None = None) -> StageScore:
    return StageScore(stage="int8", top1=top1, n=1000, params=1, macs=1, size_bytes=1, cosine=cosine)


FLOAT, FUSED, INT8 = (
    candidate("openvino", "fp32"),
    candidate("openvino", "fp32", form="fused"),
    candidate("openvino", "int8", "openvino-static"),
)


ENGINES = {"openvino": "1"}
LIKE = Machine(arch="x86_64", isa="vnni", engines=ENGINES, fingerprint={})
OTHER = Machine(arch="x86_64", isa="avx2", engines=ENGINES, fingerprint={})


@pytest.fixture
def target() -> Target:
    import msgspec

    return msgspec.structs.replace(find_target("laptop-x86-vnni"), engines=("openvino",))


@pytest.mark.parametrize(
    ("int8_ms", "top1", "cosine", "ships", "why"),
    [
        (1.0, 0.90, None, "int8", "2.00x"),
        (1.0, 0.895, None, "int8", "top-1"),
        (1.0, 0.894, None, "fp32", "loses accuracy"),
        (2.2, 0.90, None, "fp32", "kept float"),
        (1.99, 0.90, None, "fp32", "kept float"),  # 1.005x is below min_speedup
        (1.0, None, 0.995, "int8", "cosine 0.9950"),
        (1.0, None, 0.98, "fp32", "loses accuracy"),
    ],
)
def test_int8_must_be_faster_and_within_the_accuracy_limit(
    target: Target, int8_ms: float, top1: float | None, cosine: float | None, ships: str, why: str
) -> None:
    found = [FLOAT, INT8]
    times = {FLOAT.name: latency(FLOAT, 2.0), INT8.name: latency(INT8, int8_ms)}
    scores = {FLOAT.name: score(None if top1 is None else 0.90, 1.0), INT8.name: score(top1, cosine)}
    variants = choose(target, QuantizePlan(), found, scores, measured(times), LIKE)
    assert variants[0].candidate.graph.precision == ships
    assert why in variants[0].reason
    assert len(variants) == (2 if ships == "int8" else 1)  # float stands behind int8


def test_the_faster_attention_form_is_measured(target: Target) -> None:
    times = {FLOAT.name: latency(FLOAT, 2.0), FUSED.name: latency(FUSED, 1.5)}
    scores = {name: score(0.9) for name in times}
    assert choose(target, QuantizePlan(), [FLOAT, FUSED], scores, measured(times), LIKE)[0].candidate is FUSED


@pytest.mark.parametrize(("order", "ships"), [(("int8", "fp32"), "int8"), (("fp32", "int8"), "fp32")])
def test_other_arithmetic_than_the_targets_decides_nothing(target: Target, order: tuple[str, ...], ships: str) -> None:
    import msgspec

    target = msgspec.structs.replace(target, precisions=order)
    times = {FLOAT.name: latency(FLOAT, 1.0), INT8.name: latency(INT8, 2.0)}
    variants = choose(
        target, QuantizePlan(), [FLOAT, INT8], {name: score(0.9) for name in times}, measured(times), OTHER
    )
    assert variants[0].candidate.graph.precision == ships
    assert "the machine has avx2" in variants[0].reason
    assert "0.50x of float" in variants[0].reason


def test_wrong_int8_never_ships_by_order_alone(target: Target) -> None:
    scores = {FLOAT.name: score(0.9), INT8.name: score(0.5)}
    assert choose(target, QuantizePlan(), [FLOAT, INT8], scores, measured({}), OTHER)[0].candidate is FLOAT


def test_the_table_marks_choices_and_a_noisy_machine(target: Target) -> None:
    times = {FLOAT.name: latency(FLOAT, 2.0, "NOISY"), INT8.name: latency(INT8, 1.0)}
    scores = {FLOAT.name: score(0.9, 1.0), INT8.name: score(0.9, 0.999)}
    variants = choose(target, QuantizePlan(), [FLOAT, INT8], scores, measured(times), LIKE)
    rows = latency_table(variants, scores, times, places=1)
    assert [row.chosen for row in rows] == [False, True]
    assert "noisy machine" in rows[0].reason
    assert (rows[1].top1, rows[1].cosine) == (0.9, 0.999)


@pytest.mark.parametrize(
    ("first", "second", "loses"), [(0.895, 0.5, False), (0.894, 0.5, True), (0.5, 0.9, False), (0.5, 0.6, True)]
)
def test_int8_loses_accuracy_when_no_graph_is_within_the_limit(first: float, second: float, loses: bool) -> None:
    other, int8 = candidate("onnxruntime", "fp32"), candidate("onnxruntime", "int8", "ort-static")
    scores = {FLOAT.name: 0.9, other.name: 0.9, INT8.name: first, int8.name: second}
    rows = {name: score(top1) for name, top1 in scores.items()}
    assert selection.int8_loses_accuracy([FLOAT, other, INT8, int8], rows) is loses
    assert not selection.int8_loses_accuracy([FLOAT, other], rows)
