"""The verdict follows the evidence."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest

from edgemae.device.hardware import fingerprint as fingerprint_module
from edgemae.profiling.timing import interference
from edgemae.profiling.timing.clock_check import ClockDrift
from edgemae.profiling.timing.interference import (
    Window,
    WindowReading,
    assess_interference,
    canary_ns,
    combined_verdict,
)
from edgemae.profiling.timing.system_counters import SystemCounters
from edgemae.profiling.timing.timer import measure
from tests.support.timing import IDLE, spin

FIRM = ClockDrift(jump_ms=0.0, suspended_s=0.0, wall_step_s=0.0)


class Quiet(Window):
    """Stand in for a window of two seconds with a known outcome."""

    def __init__(
        self,
        others: float | None = 0.0,
        steal: float | None = 0.0,
        after: SystemCounters = IDLE,
        clock_drift: ClockDrift = FIRM,
    ) -> None:
        self._known = WindowReading(2.0, others, steal, IDLE, after, clock_drift)

    def close(self) -> WindowReading:
        return self._known


def saw(**changes: object) -> Quiet:
    """Return a window at whose end the kernel's indicators read something else."""
    return Quiet(after=dataclasses.replace(IDLE, **changes))  # type: ignore[arg-type]


def went(**changes: float | None) -> Quiet:
    """Return a window over which the clocks came apart."""
    return Quiet(clock_drift=msgspec.structs.replace(FIRM, **changes))


def evidence(
    window: Window | None = None, switched: int = 0, slow: int = 0, spread: float = 0.0, n: int = 200,
    by: float = 1.3,
) -> interference.Interference:  # fmt: skip
    """Judge runs of which some were switched out, or beside a slow canary, and took `by` times as long."""
    switches, canaries = np.zeros(n, np.int64), np.full(n + 1, 100_000)
    switches[:switched] = 1
    canaries[:slow] = 150_000
    ns = np.linspace(1e6 * (1 - spread), 1e6 * (1 + spread), n).astype(np.int64)
    ns[: max(switched, slow)] = 1e6 * by
    return assess_interference(ns, switches, canaries, window or Quiet())


@pytest.mark.parametrize(
    ("found", "verdict", "reason"),
    [
        (evidence(), "TRUSTED", ""),
        (evidence(switched=10), "TRUSTED", ""),
        (evidence(switched=40), "NOISY", "20% of the runs were disturbed"),
        (evidence(slow=39), "NOISY", "disturbed"),
        (evidence(switched=110), "INVALID", "55% of the runs were disturbed"),
        (evidence(switched=110, by=1.06), "TRUSTED", ""),
        (evidence(slow=150, by=1.0), "TRUSTED", ""),
        (evidence(switched=200, by=1.0), "TRUSTED", ""),
        (evidence(Quiet(others=0.2)), "NOISY", "others used 20% of the processors"),
        (evidence(Quiet(others=0.6)), "INVALID", "others used 60%"),
        (evidence(Quiet(steal=0.05)), "NOISY", "hypervisor took 5%"),
        (evidence(Quiet(steal=0.3)), "INVALID", "hypervisor took 30%"),
        (evidence(spread=0.3), "NOISY", "spread over 30% of the median"),
        (evidence(Quiet(others=None, steal=None)), "TRUSTED", ""),
        (evidence(saw(pressure_us=100_000)), "TRUSTED", ""),
        (evidence(saw(pressure_us=1_900_000)), "NOISY", "waited for a processor 95% of the time"),
        (evidence(saw(throttled_us=100_000)), "NOISY", "quota stopped this process 5%"),
        (evidence(saw(throttled_us=3_000_000)), "INVALID", "quota stopped this process 100%"),
        (evidence(saw(frequency_mhz=2400.0)), "NOISY", "frequency fell by 20%"),
        (evidence(saw(frequency_mhz=3300.0)), "TRUSTED", ""),
        (evidence(saw(heat_throttles=3)), "NOISY", "slowed down 3 times for its heat"),
        (evidence(saw(temperature_c=95.0, slowed_by_heat=True)), "NOISY", "at 95 C the kernel slows"),
        (evidence(saw(temperature_c=70.0)), "TRUSTED", ""),
        (evidence(went(jump_ms=-40.0)), "INVALID", "clock jumped by 40 ms"),
        (evidence(went(suspended_s=7.0)), "INVALID", "the machine slept for 7.0 s"),
        (evidence(went(wall_step_s=-3600.0)), "TRUSTED", ""),
        (evidence(Quiet(others=0.2, steal=0.3), switched=40), "INVALID", "disturbed"),
    ],
)
def test_the_verdict_follows_the_evidence(found: interference.Interference, verdict: str, reason: str) -> None:
    assert found.verdict == verdict
    assert reason in "; ".join(found.reasons)
    assert bool(found.reasons) == (verdict != "TRUSTED")


def test_clean_runs_give_their_own_median() -> None:
    ns = np.full(100, 1_000_000)
    ns[:30] = 9_000_000
    switches = (ns > 5_000_000).astype(np.int64)
    found = assess_interference(ns, switches, np.full(101, 100_000), Quiet())
    assert found.clean_fraction == pytest.approx(0.7)
    assert found.p50_clean_ms == 1.0
    few = assess_interference(ns[:32], switches[:32], np.full(33, 100_000), Quiet())
    assert few.p50_clean_ms is None


def test_verdicts_are_ordered() -> None:
    assert combined_verdict() == "TRUSTED"
    assert combined_verdict("NOISY", "TRUSTED") == "NOISY"
    assert combined_verdict("NOISY", "INVALID", "TRUSTED") == "INVALID"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat")
def test_hogs_on_every_core_are_seen() -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in fingerprint_module.usable_cores()]
    try:
        time.sleep(0.3)
        found = measure(spin(1_000_000), min_runs=20, min_seconds=1.0, warmup=3).interference
    finally:
        for process in hogs:
            process.kill()
            process.wait()
    assert found.verdict in ("NOISY", "INVALID")
    assert found.others_share is not None
    assert found.others_share > 0.2


def test_a_short_window_says_that_it_does_not_know() -> None:
    seen = Window().close()
    assert seen.seconds < 0.5
    assert seen.others_share is None
    assert seen.steal_share is None
    assert canary_ns() > 0
    found = assess_interference(np.full(20, 10**6), np.zeros(20, np.int64), np.full(21, 10**5), Window())
    assert "load of others and steal (below 0.5 s)" in found.absent


def test_what_the_kernel_says_is_kept_as_figures() -> None:
    found = evidence(saw(pressure_us=500_000, temperature_c=51.0, frequency_mhz=2700.0))
    assert found.pressure_share == pytest.approx(0.25)
    assert found.temperature_slope == pytest.approx(30.0)  # 1 C in two seconds
    assert found.frequency_drop == pytest.approx(0.1)
    assert found.absent == ()


def test_absent_witnesses_are_listed_and_harm_nothing() -> None:
    nothing = SystemCounters(None, None, None, None, None)
    found = evidence(
        Quiet(None, None, after=nothing, clock_drift=ClockDrift(jump_ms=None, suspended_s=None, wall_step_s=0))
    )
    assert found.verdict == "TRUSTED"
    assert (found.pressure_share, found.throttled_share, found.heat_throttles, found.clock_jump_ms) == (None,) * 4
    assert found.absent == (
        "load of others and steal", "cpu pressure (PSI)", "cgroup throttling", "processor frequency", "temperature",
        "thermal throttle counter", "raw clock", "boot clock",
    )  # fmt: skip
