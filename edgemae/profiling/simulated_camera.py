"""A camera of a fixed rate, made of a thread, and the one slot in which its newest frame lies.

Every frame has a due time on the monotonic clock that is fixed before the first one, and its age counts from there: a
thread that wakes up late makes the result older, it does not make the camera slower.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

from edgemae.spec.errors import CameraError

SILENT_S = 5.0


class SimulatedCamera:
    """Let frames arrive at `fps` while the `with` block lasts; `take` returns the newest that was not yet taken."""

    def __init__(self, fps: float) -> None:
        self._interval_ns = round(1e9 / fps)
        self._changed = threading.Condition()
        self._slot: tuple[int, int, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._arrive, name="edgemae-arrivals", daemon=True)

    def take(self) -> tuple[int, int, int]:
        """Return (number of the frame, when it was due, when it came), in ns of time.monotonic_ns; waits for one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._slot is not None, SILENT_S + 2 * self._interval_ns / 1e9):
                raise CameraError(
                    "the thread that lets frames arrive does not run",
                    expected=f"a frame every {self._interval_ns / 1e6:.1f} ms",
                    fix="see that a processor is left for it, then measure again",
                )
            found, self._slot = self._slot, None
            assert found is not None
            return found

    def _arrive(self) -> None:
        start, number = time.monotonic_ns(), 0
        while not self._stop.is_set():
            due = start + number * self._interval_ns
            if (left := due - time.monotonic_ns()) > 0 and self._stop.wait(left / 1e9):
                return
            with self._changed:
                self._slot = (number, due, time.monotonic_ns())
                self._changed.notify()
            number += 1

    def __enter__(self) -> SimulatedCamera:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
