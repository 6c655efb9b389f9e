"""Frames of a camera, a stream, a video, images or arrays, handed over through a single slot, for weeks.

A plain `cv2.VideoCapture` loop behind a consumer of 5 fps was 9.6 s stale after 12 s of a 25 fps stream. Here a reader
empties the source at its own pace; the consumer finds the newest frame in the slot, and what it was too slow for is
counted as dropped. For files the reader waits instead, so that every frame arrives in order. A live source that falls
silent, ends or hangs is opened again until it comes back; `edgemae.device.camera` has the parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import TracebackType

from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import silence_error
from edgemae.device.camera.mailbox import Counters, Frame, Mailbox
from edgemae.device.camera.sources import ISOLATED_KINDS, LIVE_KINDS, AnySource, kind_of, make_source
from edgemae.device.camera.supervisor import ReconnectPolicy, Supervisor
from edgemae.device.process_end import CAMERA, close_at_exit
from edgemae.spec.errors import CameraError, InputError, nearest
from edgemae.spec.graph import ROTATIONS_DEG, PixelContract

__all__ = ["Camera", "Counters", "Frame"]
POLICIES = ("latest", "every", "staleness:200ms")
FILE_TIMEOUT_MS = 30_000  # decoding one very large image on a small board


class Camera:
    """Iterate over the frames of `source`, which is one of

    - a camera: 0, "/dev/video0", "/dev/v4l/by-id/..." (found again on whatever port it is plugged in later), on a
      Jetson "csi://0?width=1280&height=720&fps=30&flip=0";
    - a stream: "rtsp://user:password@host/path", or "http://..." that sends MJPEG;
    - a video file, an image, a folder or a pattern of images ("shots/*.jpg"), an iterable of uint8 arrays in BGR order.

    policy: "latest" hands over the newest frame and drops the others (default of live sources), "every" hands over all
    in order (default of files, refused for live sources), "staleness:200ms" is "latest" that never hands over a frame
    older than that. `realtime` plays a file at its own frame rate, `rotation` turns frames clockwise by 90, 180 or 270
    degrees, `pixel` states whether EXIF applies to images.

    Cameras and streams are live: when one falls silent, is unplugged or restarts, it is opened again until it is back
    (`reconnect=False`: CameraError instead), and no frame from before is handed over after. What cannot heal is a
    CameraError all the same: a refused login, a path that the server does not have. The first opening must succeed
    within its time-out, unless `wait=True`. `isolate=True` reads in a child process, which can be killed when a driver
    hangs; it is also done once two readers of this process hang. `state` and `last_error` show what goes on.
    """

    def __init__(
        self, source: AnySource, policy: str | None = None, *, realtime: bool = False, rotation: int = 0,
        reconnect: bool = True, wait: bool = False, isolate: bool = False,
        open_timeout_ms: int = 3000, read_timeout_ms: int = 1000, pixel: PixelContract | None = None,
    ) -> None:  # fmt: skip
        self.kind = kind_of(source)
        self.source = "arrays" if self.kind == "arrays" else redact(source)
        self.live = self.kind in LIVE_KINDS
        self.policy = ("latest" if self.live else "every") if policy is None else str(policy)
        self._limit_ms, lossless = _parse_policy(self.policy, self.live)
        if rotation not in ROTATIONS_DEG:
            raise InputError(
                f"a rotation by {rotation} degrees was asked for",
                expected=f"one of {', '.join(map(str, ROTATIONS_DEG))}, clockwise",
                fix="correct the number",
            )
        for name, limit_ms in (("open_timeout_ms", open_timeout_ms), ("read_timeout_ms", read_timeout_ms)):
            if not isinstance(limit_ms, int) or limit_ms < 1:
                raise InputError(
                    f"{name} is {limit_ms!r}", expected="whole milliseconds, 1 or more", fix="correct the number"
                )
        contract = pixel or PixelContract(image_px=1)
        timeouts_ms = (open_timeout_ms, read_timeout_ms) if self.live else (FILE_TIMEOUT_MS, FILE_TIMEOUT_MS)
        # The program's own generator may take its time.
        limits_s = (math.inf, math.inf) if self.kind == "arrays" else (timeouts_ms[0] / 1e3, timeouts_ms[1] / 1e3)
        self._mailbox = Mailbox(self.source, rotation, lossless)
        self._supervisor = Supervisor(
            ReconnectPolicy(
                make=lambda again, isolated: make_source(source, self.kind, timeouts_ms, contract, again, isolated),
                live=self.live, reconnect=reconnect, wait=wait,
                isolate=False if self.kind not in ISOLATED_KINDS else isolate or None,
                realtime=realtime and not self.live,
                open_limit_s=limits_s[0], read_limit_s=limits_s[1],
            ),
            self._mailbox,
        )  # fmt: skip
        self._reader = self._supervisor.thread
        close_at_exit(CAMERA, self)
        if not (wait and self.live):
            try:
                self._await_first()
            except BaseException:  # also an interrupt: the source must not stay open
                self.close()
                raise

    @property
    def counters(self) -> Counters:
        """Return what became of every frame so far."""
        return self._mailbox.counters()

    @property
    def state(self) -> str:
        """Return opening, live, stalled, reconnecting, ended, failed or closed."""
        return self._mailbox.state

    @property
    def last_error(self) -> str:
        """Return what last went wrong, without user and password; empty when nothing did."""
        return self._mailbox.last_error

    @property
    def corrupt_names(self) -> list[str]:
        """Return the names of the first hundred corrupt frames."""
        return self._mailbox.corrupt_names

    def read(self, timeout_ms: float | None = None) -> Frame | None:
        """Return the next frame by the policy, or None when a file has ended or the camera was closed.

        While a source is away this waits, without `timeout_ms` for as long as it takes; with it, CameraError is
        raised when no frame comes in time, and the next call goes on. A source that has failed for good raises its
        CameraError.
        """
        timeout_s = None if timeout_ms is None else timeout_ms / 1e3
        return self._mailbox.take(self._limit_ms, timeout_s, lambda: self._silent(timeout_ms or 0.0))

    def is_fresh(self, frame: Frame) -> bool:
        """Tell whether a frame that had to wait may still be used: by the policy, and not from before a silence."""
        if self._limit_ms is not None and frame.age_ms > self._limit_ms:
            return False
        return not self.live or frame.t_capture_ns > self._mailbox.silence_ns

    def close(self) -> None:
        """Stop the reader and free the source, within 1.5 s even when the source hangs. May be called twice."""
        if self._mailbox.close():
            self._supervisor.close()

    end = close  # of the interpreter

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _silent(self, timeout_ms: float) -> CameraError:
        more = f": {self.state}" + (f", {self.last_error}" if self.state != "live" and self.last_error else "")
        return silence_error(self.source, timeout_ms / 1e3, more)

    def _await_first(self) -> None:
        """Block until the source is live or over; raise what prevents it."""
        mailbox = self._mailbox
        with mailbox.changed:
            mailbox.changed.wait_for(lambda: mailbox.state != "opening")
            error = None if mailbox.live_generation >= 0 else mailbox.error or self._no_frame_error()
        if error is not None:
            raise error

    def _no_frame_error(self) -> CameraError:
        names = self.corrupt_names
        unreadable = f" ({names[0]}{' and others' if len(names) > 1 else ''} cannot be read)" if names else ""
        unreadable = f" ({self.last_error})" if self.last_error else unreadable
        return CameraError(
            f"frame source '{self.source}' holds no readable frame{unreadable}",
            expected="at least one image that OpenCV can decode",
            fix="replace the file, or pass another source",
        )


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
