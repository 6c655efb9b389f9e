"""Frames arrive on time, or it is an error."""

from __future__ import annotations

import time

import pytest

from edgemae.profiling import simulated_camera
from edgemae.profiling.simulated_camera import SimulatedCamera
from edgemae.spec.errors import CameraError
from tests.support.long_runs import MS


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
