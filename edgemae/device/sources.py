"""Where frames come from: cameras, streams, video files, images. One class for what OpenCV opens, one for pictures.

A source is used by one thread only, the camera's reader: it opens, reads and closes it there.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from edgemae.device.preprocess import decode
from edgemae.spec.errors import CameraError
from edgemae.spec.graph import PixelContract

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
URL_SCHEMES = ("rtsp", "rtsps", "http", "https")
KINDS = ("camera", "url", "video", "images")
LIVE_KINDS = ("camera", "url")
CORRUPT_RUN = 300  # undecodable video frames in a row after which the rest is given up
# First frame after 82 ms instead of 1,130 ms on a 25 fps RTSP stream; only for RTSP, small probes break files.
RTSP_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay|probesize;32|analyzeduration;0"
_OPTIONS_VARIABLE = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


class Grab(NamedTuple):
    """One attempt to read a frame: `array_bgr` is None for one that is corrupt, named by `name`."""

    array_bgr: NDArray[np.uint8] | None
    t_capture_ns: int
    pts_ms: float | None
    name: str


class Source(Protocol):
    def read(self) -> Grab | None:
        """Return the next frame, or None at the end of the source."""

    def close(self) -> None: ...


def kind_of(source: int | str | Path) -> str:
    """Return which of KINDS a source is. Raises CameraError when it does not exist."""
    text = str(source)
    if text.isdecimal():
        return "camera"
    if "://" in text:
        scheme = urlsplit(text).scheme.lower()
        if scheme in URL_SCHEMES:
            return "url"
        raise CameraError(
            f"frame source '{redact(text)}' has the unknown scheme '{scheme}'",
            expected=f"one of {', '.join(name + '://' for name in URL_SCHEMES)}",
            fix="correct the address, or pass the path of a file",
        )
    path = Path(text)
    if not os.path.exists(text):  # unlike Path.exists it survives a name that is too long
        raise CameraError(
            f"frame source '{text}' does not exist",
            expected="a camera number, /dev/video0, a video file, an image, a folder of images, an rtsp/http address",
            fix="check the path; for a camera, see that it is plugged in (`ls /dev/video*`)",
        )
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        return "images"
    return "camera" if path.is_char_device() else "video"


def open_source(source: int | str | Path, kind: str, timeouts_ms: tuple[int, int], pixel: PixelContract) -> Source:
    """Open a source; `timeouts_ms` are those of opening and of reading. Raises CameraError."""
    if kind == "images":
        return Images(Path(str(source)), pixel)
    return Video(source, kind, timeouts_ms)


def redact(source: object) -> str:
    """Return the source as text without user name and password."""
    return re.sub(r"://\S*@", "://***@", str(source))


class Images:
    """Read an image file, or every image under a folder in the order of its path."""

    def __init__(self, path: Path, pixel: PixelContract) -> None:
        self._pixel, self._root = pixel, path
        paths = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise CameraError(
                f"folder '{path}' holds no images",
                expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
                fix="pass the folder that holds the pictures",
            )
        self._paths = iter(paths)

    def read(self) -> Grab | None:
        path = next(self._paths, None)
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        t_capture_ns = time.monotonic_ns()
        return Grab(decode(data, self._pixel), t_capture_ns, None, str(path))

    def close(self) -> None:
        self._paths = iter(())


class Video:
    """Read a camera, a network stream or a video file through OpenCV."""

    def __init__(self, source: int | str | Path, kind: str, timeouts_ms: tuple[int, int]) -> None:
        text = str(source)
        self._name, self._seen, self._corrupt_run = redact(text), 0, 0
        if kind == "camera":  # seconds; 10 by default, and there is no parameter for it
            os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "1")
        with _opening(RTSP_OPTIONS if text.lower().startswith("rtsp") else ""):
            self._capture = _capture(text, kind, timeouts_ms)
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(
                f"frame source '{self._name}' cannot be opened as a {'video' if kind == 'video' else kind}",
                expected="a camera, stream or file that OpenCV can decode",
                fix=_OPEN_FIX[kind],
            )
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))

    def read(self) -> Grab | None:
        while self._capture.grab():
            t_capture_ns = time.monotonic_ns()  # after grab: before it, the wait for the frame would be counted in
            pts_ms = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
            ok, image = self._capture.retrieve()
            self._seen += 1
            name = f"{self._name}#{self._seen}"
            if ok and image is not None and image.size:
                self._corrupt_run = 0
                return Grab(image, t_capture_ns, pts_ms, name)  # type: ignore[arg-type]
            self._corrupt_run += 1
            return Grab(None, t_capture_ns, pts_ms, name) if self._corrupt_run < CORRUPT_RUN else None
        return None

    def close(self) -> None:
        self._capture.release()


_OPEN_FIX = {
    "camera": "see that it is plugged in and not in use (`ls -l /dev/video*`, `fuser /dev/video0`)",
    "url": "check the address, the password and the network; try it with `ffplay`",
    "video": "check that the file is a video (`file NAME`), and re-encode it as H.264 mp4 when it is",
}


def _capture(text: str, kind: str, timeouts_ms: tuple[int, int]) -> cv2.VideoCapture:
    if kind == "camera":
        backend = cv2.CAP_V4L2 if _has(cv2.CAP_V4L2) else cv2.CAP_ANY
        # The second form takes a path such as /dev/v4l/by-id/..., which stays the same after unplugging.
        return cv2.VideoCapture(int(text), backend) if text.isdecimal() else cv2.VideoCapture(text, backend)
    if not _has(cv2.CAP_FFMPEG):
        return cv2.VideoCapture(text, cv2.CAP_ANY)  # an OpenCV with GStreamer only, as on Jetson
    open_ms, read_ms = timeouts_ms
    # Without these both time-outs are 30 s. They count only as open parameters of an explicit FFMPEG backend.
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]
    if kind == "url":
        parameters += [cv2.CAP_PROP_N_THREADS, 1]  # frame threads hold frames back: 81 -> 41 ms age at 25 fps
    return cv2.VideoCapture(text, cv2.CAP_FFMPEG, parameters)


def _has(backend: int) -> bool:
    return backend in cv2.videoio_registry.getBackends()


class _Opening:
    """Keep the environment right while OpenCV opens a source, and OpenCV's own warnings quiet: ours say it better.

    FFMPEG options can only be given through an environment variable, and those of RTSP would break files. So sources
    that want the same one open side by side, and the others wait for them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._options, self._count, self._level = "", 0, 0

    @contextmanager
    def __call__(self, options: str) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0 or self._options == options)
            if self._count == 0:
                # An option that the user has set already stays.
                self._options, self._is_ours = options, bool(options) and _OPTIONS_VARIABLE not in os.environ
                if self._is_ours:
                    os.environ[_OPTIONS_VARIABLE] = options
                self._level = cv2.utils.logging.setLogLevel(0)
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                if self._count == 0:
                    if self._is_ours:
                        os.environ.pop(_OPTIONS_VARIABLE, None)
                    cv2.utils.logging.setLogLevel(self._level)
                    self._changed.notify_all()


_opening = _Opening()


def source_fps(source: Any) -> float:
    """Return the frame rate that a source declares, 0.0 for pictures and where it is unknown."""
    fps = float(getattr(source, "fps", 0.0))
    return fps if 0.0 < fps < 1000.0 else 0.0
