"""One opening of a source, read in a thread of its own until it ends, fails, hangs or is told to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import cv2

from edgemae.device.camera import opencv
from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import Grab, Source, SourceError
from edgemae.device.camera.mailbox import Mailbox
from edgemae.device.camera.stall_detector import Rhythm
from edgemae.spec.errors import EdgemaeError

log = logging.getLogger("edgemae.device.camera")
ZOMBIES = 2  # hung readers of this process from which on sources are opened in a child process, which can be killed
_TURN = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
_abandoned: list[threading.Thread] = []
_lock = threading.Lock()


def hung_readers() -> int:
    """Return how many readers of this process hang in a driver right now and were left behind."""
    with _lock:
        _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
        return len(_abandoned)


class Reader:
    """Open a source, and put its frames into the mailbox.

    `rhythm` judges a live one, `realtime` paces a file, `is_driver` tells a driver, which may hang, from the program's
    own generator, which may take its time.
    """

    def __init__(
        self, make: Callable[[], Source], mailbox: Mailbox, rhythm: Rhythm | None, realtime: bool, is_driver: bool,
        wake: threading.Event,
    ) -> None:  # fmt: skip
        self._make, self._mailbox, self._rhythm, self._realtime = make, mailbox, rhythm, realtime
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
            _abandoned.append(self._thread)
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
        if self._rhythm is not None and not self._stop.is_set():
            self._rhythm.restart(source.fps)
        fps = source.fps if self._realtime and 0.0 < source.fps < 1000.0 else 0.0
        start, turn = time.monotonic(), 0
        while not self._stop.is_set():
            if fps and self._stop.wait(max(0.0, start + turn / fps - time.monotonic())):
                return
            asked_ns = time.monotonic_ns()
            self.busy_since_s = asked_ns / 1e9
            grab = source.read()
            got_ns, self.busy_since_s = time.monotonic_ns(), float("inf")
            if grab is None:
                return
            turn += 1
            is_fresh = not self._stop.is_set()  # it may have hung, and another reader has taken over
            if is_fresh and self._rhythm is not None and grab.array_bgr is not None:
                is_fresh = self._rhythm.arrived(got_ns, waited_ms=(got_ns - asked_ns) / 1e6)
            self._mailbox.put(self._turned(grab), self.generation, is_fresh)

    def _turned(self, grab: Grab) -> Grab:
        if grab.array_bgr is None or not self._mailbox.rotation:
            return grab
        turned: Any = cv2.rotate(grab.array_bgr, _TURN[self._mailbox.rotation])
        return grab._replace(array_bgr=turned)
