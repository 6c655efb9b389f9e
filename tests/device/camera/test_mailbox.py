"""The slot: every frame or the newest, none too old, and each counted once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np

from edgemae.device.camera.camera import Camera, Counters
from tests.support.gray_video import FPS, FRAMES


def test_every_waits_for_a_slow_consumer(video: Path) -> None:
    with Camera(video) as camera:
        for _ in camera:
            time.sleep(0.005)
    assert camera.counters.delivered == FRAMES
    assert camera.counters.dropped == 0


def test_latest_gives_a_slow_consumer_fresh_frames_and_counts_the_rest(video: Path) -> None:
    with Camera(video, "latest", realtime=True) as camera:
        seen = []
        for frame in camera:
            seen.append((frame.seq, frame.age_ms))
            time.sleep(0.15)  # 6.7 fps behind a source of 25 fps
    counters = camera.counters
    numbers = [seq for seq, _ in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == FRAMES - 1  # the last frame is never dropped
    assert counters.captured == FRAMES == counters.delivered + counters.dropped
    assert counters.delivered == len(seen) < FRAMES / 2
    # A frame waits at most one interval for its successor; a queue would reach 600 ms here.
    ages = sorted(age for _, age in seen[:-2])  # at the end of the file nothing newer comes
    assert ages[len(ages) // 2] < 2 * 1000 / FPS


def test_staleness_withholds_old_frames(video: Path) -> None:
    with Camera(video, "staleness:60ms", realtime=True) as camera:
        time.sleep(0.3)
        ages = []
        for frame in camera:
            ages.append(frame.age_ms)
            time.sleep(0.1)
    # 60 ms is the limit at the hand-over; the rest is the time that this thread took to look at its clock.
    assert ages
    assert sorted(ages)[len(ages) // 2] < 70
    counters = camera.counters
    assert counters.captured == counters.delivered + counters.dropped
    assert counters.stale <= counters.dropped == counters.stale + counters.overwritten


def test_an_old_frame_in_the_slot_is_stale_and_not_delivered(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), np.zeros((8, 8, 3), np.uint8))
    with Camera(tmp_path, "staleness:20ms") as camera:
        time.sleep(0.05)
        assert list(camera) == []
    assert camera.counters == Counters(captured=1, stale=1)


def test_close_ends_a_waiting_reader_and_a_waiting_consumer(video: Path) -> None:
    camera = Camera(video, realtime=True)
    timer = threading.Timer(0.15, camera.close)
    timer.start()
    seen = list(camera)
    timer.join()
    assert 0 < len(seen) < FRAMES
    assert camera.read() is None
    assert not camera._reader.is_alive()
    assert camera.state == "closed"
