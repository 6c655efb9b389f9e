"""What a stream gives: results with their frames, counts of what became of every frame, and the error of too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgemae.device.camera.camera import Frame
from edgemae.spec.errors import EdgemaeError, EngineRuntimeError, InputError

MAX_FAILURES = 5  # failures in a row after which something other than the frame is wrong
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult(Generic[R]):
    """Hold a result, the frame it belongs to, the frame's age at hand-over, and the name of its source."""

    result: R
    frame: Frame
    age_ms: float
    source: str


@dataclass(frozen=True, slots=True)
class StreamCounters:
    """Count what became of the frames that cameras delivered; at the end delivered + failed + withheld + dropped."""

    inferred: int = 0  # inferences that ended well
    delivered: int = 0  # results that were handed over
    failed: int = 0  # inferences that raised
    sink_failed: int = 0  # callbacks that raised; their results count as delivered
    withheld: int = 0  # older than `max_age_ms`, before the inference or after it
    dropped: int = 0  # several cameras: replaced by a newer frame; any: it was closed or interrupted in the inference


@dataclass(frozen=True, kw_only=True)
class StreamOptions(Generic[R]):
    """Say how results are handed over: to whom, up to which age, and how many failures in a row are too many."""

    on_result: Callable[[StreamResult[R]], object] | None = None
    max_age_ms: float | None = None
    max_failures: int | None = MAX_FAILURES  # None: never too many


def too_many(what: str, times: int, message: str) -> EdgemaeError:
    """Return the error that ends a stream whose inferences ("failed") or callbacks failed so often in a row."""
    if what == "failed":
        return EngineRuntimeError(
            f"inference failed on {times} frames in a row, the last time with {message}",
            expected="a model that runs on the frames of this source",
            fix="run `edgemae verify` on the bundle and try it on one image of this source",
        )
    return InputError(
        f"the callback failed on {times} results in a row, the last time with {message}",
        expected="an `on_result` that returns",
        fix="handle inside it what may fail for a while, or pass a larger max_failures (None: never give up)",
    )
