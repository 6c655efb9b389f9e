"""Power and heat while something runs, from sysfs: no library, no rights, and what is not there is reported as missing.

    with PowerSampler() as quiet:
        time.sleep(2)
    with PowerSampler() as busy:
        ...                                     # `runs` inferences
    busy.result(runs=runs, idle=quiet.result())

A thread reads power ten times a second and everything else once a second: temperatures are slow, and reading a clock
frequency may interrupt the processor that is being measured.
"""

from __future__ import annotations

import statistics
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from edgemae.device.hardware.sensors import (
    SensorReading,
    clocks,
    energy_counters,
    gpus,
    power_mode,
    rails,
    throttle_indicators,
    zones,
)
from edgemae.profiling.records import Power, Sensor

HZ = 10
SLOW_EVERY = 10  # ticks between two readings of everything that is not power
SHORTEST_S = 1.0  # of a window that energy is reported for: ten readings of a rail
COVERED = 0.95  # share of the window that a rail must have answered for
GAP_S = 1.0  # a rail that is silent for longer leaves a hole; shorter ones are bridged by a straight line
MINUTE_S = 60.0
SLOWED = 0.90  # clock while hot / clock before: below it the heat took speed away
FEWEST = 5  # readings, hot and cool each, that this is reported from
TOTALS = ("VDD_IN", "POM_5V_IN")  # rails that feed the whole module: Xavier NX, Orin Nano and NX; Nano
MOST_W = 5000.0  # of one counter: a leap above it is a counter that was reset, not power


@dataclass
class _Track:
    """The readings of one sensor: seconds and values, the energy under them in J, and why it fell silent."""

    name: str
    source: str
    unit: str
    read: Callable[[], float]
    at_s: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))
    joules: float = 0.0
    covered_s: float = 0.0
    trouble: str = ""
    missed: int = 0

    def take(self, now_s: float) -> None:
        """Read once; a reading that fails is counted and leaves no value."""
        try:
            value = self.read()
        except (OSError, ValueError) as error:
            self.missed += 1
            self.trouble = getattr(error, "strerror", None) or str(error)
            return
        self._keep(now_s, value)

    def _keep(self, now_s: float, value: float) -> None:
        if self.at_s and (step_s := now_s - self.at_s[-1]) <= GAP_S:
            self.joules += (self.values[-1] + value) / 2 * step_s
            self.covered_s += step_s
        self.at_s.append(now_s)
        self.values.append(value)

    def mean(self, from_s: float = float("-inf"), to_s: float = float("inf")) -> float | None:
        """Return the mean of the readings in a span, None when it has none."""
        chosen = [value for at, value in zip(self.at_s, self.values, strict=True) if from_s <= at <= to_s]
        return statistics.fmean(chosen) if chosen else None


@dataclass
class _Counter(_Track):
    """A track of a counter of energy in uJ that wraps around at `range_uj`; its values are W since the last reading."""

    range_uj: float | None = None
    last: tuple[float, float] | None = None  # s, uJ

    def _keep(self, now_s: float, value: float) -> None:
        before, self.last = self.last, (now_s, value)
        if before is None or now_s <= before[0]:
            return
        step_s, spent_uj = now_s - before[0], value - before[1]
        if spent_uj < 0 and self.range_uj:
            spent_uj += self.range_uj
        if not 0 <= spent_uj <= MOST_W * 1e6 * step_s:
            self.missed += 1
            self.trouble = f"the counter leapt from {before[1]:.0f} to {value:.0f} uJ"
            return
        self.joules += spent_uj / 1e6
        self.covered_s += step_s
        self.at_s.append(now_s)
        self.values.append(spent_uj / 1e6 / step_s)


class PowerSampler:
    """Read power, temperatures, clocks and throttling from entering to leaving a `with` block.

    `root` is the folder that stands for `/`. `tick` may be called by hand instead, with a clock of one's own.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self._root = Path(root)
        self._absent: list[str] = []
        self._power = [_Track(f.name, "ina3221", "W", f.read) for f in self._keep(rails(self._root))]
        self._power += [
            _Counter(f.name, "rapl", "W", f.read, range_uj=f.limit) for f in self._keep(energy_counters(self._root))
        ]
        heat = list(self._keep(zones(self._root)))
        self._heat = [_Track(f.name, "thermal", "C", f.read) for f in heat]
        self._hot_c = [f.limit for f in heat]
        self._clocks = [_Track(f.name, "cpufreq", "MHz", f.read) for f in self._keep(clocks(self._root))]
        self._gpus = [_Track(f.name, "devfreq", f.unit, f.read) for f in self._keep(gpus(self._root))]
        self._indicators = [(f, array("q")) for f in self._keep(throttle_indicators(self._root))]
        self._hot_at_s: set[float] = set()
        self._ticks = 0
        self._span_s: tuple[float, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PowerSampler:
        self.tick(time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="edgemae-power", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._ticks = 0  # the last reading is of everything
        self.tick(time.monotonic())

    @property
    def measures_power(self) -> bool:
        return bool(self._power)

    @property
    def blind(self) -> bool:
        return not (self._power or self._heat or self._clocks or self._gpus or self._indicators)

    def tick(self, now_s: float) -> None:
        """Read once, at a time in s of a clock that never goes back."""
        self._span_s = (self._span_s[0] if self._span_s else now_s, now_s)
        for track in self._power:
            track.take(now_s)
        if self._ticks % SLOW_EVERY == 0:
            for track in (*self._heat, *self._clocks, *self._gpus):
                track.take(now_s)
            for indicator, seen in self._indicators:
                try:
                    seen.append(int(indicator.read()))
                except (OSError, ValueError):  # no reading this time; the one before stands
                    continue
            if self._is_hot(now_s):
                self._hot_at_s.add(now_s)
        self._ticks += 1

    @property
    def throttle_reasons(self) -> tuple[str, ...]:
        """Return every sign that heat or current took speed away during the window."""
        reasons = [f.name for f, seen in self._indicators if seen and _spoke(f, seen)]
        for track in (*self._clocks, *(gpu for gpu in self._gpus if gpu.unit == "MHz")):
            hot = [v for at, v in zip(track.at_s, track.values, strict=True) if at in self._hot_at_s]
            cool = [v for at, v in zip(track.at_s, track.values, strict=True) if at not in self._hot_at_s]
            if min(len(hot), len(cool)) < FEWEST:
                continue
            before, after = statistics.median(cool), statistics.median(hot)
            if after < SLOWED * before:
                reasons.append(f"{track.name} fell from {before:.0f} to {after:.0f} MHz while hot")
        return tuple(reasons)

    def result(self, *, runs: int = 0, idle: Power | None = None, on_gpu: bool = False) -> Power:
        """Return what was seen. `runs` inferences were done, `on_gpu` or on the processor.

        `idle` is the result of a window in which nothing ran.
        """
        absent, whole = list(self._absent), self._whole()
        for track in (*self._power, *self._heat, *self._clocks, *self._gpus):
            if track.missed:
                message = f"{track.missed} readings failed ({track.trouble})"
                absent.append(f"{track.source} {track.name}: {message}" + ("" if track.at_s else ", none succeeded"))
        idle_w = idle.run_w if idle else None
        run_w = self._total_w(whole, absent)
        energy_mj = None
        if run_w is not None and runs > 0:
            if idle_w is None:
                absent.append("energy of one inference: no idle power to take away from it")
            elif on_gpu and whole[0].source == "rapl":
                absent.append("energy of one inference: it runs on the GPU, and rapl tells of the processors alone")
            elif run_w <= idle_w:
                absent.append("energy of one inference: the power under load was not above that at rest")
            else:
                energy_mj = 1e3 * (run_w - idle_w) * self._seconds / runs
        could_tell = any(seen for _, seen in self._indicators) or bool(self._clocks and self._heat)
        tracks = (*self._power, *self._heat, *self._clocks, *self._gpus)
        return Power(
            sensors=tuple(sensor for track in tracks if (sensor := self._sensor(track))),
            idle_w=idle_w, run_w=run_w, energy_mj=energy_mj,
            throttled=bool(self.throttle_reasons) if could_tell else None,
            throttle=self.throttle_reasons, mode=power_mode(self._root), absent=tuple(absent),
        )  # fmt: skip

    def _watch(self) -> None:
        started_s, turn = time.monotonic(), 0
        while True:
            turn += 1
            if self._stop.wait(max(started_s + turn / HZ - time.monotonic(), 0.0)):
                break
            self.tick(time.monotonic())
            turn = max(turn, int((time.monotonic() - started_s) * HZ))  # late: leave turns out, do not catch up

    def _keep(self, found: Iterator[SensorReading | str]) -> Iterator[SensorReading]:
        """Yield what was found; note what was not."""
        for item in found:
            if isinstance(item, str):
                self._absent.append(item)
            else:
                yield item

    @property
    def _seconds(self) -> float:
        return self._span_s[1] - self._span_s[0] if self._span_s else 0.0

    def _whole(self) -> list[_Track]:
        """Return the tracks whose sum is the machine's power: its input rail, or all rails, or the processors' RAPL."""
        measured = [t for t in self._power if t.source == "ina3221"]
        if measured:
            return [t for t in measured if t.name in TOTALS] or measured
        # core and uncore are parts of their package, dram is none; psys holds the packages once more.
        return [t for t in self._power if t.name != "psys" and (" " not in t.name or t.name.endswith(" dram"))]

    def _total_w(self, whole: Sequence[_Track], absent: list[str]) -> float | None:
        """Return the mean power of the window; None, with the reason in `absent`, where it is not known."""
        if not whole:
            return None
        if self._seconds < SHORTEST_S:
            absent.append(f"power: a window of {self._seconds:.2f} s is too short, {SHORTEST_S:.0f} s are needed")
            return None
        for track in whole:
            if track.covered_s < COVERED * self._seconds:
                absent.append(
                    f"power: {track.name} answered for {track.covered_s:.1f} s of {self._seconds:.1f} s"
                    f" ({track.trouble or 'too slowly'})"
                )
                return None
        if whole[0].source == "ina3221" and whole[0].name not in TOTALS:
            absent.append(f"a rail of the whole module: power is the sum of {', '.join(t.name for t in whole)}")
        return sum(track.joules / track.covered_s for track in whole)

    def _sensor(self, track: _Track) -> Sensor | None:
        if not track.values or self._span_s is None:
            return None
        start_s, end_s = self._span_s
        power = track.unit == "W" and track.covered_s > 0
        long = end_s - start_s >= 2 * MINUTE_S
        mean = track.joules / track.covered_s if power else statistics.fmean(track.values)
        return Sensor(
            name=track.name, source=track.source, mean=mean, max=max(track.values), unit=track.unit,
            first_minute=track.mean(to_s=start_s + MINUTE_S) if long else None,
            last_minute=track.mean(from_s=end_s - MINUTE_S) if long else None,
        )  # fmt: skip

    def _is_hot(self, now_s: float) -> bool:
        return any(
            track.at_s and track.at_s[-1] == now_s and limit is not None and track.values[-1] >= limit
            for track, limit in zip(self._heat, self._hot_c, strict=True)
        )


def _spoke(indicator: SensorReading, seen: Sequence[int]) -> bool:
    """Return whether an indicator saw throttling: a counter that grew, or a state other than 0 at any time."""
    return seen[-1] > seen[0] if indicator.unit == "count" else any(value > 0 for value in seen)
