"""Scenarios: behind a camera that is faster than the model, back to back, and over a long time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.device.model import Model, load
from edgemae.device.session import Session, Tensors
from edgemae.profiling import scenarios, simulated_camera
from edgemae.profiling.records import STAGES
from edgemae.profiling.scenarios import (
    FEWEST_RUNS,
    SERIES_RUNS,
    Rows,
    ScenarioOptions,
    ScenarioResult,
    camera,
    offline,
    single,
)
from edgemae.profiling.simulated_camera import SimulatedCamera
from edgemae.profiling.soak import first_against_last, parse_soak
from edgemae.profiling.timing.timer import Samples, measure
from edgemae.spec.errors import CameraError, InputError

MS = 1_000_000


@pytest.fixture
def model(make_bundle: Callable[..., Path]) -> Iterator[Model]:
    with load(make_bundle(engines=("onnxruntime",))) as loaded:
        yield loaded


def slow_down(model: Model, seconds: float) -> None:
    """Make every inference of a model take so much longer."""
    real = model.session

    def run(pixels: NDArray[np.float32]) -> Tensors:
        time.sleep(seconds)
        return real(pixels)

    model.session = Session(real.engine, run, real.close)


def test_behind_a_camera_a_slow_model_drops_frames_and_its_results_stay_young(model: Model) -> None:
    slow_down(model, 0.1)
    found = camera(model, ScenarioOptions(FEWEST_RUNS["camera"], 0.0, fps=25.0))
    seen, calls = found.camera, found.calls
    assert seen is not None
    assert found.ages is not None
    assert found.samples.n == FEWEST_RUNS["camera"]
    # One result takes at least 2.5 frame intervals: three of five frames are dropped, or more beside other work.
    assert seen.drop_low <= seen.drop_share <= seen.drop_high
    assert seen.drop_share > 0.55
    assert seen.fps < 10
    assert seen.frames > 2.4 * found.samples.n
    assert seen.drop_share == pytest.approx(1 - seen.fps / seen.source_fps, abs=0.05)
    # A queue would let the age grow by 60 ms a result, to 2 s; the newest frame is at most one interval old.
    assert (found.ages >= calls).all()
    assert np.median(found.ages) < np.median(calls) + 1.5 * 40 * MS
    assert set(found.stages) == set(STAGES)
    assert (found.stages["infer"] >= 100 * MS).all()
    assert (found.stages["capture"] + found.stages["decode"] + calls <= found.ages + MS).all()


def test_of_too_many_results_one_of_so_many_is_kept_and_no_frame_is_lost(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "CAPACITY", 40)
    found = camera(model, ScenarioOptions(34, 1.2, fps=100.0))  # 120 frames, every third is kept
    assert found.samples.every == 3
    assert found.camera is not None
    assert 34 <= found.samples.n <= 40
    assert found.camera.frames >= 3 * found.samples.n - 2
    # Results that were not kept are no drops: it is as fast as the frames come, or at least half as fast.
    assert found.camera.drop_share < 0.5
    assert found.runs_done == 3 * found.samples.n + 10
    assert found.series().kept == 3


def test_no_drop_is_not_the_proof_of_none() -> None:
    n = 100
    number, done = np.arange(n) + 7, np.arange(n) * 40 * MS
    found = scenarios._behind_camera(number, done, done, np.full(n, 5 * MS))
    assert (found.drop_share, found.drop_low, found.frames) == (0.0, 0.0, n)
    assert found.drop_high == pytest.approx(1 - 0.025 ** (1 / n))
    assert found.fps == pytest.approx(25.0)
    every_third = scenarios._behind_camera(3 * number, done * 3, done * 3, np.full(n, 5 * MS))
    assert every_third.frames == 3 * n - 2
    assert every_third.drop_share == pytest.approx(2 / 3, abs=0.01)


def test_frames_are_due_at_times_that_nothing_moves() -> None:
    with SimulatedCamera(100.0) as source:
        first = source.take()
        time.sleep(0.055)
        measurements = [first, source.take(), source.take()]
    numbers = [number for number, _, _ in measurements]
    assert numbers[0] < numbers[1] < numbers[2]
    assert numbers[1] >= 4  # the newest, not the next one
    assert all(due - measurements[0][1] == (number - numbers[0]) * 10 * MS for number, due, _ in measurements)
    assert all(came >= due for _, due, came in measurements)


def test_a_source_that_stands_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_camera, "SILENT_S", 0.02)
    monkeypatch.setattr(SimulatedCamera, "_arrive", lambda self: None)
    with SimulatedCamera(1000.0) as source, pytest.raises(CameraError, match="does not run"):
        source.take()


def test_back_to_back_the_throughput_is_that_of_the_runs(model: Model) -> None:
    found = offline(model, ScenarioOptions(FEWEST_RUNS["offline"] * 2, 0.0))
    assert found.throughput is not None
    assert found.throughput.fps == pytest.approx(1e9 / found.calls.mean())
    assert found.throughput.low <= found.throughput.fps <= found.throughput.high
    assert found.throughput.block_runs == 4
    assert found.ages is None


def test_stages_are_of_the_very_runs_that_are_kept(model: Model) -> None:
    slow_down(model, 0.005)
    found = single(model, ScenarioOptions(30, 0.0))
    assert {len(ns) for ns in found.stages.values()} == {30}
    assert (found.stages["infer"] >= 5 * MS).all()
    assert (sum(found.stages.values()) <= found.calls).all()


def test_writing_a_row_of_stages_is_cheap_beside_a_run() -> None:
    spans = Rows(tuple("abcdefghijk"), 1000)
    values = tuple(range(11))
    noted = measure(lambda: spans.note(0, values), min_runs=2000, min_seconds=0).ns
    assert np.quantile(noted, 0.1) < 10_000  # measured: 1 microsecond; 0.5 % of a run of 2 ms
    assert spans.columns(1)["c"].tolist() == [2]


# ---------------------------------------------------------------- long runs


def long_run(
    seconds: float, levels: Callable[[NDArray[np.float64]], NDArray[np.float64]], rate: int = 50
) -> ScenarioResult:
    rng = np.random.default_rng(0)
    at = np.arange(int(seconds * rate)) / rate
    ns = (5 * MS * levels(at / seconds) * rng.lognormal(0, 0.05, len(at))).astype(np.int64)
    evidence = measure(int, min_runs=20, min_seconds=0).interference
    samples = Samples(ns, np.zeros_like(ns), (at * 1e9).astype(np.int64) + 77, rng.random(len(ns)) > 0.1, evidence)
    return ScenarioResult(samples, ns, {})


def test_a_machine_that_gets_hot_is_slower_in_its_last_minute() -> None:
    found = first_against_last(long_run(600, lambda share: np.where(share > 0.6, 1.2, 1.0)))
    assert found.slower
    assert 1.19 < found.ratio_low < found.ratio < found.ratio_high < 1.22
    assert found.minutes == pytest.approx(10, abs=0.01)
    assert found.last_p50_ms / found.first_p50_ms == pytest.approx(1.2, abs=0.02)
    steady = first_against_last(long_run(600, np.ones_like))
    assert not steady.slower
    assert steady.ratio == pytest.approx(1.0, abs=0.02)
    assert not first_against_last(long_run(600, lambda share: np.where(share < 0.1, 1.2, 1.0))).slower  # faster


def test_of_less_than_two_minutes_the_tenths_are_compared() -> None:
    assert first_against_last(long_run(30, lambda share: np.where(share > 0.89, 1.3, 1.0))).slower
    assert not first_against_last(long_run(30, lambda share: np.where(abs(share - 0.5) < 0.3, 1.3, 1.0))).slower
    with pytest.raises(InputError, match="fewer than 7 runs"):
        first_against_last(long_run(30, np.ones_like, rate=2))  # six runs have no median


@pytest.mark.parametrize("tau_s", [5.0, 15.0, 30.0])
def test_a_machine_that_wanders_by_a_percent_did_not_get_slower(tau_s: float) -> None:
    """Speeds are shared for as long as a mood of the machine lasts: its blocks are no evidence of their own."""
    rng, keep, trials = np.random.default_rng(4), np.exp(-0.5 / tau_s), 60
    moods = rng.normal(size=(trials, 360))
    for i in range(1, 360):  # three minutes, every half second
        moods[:, i] = keep * moods[:, i - 1] + (1 - keep**2) ** 0.5 * moods[:, i]

    def slower(mood: NDArray[np.float64], by: float) -> bool:
        levels = np.repeat(np.exp(0.01 * mood), 25) * np.where(np.arange(9000) < 4500, 1.0, by)
        return first_against_last(long_run(180, lambda share: levels[: len(share)])).slower

    assert sum(slower(mood, 1.0) for mood in moods) <= 1
    assert sum(slower(mood, 1.06) for mood in moods[:20]) >= 18


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h", 3600), ("0.5 m", 30), ("10s", 10)])
def test_the_length_of_a_soak_is_read(text: str, seconds: float) -> None:
    assert parse_soak(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "10 min", "-5m", "9s", "0m", "1d", "nan s"])
def test_no_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no length of a soak") as caught:
        parse_soak(text)
    assert "90s, 10m, 1h" in caught.value.expected


def test_pictures_get_at_most_5000_runs() -> None:
    found = long_run(400, np.ones_like).series()
    assert len(found.ms) == len(found.at_s) == len(found.disturbed) == SERIES_RUNS
    assert found.kept == 4
    assert found.at_s[0] == 0
    assert found.at_s[-1] == pytest.approx(400, abs=0.1)
    assert 0.05 < np.mean(found.disturbed) < 0.15
