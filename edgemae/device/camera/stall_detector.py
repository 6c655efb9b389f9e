"""When a live source is silent for too long, and which of its frames are fresh.

The rule of freshness: a frame that the reader had to wait for came out of an empty pipe, so it is new; frames that
follow without a wait were queued somewhere (a socket, a decoder, a server's buffer). After a silence, and after
opening, frames are therefore discarded until two in a row had to be waited for. The first frame is always discarded:
the network may have held it back, and OpenCV's H.264 parser holds each frame until the next one arrives. The source's
own clock is not used: it jumps.
"""

from __future__ import annotations

from collections import deque
from statistics import median

STALL_MS = 250.0
STALL_INTERVALS = 3.0
FPS = 25.0  # until there are gaps to learn from
FASTEST = 240.0  # frames a second; more is a mistake of the source, RTSP likes to declare 90,000
GAPS = 15
WAITS = 2  # in a row: one may be a processor that did something else
# How long frames are discarded at most. A backlog of a second is read in half of that, or reading it counts as waiting.
CATCH_UP_MS = 2000.0


class StallDetector:
    """Learn the frame interval of one source and classify each arrival. Times are those of `time.monotonic_ns`."""

    def __init__(self, read_timeout_ms: float = 1000.0) -> None:
        self._gaps_ms: deque[float] = deque(maxlen=GAPS)
        self.interval_ms = 1000.0 / FPS
        # Whoever allows a longer wait for a frame has a source that pauses (HLS sends in bursts).
        self._least_ms = max(STALL_MS, read_timeout_ms / 4)
        self._last_ns = self._until_ns = self._waits = 0
        self._catching_up = self._was_late = False

    @property
    def stall_ms(self) -> float:
        """Return the silence after which the source counts as stalled."""
        return max(STALL_INTERVALS * self.interval_ms, self._least_ms)

    def restart(self, fps: float) -> None:
        """Begin again after the source was opened; what was learnt of its interval stays. `fps`: as it declares."""
        self._last_ns, self._waits, self._was_late = 0, 0, False
        if (
            not self._gaps_ms and FPS < fps <= FASTEST
        ):  # at 60 fps no wait is as long as half of the interval that is guessed
            self.interval_ms = 1000.0 / fps

    def is_fresh(self, got_ns: int, waited_ms: float) -> bool:
        """Note a frame that came at `got_ns` out of a call that took `waited_ms`; return whether it is fresh."""
        gap_ms = (got_ns - self._last_ns) / 1e6
        is_first, self._last_ns = self._last_ns == 0, got_ns
        if is_first:  # nobody knows how long it was under way, however long it was waited for
            self._catch_up(got_ns, 0.0)
            return False
        had_to_wait, is_late = waited_ms >= self.interval_ms / 2, gap_ms > self.stall_ms
        if had_to_wait or not self._catching_up:
            self._gaps_ms.append(gap_ms)
            self.interval_ms = median(self._gaps_ms)
        self._waits = self._waits + 1 if had_to_wait else 0
        if is_late:
            if not self._catching_up:
                self._catch_up(got_ns, gap_ms)
            is_slower, self._was_late = had_to_wait and self._was_late, had_to_wait
            self._waits, self._catching_up = 0, not is_slower
            return is_slower  # two long waits in a row: no stall, a slower source
        self._was_late = False
        self._catching_up = self._catching_up and self._waits < WAITS and got_ns < self._until_ns
        return not self._catching_up

    def _catch_up(self, now_ns: int, silence_ms: float) -> None:
        self._catching_up, self._until_ns = True, now_ns + round(max(silence_ms, CATCH_UP_MS) * 1e6)
