"""A line for each result: for people, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult


class Lines:
    """Print results to stdout. A line leaves at once: in a pipe's buffer fifty of them would grow old together."""

    def __init__(self, format_result: Callable[[StreamResult[Result]], str]) -> None:
        self._format_result = format_result

    def show(self, seen: StreamResult[Result]) -> bool:
        sys.stdout.write(self._format_result(seen) + "\n")
        sys.stdout.flush()
        return True

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def as_json(seen: StreamResult[Result]) -> str:
    result, frame = seen.result, seen.frame
    row: dict[str, Any] = {
        "seq": frame.seq, "name": frame.name, "label": result.label, "score": result.score, "age_ms": seen.age_ms,
    }  # fmt: skip
    return json.dumps(row | result.speed)


def as_text(seen: StreamResult[Result]) -> str:
    result = seen.result
    prediction = "embedding" if result.score is None else f"{result.label} {100 * result.score:.1f} %"
    return f"{seen.frame.name}  {prediction}  ({result.speed['infer_ms']:.1f} ms)"
