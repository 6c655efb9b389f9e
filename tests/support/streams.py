"""Sources for streams, and models that need no bundle."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

COUNT = 20

FPS = 25.0

INTERVAL_MS = 1000 / FPS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((6, 6, 3), i, np.uint8))
    return tmp_path


def clip(path: Path, frames: int = 40, fps: float = FPS, gray: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (32, 32))
    for _ in range(frames):
        writer.write(np.full((32, 32, 3), gray, np.uint8))
    writer.release()
    return path


def ours() -> set[str]:
    """Return the names of our threads that live; those that were told to end get a moment."""
    deadline = time.monotonic() + 5
    while True:
        found = {thread.name for thread in threading.enumerate() if thread.name.startswith("edgemae")}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def stamp_ns(_: np.ndarray) -> int:
    return time.monotonic_ns()


def level(frame_bgr: np.ndarray) -> int:
    return int(frame_bgr[0, 0, 0])
