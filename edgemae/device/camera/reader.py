"""One opening of a source, read in a thread of its own until it ends, fails, hangs or is stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgemae.device.camera import opencv
from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import CapturedFrame, Source, SourceError
from edgemae.device.camera.mailbox import Mailbox
from edgemae.device.camera.stall_detector import StallDetector
from edgemae.device.preprocess import rotate_clockwise
from edgemae.spec.errors import EdgemaeError

log = logging.getLogger("edgemae.device.camera")
MAX_HUNG_READERS = (
    2  # hung readers of this process from which on sources are opened in a child process, which can be killed
)
_hung: list[threading.Thread] = []
_lock = threading.Lock()


def hung_readers() -> int:
    """Return how many readers of this process hang in a driver right now and were left behind."""
    with _lock:
        _hung[:] = [thread for thread in _hung if thread.is_alive()]
        return len(_hung)


class Reader:
    """Open a source, and put its frames into the mailbox.

    `stall_detector` watches a live one, `realtime` paces a file. `is_driver` tells a driver, which may hang, from the
    program's own generator, which may take its time.
    """

    def __init__(
        self, make: Callable[[], Source], mailbox: Mailbox, stall_detector: StallDetector | None, realtime: bool,
        is_driver: bool, wake: threading.Event,
    ) -> None:  # fmt: skip
        self._make, self._mailbox, self._stall_detector, self._realtime = make, mailbox, stall_detector, realtime
        self._is_driver = is_driver
        self.generation = mailbox.begin()
        self._wake, self._stop = wake, threading.Event()
        self._source: Source | None = None
        self.busy_since_s = time.monotonic()  # when the call into the source began that is under way; inf: none is
        self.opened_s = 0.0
        self.error: EdgemaeError | None = None
        self._thread = threading.Thread(target=self._run, name="edgemae-reader", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def end(self, patience_s: float) -> bool:
        """Stop reading, within `patience_s`. Return False when the thread hangs: it is left behind, and counted."""
        self._stop.set()
        with self._mailbox.changed:
            self._mailbox.changed.notify_all()  # it may wait for a slow consumer
        self._thread.join(patience_s / 2)
        if self._source is not None and not self.is_done:
            self._source.interrupt()
        self._thread.join(patience_s / 2)
        if self.is_done:
            return True
        if not self._is_driver:
            log.warning("the program's own frames did not end: the thread that waits for the next one was left behind")
            return False
        opencv.opening.forget(self._thread)
        with _lock:
            _hung.append(self._thread)
        log.warning(
            "a reader of '%s' hangs in its driver and was left behind; %d do now", self._mailbox.source, hung_readers()
        )
        return False

    # From here on: the reader's thread.

    def _run(self) -> None:
        name = self._mailbox.source
        try:
            self._source = self._make()
            try:
                self._source.open()
                self.opened_s, self.busy_since_s = time.monotonic(), float("inf")
                self._read_all(self._source)
            finally:
                self._source.close()
        except EdgemaeError as raised:
            self.error = raised
        except Exception as raised:  # noqa: BLE001 - the consumer gets it; an exception in a thread is seen by nobody
            self.error = SourceError(
                f"reading '{name}' failed: {type(raised).__name__}: {redact(raised)}",
                expected="frames until the source ends",
                fix="see that the source is still there, then open it again",
            )
        finally:
            self._wake.set()

    def _read_all(self, source: Source) -> None:
        if self._stall_detector is not None and not self._stop.is_set():
            self._stall_detector.restart(source.fps)
        fps = source.fps if self._realtime and 0.0 < source.fps < 1000.0 else 0.0
        start, turn = time.monotonic(), 0
        while not self._stop.is_set():
            if fps and self._stop.wait(max(0.0, start + turn / fps - time.monotonic())):
                return
            asked_ns = time.monotonic_ns()
            self.busy_since_s = asked_ns / 1e9
            captured = source.read()
            got_ns, self.busy_since_s = time.monotonic_ns(), float("inf")
            if captured is None:
                return
            turn += 1
            is_fresh = not self._stop.is_set()  # it may have hung, and another reader has taken over
            if is_fresh and self._stall_detector is not None and captured.array_bgr is not None:
                is_fresh = self._stall_detector.is_fresh(got_ns, waited_ms=(got_ns - asked_ns) / 1e6)
            self._mailbox.put(self._rotated(captured), self.generation, is_fresh)

    def _rotated(self, captured: CapturedFrame) -> CapturedFrame:
        if captured.array_bgr is None or not self._mailbox.rotation:
            return captured
        return captured._replace(array_bgr=rotate_clockwise(captured.array_bgr, self._mailbox.rotation))
