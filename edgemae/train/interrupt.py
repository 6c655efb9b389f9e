"""Being asked to end (Ctrl-C, or SIGTERM from a scheduler): a training saves the step that it is in, and then stops."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("edgemae")


@contextmanager
def asked_to_end(name: str) -> Iterator[Callable[[], bool]]:
    """Lend a function that tells whether the process was asked to end; a second time ends it at once.

    Outside the main thread signals cannot be had, and it always says no.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        log.warning("%s: %s; stopping after this step, once more stops at once", name, signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
