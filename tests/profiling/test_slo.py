"""Limits: which texts are read, which runs can show them, and which end of an interval decides."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.profiling.records import CameraFigures, Start, Throughput
from edgemae.profiling.scenarios import ScenarioResult
from edgemae.profiling.slo import evaluate_slo, parse_slo, runs_for
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.timer import Samples, measure
from edgemae.spec.errors import InputError

MS = 1_000_000


@pytest.mark.parametrize(
    ("text", "metric", "limit", "runs"),
    [
        ("p99<33ms", "p99", 33.0, 459),
        (" p50 < 900us ", "p50", 0.9, 7),
        ("p99.9<=1s", "p99.9", 1000.0, 4603),
        ("age_p90<.1s", "age_p90", 100.0, 44),
        ("fps>25", "fps", 25.0, 0),
        ("fps>=24.5fps", "fps", 24.5, 0),
        ("drop<1%", "drop", 0.01, 368),
        ("drop<50%", "drop", 0.5, 6),
        ("cold<2s", "cold", 2000.0, 0),
    ],
)
def test_a_limit_is_read_with_its_unit(text: str, metric: str, limit: float, runs: int) -> None:
    found = parse_slo(text)
    assert (found.metric, found.runs, found.text) == (metric, runs, text.strip())
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "another form"),
        ("p99", "another form"),
        ("p99=33ms", "another form"),
        ("p99<33ms,fps>25", "another form"),
        ("p99<-3ms", "another form"),
        ("p99<nanms", "another form"),
        ("p98<33ms", "Did you mean 'p99'?"),
        ("mean<33ms", "no figure 'mean'"),
        ("p99>33ms", "limited from above"),
        ("fps<25", "limited from below"),
        ("p99<33", "needs us or ms or s"),
        ("p99<33%", "not in '%'"),
        ("drop<1ms", "not in 'ms'"),
        ("fps>25ms", "not in 'ms'"),
        ("drop<0%", "no measurement can show"),
        ("drop<100%", "no measurement can show"),
        ("p99<0ms", "no measurement can show"),
    ],
)
def test_nonsense_is_refused_with_the_forms_that_are_taken(text: str, why: str) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        parse_slo(text)
    assert why in caught.value.what
    assert "age_p99<100ms" in caught.value.expected


@pytest.mark.parametrize(
    ("text", "scenario", "runs", "what"),
    [
        ("fps>3", "single", None, "scenario 'single', which has no such figure"),
        ("drop<1%", "offline", None, "scenario 'offline', which has no such figure"),
        ("age_p99<1s", "offline", None, "scenario 'offline', which has no such figure"),
        ("fps>25", "camera", None, "cannot be met behind a camera of 25 frames a second"),
        ("p99<33ms", "single", 458, "458 runs cannot show that 'p99<33ms' is met"),
        ("drop<1%", "camera", 367, "367 runs cannot show"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_measuring(
    text: str, scenario: str, runs: int | None, what: str
) -> None:
    with pytest.raises(InputError) as caught:
        runs_for([parse_slo(text)], scenario, 25.0, runs)
    assert what in caught.value.what
    if runs:
        assert f"--runs {runs + 1}" in caught.value.fix


def test_without_a_number_of_runs_as_many_are_taken_as_the_limits_need() -> None:
    limits = [parse_slo(text) for text in ("p90<1s", "age_p99<1s", "fps>24", "drop<2%")]
    assert runs_for(limits, "camera", 25.0, None) == 459
    assert runs_for(limits[:1], "single", 25.0, 44) == 44


def taken(ms: NDArray[np.float64], **more: object) -> ScenarioResult:
    ns = (ms * MS).astype(np.int64)
    evidence = measure(int, min_runs=20, min_seconds=0).interference
    samples = Samples(ns, np.zeros_like(ns), np.cumsum(ns), np.ones(len(ns), bool), evidence)
    return ScenarioResult(samples, ns, {}, **more)  # type: ignore[arg-type]


def test_the_end_of_the_interval_decides_not_the_figure() -> None:
    runs = taken(np.random.default_rng(0).permutation(np.linspace(1.0, 2.0, 1000)))
    for text, value, passed in (("p50<1.51ms", 1.5, False), ("p50<1.6ms", 1.5, True), ("p99<2.01ms", 1.99, True)):
        found = evaluate_slo(parse_slo(text), runs, None)
        assert found.value == pytest.approx(value, abs=0.01)
        assert found.high is not None
        assert found.high > (found.value or 0)
        assert found.passed == passed
    assert evaluate_slo(parse_slo("p99<2ms"), runs, None).note == "1000 runs"


def test_every_figure_has_its_own_interval() -> None:
    seen = CameraFigures(
        source_fps=25.0, fps=24.0, fps_low=23.5, fps_high=24.5, drop_share=0.04, drop_low=0.03, drop_high=0.06,
        age=summarise(np.arange(1, 501) * MS), frames=520,
    )  # fmt: skip
    runs = taken(np.ones(500), camera=seen, ages=np.arange(1, 501) * MS)
    start = Start(cold_ms=1500.0, load_ms=700.0, first_ms=9.0, runs=7, cold_high_ms=2100.0)
    verdicts = {
        text: evaluate_slo(parse_slo(text), runs, start)
        for text in ("fps>23", "fps>23.7", "drop<7%", "drop<5%", "cold<3s", "cold<2s", "age_p99<500ms", "age_p50<1s")
    }
    missed = {text for text, found in verdicts.items() if not found.passed}
    assert missed == {"fps>23.7", "drop<5%", "cold<2s", "age_p99<500ms"}
    assert verdicts["cold<2s"].note == "slowest of 7 starts"
    speed = Throughput(fps=100.0, low=98.0, high=102.0, block_runs=20)
    assert evaluate_slo(parse_slo("fps>97"), taken(np.ones(500), throughput=speed), None).passed
    assert not evaluate_slo(parse_slo("fps>99"), taken(np.ones(500), throughput=speed), None).passed


def test_too_few_runs_never_meet_a_limit() -> None:
    found = evaluate_slo(parse_slo("p99<1s"), taken(np.ones(458)), None)
    assert (found.passed, found.value, found.note) == (False, None, "needs 459 runs")
