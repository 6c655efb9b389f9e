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
from edgemae.profiling import scenarios
from edgemae.profiling.records import STAGES
from edgemae.profiling.scenarios import (
    FEWEST_RUNS,
    SERIES_RUNS,
    Rows,
    ScenarioOptions,
    camera,
    offline,
    single,
)
from edgemae.profiling.timing.timer import measure
from tests.support.long_runs import MS, long_run


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


def test_pictures_get_at_most_5000_runs() -> None:
    found = long_run(400, np.ones_like).series()
    assert len(found.ms) == len(found.at_s) == len(found.disturbed) == SERIES_RUNS
    assert found.kept == 4
    assert found.at_s[0] == 0
    assert found.at_s[-1] == pytest.approx(400, abs=0.1)
    assert 0.05 < np.mean(found.disturbed) < 0.15
