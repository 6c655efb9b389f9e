"""A timeline for chrome://tracing and ui.perfetto.dev: frames by stage, what disturbed them, one inference's layers.

Written as the Trace Event Format has it ("JSON Object Format"): complete events X with `ts` and `dur` in us, instant
events i, metadata events M that name processes and threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemae.profiling.records import Layers
from edgemae.spec.errors import InternalError

FRAMES, LAYERS = 1, 2  # process ids: layers are on a clock of their own
_MARKS = 0  # thread id of what disturbed the machine


@dataclass(frozen=True, eq=False)
class Spans:
    """Hold what ran when: names and tracks (n,), start and duration (n,) in ns of one monotonic clock."""

    names: Sequence[str]
    start_ns: ArrayLike
    duration_ns: ArrayLike
    tracks: Sequence[str]  # "pre", "infer", ...: one row of the chart each, in the order of their first span


@dataclass(frozen=True, eq=False)
class Marks:
    """Hold moments at which something else disturbed the machine: names and times (n,) in ns of the spans' clock."""

    names: Sequence[str] = ()
    at_ns: ArrayLike = field(default_factory=list)


def chrome_trace(spans: Spans, marks: Marks | None = None, layers: Layers | None = None) -> bytes:
    """Return the JSON of a timeline that starts with its first event. Raises InternalError for uneven columns.

    Layers follow one another on rows of their own, in the order of execution: their times are medians over many runs,
    so where one started in a certain frame is not known.
    """
    marks = marks or Marks()
    starts, lengths = _column(spans.start_ns, spans.names), _column(spans.duration_ns, spans.names)
    moments = _column(marks.at_ns, marks.names)
    if len(spans.tracks) != len(spans.names):
        raise _uneven()
    zero = int(min((column.min() for column in (starts, moments) if len(column)), default=0))
    tracks = {track: number for number, track in enumerate(dict.fromkeys(spans.tracks), start=1)}
    events = [_named("process_name", "frames", FRAMES)]
    events += [_named("thread_name", track, FRAMES, number) for track, number in tracks.items()]
    rows = zip(spans.names, spans.tracks, starts - zero, lengths, strict=True)
    events += [_span(name, "stage", at, length, FRAMES, tracks[track]) for name, track, at, length in rows]
    if len(moments):
        events.append(_named("thread_name", "interference", FRAMES, _MARKS))
    for name, at in zip(marks.names, moments - zero, strict=True):
        events.append({"name": name, "cat": "interference", "ph": "i", "s": "p", "ts": float(at) / 1e3, "pid": FRAMES,
                       "tid": _MARKS})  # fmt: skip
    if layers is not None:
        events += _layer_events(layers)
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _layer_events(layers: Layers) -> list[dict[str, Any]]:
    """Return one inference: modules above, the operators of each below it."""
    events = [
        _named("process_name", "layers of one inference (medians, in order)", LAYERS),
        _named("thread_name", "module", LAYERS, 1),
        _named("thread_name", "operator", LAYERS, 2),
    ]
    at_ns, groups = 0.0, list[tuple[str, float, float]]()
    for row in layers.rows:
        facts = {"module": row.module, "precision": row.precision, "macs": row.macs, "bytes": row.bytes,
                 "limit_share": row.limit_share, "bound": row.bound}  # fmt: skip
        event = _span(f"{row.kind} {row.name}", "layer", at_ns, row.ms * 1e6, LAYERS, 2)
        events.append(event | {"args": {key: value for key, value in facts.items() if value not in (None, "")}})
        start = groups.pop()[1] if groups and groups[-1][0] == row.module else at_ns
        at_ns += row.ms * 1e6
        groups.append((row.module, start, at_ns))
    return events + [_span(name or "?", "module", start, end - start, LAYERS, 1) for name, start, end in groups]


def _span(name: str, category: str, at_ns: float, duration_ns: float, process: int, thread: int) -> dict[str, Any]:
    return {"name": name, "cat": category, "ph": "X", "ts": float(at_ns) / 1e3, "dur": float(duration_ns) / 1e3,
            "pid": process, "tid": thread}  # fmt: skip


def _named(what: str, name: str, process: int, thread: int = 0) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _column(values: ArrayLike, names: Sequence[str]) -> NDArray[np.int64]:
    column = np.asarray(values, np.int64)  # not float64: ns since boot need more than 53 bits after 104 days
    if column.shape != (len(names),):
        raise _uneven()
    return column


def _uneven() -> InternalError:
    return InternalError("a timeline has columns of different lengths", expected="one of each a span", fix="report it")
