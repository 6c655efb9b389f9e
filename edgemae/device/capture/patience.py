"""How long a call really waited for data, and how much of that time its thread only waited for a processor."""

from __future__ import annotations

import os

_PATH = "/proc/thread-self/schedstat"


class Patience:
    """Tell for how long the thread that opened this has worked or stood in the queue for a processor.

    A read that takes 30 ms has waited for the camera on an idle machine; on a busy one the data may have lain there
    while the thread could not run. Only Linux tells them apart; elsewhere, and without `open`, all counts as waiting.
    """

    def __init__(self) -> None:
        self._fd = -1

    def open(self) -> None:
        try:
            self._fd = os.open(_PATH, os.O_RDONLY)
        except OSError:
            self._fd = -1

    def off_ns(self) -> int:
        """Return the ns of this thread on a processor and in the queue for one."""
        if self._fd < 0:
            return 0
        on_ns, queued_ns, _ = os.pread(self._fd, 128, 0).split()
        return int(on_ns) + int(queued_ns)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
