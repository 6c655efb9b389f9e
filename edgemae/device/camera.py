"""Frames of a camera, a stream, a video or a folder, handed over by one reader thread through a single slot.

A plain `cv2.VideoCapture` loop behind a consumer of 5 fps was 9.6 s stale after 12 s of a 25 fps stream. Here the
reader empties the source at its own pace; the consumer finds the newest frame in the slot, and what it was too slow
for is counted as dropped. For files the reader waits instead, so that every frame arrives in order.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgemae.device.sources import LIVE_KINDS, Grab, kind_of, open_source, redact, source_fps
from edgemae.spec.errors import CameraError, EdgemaeError, InputError, nearest
from edgemae.spec.graph import PixelContract

log = logging.getLogger(__name__)
POLICIES = ("latest", "every", "staleness:200ms")
CLOSE_TIMEOUT_S = 1.2  # a reader that hangs in C is left behind after this: close() ends within 1.5 s
FILE_TIMEOUT_MS = 30_000  # decoding one very large picture on a small board
NAMES_KEPT = 100


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Hold one picture. `t_capture_ns` is `time.monotonic_ns()` right after the source handed it over."""

    array_bgr: NDArray[np.uint8]  # (H, W, 3)
    seq: int  # counts the source's frames from 0; a gap is a dropped or corrupt frame
    t_capture_ns: int
    generation: int  # rises whenever the source was opened again
    pts_ms: float | None  # the source's own clock, where it has one
    name: str  # path of the image, or source#number

    @property
    def age_ms(self) -> float:
        return (time.monotonic_ns() - self.t_capture_ns) / 1e6


@dataclass(frozen=True, slots=True)
class Counters:
    """Count frames; at the end of a source captured = delivered + dropped. `stale` is the part of `dropped` that was
    older than the policy allows; a `corrupt` frame is not captured."""

    captured: int = 0
    delivered: int = 0
    dropped: int = 0
    stale: int = 0
    corrupt: int = 0


class Camera:
    """Iterate over the frames of `source`: 0, "/dev/video0", a video file, an image, a folder, an rtsp/http address.

    policy: "latest" hands over the newest frame and drops the others (default of live sources), "every" hands over all
    in order (default of files, refused for live sources), "staleness:200ms" is "latest" that never hands over a frame
    older than that. `realtime` plays a file at its own frame rate. `pixel` tells whether EXIF applies to images.
    A live source that ends or falls silent raises CameraError; a file ends the iteration.
    """

    abandoned = 0  # readers of this process that hung in C and were left behind

    def __init__(
        self, source: int | str | Path, policy: str | None = None, *, realtime: bool = False,
        open_timeout_ms: int = 3000, read_timeout_ms: int = 1000, pixel: PixelContract | None = None,
    ) -> None:  # fmt: skip
        self.source = redact(source)
        self.kind = kind_of(source)
        self.live = self.kind in LIVE_KINDS
        self.policy = ("latest" if self.live else "every") if policy is None else policy
        self._limit_ms, self._lossless = _parse_policy(self.policy, self.live)
        self._realtime = realtime and not self.live
        self._read_timeout_ms = read_timeout_ms if self.live else FILE_TIMEOUT_MS
        self._changed = threading.Condition()
        self._slot: Frame | None = None
        self._ended = self._closed = False
        self._error: EdgemaeError | None = None
        self._counts = dict.fromkeys(Counters.__slots__, 0)
        self.corrupt_names: list[str] = []  # the first hundred
        arguments = (source, (open_timeout_ms, read_timeout_ms), pixel or PixelContract(image_px=1))
        self._reader = threading.Thread(target=self._read_all, args=arguments, name="edgemae-camera", daemon=True)
        self._reader.start()
        self._await_first(open_timeout_ms if self.live else max(open_timeout_ms, FILE_TIMEOUT_MS))

    @property
    def counters(self) -> Counters:
        with self._changed:
            return Counters(**self._counts)

    def read(self) -> Frame | None:
        """Return the next frame by the policy, or None when a file has ended or the camera was closed."""
        end = time.monotonic() + (self._read_timeout_ms + 500) / 1e3  # OpenCV's own time-out comes first
        with self._changed:
            while not self._closed:
                frame, self._slot = self._slot, None
                if frame is not None:
                    self._changed.notify_all()  # a lossless reader waits for the slot
                    if self._limit_ms is None or frame.age_ms <= self._limit_ms:
                        self._counts["delivered"] += 1
                        return frame
                    self._counts["dropped"] += 1
                    self._counts["stale"] += 1
                elif self._error is not None:
                    raise self._error
                elif self._ended:
                    return None
                elif not self._changed.wait(end - time.monotonic()) and time.monotonic() >= end:
                    raise _silent(self.source, self._read_timeout_ms + 500)
        return None

    def close(self) -> None:
        """Stop the reader and free the source, within 1.5 s even when the source hangs. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if self._slot is not None:
                self._slot = None
                self._counts["dropped"] += 1
            self._changed.notify_all()
        self._reader.join(CLOSE_TIMEOUT_S)
        if self._reader.is_alive():
            Camera.abandoned += 1
            log.warning("the reader of '%s' hangs in its driver and was left behind", self.source)

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _await_first(self, timeout_ms: int) -> None:
        """Block until a frame lies in the slot; raise what prevents it."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self._slot or self._ended or self._error, timeout_ms / 1e3)
            error = self._error
            if error is None and not arrived:
                error = _silent(self.source, timeout_ms)
            elif error is None and self._slot is None and self._counts["captured"] == 0:
                error = self._nothing()
        if error is not None:
            self.close()
            raise error

    def _nothing(self) -> CameraError:
        unreadable = f" ({self.corrupt_names[0]} and others cannot be read)" if self.corrupt_names else ""
        return CameraError(
            f"frame source '{self.source}' holds no readable frame{unreadable}",
            expected="at least one picture that OpenCV can decode",
            fix="replace the file, or pass another source",
        )

    # From here on: the reader thread.

    def _read_all(self, source: int | str | Path, timeouts_ms: tuple[int, int], pixel: PixelContract) -> None:
        error: EdgemaeError | None = None
        try:
            opened = open_source(source, self.kind, timeouts_ms, pixel)
            try:
                fps = source_fps(opened) if self._realtime else 0.0
                start, turn = time.monotonic(), 0
                while not self._closed and self._pace(start + turn / fps if fps else 0.0):
                    grab = opened.read()
                    if grab is None:
                        break
                    turn += 1
                    self._put(grab)
            finally:
                opened.close()
            if self.live and not self._closed:
                error = CameraError(
                    f"'{self.source}' stopped delivering frames after {self._counts['captured']}",
                    expected="a live source that does not end",
                    fix="see that the camera and its network are up, then open it again",
                )
        except EdgemaeError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - the consumer gets it; an exception in a thread is seen by nobody
            error = CameraError(
                f"reading '{self.source}' failed: {type(raised).__name__}: {redact(raised)}",
                expected="frames until the source ends",
                fix="see that the source is still there, then open it again",
            )
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def _pace(self, due: float) -> bool:
        """Wait until `due`; False when the camera was closed meanwhile."""
        with self._changed:
            while not self._closed and (left := due - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._closed

    def _put(self, grab: Grab) -> None:
        with self._changed:
            if grab.array_bgr is None:
                self._counts["corrupt"] += 1
                if len(self.corrupt_names) < NAMES_KEPT:
                    self.corrupt_names.append(grab.name)
                log.warning("skipped a corrupt frame: %s", grab.name)
                return
            if self._lossless:
                self._changed.wait_for(lambda: self._slot is None or self._closed)
            seq = self._counts["captured"] + self._counts["corrupt"]
            self._counts["captured"] += 1
            if self._slot is not None or self._closed:
                self._counts["dropped"] += 1
            if not self._closed:
                self._slot = Frame(grab.array_bgr, seq, grab.t_capture_ns, 0, grab.pts_ms, grab.name)
            self._changed.notify_all()


def _parse_policy(policy: str, live: bool) -> tuple[float | None, bool]:
    """Return (age limit in ms or None, whether every frame is handed over)."""
    head, _, limit = policy.partition(":")
    number = limit.removesuffix("ms")
    if head == "staleness" and limit.endswith("ms") and number.isdecimal() and int(number) > 0:
        return float(number), False
    if policy not in ("latest", "every"):
        raise InputError(
            f"unknown frame policy '{policy}'.{nearest(policy, list(POLICIES))}",
            expected=f"one of {', '.join(POLICIES)} (any number of ms)",
            fix="correct the policy",
        )
    if policy == "every" and live:
        raise InputError(
            "policy 'every' was asked of a live source",
            expected="'latest' or 'staleness:200ms': a consumer slower than the camera would fall behind without bound",
            fix="record the stream to a file first when every frame counts",
        )
    return None, policy == "every"


def _silent(source: str, timeout_ms: float) -> CameraError:
    return CameraError(
        f"no frame came from '{source}' within {timeout_ms / 1e3:.1f} s",
        expected="a source that delivers frames",
        fix="see that it is switched on and reachable, raise the time-out for a slow one, then open it again",
    )
