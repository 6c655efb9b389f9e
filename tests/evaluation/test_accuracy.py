"""Accuracy of one model and of one against another."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from edgemae.evaluation.accuracy import (
    Predictions,
    agreement,
    calibration_bins,
    cosine,
    ece,
    paired_drop,
    per_class,
    predict,
    score,
    top1,
)
from edgemae.spec.errors import DataError, EngineRuntimeError, InternalError


def predictions(chosen: list[int], labels: list[int] | None, classes: int = 3, width: int = 4) -> Predictions:
    logits = np.eye(classes, dtype=np.float32)[chosen] * 5
    embedding = np.ones((len(chosen), width), np.float32) + np.arange(len(chosen), dtype=np.float32)[:, None]
    return Predictions(logits, embedding, None if labels is None else np.array(labels))


def two_class_logits(confidence: list[float]) -> np.ndarray:
    return np.array([[math.log(c), math.log(1 - c)] for c in confidence])


def test_predict_gathers_batches_of_different_sizes() -> None:
    pixels = np.arange(5 * 1 * 2 * 2, dtype=np.float32).reshape(5, 1, 2, 2)
    seen = []

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(batch.shape)
        flat = batch.reshape(len(batch), -1)
        return {"embedding": flat, "logits": flat[:, :3]}

    batches = [(pixels[:3], np.array([2, 2, 0])), (pixels[3:], np.array([2, 1]))]
    gathered = predict(run, batches)
    assert seen == [(3, 1, 2, 2), (2, 1, 2, 2)]
    assert gathered.n == 5
    np.testing.assert_array_equal(gathered.embedding, pixels.reshape(5, 4))
    assert top1(gathered) == 0.6


def test_predict_copies_buffers_that_an_engine_reuses() -> None:
    buffer = np.zeros((1, 2), np.float32)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        buffer[:] = batch.mean()
        return {"embedding": buffer}

    gathered = predict(run, [(np.full((1, 1, 2, 2), value, np.float32), None) for value in (1.0, 2.0)])
    assert gathered.embedding[:, 0].tolist() == [1.0, 2.0]
    assert gathered.logits is None
    assert gathered.labels is None
    assert top1(gathered) is None


def test_predict_refuses_nothing_and_half_labelled_data() -> None:
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"embedding": batch.reshape(len(batch), -1)}

    image = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(DataError):
        predict(run, [])
    with pytest.raises(InternalError):
        predict(run, [(image, None), (image, np.array([0]))])


@pytest.mark.parametrize("where", ["logits", "embedding"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_outputs_are_refused_with_their_image(where: str, bad: float) -> None:
    arrays = {"logits": np.zeros((4, 2), np.float32), "embedding": np.zeros((4, 3), np.float32)}
    arrays[where][2, 1] = bad
    with pytest.raises(EngineRuntimeError, match=f"{where} of image 2"):
        Predictions(arrays["logits"], arrays["embedding"], None)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(InternalError):
        Predictions(np.zeros((3, 2)), np.zeros((4, 2)), None)


def test_ece_by_hand() -> None:
    # Bins of width 1/15: (10/15, 11/15] holds 0.7 (right) and 0.72 (wrong); (13/15, 14/15] holds 0.9, 0.92 (right).
    logits = two_class_logits([0.7, 0.72, 0.9, 0.92])
    labels = np.array([0, 1, 0, 0])
    expected = 2 / 4 * abs(0.5 - 0.71) + 2 / 4 * abs(1.0 - 0.91)
    assert ece(logits, labels) == pytest.approx(expected, abs=1e-9)
    count, confidence, accuracy = calibration_bins(logits, labels)
    assert count[[10, 13]].tolist() == [2, 2]
    assert count.sum() == 4
    assert confidence[10] == pytest.approx(0.71)
    assert accuracy[10] == 0.5


def test_ece_of_a_sure_and_right_model_is_zero_and_of_a_sure_and_wrong_one_is_one() -> None:
    logits = np.array([[1000.0, 0.0]] * 3)
    assert ece(logits, np.zeros(3, int)) == pytest.approx(0.0, abs=1e-12)
    assert ece(logits, np.ones(3, int)) == pytest.approx(1.0, abs=1e-12)


def test_ece_is_near_zero_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 0.99, 40_000)
    labels = (rng.random(len(confidence)) > confidence).astype(int)
    assert ece(two_class_logits(list(confidence)), labels) < 0.01


def test_paired_drop_in_points() -> None:
    right = np.array([True] * 90 + [False] * 10)
    other = right.copy()
    other[:4] = False  # lost
    other[95:97] = True  # gained
    drop, low, high = paired_drop(right, other)
    assert drop == pytest.approx(2.0)
    assert low < 2.0 < high
    assert paired_drop(right, right)[0] == 0.0
    assert paired_drop(right, right)[2] == pytest.approx(3.70, abs=0.005)  # z^2 / (100 + z^2)
    with pytest.raises(InternalError):
        paired_drop(right, other[1:])


def test_cosine_by_row() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0.0, 1.0, 1.0, 0.0], atol=1e-12)


def test_per_class_leaves_out_classes_without_images() -> None:
    model = predictions([0, 0, 1, 2], [0, 1, 1, 2], classes=4)
    assert per_class(model, ["a", "b", "c", "d"]) == {"a": 1.0, "b": 0.5, "c": 1.0}
    with pytest.raises(InternalError):
        per_class(model, ["a", "b"])


def test_score_with_labels_and_a_reference() -> None:
    labels = [0, 1, 2, 0, 1]
    student = predictions(labels, labels)
    int8 = predictions([0, 1, 2, 0, 2], labels)
    line = score("int8", int8, student, params=10, macs=20, size_bytes=30, label_names=["a", "b", "c"], confidence=0.9)
    assert (line.stage, line.n, line.params, line.macs, line.size_bytes) == ("int8", 5, 10, 20, 30)
    assert line.top1 == pytest.approx(0.8)
    assert line.top1_low is not None
    assert line.top1_high is not None
    assert line.top1_low < 0.8 < line.top1_high
    assert line.agreement == pytest.approx(0.8)
    assert line.drop_pts == pytest.approx(20.0)
    assert (line.lost, line.gained) == (1, 0)
    assert line.cosine == pytest.approx(1.0)
    assert line.per_class == {"a": 1.0, "b": 0.5, "c": 1.0}
    assert line.confidence == 0.9
    alone = score("student", student, None, params=1, macs=1, size_bytes=1, label_names=[], confidence=0.95)
    assert alone.drop_pts is None
    assert alone.per_class == {"0": 1.0, "1": 1.0, "2": 1.0}


def test_score_without_labels_still_says_how_far_a_model_moved() -> None:
    student, int8 = predictions([0, 1, 2, 0], None), predictions([0, 1, 2, 1], None)
    line = score("int8", int8, student, params=1, macs=1, size_bytes=1, label_names=[], confidence=0.95)
    assert (line.top1, line.drop_pts, line.ece, line.per_class) == (None, None, None, {})
    assert line.agreement == pytest.approx(0.75)
    assert line.cosine == pytest.approx(1.0)


def test_score_without_a_head_has_a_cosine_and_nothing_else() -> None:
    a = Predictions(None, np.eye(3, dtype=np.float32), np.arange(3))
    b = Predictions(None, np.eye(3, dtype=np.float32)[[0, 1, 1]], np.arange(3))
    line = score("int8", b, a, params=1, macs=1, size_bytes=1, label_names=[], confidence=0.95)
    assert (line.top1, line.agreement) == (None, None)
    assert line.cosine == pytest.approx(2 / 3)


def test_another_width_has_no_cosine() -> None:
    wide, narrow = predictions([0, 1], [0, 1], width=8), predictions([0, 1], [0, 1], width=4)
    line = score("teacher", wide, narrow, params=1, macs=1, size_bytes=1, label_names=[], confidence=0.95)
    assert line.cosine is None
    assert line.agreement == 1.0


def test_models_scored_on_other_images_are_not_compared() -> None:
    a, b = predictions([0, 1, 2], [0, 1, 2]), predictions([0, 1, 2], [0, 2, 1])
    with pytest.raises(InternalError, match=r"\b3\b.*\b3\b"):
        score("int8", b, a, params=1, macs=1, size_bytes=1, label_names=[], confidence=0.95)
    assert agreement(a, b) == 1.0


def test_import_brings_in_no_training_library() -> None:
    code = (
        "import sys, edgemae.evaluation.accuracy, edgemae.evaluation.parity, edgemae.evaluation.report.report\n"
        "heavy = {'torch', 'onnx', 'nncf', 'scipy', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
