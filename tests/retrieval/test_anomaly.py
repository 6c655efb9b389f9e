"""Anomalies: planted scratches are found where they are, false alarms come at the asked rate, files are safe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import edgemae
from edgemae.device.model import Model
from edgemae.retrieval import feature_file
from edgemae.retrieval.anomaly import LIMIT_KIB, SCHEMA, AnomalyDetector, calibrate, frames_needed
from edgemae.spec.errors import GalleryError, InputError
from tests.support.tiny_job import weave as cloth

Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def model(weave: Path) -> Iterator[Model]:
    with edgemae.load(weave / "weave.edgemae") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def normal(weave: Path) -> list[Any]:
    return [cv2.imread(str(path)) for path in sorted((weave / "normal").iterdir())]


@pytest.fixture(scope="module")
def detector(model: Model, normal: list[Any]) -> AnomalyDetector:
    return AnomalyDetector.fit(model, normal, false_alarm_rate=0.05)


def scratched(rng: np.random.Generator) -> tuple[Any, Box]:
    """Return an image of the cloth with a scratch on it, and the scratch's box (left, top, right, bottom)."""
    frame_bgr, turn, half = cloth(rng), rng.uniform(0, np.pi), rng.integers(4, 8)
    x, y = rng.integers(12, 52, 2)
    ends = [(int(x + s * half * np.cos(turn)), int(y + s * half * np.sin(turn))) for s in (-1, 1)]
    cv2.line(frame_bgr, *ends, (235, 235, 235) if rng.random() < 0.5 else (20, 20, 20), 2)
    (x0, x1), (y0, y1) = (sorted(values) for values in zip(*ends, strict=True))
    return frame_bgr, (x0, y0, x1, y1)


def auroc(normal: list[float], unusual: list[float]) -> float:
    """Return the chance that an unusual frame scores above a normal one."""
    difference = np.array(unusual)[:, None] - np.array(normal)
    return float((np.sign(difference) / 2 + 0.5).mean())


# ------------------------------------------------------------------------------------------------ what it finds


def test_planted_scratches_are_found_and_where_they_are(detector: AnomalyDetector) -> None:
    rng = np.random.default_rng(5)
    fresh = [detector(cloth(rng)) for _ in range(60)]
    planted = [scratched(rng) for _ in range(60)]
    found = [detector(frame_bgr) for frame_bgr, _ in planted]
    assert auroc([a.score for a in fresh], [a.score for a in found]) >= 0.9
    inside = 0
    for anomaly, (_, (x0, y0, x1, y1)) in zip(found, planted, strict=True):
        assert anomaly.map.shape == (64, 64)
        assert anomaly.map.dtype == np.float32
        assert 0 <= anomaly.map.min() <= anomaly.map.max() <= 1
        assert anomaly.is_anomaly == (anomaly.score > detector.calibration.threshold)
        y, x = np.unravel_index(anomaly.map.argmax(), anomaly.map.shape)
        inside += x0 - 6 <= x <= x1 + 6 and y0 - 6 <= y <= y1 + 6  # a patch has 8 px
    assert inside >= 50  # a box and its margin are a tenth of the image
    share = [len(part) / 60 for part in ([a for a in fresh if a.is_anomaly], [a for a in found if a.is_anomaly])]
    assert share[0] <= 0.2
    assert share[1] >= 0.5


def test_the_test_above_can_fail(detector: AnomalyDetector) -> None:
    rng = np.random.default_rng(6)
    scores = [detector(cloth(rng)).score for _ in range(60)]
    assert 0.3 < auroc(scores[:30], scores[30:]) < 0.7


def test_the_threshold_lies_in_the_middle_of_the_map(detector: AnomalyDetector) -> None:
    anomaly = detector.judge(detector.model(cloth(np.random.default_rng(3))))
    side = anomaly.patches.shape[0]
    assert anomaly.map.shape == (side, side) == (8, 8)
    found = detector.calibration
    half = (anomaly.patches - found.ordinary) / (found.threshold - found.ordinary) / 2
    np.testing.assert_allclose(anomaly.map, np.clip(half, 0, 1), atol=1e-5)
    rng = np.random.default_rng(4)
    cold = [(detector.judge(detector.model(cloth(rng))).map == 0).mean() for _ in range(30)]
    assert 0.35 < np.mean(cold) < 0.65, "half of all patches are as ordinary as the median"
    assert anomaly.score == anomaly.patches.max()


def test_a_stream_gives_anomalies(detector: AnomalyDetector, weave: Path) -> None:
    with detector.stream(weave / "normal") as stream:
        seen = next(stream)
    assert seen.result.map.shape == seen.frame.array_bgr.shape[:2]


# ------------------------------------------------------------------------------------------------ the threshold


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1), (0.001, 999)])
def test_from_how_many_frames_a_threshold_is_a_claim(rate: float, needed: int) -> None:
    assert frames_needed(rate) == needed
    assert calibrate(np.arange(needed), rate).is_claim
    too_few = calibrate(np.arange(needed), 0.99 / (needed + 1))
    assert not too_few.is_claim
    assert too_few.threshold == needed - 1  # the largest


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_false_alarms_come_at_the_asked_rate_whatever_the_distribution(rate: float) -> None:
    """Over 1,000 calibrations, each asked about 100 new frames; the bound is tight where (n + 1) * rate is whole."""
    rng = np.random.default_rng(0)
    n = 2 * frames_needed(rate) + 1
    draws = rng.lognormal(0, 2, (1000, n + 100)) + (rng.random((1000, n + 100)) < 0.1)
    alarms = [(row[n:] > calibrate(row[:n], rate).threshold).mean() for row in draws]
    assert np.mean(alarms) == pytest.approx(rate, rel=0.15)


def test_the_bound_on_the_rate_holds_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for row in rng.random((1000, 150)):  # uniform: the true rate of a threshold is one minus itself
        found = calibrate(row, 0.02)
        held += 1 - found.threshold <= found.rate_high
    assert 0.93 <= held / 1000 <= 0.97
    assert calibrate(np.arange(99), 0.01).rate_high == pytest.approx(1 - 0.05 ** (1 / 99), abs=1e-6)


def test_too_few_frames_are_said_or_refused(model: Model, normal: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    few = AnomalyDetector.fit(model, normal[:20])
    assert not few.calibration.is_claim
    assert (few.calibration.frames, few.calibration.frames_needed) == (10, 99)
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith("10 held-out frames are too few for a claim of 1 % false alarms (it takes 99)")
    with pytest.raises(InputError, match=r"2 .* 1 "):
        AnomalyDetector.fit(model, normal[:3])
    with pytest.raises(InputError, match="rate of 0"):
        AnomalyDetector.fit(model, normal, false_alarm_rate=0)


def test_frames_may_be_held_out_by_hand(model: Model, normal: list[Any]) -> None:
    found = AnomalyDetector.fit(model, normal[:10], held_out=normal[10:40], false_alarm_rate=0.1)
    assert (found.normal_frames, found.calibration.frames) == (10, 30)
    with pytest.raises(InputError, match=r"10 .* 0 "):
        AnomalyDetector.fit(model, normal[:10], held_out=[])


# ------------------------------------------------------------------------------------------------ what it remembers


def test_memory_is_limited_and_seeded(model: Model, normal: list[Any]) -> None:
    small = [AnomalyDetector.fit(model, normal, limit_kib=4, false_alarm_rate=0.05, seed=seed) for seed in (0, 0, 1)]
    assert [d.size_bytes for d in small] == [4096] * 3
    frame_bgr = cloth(np.random.default_rng(8))
    scores = [d(frame_bgr).score for d in small]
    assert scores[0] == scores[1] != scores[2]
    assert LIMIT_KIB <= 1024


# ------------------------------------------------------------------------------------------------ files, other models


def test_a_saved_reference_set_judges_alike(detector: AnomalyDetector, model: Model, tmp_path: Path) -> None:
    detector.save(tmp_path / "a.normal")
    detector.save(tmp_path / "b.normal")
    again = AnomalyDetector.load(tmp_path / "a.normal", model)
    assert (tmp_path / "a.normal").read_bytes() == (tmp_path / "b.normal").read_bytes()
    assert (tmp_path / "a.normal").stat().st_size < detector.size_bytes + 2048
    frame_bgr = cloth(np.random.default_rng(8))
    assert again(frame_bgr).score == detector(frame_bgr).score
    assert again.calibration == detector.calibration
    assert (again.normal_frames, again.patches_seen) == (40, 40 * 64)


def test_a_file_of_a_version_before_0_1_0_says_who_wrote_it(
    detector: AnomalyDetector, model: Model, tmp_path: Path
) -> None:
    detector.save(tmp_path / "old.normal")
    facts, arrays = feature_file.read(tmp_path / "old.normal", SCHEMA, edgemae.retrieval.anomaly._Facts)
    feature_file.write(tmp_path / "old.normal", "edgemae.normal/1", facts, arrays)
    with pytest.raises(
        GalleryError, match=r"'edgemae\.normal/1', .* development version of edgemae before 0\.1\.0"
    ) as error:
        AnomalyDetector.load(tmp_path / "old.normal", model)
    assert "build it again" in error.value.fix


def test_another_graph_of_the_bundle_is_refused(detector: AnomalyDetector, weave: Path, tmp_path: Path) -> None:
    detector.save(tmp_path / "float.normal")
    with edgemae.load(weave / "weave.edgemae") as eight:
        eight.provenance = edgemae.spec.provenance.provenance_of(eight.manifest, eight.manifest.variants[1])
        with pytest.raises(GalleryError, match="onnxruntime-fp32, ") as error:
            AnomalyDetector.load(tmp_path / "float.normal", eight)
        assert "engine='onnxruntime'" in error.value.fix
        with pytest.raises(GalleryError, match="the result was made by"):
            detector.judge(eight(cloth(np.random.default_rng(1))))


def test_a_bundle_without_tokens_says_how_to_get_them(make_bundle: Callable[..., Path]) -> None:
    with edgemae.load(make_bundle()) as old:
        assert old(cloth(np.random.default_rng(1))).tokens is None
        with pytest.raises(GalleryError, match="gives no tokens") as error:
            AnomalyDetector.fit(old, [cloth(np.random.default_rng(1))])
        assert "--set export.tokens=true" in error.value.fix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"memory": a["memory"][:0], "moments": a["moments"]}, r"\(0, 32\)"),
        (lambda a: {"memory": a["memory"]}, r"\(0,\)"),
        (lambda a: {"memory": a["memory"][:, :8], "moments": a["moments"]}, r"\(2048, 8\)|, 8\)"),
    ],
)
def test_a_feature_file_with_other_arrays_is_refused(
    change: Any, message: str, detector: AnomalyDetector, model: Model, tmp_path: Path
) -> None:
    detector.save(tmp_path / "a.normal")
    facts, arrays = feature_file.read(tmp_path / "a.normal", SCHEMA, edgemae.retrieval.anomaly._Facts)
    feature_file.write(tmp_path / "a.normal", SCHEMA, facts, change(arrays))
    with pytest.raises(GalleryError, match=message):
        AnomalyDetector.load(tmp_path / "a.normal", model)


@pytest.mark.parametrize("limit_kib", [0, -1, (1 << 20) + 1])
def test_a_size_that_is_none_is_refused(limit_kib: int) -> None:
    with pytest.raises(InputError, match=str(limit_kib)):
        AnomalyDetector.fit(None, [], limit_kib=limit_kib)  # type: ignore[arg-type]
