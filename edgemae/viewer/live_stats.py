"""What every view shows of a running stream: rates, ages, stages, counts and the newest answer; any thread may ask."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, fields

import numpy as np

from edgemae.device.model import Model, Result
from edgemae.device.stream import Stream
from edgemae.device.stream_result import StreamResult
from edgemae.profiling.stats.percentiles import Summary, runs_needed, summarise

WINDOW = 1024  # results that percentiles are taken of: the last half minute at 30 fps, and more than p99 needs
RECENT = 240  # ages that are drawn
RATE_S = 5.0  # over which results a second are counted
ROWS = ("age", "pre", "infer", "post")
AT_LEAST = {"p50": runs_needed(0.5), "p90": runs_needed(0.9), "p99": runs_needed(0.99)}


@dataclass(frozen=True)
class LiveStats:
    """Hold the figures of one moment; what needs more results than there are is None."""

    title: str  # name of the bundle, its engine and precision
    source: str
    policy: str
    state: str  # of the camera: live, stalled, reconnecting, ended, failed ...
    seconds: float
    fps: float  # results a second, lately
    answer: list[tuple[str, float]]  # (label, share), the best first; empty without a head
    frame: str
    summaries: dict[str, Summary | None]  # of ROWS, in ms
    counts: dict[str, int]  # of camera and stream; those of what went wrong only where there are any
    ages_ms: list[float]  # the newest last

    def percentile(self, row: str, name: str) -> float | None:
        """Return one percentile in ms, None where the binomial bound asks for more results."""
        found = self.summaries[row]
        return None if found is None else getattr(found, f"{name}_ms")


class StatsCollector:
    """Take note of every result, in one thread; `now` gives the figures to any other."""

    def __init__(self, model: Model, results: Stream[Result]) -> None:
        self._results, self._camera = results, results.camera
        self._title = f"{model.manifest.name} · {model.variant.engine} {model.variant.precision}"
        self._lock = threading.Lock()
        self._rows: deque[tuple[float, float, float, float]] = deque(maxlen=WINDOW)
        self._done: deque[float] = deque(maxlen=WINDOW)  # when, in s of the monotonic clock
        self._seen: StreamResult[Result] | None = None
        self._start = time.monotonic()

    def note(self, seen: StreamResult[Result]) -> None:
        speed = seen.result.speed
        with self._lock:
            self._seen = seen
            self._done.append(time.monotonic())
            self._rows.append((seen.age_ms, speed["pre_ms"], speed["infer_ms"], speed["post_ms"]))

    @property
    def fps(self) -> float:
        """Return results a second over the last 5 s, 0.0 where there are fewer than two."""
        with self._lock:
            done = [at for at in self._done if at > time.monotonic() - RATE_S]
        return (len(done) - 1) / (done[-1] - done[0]) if len(done) > 1 and done[-1] > done[0] else 0.0

    def now(self) -> LiveStats:
        with self._lock:
            rows, seen = np.array(self._rows), self._seen
        enough = len(rows) >= AT_LEAST["p50"]
        return LiveStats(
            title=self._title, source=self._camera.source, policy=self._camera.policy, state=self._camera.state,
            seconds=time.monotonic() - self._start, fps=self.fps, answer=seen.result.topk if seen else [],
            frame=seen.frame.name if seen else "", counts=counts_of(self._results),
            summaries={name: summarise(1e6 * rows[:, i]) if enough else None for i, name in enumerate(ROWS)},
            ages_ms=[round(float(age), 1) for age in rows[-RECENT:, 0]] if len(rows) else [],
        )  # fmt: skip


def counts_of(results: Stream[Result]) -> dict[str, int]:
    """Return what became of the frames, by name; what went wrong, and why frames were dropped, only where it did."""
    camera, ours = results.camera.counters, results.counters
    found = {"captured": camera.captured, "seen": ours.delivered, "dropped": camera.dropped}
    named = (*found, "delivered")
    reasons = {field.name: getattr(camera, field.name) for field in fields(camera) if field.name not in named}
    reasons |= {"withheld": ours.withheld, "failed": ours.failed}
    return found | {name: count for name, count in reasons.items() if count}
