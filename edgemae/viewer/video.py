"""A video of what was seen: the answer burnt in, as long as the source was, whole however the run ends."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera.camera import Camera, Frame
from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult
from edgemae.spec.errors import InputError, MachineError, StorageError
from edgemae.spec.user_paths import require_apart
from edgemae.viewer import overlay
from edgemae.viewer.live_stats import StatsCollector

CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}  # what OpenCV's own builds can all write
LIVE_FPS, IMAGES_FPS = 30.0, 5.0
LONGEST_STILL_S = 2.0  # an outage is shown as a still image of this length, not of its own
RESERVE_MIB = 32  # left on the disk: OpenCV says nothing of a write that fails, and the index is written last


class Video:
    """Write a video file frame by frame. It starts with the first frame, whose size all others get."""

    def __init__(self, path: Path, camera: Camera, stats: StatsCollector) -> None:
        self._path, self._camera, self._stats = path, camera, stats
        self._codec = _codec(path)
        if not path.parent.is_dir():
            raise StorageError(
                f"'{path}' cannot be written: there is no folder '{path.parent}'",
                expected="a folder that exists",
                fix="make it, or choose another --save",
            )
        require_apart([path], [camera.source])
        self._writer: cv2.VideoWriter | None = None
        self._size_hw, self._fps = (0, 0), 0.0
        self._start_ns, self.written = 0, 0

    def show(self, seen: StreamResult[Result]) -> bool:
        image = overlay.draw(seen, self._stats.fps)
        if self._writer is None:
            self._open(image, seen.frame)
        if (free_mib := shutil.disk_usage(self._path.parent).free >> 20) < RESERVE_MIB:
            raise StorageError(
                f"the disk of '{self._path}' is full: {free_mib} MiB are left, {self.written} frames are kept",
                expected=f"more than {RESERVE_MIB} MiB, so that the file can be ended properly",
                fix="free some space, or choose another --save",
            )
        fitted = _fit(image, self._size_hw)
        for _ in range(self._due(seen.frame)):
            assert self._writer is not None
            self._writer.write(fitted)
            self.written += 1
        return True

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self._check()

    def _open(self, image: NDArray[np.uint8], frame: Frame) -> None:
        self._fps, self._size_hw, self._start_ns = _fps(self._camera), image.shape[:2], frame.t_capture_ns
        height, width = self._size_hw
        fourcc = cv2.VideoWriter.fourcc(*self._codec)
        self._writer = cv2.VideoWriter(str(self._path), fourcc, self._fps, (width, height))
        if not self._writer.isOpened():
            self._writer = None
            raise MachineError(
                f"OpenCV {cv2.__version__} cannot write '{self._path}' ({width} x {height}, {self._codec})",
                expected="a folder that may be written, and an OpenCV with that encoder (`edgemae doctor` shows it)",
                fix="choose another --save, for example one that ends in .avi",
            )

    def _due(self, frame: Frame) -> int:
        """Return how often to write an image, so that the video runs as the source did, dropped frames included."""
        if not self._camera.live:
            return max(frame.seq + 1 - self.written, 1) if self._camera.kind == "video" else 1
        due = int((frame.t_capture_ns - self._start_ns) / 1e9 * self._fps) + 1 - self.written
        if (beyond := due - int(LONGEST_STILL_S * self._fps)) > 0:
            self._start_ns += int(beyond / self._fps * 1e9)
            due -= beyond
        return due

    def _check(self) -> None:
        """Raise StorageError when the file does not hold what was written: a quota, a disk that was pulled."""
        capture = cv2.VideoCapture(str(self._path))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found < 0.99 * self.written - 1:  # Matroska does not count frames: OpenCV divides its duration
            raise StorageError(
                f"'{self._path}' holds {max(found, 0)} of {self.written} frames",
                expected="a disk that takes the whole file",
                fix="see that the disk has space and no quota is reached, then run again",
            )


def _codec(path: Path) -> str:
    if path.suffix.lower() not in CODECS:
        raise InputError(
            f"'{path}' has no ending of a video", expected=f"one of {', '.join(CODECS)}", fix="rename it, e.g. seen.mp4"
        )
    return CODECS[path.suffix.lower()]


def _fps(camera: Camera) -> float:
    if camera.live:
        return LIVE_FPS
    if camera.kind != "video":
        return IMAGES_FPS
    capture = cv2.VideoCapture(camera.source)
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    capture.release()
    return fps if 0.0 < fps < 1000.0 else LIVE_FPS


def _fit(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image of the video's size: scaled to fit, black around it."""
    if image.shape[:2] == size_hw:
        return image
    scale = min(size_hw[0] / image.shape[0], size_hw[1] / image.shape[1])
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    fitted = np.zeros((*size_hw, 3), np.uint8)
    top, left = (size_hw[0] - height) // 2, (size_hw[1] - width) // 2
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    fitted[top : top + height, left : left + width] = small
    return fitted
