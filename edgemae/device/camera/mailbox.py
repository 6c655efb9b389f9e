"""One slot between the reader's thread and the consumer's, the state of the source, and the count of every frame."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import CapturedFrame
from edgemae.spec.errors import EdgemaeError

log = logging.getLogger("edgemae.device.camera")
FINAL_STATES = ("ended", "failed", "closed")
WARNING_STATES = ("stalled", "reconnecting", "failed")  # logged as warnings
NAMES_KEPT = 100  # of corrupt frames
LOGGED = 10  # then every power of two


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Hold one image. `t_capture_ns` is `time.monotonic_ns()` when the source handed it over (H.264 and H.265 over
    RTSP: when its data arrived, one interval earlier, for the decoder holds each frame until the next one comes)."""

    array_bgr: NDArray[np.uint8]  # (H, W, 3)
    seq: int  # counts the source's frames from 0; a gap is a dropped or corrupt frame
    t_capture_ns: int
    generation: int  # rises whenever the source was opened again
    pts_ms: float | None  # the source's own clock, where it has one; it may jump, and no age is taken from it
    name: str  # path of the image, or source#number
    rotation: int = 0  # degrees clockwise that were applied
    color: str = "BGR"

    @property
    def age_ms(self) -> float:
        return (time.monotonic_ns() - self.t_capture_ns) / 1e6


@dataclass(frozen=True, slots=True)
class Counters:
    """Count frames; at the end of a source captured = delivered + dropped. A `corrupt` frame is not captured."""

    captured: int = 0
    delivered: int = 0
    overwritten: int = 0  # dropped: a newer one came before the consumer did
    stale: int = 0  # dropped: older than the policy allows, or from before a stall
    backlog: int = 0  # dropped: had piled up while the source was silent, or before it was open
    unread: int = 0  # dropped: the camera was closed
    corrupt: int = 0  # could not be decoded, or leaned on one that could not
    stalls: int = 0
    reconnects: int = 0  # openings that gave a frame, after the first

    @property
    def dropped(self) -> int:
        return self.overwritten + self.stale + self.backlog + self.unread


class Mailbox:
    """Hand frames over, the newest only, or every one when `lossless`. All methods may be called by any thread."""

    def __init__(self, source: str, rotation: int, lossless: bool) -> None:
        self.changed = threading.Condition()
        self.source, self.rotation, self.lossless = source, rotation, lossless
        self.state, self.last_error = "opening", ""
        self.error: EdgemaeError | None = None
        self.generation = -1
        self.corrupt_names: list[str] = []
        self.last_image_ns = time.monotonic_ns()  # when the last image came, fresh or not
        self.silence_ns = 0  # when the source last fell silent or was opened again: what is older is not handed over
        self.counts = dict.fromkeys(Counters.__slots__, 0)
        self._slot: Frame | None = None
        self.live_generation = -1  # the last generation that gave a frame

    # The reader's side.

    def put(self, captured: CapturedFrame, generation: int, is_fresh: bool = True) -> None:
        """Take a captured frame; one of a generation that is over is counted and goes no further."""
        with self.changed:
            if captured.lost:
                self.counts["corrupt"] += captured.lost
                log.warning("%d frames before %s could not be decoded", captured.lost, captured.name)
            if captured.array_bgr is None:
                self._count_corrupt(captured)
                return
            if generation == self.generation:
                self.last_image_ns = time.monotonic_ns()
            if self.lossless:
                self.changed.wait_for(lambda: self._slot is None or self.state == "closed")
            seq = self.counts["captured"] + self.counts["corrupt"]
            self.counts["captured"] += 1
            if self.state in FINAL_STATES:
                self.counts["unread"] += 1
            elif generation != self.generation or not is_fresh:
                self.counts["backlog"] += 1
            else:
                self._clear("overwritten")
                self._slot = Frame(
                    captured.array_bgr,
                    seq,
                    captured.t_capture_ns,
                    generation,
                    captured.pts_ms,
                    captured.name,
                    self.rotation,
                )
                self._mark_live(generation)
            self.changed.notify_all()

    def _mark_live(self, generation: int) -> None:
        if self.live_generation not in (-1, generation):
            self.counts["reconnects"] += 1
        self.live_generation = generation
        if self.state != "live":
            self._change_state("live", f"generation {generation}")

    def _count_corrupt(self, captured: CapturedFrame) -> None:
        self.counts["corrupt"] += 1
        count = self.counts["corrupt"]
        if len(self.corrupt_names) < NAMES_KEPT:
            self.corrupt_names.append(captured.name)
        if captured.reason:
            self.last_error = f"{captured.name}: {captured.reason}"
        if count <= LOGGED or count & (count - 1) == 0:  # a camera that sends noise for a week fills no disk
            log.warning(
                "skipped a corrupt frame (%d so far): %s%s",
                count,
                captured.name,
                captured.reason and f": {captured.reason}",
            )

    # The supervisor's side.

    def begin(self) -> int:
        """Start a new generation: frames of the old one are dropped from here on. Return its number."""
        with self.changed:
            self._clear("stale")
            self.generation += 1
            self.last_image_ns = self.silence_ns = time.monotonic_ns()
            return self.generation

    def set_state(self, state: str, why: str = "", error: EdgemaeError | None = None) -> None:
        """Change the state, log it and wake everybody; what is over stays as it is."""
        with self.changed:
            if self.state in FINAL_STATES:
                return
            if why and state in WARNING_STATES:
                self.last_error = redact(why)
            if state == "stalled":
                self.counts["stalls"] += 1
            if state in ("stalled", "reconnecting"):
                self._clear("stale")  # it is from before the silence
                self.silence_ns = time.monotonic_ns()
            self.error = error
            if state != self.state:
                self._change_state(state, redact(why))
            self.changed.notify_all()

    def _change_state(self, state: str, why: str) -> None:
        level = logging.WARNING if state in WARNING_STATES else logging.INFO
        log.log(level, "%s: %s -> %s%s", self.source, self.state, state, f": {why}" if why else "")
        self.state = state

    # The consumer's side.

    def take(
        self, limit_ms: float | None, timeout_s: float | None, timeout_error: Callable[[], EdgemaeError]
    ) -> Frame | None:
        """Return a frame that is at most `limit_ms` old, None at the end.

        Raises the error of a source that failed, and `timeout_error()` when none came in time.
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self.changed:
            while True:
                if self._slot is not None:
                    frame = self._slot
                    if limit_ms is None or frame.age_ms <= limit_ms:
                        self._slot = None
                        self.counts["delivered"] += 1
                        self.changed.notify_all()  # a lossless reader waits for the slot
                        return frame
                    self._clear("stale")
                    self.changed.notify_all()
                elif self.state == "failed" and self.error is not None:
                    raise self.error.with_traceback(None)  # or it would grow with every call
                elif self.state in FINAL_STATES:
                    return None
                elif end is None:
                    self.changed.wait()
                elif (left := end - time.monotonic()) <= 0:
                    raise timeout_error()
                else:
                    self.changed.wait(left)

    def close(self) -> bool:
        """Free the slot and end everything; False when that was done before."""
        with self.changed:
            if self.state == "closed":
                return False
            self._clear("unread")
            self._change_state("closed", "")
            self.changed.notify_all()
            return True

    def counters(self) -> Counters:
        with self.changed:
            return Counters(**self.counts)

    def _clear(self, reason: str) -> None:
        if self._slot is not None:
            self._slot = None
            self.counts[reason] += 1
