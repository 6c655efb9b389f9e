"""Videos whose frames are gray levels, so that each says its number."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device.camera.camera import Frame

FRAMES, FPS = 30, 25.0

STEP = 8  # gray levels between two frames: survives both codecs


def write_video(path: Path, codec: str, frames: int = FRAMES) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), i * STEP % 256, np.uint8))
    writer.release()
    return path


def number_of(frame: Frame) -> int:
    return round(float(frame.array_bgr.mean()) / STEP)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", "MJPG")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
