"""Gates: what is shown passes, what is not shown does not, and the note says why."""

from __future__ import annotations

from typing import Any

import pytest

from edgemae.evaluation.gates import P90_RUNS, evaluate_gates, exit_code, status_of
from edgemae.evaluation.intervals import paired_interval
from edgemae.spec.plan_schema import GatePlan
from edgemae.spec.report import EngineLatency, GateVerdict, StageScore


def stage(name: str = "int8", **fields: Any) -> StageScore:
    given = {"top1": 0.9, "n": 1000, "params": 1, "macs": 1, "size_bytes": 1} | fields
    return StageScore(stage=name, **given)


def moved(lost: int, gained: int, n: int, name: str = "int8") -> StageScore:
    return stage(name, n=n, lost=lost, gained=gained, drop_pts=100 * (lost - gained) / n)


def engine(precision: str = "int8", **fields: Any) -> EngineLatency:
    given = {"engine": "openvino", "p50_ms": 1.0, "n": 500, "ratio_to_torch_eager": 3.0, "chosen": True} | fields
    given.setdefault("p90_high_ms", given.get("p90_ms"))
    return EngineLatency(precision=precision, **given)


STUDENT = stage("student")

TABLE = [
    # limits, stages, engines, bundle bytes, passed, words of the note
    ({}, [STUDENT], [], 1, None, ""),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(2, 1, 1000)], [], 1, True, "95 % interval"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(0, 0, 1000)], [], 1, True, "on 1000 images"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(0, 0, 341)], [], 1, False, "too few images: at these rates 381 would"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(30, 5, 1000)], [], 1, False, "more images would not help"),
    ({"max_drop_pts": 1.0}, [STUDENT, stage(top1=None)], [], 1, False, "no labels"),
    ({"max_drop_pts": 1.0}, [], [], 1, False, "nothing was measured"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(90, 0, 900)], [engine("fp32")], 1, True, "float student itself"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(0, 0, 900, "pruned"), moved(90, 0, 900)],
     [engine("fp32")], 1, True, "pruned"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(0, 0, 900, "pruned"), moved(90, 0, 900)], [engine()], 1, False, "int8"),
    ({"max_drop_pts": 1.0}, [STUDENT, moved(90, 0, 900, "pruned"), moved(0, 0, 900)],
     [engine(), engine("fp32")], 1, False, "pruned"),
    ({"min_agreement": 0.95}, [STUDENT, stage(agreement=0.99)], [], 1, True, "0.98"),
    ({"min_agreement": 0.95}, [STUDENT, stage(agreement=0.96)], [], 1, False, "too few images"),
    ({"min_agreement": 0.95}, [STUDENT, stage(agreement=0.90)], [], 1, False, "would not help"),
    ({"min_agreement": 1.0}, [STUDENT, stage(agreement=1.0)], [], 1, False, "would not help"),
    ({"min_agreement": 0.95}, [STUDENT, stage(agreement=None)], [], 1, False, "no head"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.9)], 1, True, "p90 of 500 runs"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=2.0)], 1, True, ""),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=2.1)], 1, False, ""),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0, n=43)], 1, False, "43 runs; a p90 needs 44"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0, n=44)], 1, True, "44 runs"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=None)], 1, False, "not measured"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.9, p90_high_ms=2.1)], 1, False, "interval up to 2.1 ms"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.9, p90_high_ms=None)], 1, False, "too few for the upper end"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0, verdict="INVALID")], 1, False, "too busy to measure"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0, verdict="NOISY")], 1, True, ""),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0, chosen=False)], 1, False, "nothing was measured"),
    ({"p90_ms": 2.0}, [STUDENT], [engine(p90_ms=1.0), engine("fp32", p90_ms=3.0)], 1, False, "fp32"),
    ({"size_mib": 2.0}, [STUDENT], [], 2 * 2**20, True, "without the report"),
    ({"size_mib": 2.0}, [STUDENT], [], 2 * 2**20 + 1, False, "without the report"),
    # 0 is the strictest limit: met where the float student itself ships, or where int8 is proved to be better.
    ({"max_drop_pts": 0.0}, [STUDENT, moved(0, 0, 1000)], [], 1, False, "would not help"),
    ({"max_drop_pts": 0.0}, [STUDENT, moved(1, 5, 1000)], [], 1, False, "at these rates 1441 would"),
    ({"max_drop_pts": 0.0}, [STUDENT, moved(1, 50, 1000)], [], 1, True, "interval"),
    ({"max_drop_pts": 0.0}, [STUDENT, moved(9, 0, 900)], [engine("fp32")], 1, True, "float student itself"),
    ({"p90_ms": 0.0}, [STUDENT], [engine(p90_ms=0.1)], 1, False, "p90 of 500 runs"),
    ({"size_mib": 0.0}, [STUDENT], [], 1, False, "without the report"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "stages", "engines", "size", "passed", "words"), TABLE)
def test_verdicts(
    limits: dict[str, float],
    stages: list[StageScore],
    engines: list[EngineLatency],
    size: int,
    passed: bool | None,
    words: str,
) -> None:
    verdicts = evaluate_gates(GatePlan(**limits), stages, engines, size)
    assert [verdict.gate for verdict in verdicts] == list(limits)
    for verdict in verdicts:
        assert verdict.passed is passed
        assert words in verdict.note
        assert verdict.limit == limits[verdict.gate]


def test_a_measured_value_is_given_even_when_it_is_not_shown() -> None:
    (verdict,) = evaluate_gates(GatePlan(max_drop_pts=1.0), [STUDENT, moved(2, 1, 300)], [], 1)
    assert not verdict.passed
    assert verdict.value == pytest.approx(1 / 3)


def test_the_verdict_uses_the_confidence_of_the_plan() -> None:
    line = moved(4, 1, 1000)
    limit = 100 * paired_interval(4, 1, 1000, 0.95)[1] + 1e-6
    assert evaluate_gates(GatePlan(max_drop_pts=limit, confidence=0.95), [STUDENT, line], [], 1)[0].passed
    assert not evaluate_gates(GatePlan(max_drop_pts=limit, confidence=0.99), [STUDENT, line], [], 1)[0].passed


def test_the_advised_number_of_images_is_enough() -> None:
    (verdict,) = evaluate_gates(GatePlan(max_drop_pts=1.0), [STUDENT, moved(2, 1, 300)], [], 1)
    needed = int(verdict.note.split("these rates ")[1].split()[0])
    assert paired_interval(2 * needed / 300, needed / 300, needed)[1] <= 0.01 < paired_interval(2, 1, 300)[1]


def test_p90_runs_is_the_binomial_bound() -> None:
    assert 0.9**P90_RUNS <= 0.01 < 0.9 ** (P90_RUNS - 1)


@pytest.mark.parametrize(
    ("missed", "code"),
    [
        ((), 0),
        (("p90_ms",), 4),
        (("size_mib",), 4),
        (("max_drop_pts",), 3),
        (("min_agreement",), 3),
        (("p90_ms", "max_drop_pts"), 3),
    ],
)
def test_exit_codes(missed: tuple[str, ...], code: int) -> None:
    gates = ("max_drop_pts", "min_agreement", "p90_ms", "size_mib")
    verdicts = [GateVerdict(gate=gate, limit=1.0, value=1.0, passed=gate not in missed) for gate in gates]
    assert exit_code(verdicts) == code
    assert exit_code(()) == 0


def test_every_gate_of_the_plan_is_judged() -> None:
    limits = {name for name in GatePlan.__struct_fields__ if name != "confidence"}
    verdicts = evaluate_gates(
        GatePlan(**dict.fromkeys(limits, 1.0)), [STUDENT, moved(0, 0, 9)], [engine(p90_ms=1.0)], 1
    )
    assert {verdict.gate for verdict in verdicts} == limits


def test_nothing_passes_where_nothing_was_asked_for() -> None:
    met, missed = (GateVerdict(gate="p90_ms", limit=1.0, value=0.5, passed=passed) for passed in (True, False))
    assert [status_of(verdicts) for verdicts in ((), (met,), (met, missed))] == ["untested", "passed", "failed"]
