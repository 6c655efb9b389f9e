"""Progress of long work: a bar on a terminal, plain timestamped log lines elsewhere. Always on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

log = logging.getLogger("edgemae")
LINE_EVERY_S = 15.0


class Progress:
    """Count units of work; `advance(n, loss=0.1, ...)` moves on and shows the newest figures."""

    def __init__(self, label: str, total: int, done: int = 0, *, shown: bool = True) -> None:
        self.label, self.total, self.done, self.shown = label, total, done, shown
        self.figures: dict[str, float] = {}
        self._start, self._from, self._last = time.monotonic(), done, time.monotonic()
        self._bar = self._open_bar() if shown and sys.stderr.isatty() else None

    def advance(self, count: int = 1, /, **figures: float) -> None:
        self.done += count
        self.figures.update(figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, figures=self._text())
        elif self.shown and time.monotonic() - self._last >= LINE_EVERY_S:
            self._last = time.monotonic()
            left = (self.total - self.done) / max(self.rate, 1e-9)
            log.info("%s %d/%d  %s  %.0f s left", self.label, self.done, self.total, self._text(), left)

    @property
    def rate(self) -> float:
        """Units a second since this process began."""
        return (self.done - self._from) / max(time.monotonic() - self._start, 1e-9)

    def close(self, *, failed: bool = False) -> None:
        """Take the bar away and say in one line how far the work came."""
        if self._bar is not None:
            self._bar.stop()
        if not self.shown:
            return
        end = f"stopped at {self.done} of {self.total}" if failed else "done"
        log.info("%s %s: %s in %.1f s", self.label, end, self._text() or self.done, time.monotonic() - self._start)

    def _text(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.figures.items())

    def _open_bar(self) -> Bar:
        # rich is imported only where there is a terminal.
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        from edgemae.terminal.console import PrintableConsole

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        bar = Bar(*columns, console=PrintableConsole(stderr=True), transient=True)
        self._task = bar.add_task(self.label, total=self.total, completed=self.done, figures="")
        bar.start()
        return bar


@contextmanager
def progress(label: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Progress]:
    """Count a block of work, and close the bar whatever happens; only one of several processes has it `shown`."""
    counter = Progress(label, total, done, shown=shown)
    failed = True
    try:
        yield counter
        failed = False
    finally:
        counter.close(failed=failed)
