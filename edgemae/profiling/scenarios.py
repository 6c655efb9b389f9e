"""Ways to run a bundle: one call at a time, back to back, or behind a camera of a fixed rate.

Each scenario returns the runs with their evidence and what the stages of every run took. Stages are written between two
runs, into rows that exist before the first one; a row of a camera run takes about 1 microsecond.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgemae.profiling.golden_inputs import as_decoded, bundle_of, golden_bytes, golden_frames
from edgemae.profiling.output.chrome_trace import Marks, Spans
from edgemae.profiling.records import STAGES, CameraFigures, Series, Throughput
from edgemae.profiling.simulated_camera import SimulatedCamera
from edgemae.profiling.stats.bootstrap import FEWEST, mean_interval
from edgemae.profiling.stats.percentiles import summarise
from edgemae.profiling.timing.interference import Window
from edgemae.profiling.timing.timer import CAPACITY, Recorder, Samples, StopCondition, measure, warm

if TYPE_CHECKING:
    from edgemae.device.model import Model, Result

WARMUP_RUNS = 10
CALL_STAGES = ("pre", "infer", "post")  # those of a whole call, which the model times itself
TAIL = 0.025  # of a two-sided interval at 95 %
SERIES_RUNS = 5000


@dataclass(frozen=True)
class ScenarioOptions:
    """How much to measure: until both are reached. `fps` is of the camera."""

    runs: int
    seconds: float  # 0: exactly `runs`
    fps: float = 25.0


@dataclass(frozen=True, eq=False)
class ScenarioResult:
    """Hold what a scenario found, in ns: `calls` are whole calls, pixels in to result out."""

    samples: Samples
    calls: NDArray[np.int64]
    stages: dict[str, NDArray[np.int64]]
    throughput: Throughput | None = None
    camera: CameraFigures | None = None
    ages: NDArray[np.int64] | None = None  # from a frame's arrival to its result

    @property
    def runs_done(self) -> int:
        """Return how many inferences were done, with those of the warm-up and those that were not kept."""
        return len(self.calls) * self.samples.every + WARMUP_RUNS

    def series(self) -> Series:
        """Return the runs for charts, every so-manieth of them when there are more than 5,000."""
        step = math.ceil(len(self.calls) / SERIES_RUNS)
        start = self.samples.at_ns[0]
        return Series(
            at_s=tuple(np.round((self.samples.at_ns[::step] - start) / 1e9, 6).tolist()),
            ms=tuple(np.round(self.calls[::step] / 1e6, 6).tolist()),
            disturbed=tuple((~self.samples.clean[::step]).tolist()), kept=step * self.samples.every,
        )  # fmt: skip

    def timeline(self) -> tuple[Spans, Marks]:
        """Return the stages of the first 5,000 runs, and which runs were disturbed, for `chrome_trace`."""
        n = min(len(self.calls), SERIES_RUNS)
        lengths = np.stack([ns[:n] for ns in self.stages.values()], axis=1)
        # A camera's frame waits before its run begins.
        starts = self.samples.at_ns[:n] - self.stages.get("capture", np.zeros(n, np.int64))[:n]
        at = starts[:, None] + np.cumsum(lengths, axis=1) - lengths
        names = list(self.stages) * n
        late = self.samples.at_ns[:n][~self.samples.clean[:n]]
        return Spans(names, at.ravel(), lengths.ravel(), names), Marks(["disturbed run"] * len(late), late)


class Rows:
    """Keep figures of every run in rows that exist before the first one."""

    def __init__(self, names: tuple[str, ...], capacity: int) -> None:
        self._names = names
        self._rows = np.zeros((capacity, len(names)), np.int64)

    def note(self, row: int, values: tuple[int, ...]) -> None:
        self._rows[row] = values

    def columns(self, n: int) -> dict[str, NDArray[np.int64]]:
        return {name: self._rows[:n, i].copy() for i, name in enumerate(self._names)}


def single(model: Model, options: ScenarioOptions) -> ScenarioResult:
    """Time one whole call after another, with a sample of the system between them."""
    samples, stages = _calls(model, options)
    return ScenarioResult(samples, samples.ns, stages)


def offline(model: Model, options: ScenarioOptions) -> ScenarioResult:
    """Time whole calls back to back: each lasts until the next one starts, so they add up to the throughput."""
    samples, stages = _calls(model, options, back_to_back=True)
    mean = mean_interval(samples.ns)
    speed = Throughput(fps=1e9 / mean.value, low=1e9 / mean.high, high=1e9 / mean.low, block_runs=mean.block)
    return ScenarioResult(samples, samples.ns, stages, throughput=speed)


def camera(model: Model, options: ScenarioOptions) -> ScenarioResult:
    """Let frames arrive at a fixed rate and work on the newest: decode, whole call, and one line of JSON as sink.

    Of more than a million results one of so many is kept; which frames were worked on, and when, is kept of all.
    """
    encoded = golden_bytes(bundle_of(model))
    room = max(CAPACITY, options.runs) if options.seconds else options.runs
    every = max(1, math.ceil(options.fps * options.seconds / room))
    spans, results = Rows((*STAGES, "call", "age"), room), Rows(("number", "came", "done"), room * every)
    warm(lambda: _work(model, encoded, (0, 0, 0)), WARMUP_RUNS)
    done = 0

    def note(row: int, seen: Any) -> None:
        if row >= 0:
            spans.note(row, seen[:-3])
        results.note(done, seen[-3:])

    recorder = Recorder(room, note)
    window, until = Window(), StopCondition(options.runs, options.seconds)
    with SimulatedCamera(options.fps) as simulated:
        while not recorder.full and until.more(recorder.n):
            window.sample()
            recorder.watch()  # while we wait for a frame anyway, not while it gets old
            arrival = simulated.take()
            if (done + 1) % every:
                note(-1, _work(model, encoded, arrival))
            else:
                recorder.once(lambda arrival=arrival: _work(model, encoded, arrival), watch=False)  # type: ignore[misc]
            done += 1
    samples = recorder.samples(window, every)
    found, all_of = spans.columns(samples.n), results.columns(done)
    figures = _behind_camera(all_of["number"], all_of["came"], all_of["done"], found["age"])
    stages = {name: found[name] for name in STAGES}
    return ScenarioResult(samples, found["call"], stages, camera=figures, ages=found["age"])


RUNNERS: dict[str, Callable[[Model, ScenarioOptions], ScenarioResult]] = {
    "single": single,
    "offline": offline,
    "camera": camera,
}
FEWEST_RUNS = {"single": 1, "offline": FEWEST, "camera": FEWEST + 1}  # what the intervals of each take


def _calls(
    model: Model, options: ScenarioOptions, *, back_to_back: bool = False
) -> tuple[Samples, dict[str, NDArray[np.int64]]]:
    frames = itertools.cycle(golden_frames(bundle_of(model)))
    spans = Rows(CALL_STAGES, max(CAPACITY, options.runs))

    def run() -> Result:
        return model(next(frames))

    def note(row: int, result: Any) -> None:
        spans.note(row, stages_of(result))

    samples = measure(
        run,
        min_runs=options.runs,
        min_seconds=options.seconds,
        warmup=WARMUP_RUNS,
        note=note,
        back_to_back=back_to_back,
    )
    return samples, spans.columns(samples.n)


def stages_of(result: Result) -> tuple[int, ...]:
    """Return what the stages of a whole call took, in ns."""
    return tuple(round(result.speed[f"{name}_ms"] * 1e6) for name in CALL_STAGES)


def _work(model: Model, encoded: list[bytes], arrival: tuple[int, int, int]) -> tuple[int, ...]:
    """Do for one arrived frame what a device app does; return a row of the camera's spans."""
    number, due, came = arrival
    start = time.monotonic_ns()
    frame = as_decoded(model.manifest, encoded[number % len(encoded)])
    decoded = time.monotonic_ns()
    result = model(frame)
    done = time.monotonic_ns()
    msgspec.json.encode({"seq": number, "label": result.label, "score": result.score})
    end = time.monotonic_ns()
    return (
        start - due,
        decoded - start,
        *stages_of(result),
        end - done,
        done - decoded,
        done - due,
        number,
        came,
        done,
    )


def _behind_camera(
    number: NDArray[np.int64], came: NDArray[np.int64], done: NDArray[np.int64], age: NDArray[np.int64]
) -> CameraFigures:
    """Return what came out; frames count from the first to the last one that was worked on."""
    arrived = int(number[-1] - number[0]) + 1
    missed = np.ones(arrived)
    missed[number - number[0]] = 0
    drops, gaps = mean_interval(missed), mean_interval(np.diff(done))
    # Without any drop there is nothing to draw again: so many frames exclude a larger share with this confidence.
    unseen = 1 - TAIL ** (1 / arrived)
    return CameraFigures(
        source_fps=1e9 * (arrived - 1) / float(came[-1] - came[0]), fps=1e9 / gaps.value, fps_low=1e9 / gaps.high,
        fps_high=1e9 / gaps.low, drop_share=drops.value, drop_low=drops.low, drop_high=max(drops.high, unseen),
        age=summarise(age), frames=arrived,
    )  # fmt: skip
