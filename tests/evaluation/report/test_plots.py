"""Plots: real PNGs of the right size, without warnings, and drawn from the numbers they are given."""

from __future__ import annotations

import io

import cv2
import msgspec
import numpy as np
import pytest

from edgemae.evaluation.report import plots
from edgemae.spec.errors import InternalError
from edgemae.spec.report import GateVerdict
from tests.evaluation.samples import report, scored


def pixels(png: bytes | None) -> np.ndarray:
    assert png is not None
    frame = cv2.imdecode(np.frombuffer(io.BytesIO(png).getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert frame is not None
    return frame


@pytest.mark.parametrize("dark", [False, True])
def test_every_plot_is_readable_on_its_page(dark: bool) -> None:
    _, student, int8 = scored()
    assert student.logits is not None
    assert int8.logits is not None
    rng = np.random.default_rng(0)
    rows = [(rng.random((8, 8, 3)), rng.random((8, 8, 1)), rng.random((8, 8)))] * 5
    full = report()
    drawn = {
        "accuracy": plots.accuracy_latency(full, dark),
        "losses": plots.loss_curves(full.curves, dark),
        "classes": plots.per_class(full, dark),
        "images": plots.image_grid(rows, dark),
        "reliability": plots.reliability(
            [("student", student.logits, student.labels), ("$int8", int8.logits, int8.labels)], dark
        ),
    }
    for name, png in drawn.items():
        frame = pixels(png)
        assert frame.shape[1] >= 1000, name
        page = int(frame[0, 0].mean())
        assert page < 40 if dark else page == 255, name
        ink = np.abs(frame.astype(int) - frame[0, 0]).max(axis=2) > 150
        assert 0.001 < ink.mean() < 0.9, name


def test_the_same_report_gives_the_same_bytes() -> None:
    assert plots.accuracy_latency(report()) == plots.accuracy_latency(report())


def test_a_faster_engine_changes_the_plot() -> None:
    full = report()
    faster = msgspec.structs.replace(full.engines[0], p50_ms=0.5)
    assert plots.accuracy_latency(full) != plots.accuracy_latency(
        msgspec.structs.replace(full, engines=(faster, *full.engines[1:]))
    )


@pytest.mark.parametrize("limit_ms", [1e-6, 1e5])
def test_a_limit_far_from_every_engine_is_told_and_leaves_room_for_them(limit_ms: float) -> None:
    """It once pushed the plot out of its own page, which matplotlib says in a warning."""
    gate = GateVerdict(gate="p90_ms", limit=limit_ms, value=1.0, passed=False)
    with_limit, without = (msgspec.structs.replace(report(), gates=gates) for gates in ((gate,), ()))
    assert plots.accuracy_latency(with_limit) != plots.accuracy_latency(without)


def test_what_cannot_be_drawn_is_none_and_never_an_empty_plot() -> None:
    assert plots.loss_curves({}) is None
    assert plots.loss_curves({"distill": []}) is None
    assert plots.accuracy_latency(report(engines=())) is None
    assert plots.accuracy_latency(report(stages=())) is None
    assert plots.per_class(report(labelled=False)) is None
    with pytest.raises(InternalError):
        plots.image_grid([])


def test_without_labels_the_plot_shows_agreement() -> None:
    assert plots.accuracy_latency(report(labelled=False)) is not None


def test_images_are_shown_as_they_are() -> None:
    red = np.zeros((4, 4, 3))
    red[..., 0] = 1.0
    frame = pixels(plots.image_grid([(red, np.zeros((4, 4)), np.ones((4, 4)))]))
    height, width = frame.shape[:2]
    assert frame[height // 2, width // 6].tolist() == [0, 0, 255]  # BGR
    assert frame[height // 2, width // 2].tolist() == [0, 0, 0]


def test_many_long_or_odd_class_names_fit() -> None:
    stages, _, _ = scored()
    names = {f"{'x' * 60}{i} $a_b$": i / 40 for i in range(40)}
    full = report(stages=tuple(msgspec.structs.replace(stage, per_class=names) for stage in stages))
    assert pixels(plots.per_class(full)).shape[0] > 2000
