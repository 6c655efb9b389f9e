"""Results of running cameras: the newest frame in, its result out, and one bad frame does not end it.

A result is made when somebody is there to take it: by `next`, by the callback's return, by the event loop. So there is
no queue of results that could grow old. Behind a consumer of any speed a result is at most one frame interval and one
inference old; a queue of two behind a slow one would add two more of each, and infer frames that nobody sees.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic

from edgemae.device.camera.camera import Camera, Frame
from edgemae.device.camera.multi_camera import MultiCameraReader, Sources, close_all, open_cameras
from edgemae.device.process_end import STREAM, close_at_exit
from edgemae.device.stream_result import MAX_FAILURES, R, StreamCounters, StreamOptions, StreamResult, too_many
from edgemae.spec.errors import EdgemaeError, InputError

log = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 1.5  # a callback that hangs is left behind after this


class Stream(Generic[R]):
    """Take results by `for`, by `async for`, or in a callback: `run()` here, `start()` in a thread of its own.

    `state` is "running", then "ended" (the source ended), "failed" (`error` says why, and was raised) or "closed". An
    inference or a callback that raises is logged and counted, and the stream goes on; after `max_failures` in a row it
    fails. It does not try again by itself: an engine that failed five times needs a new process, and what ails a
    callback only its author knows. Leaving the `with` block, every end and `close()` (from any thread, also from the
    callback) free the cameras, except those that the caller brought.
    """

    def __init__(
        self,
        model: Callable[[Any], R],
        cameras: Mapping[str, Camera],
        owned: Sequence[Camera],
        options: StreamOptions[R],
    ) -> None:
        self._model, self._owned, self._options = model, owned, options
        self.cameras = dict(cameras)
        self._multi_camera = MultiCameraReader(self.cameras) if len(self.cameras) > 1 else None
        self.state = "running"
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(StreamCounters.__slots__, 0)
        self._in_a_row = {"failed": 0, "sink_failed": 0}
        self._worker: threading.Thread | None = None
        close_at_exit(STREAM, self)

    @property
    def counters(self) -> StreamCounters:
        with self._lock:
            counts = dict(self._counts)
        counts["dropped"] += self._multi_camera.dropped if self._multi_camera else 0
        return StreamCounters(**counts)

    @property
    def camera(self) -> Camera:
        """Return the camera, of several the first."""
        return next(iter(self.cameras.values()))

    @property
    def lost(self) -> dict[str, EdgemaeError]:
        """Return which of several cameras failed, and why; the others go on without them."""
        return dict(self._multi_camera.lost) if self._multi_camera else {}

    # ---------------------------------------------------------------- by iteration

    def __iter__(self) -> Iterator[StreamResult[R]]:
        return self

    def __next__(self) -> StreamResult[R]:
        self._refuse_callback()
        if (seen := self._next()) is None:
            raise StopIteration
        return seen

    def _refuse_callback(self) -> None:
        if self._options.on_result is not None:
            raise InputError(
                "a stream with a callback was iterated over",
                expected="run() or start(), which call `on_result`",
                fix="call one of them, or leave out `on_result`",
            )

    def _next(self) -> StreamResult[R] | None:
        while (inference := self._infer_next()) is not None:
            if (seen := self._hand_over(inference)) is not None:
                return seen
        return None

    # ---------------------------------------------------------------- by callback

    def run(self) -> None:
        """Call `on_result` with every result until the source ends or the stream is closed. Raises what ended it."""
        if (callback := self._options.on_result) is None:
            raise InputError(
                "a stream without a callback was run",
                expected="`on_result`, a function that takes a StreamResult",
                fix="pass `on_result`, or iterate over the stream",
            )
        try:
            while (seen := self._next()) is not None:
                try:
                    callback(seen)
                except Exception as error:  # noqa: BLE001 - counted, logged, and an error after five in a row
                    self._record_failure("sink_failed", error, seen.frame)
                else:
                    self._in_a_row["sink_failed"] = 0
        finally:
            self._finish("closed")

    def start(self) -> Stream[R]:
        """Run in a thread of its own and return at once; `wait` for its end, or look at `state`."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._run_logged, name="edgemae-stream", daemon=True)
            self._worker.start()
        return self

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of a stream that was started; False when it still runs. Raises what ended it."""
        if self._worker is not None:
            self._worker.join(timeout_s)
        if self.error is not None:
            raise self.error
        return self.state != "running"

    def _run_logged(self) -> None:
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - kept for `wait`; an exception in a thread is seen by nobody
            log.error("the stream of %s failed: %s", ", ".join(self.cameras), error)

    # ---------------------------------------------------------------- by event loop

    async def __aiter__(self) -> AsyncIterator[StreamResult[R]]:
        """Yield results, made in a thread: the loop is never blocked. Cancelling closes the stream."""
        self._refuse_callback()
        threads = ThreadPoolExecutor(2, "edgemae-stream")  # one makes results, one closes
        pending: Future[tuple[str, Frame, R] | None] | None = None
        try:
            while True:
                pending = threads.submit(self._infer_next)
                inference = await asyncio.wrap_future(pending)
                pending = None
                if inference is None:
                    return
                if (seen := self._hand_over(inference)) is not None:
                    yield seen
        finally:
            try:
                await asyncio.wrap_future(threads.submit(self._abandon, pending))
            finally:
                threads.shutdown(wait=False)

    def _abandon(self, pending: Future[tuple[str, Frame, R] | None] | None) -> None:
        """Close, and wait for the inference that nobody waits for any more."""
        self.close()
        if (
            pending is not None
            and not pending.cancelled()
            and pending.exception() is None
            and pending.result() is not None
        ):
            self._count("dropped")

    # ---------------------------------------------------------------- ends

    def close(self) -> None:
        """End the stream and free its cameras; a second call does nothing."""
        self._finish("closed")
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join(CLOSE_TIMEOUT_S)
            if self._worker.is_alive():
                log.warning("an inference or a callback does not return and was left behind")

    end = close  # of the interpreter

    def __enter__(self) -> Stream[R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Stream[R]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def _finish(self, state: str, error: Exception | None = None) -> None:
        with self._lock:
            if self.state == "running":
                self.state, self.error = state, error
        close_all(self._owned)
        if self._multi_camera is not None:
            self._multi_camera.close()

    # ---------------------------------------------------------------- frames and results

    def _infer_next(self) -> tuple[str, Frame, R] | None:
        """Return the next (source, frame, result), or None when the stream is over. Raises what ended it, each time."""
        if self.error is not None:
            raise self.error
        try:
            while self.state == "running" and (found := self._read()) is not None:
                name, frame = found
                if self._too_old(frame):
                    continue
                try:
                    result = self._model(frame.array_bgr)
                except Exception as error:  # noqa: BLE001 - counted, logged, and an error after five in a row
                    self._record_failure("failed", error, frame)
                    continue
                except BaseException:
                    self._count("dropped")
                    raise
                self._in_a_row["failed"] = 0
                self._count("inferred")
                return name, frame, result
        except Exception as error:
            self._finish("failed", error)
            raise
        except BaseException:  # an interrupt inside the model: the cameras must not stay open
            self._finish("closed")
            raise
        self._finish("ended")
        return None

    def _read(self) -> tuple[str, Frame] | None:
        if self._multi_camera is not None:
            return self._multi_camera.read()
        ((name, camera),) = self.cameras.items()
        frame = camera.read()
        return None if frame is None else (name, frame)

    def _hand_over(self, inference: tuple[str, Frame, R]) -> StreamResult[R] | None:
        name, frame, result = inference
        if self.state != "running":  # closed during the inference
            self._count("dropped")
            return None
        if self._too_old(frame):
            return None
        self._count("delivered")
        return StreamResult(result, frame, frame.age_ms, name)

    def _too_old(self, frame: Frame) -> bool:
        """Tell whether a frame is older than allowed, and count it."""
        if self._options.max_age_ms is None or frame.age_ms <= self._options.max_age_ms:
            return False
        self._count("withheld")
        return True

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _record_failure(self, what: str, error: Exception, frame: Frame) -> None:
        """Note an inference or a callback that raised; end the stream when too many did so in a row."""
        self._count(what)
        self._in_a_row[what] += 1
        message = f"{type(error).__name__}: {error}"
        log.warning("%s failed on %s: %s", "inference" if what == "failed" else "the callback", frame.name, message)
        most = self._options.max_failures
        if most is None or self._in_a_row[what] < most:
            return
        raised = too_many(what, self._in_a_row[what], message)
        self._finish("failed", raised)
        raise raised from error


def stream(
    model: Callable[[Any], R], source: Sources, policy: str | None = None, *, realtime: bool = False,
    on_result: Callable[[StreamResult[R]], object] | None = None, max_age_ms: float | None = None,
    max_failures: int | None = MAX_FAILURES,
) -> Stream[R]:  # fmt: skip
    """Open one source, several by name (a mapping) or several by themselves (a list), and stream a model's results.

    See Camera for sources, policies and `realtime`, Stream for what it gives. With `max_age_ms` a result whose frame is
    older at hand-over is withheld and counted. Raises CameraError for a source that cannot be opened, InputError.
    """
    if max_age_ms is not None and not max_age_ms > 0:
        raise InputError(f"max_age_ms is {max_age_ms}", expected="more than 0, or None", fix="correct max_age_ms")
    cameras, owned = open_cameras(source, policy, realtime=realtime, pixel=getattr(model, "pixel", None))
    return Stream(
        model, cameras, owned, StreamOptions(on_result=on_result, max_age_ms=max_age_ms, max_failures=max_failures)
    )
