"""The thread that keeps a source alive: it starts readers, notices silence, and opens again what has failed.

States: opening -> live <-> stalled, live or stalled -> reconnecting -> live, and one of ended, failed, closed.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgemae.device.camera.address import redact
from edgemae.device.camera.frame_source import Source, SourceError, silence_error
from edgemae.device.camera.isolated import START_S
from edgemae.device.camera.mailbox import FINAL_STATES, Mailbox
from edgemae.device.camera.reader import MAX_HUNG_READERS, Reader, hung_readers
from edgemae.device.camera.stall_detector import StallDetector
from edgemae.spec.errors import EdgemaeError

TICK_S = 0.1
# A new attempt at a source that is away costs one refused connection (see `probe.knock`), so the wait need not grow
# further: with 5 s in place of 1 s, a source that returns could be missed for 5 s, and 2 s are promised.
BACKOFF_S, BACKOFF_MAX_S = 0.2, 1.0
# A media server that restarts answers "no such stream" until its publisher is back, some cameras refuse every login
# while they boot. On a source that has been live such an answer has to last before it is believed.
BELIEVE_AFTER_S = 30.0
GRACE_S = 1.0  # OpenCV's own time-outs come first
CLOSE_S = 1.2  # `close` ends within 1.5 s


@dataclass(frozen=True, slots=True)
class ReconnectPolicy:
    """How to treat a source. `make(again, isolated)` gives it unopened; `again`: it failed before."""

    make: Callable[[bool, bool], Source]
    live: bool
    reconnect: bool
    wait: bool  # for a source that is not there yet
    isolate: bool | None  # in a child process: True, False when it must not be, None when readers hang
    realtime: bool
    open_limit_s: float
    read_limit_s: float


class Supervisor:
    """Own the readers of one source, one at a time."""

    def __init__(self, policy: ReconnectPolicy, mailbox: Mailbox) -> None:
        self._policy, self._mailbox = policy, mailbox
        self._stall_detector = StallDetector(read_timeout_ms=policy.read_limit_s * 1e3) if policy.live else None
        self._wake = threading.Event()
        self._attempts = 0  # since the last frame
        self._has_been_live, self._last_live_s = False, 0.0
        self.thread = threading.Thread(target=self._run, name="edgemae-camera", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """End the reader and the thread; the mailbox is closed already."""
        self._wake.set()
        self.thread.join(CLOSE_S + 0.2)

    # From here on: the supervisor's thread.

    def _run(self) -> None:
        try:
            while self._mailbox.state not in FINAL_STATES:
                error = self._read_once()
                if self._mailbox.state not in FINAL_STATES:
                    self._decide(error)
        except Exception as bug:  # noqa: BLE001 - the consumer waits for this thread
            name = type(bug).__name__
            error = SourceError(f"watching '{self._mailbox.source}' failed: {name}: {redact(bug)}",
                                expected="no failure here", fix="report it, with the log")  # fmt: skip
            self._mailbox.set_state("failed", error.what, error)

    def _read_once(self) -> EdgemaeError | None:
        """Open the source, and return what ended it; None for its end."""
        policy, again = self._policy, self._attempts > 0 or self._has_been_live
        isolated = bool(policy.isolate or (policy.isolate is None and hung_readers() >= MAX_HUNG_READERS))
        reader = Reader(
            lambda: policy.make(again, isolated), self._mailbox, self._stall_detector, policy.realtime,
            policy.isolate is not False, self._wake,
        )  # fmt: skip
        open_limit_s = policy.open_limit_s + (START_S if isolated else 0.0)
        while not reader.is_done:
            self._wake.wait(TICK_S)
            self._wake.clear()
            if self._mailbox.state in FINAL_STATES:
                reader.end(CLOSE_S)
                return None
            if (error := self._silence(reader, open_limit_s)) is not None:
                reader.end(0.2)
                return error
        return reader.error

    def _silence(self, reader: Reader, open_limit_s: float) -> EdgemaeError | None:
        """Note a stall; return an error when the reader must be given up."""
        now, name = time.monotonic(), self._mailbox.source
        limit_s = (self._policy.read_limit_s if reader.opened_s else open_limit_s) + GRACE_S
        if now - reader.busy_since_s > limit_s:
            return silence_error(name, limit_s, "; its driver hangs", "hung")
        if self._stall_detector is None or not reader.opened_s:
            return None
        silence_s = now - max(self._mailbox.last_image_ns / 1e9, reader.opened_s)
        if silence_s > limit_s:
            return silence_error(name, limit_s, ", only damaged ones", "codec")
        if self._mailbox.state == "live" and silence_s * 1e3 > self._stall_detector.stall_ms:
            self._mailbox.set_state("stalled", f"no frame for {silence_s * 1e3:.0f} ms")
        if self._mailbox.live_generation == reader.generation:
            self._has_been_live, self._attempts, self._last_live_s = True, 0, now
        return None

    def _decide(self, error: EdgemaeError | None) -> None:
        """End, fail, or wait for the next attempt."""
        policy, mailbox = self._policy, self._mailbox
        if not policy.live:
            mailbox.set_state("failed" if error else "ended", error.what if error else "", error)
            return
        if mailbox.live_generation == mailbox.generation:
            self._has_been_live, self._attempts, self._last_live_s = True, 0, time.monotonic()
        error = error or _ended_error(mailbox.source, mailbox.counts["captured"])
        is_final = not isinstance(error, SourceError) or error.is_final
        if is_final and self._has_been_live and isinstance(error, SourceError):
            is_final = time.monotonic() - self._last_live_s > BELIEVE_AFTER_S
        if is_final or not policy.reconnect or not (self._has_been_live or policy.wait):
            mailbox.set_state("failed", error.what, error)
            return
        mailbox.set_state("reconnecting", error.what)
        delay_s = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(self._attempts, 8)) * random.uniform(0.5, 1.0)
        self._attempts += 1
        with mailbox.changed:
            mailbox.changed.wait_for(lambda: mailbox.state in FINAL_STATES, delay_s)


def _ended_error(source: str, captured: int) -> SourceError:
    return SourceError(
        f"'{source}' stopped delivering frames after {captured}",
        expected="a live source that does not end",
        fix="see that the camera and its network are up; the address of a single image is no stream",
        kind="ended",
    )
