"""Run a bundle on a source and watch it: a terminal, lines, a window, a video file, a page; until one ends it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from edgemae.device.model import Model, Result, load
from edgemae.device.stream import Stream
from edgemae.device.stream_result import StreamResult
from edgemae.spec.errors import EngineRuntimeError, InputError
from edgemae.viewer.line_output import Lines, as_json, as_text
from edgemae.viewer.live_stats import StatsCollector, counts_of

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal was closed


class View(Protocol):
    """Show results, between `with` and its end."""

    def show(self, seen: StreamResult[Result]) -> bool:
        """Show one result; False ends the run."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None, /
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ViewerOptions:
    """Say what to run on and how to show it. `limit` 0: no limit; `port` None: no page."""

    policy: str | None = None
    limit: int = 0
    max_age_ms: float | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `load`
    json: bool = False
    window: bool = False
    save: Path | None = None
    port: int | None = None


class EndedError(KeyboardInterrupt):
    """A signal that asks the process to end; `code` is what a shell expects of it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def run(bundle: Path, source: str, options: ViewerOptions) -> int:
    """Run a bundle on a source and show its results; counts go to stderr at the end, however it comes.

    Returns the exit code: 0, or 128 and the number of the signal that ended it. Raises CameraError, EngineRuntimeError
    (also where every inference failed), MachineError, StorageError, InputError.
    """
    if options.limit < 0:
        raise InputError(
            f"--limit is {options.limit}", expected="a number of results, or 0 for no limit", fix="correct --limit"
        )
    if options.window:
        from edgemae.viewer.window import require_windows

        require_windows()
    try:
        with _signals() as got, load(bundle, **options.loading) as model:
            _show_results(model, source, options, got)
    except KeyboardInterrupt as error:
        return error.code if isinstance(error, EndedError) else 128 + signal.SIGINT
    return 0


def _show_results(model: Model, source: str, options: ViewerOptions, got: Sequence[int]) -> None:
    realtime = options.window or options.port is not None  # a file is watched at its own speed
    results = model.stream(source, options.policy, realtime=realtime, max_age_ms=options.max_age_ms)
    stats = StatsCollector(model, results)
    try:
        with results, contextlib.ExitStack() as stack:
            views = [stack.enter_context(view) for view in _views(results, stats, options)]
            for number, seen in enumerate(results, start=1):
                stats.note(seen)
                going = [view.show(seen) for view in views]
                if got:  # raised where Python swallows it, in a destructor
                    raise EndedError(got[0])
                if number == options.limit or not all(going):
                    break
    finally:
        sys.stderr.write(_counts(results) + "\n")
    counters = results.counters
    if counters.failed and not counters.inferred:
        raise EngineRuntimeError(
            f"every inference failed: {counters.failed} of {counters.failed}",
            expected="results of some frames",
            fix="see the warnings above, and check the bundle with `edgemae verify`",
        )


def _views(results: Stream[Result], stats: StatsCollector, options: ViewerOptions) -> Iterator[View]:
    """Make the views one after another, to be entered at once; what must not be lost is first, and closed last."""
    if options.save is not None:
        from edgemae.viewer.video import Video

        yield Video(options.save, results.camera, stats)
    if options.port is not None:
        from edgemae.viewer.web import Web

        yield Web(options.port, stats)
    if options.window:
        from edgemae.viewer.window import Window

        yield Window(f"edgemae {results.camera.source}", stats)
    if not options.json and sys.stdout.isatty():
        from edgemae.viewer.terminal import Terminal

        yield Terminal(stats)
    else:
        yield Lines(as_json if options.json else as_text)


def _counts(results: Stream[Result]) -> str:
    counts = counts_of(results)
    captured, seen = counts.pop("captured"), counts.pop("seen")
    return f"{seen} of {captured} frames seen, " + ", ".join(f"{count} {name}" for name, count in counts.items())


@contextlib.contextmanager
def _signals() -> Iterator[Sequence[int]]:
    """Turn the first signal that ends the process into EndedError, and let nothing disturb the closing after it.

    Yields a list that holds its number once it has come.
    """
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there can they be caught
        yield got
        return

    def end(number: int, frame: FrameType | None) -> None:
        got.append(number)
        for known in before:
            signal.signal(known, signal.SIG_IGN)
        raise EndedError(number)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}  # nohup stays nohup
    for number in before:
        signal.signal(number, end)
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
