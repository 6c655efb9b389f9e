"""Readers that hang, fail or turn frames: bounded, counted, and left behind where nothing else helps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgemae.device.camera import camera as camera_module
from edgemae.device.camera import reader as reader_module
from edgemae.device.camera import supervisor as supervisor_module
from edgemae.device.camera.camera import Camera
from edgemae.device.camera.frame_source import CapturedFrame
from edgemae.device.camera.reader import hung_readers
from edgemae.spec.errors import CameraError
from tests.support.gray_video import FRAMES, descriptors, number_of


class Fake:
    """A source of the tests: gives what `make_frames` yields."""

    fps = 0.0

    def __init__(self, make_frames: Callable[[], Iterator[CapturedFrame]]) -> None:
        self._make_frames = make_frames

    def open(self) -> None:
        self._items = self._make_frames()

    def read(self) -> CapturedFrame | None:
        return next(self._items, None)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def gray(level: int = 0) -> CapturedFrame:
    return CapturedFrame(np.full((4, 4, 3), level, np.uint8), time.monotonic_ns(), None, f"x#{level}")


def test_a_source_that_hangs_in_c_is_left_behind_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang() -> Iterator[CapturedFrame]:
        release.wait()
        yield from ()

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(hang))
    threads, start = threading.active_count(), time.monotonic()
    with pytest.raises(CameraError, match=r"'5' .* 1\.1 s; its driver hangs"):
        Camera(5, open_timeout_ms=100, read_timeout_ms=100)
    assert time.monotonic() - start < 10
    assert hung_readers() == 1
    release.set()
    end = time.monotonic() + 10
    while hung_readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert hung_readers() == 0
    assert threading.active_count() == threads


def test_an_unexpected_exception_in_the_reader_reaches_the_consumer(
    monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    def fail() -> Iterator[CapturedFrame]:
        yield gray()
        yield gray()
        raise ValueError("driver said no to rtsp://a:b@c")

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(fail))
    with Camera(video) as camera:
        assert camera.read() is not None
        assert camera.read() is not None
        for _ in range(2):
            with pytest.raises(CameraError, match=r"ValueError: driver said no to rtsp://\*\*\*@c"):
                camera.read()
        assert camera.state == "failed"
        assert "rtsp://***@c" in camera.last_error
    assert camera.state == "closed"
    assert camera.read() is None


def test_readers_that_hang_are_bounded_then_a_child_process_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    """An open of a FIFO that nobody writes blocks in C: a thread cannot be stopped there, a child process can."""
    monkeypatch.setattr(camera_module, "FILE_TIMEOUT_MS", 200)
    monkeypatch.setattr(supervisor_module, "GRACE_S", 0.3)
    os.mkfifo(tmp_path / "clip.mp4")
    before = descriptors()
    try:
        for count in range(1, reader_module.MAX_HUNG_READERS + 1):
            with pytest.raises(CameraError, match="its driver hangs"):
                Camera(tmp_path / "clip.mp4")
            assert hung_readers() == count
        with pytest.raises(CameraError, match=r"clip\.mp4' .* 1\.7 s .*killed"):
            Camera(tmp_path / "clip.mp4")
        assert hung_readers() == reader_module.MAX_HUNG_READERS  # no further one
        with Camera(video) as camera:  # other sources work all the same, in a child as well
            assert [number_of(frame) for frame in camera] == list(range(FRAMES))
    finally:
        writers = [os.open(tmp_path / "clip.mp4", os.O_RDWR | os.O_NONBLOCK)]
        end = time.monotonic() + 10
        while hung_readers() and time.monotonic() < end:
            os.close(writers.pop())
            writers.append(os.open(tmp_path / "clip.mp4", os.O_RDWR | os.O_NONBLOCK))
            time.sleep(0.02)
        os.close(writers.pop())
    assert hung_readers() == 0
    assert descriptors() == before


def test_close_is_quick_while_a_reader_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang_later() -> Iterator[CapturedFrame]:
        for i in range(5):
            time.sleep(0.03)
            yield gray(i)
        release.wait()

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(hang_later))
    camera = Camera(0, read_timeout_ms=1000)
    while camera.state != "stalled":
        time.sleep(0.02)
    start = time.monotonic()
    camera.close()
    assert time.monotonic() - start < 1.5
    assert hung_readers() == 1
    release.set()
    assert camera.read() is None
    counters = camera.counters
    assert counters.captured == 5 == counters.delivered + counters.dropped


@pytest.mark.parametrize(("rotation", "corner"), [(0, 1), (90, 3), (180, 4), (270, 2)])
def test_rotation_is_applied_and_told(rotation: int, corner: int) -> None:
    image = np.repeat(np.array([[1, 2], [3, 4]], np.uint8)[..., None], 3, axis=2)
    with Camera([image], rotation=rotation) as camera:
        (frame,) = camera
    assert frame.array_bgr[0, 0, 0] == corner
    assert (frame.rotation, frame.color) == (rotation, "BGR")
