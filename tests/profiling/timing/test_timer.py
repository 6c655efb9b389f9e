from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.device.hardware import fingerprint as fingerprint_module
from edgemae.device.hardware.fingerprint import differences, fingerprint
from edgemae.profiling.stats import comparison
from edgemae.profiling.stats.comparison import Blocks, Ratio, ratio
from edgemae.profiling.stats.percentiles import allowed_percentiles, rank_interval, summarise
from edgemae.profiling.timing import interference, timer
from edgemae.profiling.timing.clock_check import ClockDrift, Reading
from edgemae.profiling.timing.interference import Observed, Window, assess_interference, canary_ns, combined_verdict
from edgemae.profiling.timing.system_counters import SystemCounters
from edgemae.profiling.timing.system_monitor import SystemMonitor, SystemSample
from edgemae.profiling.timing.timer import interleave, measure, wait_until_idle
from edgemae.spec.errors import InputError


def heavy_tail(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return latencies in ns of 5 ms with a second mode and a Pareto tail, as an engine on a shared machine has."""
    base = 5e6 * rng.lognormal(0, 0.03, shape)
    base *= np.where(rng.random(shape) < 0.2, 1.3, 1.0)
    return base + np.where(rng.random(shape) < 0.05, 1e6 * rng.pareto(1.5, shape), 0.0)


# ---------------------------------------------------------------- percentiles and intervals


@pytest.mark.parametrize(("name", "runs"), [("p50", 7), ("p90", 44), ("p95", 90), ("p99", 459), ("p99.9", 4603)])
def test_a_percentile_is_allowed_from_the_binomial_bound_on(name: str, runs: int) -> None:
    assert name in allowed_percentiles(runs)
    assert name not in allowed_percentiles(runs - 1)


@pytest.mark.parametrize(
    ("runs", "p90", "p99"),
    [(7, False, False), (43, False, False), (44, True, False), (458, True, False), (459, True, True)],
)
def test_percentiles_of_too_few_runs_are_withheld(runs: int, p90: bool, p99: bool) -> None:
    summary = summarise(np.arange(1, runs + 1) * 1e6)
    assert summary.n == runs
    assert summary.p50_low_ms <= summary.p50_ms <= summary.p50_high_ms
    for name, given, needed in (("p90", p90, 44), ("p99", p99, 459)):
        values = [getattr(summary, f"{name}{part}_ms") for part in ("", "_low", "_high")]
        assert all((value is not None) == given for value in values)
        assert summary.withheld.get(name) == (None if given else needed)


def test_a_median_of_six_runs_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(InputError, match="6 timed runs") as caught:
        summarise(np.ones(6))
    assert "7" in caught.value.expected


@pytest.mark.parametrize(("n", "share"), [(10, 0.5), (60, 0.5), (101, 0.5), (50, 0.9), (300, 0.9), (500, 0.99)])
def test_rank_intervals_cover_and_are_not_wasteful(n: int, share: float) -> None:
    rng = np.random.default_rng(0)
    truth = float(np.quantile(heavy_tail(rng, (2_000_000,)), share))
    low, high = rank_interval(n, share)
    data = np.sort(heavy_tail(rng, (4000, n)), axis=1)
    covered = float(np.mean((data[:, low] <= truth) & (truth <= data[:, high])))
    assert covered >= 0.94
    if high < n - 1 and low > 0 and n >= 50:
        narrower = float(np.mean((data[:, low + 3] <= truth) & (truth <= data[:, high - 3])))
        assert narrower < 0.94  # so the interval is as wide as it must be, not wider


def simulate(rng: np.random.Generator, slowdown: float, rounds: int, runs: int = 8) -> Ratio:
    """Return the ratio of two interleaved candidates that share a wandering machine (3 % a block)."""
    blocks = np.repeat(np.arange(2 * rounds), runs)
    drift = np.cumsum(rng.normal(0, 0.03, 2 * rounds))

    def one(factor: float) -> Blocks:
        own = rng.normal(0, 0.015, 2 * rounds)
        return Blocks((factor * np.exp(drift + own)[blocks] * heavy_tail(rng, blocks.shape)).astype(np.int64), blocks)

    return ratio(one(slowdown), one(1.0))


@pytest.mark.parametrize("rounds", [8, 20])
def test_a_slowdown_of_5_percent_is_found_and_nothing_is_found_in_nothing(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    same = [simulate(rng, 1.0, rounds) for _ in range(400)]
    # 5 % and two standard errors of 400 trials; a plain bootstrap of the median would raise 9 % with 8 rounds.
    assert np.mean([found.different for found in same]) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5
    if rounds == 20:
        slower = [simulate(rng, 1.05, rounds) for _ in range(200)]
        assert np.mean([found.different and found.low > 1 for found in slower]) >= 0.95
        assert np.median([found.median for found in slower]) == pytest.approx(1.05, abs=0.005)


@pytest.mark.parametrize(("n", "critical"), [(6, 0), (8, 3), (10, 8), (12, 13), (20, 52), (30, 137)])
def test_signed_rank_cuts_are_the_published_critical_values(n: int, critical: int) -> None:
    assert comparison._signed_rank_cut(n, 0.025) == critical


def test_a_linear_drift_cancels_within_a_round() -> None:
    blocks = np.repeat(np.arange(40), 3)
    # The machine slows down by 4 % a block; the order is A B B A, so A is taken at times 0 and 3 of every four.
    at = {"a": [4 * r + t for r in range(20) for t in (0, 3)], "b": [4 * r + t for r in range(20) for t in (1, 2)]}
    sets = {name: Blocks((1e6 * np.exp(0.04 * np.array(t)))[blocks].astype(np.int64), blocks) for name, t in at.items()}
    found = ratio(sets["a"], sets["b"])
    assert found.median == pytest.approx(1.0, abs=1e-5)


def test_too_few_rounds_are_refused() -> None:
    few = Blocks(np.full(30, 10**6), np.repeat(np.arange(10), 3))
    with pytest.raises(InputError, match="5 interleaved rounds"):
        ratio(few, few)


# ---------------------------------------------------------------- taking samples


def spin(ns: int) -> Callable[[], None]:
    """Return a function that computes for a fixed amount of work of about `ns`."""
    loops = max(1, ns // 40)

    def run() -> None:
        total = 0
        for i in range(loops):
            total += i

    return run


def test_measure_keeps_exactly_the_runs_that_were_asked_for() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    samples = measure(run, min_runs=50, min_seconds=0, warmup=5)
    assert samples.n == 50
    assert calls == 55
    assert samples.ns.min() > 0
    assert not samples.blocks.any()


def test_measure_notes_what_every_kept_run_returned() -> None:
    seen: list[tuple[int, object]] = []
    turns = iter(range(1000))
    measure(lambda: next(turns), min_runs=5, min_seconds=0, warmup=3, note=lambda *row: seen.append(row))
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 6), (4, 7)]


def test_runs_back_to_back_leave_nothing_out_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "STRETCH_NS", 2_000_000)
    measurements = measure(spin(200_000), min_runs=40, min_seconds=0, warmup=4, back_to_back=True)
    assert measurements.n == 40
    joined = measurements.at_ns[:-1] + measurements.ns[:-1] == measurements.at_ns[1:]
    assert joined[np.diff(measurements.blocks) == 0].all()
    assert len(set(measurements.blocks)) > 1  # a look at the machine between the stretches
    apart = measure(spin(200_000), min_runs=40, min_seconds=0, warmup=4)
    assert (apart.at_ns[:-1] + apart.ns[:-1] < apart.at_ns[1:]).all()


def test_of_too_many_runs_one_of_so_many_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "CAPACITY", 50)
    monkeypatch.setattr(timer, "warm", lambda run, warmup: 1e-3)
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    measurements = measure(run, min_runs=10, min_seconds=0.25)
    assert (measurements.n, measurements.every) == (50, 10)
    assert calls == 500
    # Room for half of 2 * 0.099 s / 1 ms / 50: rounded down, the room would be full before the time is over.
    assert measure(run, min_runs=10, min_seconds=0.099).every == 4


def test_measure_goes_on_until_the_seconds_are_over() -> None:
    start = time.monotonic()
    samples = measure(spin(500_000), min_runs=10, min_seconds=0.3, warmup=4)
    assert samples.n >= 10
    assert time.monotonic() - start > 0.3


def test_interleaving_takes_turns_in_abba_order() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "AB"}
    measurements = interleave(runs, rounds=8, block_ms=0.0, warmup=2)
    turns = "".join(name for name, before in zip(order, [" ", *order], strict=False) if name != before)
    assert turns.endswith("ABABABABABABABABA")  # A B | B A | A B: neighbours of one name merge
    # One untimed run leads every block, then three timed ones.
    assert len(order) == 2 * 2 + 2 * 16 * (1 + 3)
    for samples in measurements.values():
        assert samples.n == 16 * 3
        assert list(samples.blocks) == [block for block in range(16) for _ in range(3)]


def test_a_planted_slowdown_is_measured_and_a_against_a_is_one() -> None:
    base, slow = spin(400_000), spin(800_000)
    measurements = interleave({"slow": slow, "a": base, "b": base}, rounds=10, block_ms=2.0)
    planted, nothing = ratio(measurements["slow"], measurements["a"]), ratio(measurements["a"], measurements["b"])
    trusted = combined_verdict(*(samples.interference.verdict for samples in measurements.values())) == "TRUSTED"
    low, high = (1.8, 2.2) if trusted else (1.2, 3.5)  # what a machine with other work on it can still show
    assert low < planted.median < high
    assert low / 2 < nothing.median < high / 2


def test_park_waits_until_the_process_is_quiet_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic_ns()
    monkeypatch.setattr(time, "process_time_ns", lambda: 0)
    assert wait_until_idle()
    # One thread that spins for 100 ms more.
    monkeypatch.setattr(time, "process_time_ns", lambda: min(time.monotonic_ns(), start + 100_000_000))
    assert wait_until_idle()
    assert time.monotonic_ns() >= start + 100_000_000
    monkeypatch.setattr(time, "process_time_ns", time.monotonic_ns)
    start = time.monotonic_ns()
    assert not wait_until_idle()
    assert time.monotonic_ns() - start >= 0.4e9


# ---------------------------------------------------------------- interference


IDLE = SystemCounters(pressure_us=0, throttled_us=0, frequency_mhz=3000.0, temperature_c=50.0, heat_throttles=0)
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
        self._known = Observed(2.0, others, steal, IDLE, after, clock_drift)

    def close(self) -> Observed:
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


# ---------------------------------------------------------------- in between


def moment(at_s: float, ahead_ns: int = 0, busy_s: float = 0.0, **look: object) -> SystemSample:
    ns = round(at_s * 1e9)
    reading = Reading(run_ns=ns + ahead_ns, raw_ns=ns, boot_ns=ns + ahead_ns, wall_ns=ns, slack_ns=10_000)
    return SystemSample(at_s, dataclasses.replace(IDLE, **look), reading, 0.0, (busy_s, 0.0))  # type: ignore[arg-type]


def watched(moments: Iterable[SystemSample]) -> SystemMonitor:
    first, *rest = moments
    found = SystemMonitor(first, cores=2)
    for one in rest:
        found.take(one)
    return found


def judged(seen: SystemMonitor) -> interference.Interference:
    window = Window()
    window._monitor, window._sample = seen, lambda: seen.last._replace(at_s=seen.last.at_s + 1e-3)  # type: ignore[method-assign]
    return assess_interference(np.full(200, 10**6), np.zeros(200, np.int64), np.full(201, 10**5), window)


def test_what_came_and_went_in_between_is_seen() -> None:
    """Ten seconds in quarters; from the fourth to the sixth one thing is wrong, and at the end all is as before."""
    slow = {i: {"frequency_mhz": 2100.0} for i in range(16, 25)}
    hot = {i: {"temperature_c": 97.0, "slowed_by_heat": True} for i in range(16, 25)}

    def over(changes: dict[int, dict[str, object]]) -> interference.Interference:
        return judged(watched(moment(i / 4, **changes.get(i, {})) for i in range(41)))

    assert over({}).verdict == "TRUSTED"
    assert over(slow).reasons == ("the processor's frequency fell by 30%",)
    assert over({20: {"frequency_mhz": 2100.0}}).verdict == "TRUSTED"  # one reading of a governor at work
    assert over(hot).reasons == ("at 97 C the kernel slows the processor down",)
    found = over(slow).timeline
    assert (len(found.at_s), min(found.frequency_mhz), found.frequency_mhz[-1]) == (40, 2100.0, 3000.0)


def test_a_jump_that_is_short_beside_the_window_is_seen() -> None:
    """20 ms within 100 s are less than a thousandth of it, and no matter of NTP."""
    found = judged(watched(moment(i / 4, ahead_ns=20_000_000 if i > 200 else 0) for i in range(401)))
    assert (found.verdict, found.clock_jump_ms) == ("INVALID", pytest.approx(20.0))
    slept = watched(moment(i / 4) for i in range(401))
    slept._drifts.append(ClockDrift(jump_ms=0.0, suspended_s=0.02, wall_step_s=0.0))
    assert judged(slept).suspended_s == pytest.approx(0.02)


def test_stretches_are_joined_when_there_are_too_many() -> None:
    # One of two processors is busy with something else for the second half.
    found = watched(
        moment(i / 4, busy_s=max(0, i - 1000) / 4, temperature_c=50 + i / 100) for i in range(2001)
    ).timeline()
    assert 240 < len(found.at_s) <= 481
    assert found.at_s[-1] == 500.0
    assert len(found.others_share) == len(found.temperature_c) == len(found.at_s)
    middle = np.searchsorted(found.at_s, 250.0)
    assert max(found.others_share[: middle - 1]) == 0
    assert found.others_share[middle + 2 :] == pytest.approx([0.5] * (len(found.at_s) - middle - 2))
    assert max(found.temperature_c) == 70


def test_a_measurement_looks_four_times_a_second_and_no_more() -> None:
    found = measure(spin(500_000), min_runs=20, min_seconds=1.6, warmup=3).interference.timeline
    assert 2 <= len(found.at_s) <= 7
    assert list(found.at_s) == sorted(found.at_s)
    if sys.platform == "linux":
        assert len(found.others_share) == len(found.at_s)


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


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_json_and_repeatable() -> None:
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert differences(found, fingerprint()) == []
    assert found["libraries"]["numpy"] == np.__version__
    assert "onnxruntime" in found["libraries"]
    assert found["cores"] >= 1
    assert set(found["flags"]) <= set(fingerprint_module.FLAGS)
    assert "torch" not in found["libraries"]


def test_any_difference_is_named() -> None:
    here = fingerprint()
    assert differences(here, {**here, "governor": "powersave-x"}) == [f"governor: {here['governor']} / powersave-x"]
    without = {key: value for key, value in here.items() if key != "microcode"}
    assert len(differences({**here, "microcode": "0x1"}, without)) == 1


def test_two_arm_boards_are_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    def board(part: str, model: str) -> dict[str, object]:
        files = {
            "/proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU architecture: 8\nCPU variant : 0x0\n"
            f"CPU part : {part}\nCPU revision : 1\n", "/proc/device-tree/model": f"{model}\0",
        }  # fmt: skip
        monkeypatch.setattr(fingerprint_module, "text", lambda path: files.get(str(path)))
        return fingerprint_module.fingerprint()

    orin, pi = board("0xd42", "Orin Nano"), board("0xd0b", "Raspberry Pi 5")
    assert orin["cpu_id"] == "0x41/8/0x0/0xd42/1"
    assert {line.partition(":")[0] for line in differences(orin, pi)} == {"cpu_id", "board"}
    assert "Raspberry Pi 5" in differences(orin, pi)[0]


def test_the_governors_of_all_processors_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "usable_cores", lambda: {0, 1, 2, 3})
    assert fingerprint_module._governor(tmp_path) is None
    for cpu in range(4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text("performance\n")
    assert fingerprint_module._governor(tmp_path) == "performance"
    (folder / "scaling_governor").write_text("powersave\n")
    assert fingerprint_module._governor(tmp_path) == "performance 0-2, powersave 3"


@pytest.mark.parametrize(
    ("key", "other"), [("pinning", "0"), ("environment", {"OMP_NUM_THREADS": "77"}), ("gpu", ["x"])]
)
def test_pinning_and_environment_forbid_a_comparison(key: str, other: object) -> None:
    here = fingerprint()
    assert differences(here, {**here, key: other}) == [f"{key}: {here[key]} / {other}"]


def test_unreadable_facts_are_none_and_a_broken_library_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint_module, "text", lambda path: None)
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "json", ("no-such-distribution",))
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "absent_library", ("no-such-distribution",))
    found = fingerprint_module.fingerprint()
    assert found["microcode"] is None
    assert found["memory_mib"] is None
    assert found["flags"] == []
    assert found["libraries"]["json"] == json.__version__
    assert "absent_library" not in found["libraries"]

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(fingerprint_module.importlib, "import_module", refuse)
    monkeypatch.setitem(fingerprint_module.LIBRARIES, "wave", ("no-such-distribution",))
    assert fingerprint_module.fingerprint()["libraries"]["wave"] == "broken"
