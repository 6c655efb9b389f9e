"""Results of a running camera: the newest frame in, its result out, and one bad frame does not end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from edgemae.device.camera import Camera, Frame
from edgemae.spec.errors import EngineRuntimeError

log = logging.getLogger(__name__)
MAX_FAILURES = 5  # failed inferences in a row after which something other than the frame is wrong
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Streamed(Generic[R]):
    """Hold a result, the frame it belongs to, and the frame's age when the result was ready."""

    result: R
    frame: Frame
    age_ms: float


class Stream(Generic[R]):
    """Iterate over results. One inference that raises is logged and counted in `failed`; the stream goes on.

    `camera.counters` tells what was dropped before it reached the model. Leaving the `with` block, the end of the
    source and `close()` free the camera, unless the caller brought it.
    """

    def __init__(
        self, model: Callable[[Any], R], source: Camera | int | str | Path, policy: str | None = None, *,
        realtime: bool = False, max_failures: int = MAX_FAILURES,
    ) -> None:  # fmt: skip
        self._model, self._max_failures = model, max_failures
        self._is_owner = not isinstance(source, Camera)
        self.camera = (
            source
            if isinstance(source, Camera)
            else Camera(source, policy, realtime=realtime, pixel=getattr(model, "pixel", None))
        )
        self.failed = 0  # inferences that raised
        self._failed_in_a_row = 0

    def __iter__(self) -> Iterator[Streamed[R]]:
        return self

    def __next__(self) -> Streamed[R]:
        try:
            while (frame := self.camera.read()) is not None:
                try:
                    result = self._model(frame.array_bgr)
                except Exception as error:  # noqa: BLE001 - counted, logged, and an error after five in a row
                    self._count(error, frame)
                    continue
                self._failed_in_a_row = 0
                return Streamed(result, frame, frame.age_ms)
        except BaseException:  # also an interrupt inside the model: the camera must not stay open
            self.close()
            raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        if self._is_owner:
            self.camera.close()

    def __enter__(self) -> Stream[R]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _count(self, error: Exception, frame: Frame) -> None:
        """Note a failed inference; raise EngineRuntimeError when too many came in a row."""
        self.failed += 1
        self._failed_in_a_row += 1
        log.warning("inference failed on %s: %s: %s", frame.name, type(error).__name__, error)
        if self._failed_in_a_row >= self._max_failures:
            raise EngineRuntimeError(
                f"inference failed on {self._failed_in_a_row} frames in a row, the last time with "
                f"{type(error).__name__}: {error}",
                expected="a model that runs on the frames of this source",
                fix="run `edgemae verify` on the bundle and try it on one image of this source",
            ) from error


def stream(
    model: Callable[[Any], R], source: Camera | int | str | Path, policy: str | None = None, *,
    realtime: bool = False, max_failures: int = MAX_FAILURES,
) -> Stream[R]:  # fmt: skip
    """Return an iterator over `Streamed(result, frame, age_ms)` of a source (see Camera for sources and policies).

    Raises CameraError when the source fails, EngineRuntimeError when `max_failures` inferences fail in a row.
    """
    return Stream(model, source, policy, realtime=realtime, max_failures=max_failures)
