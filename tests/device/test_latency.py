from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemae.device import latency
from edgemae.device.engines import open_session
from edgemae.device.latency import Blocks, interference, machine, profiling, quantiles
from edgemae.device.latency.interference import Window, canary_ns, judge
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import golden_files, golden_name
from edgemae.spec.bundle import Manifest, Rung, Tolerance, write_bundle
from edgemae.spec.errors import EngineRuntimeError, InputError
from edgemae.spec.graph import IoContract, PixelContract, TensorSpec
from edgemae.spec.target import Target


def heavy_tail(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return latencies in ns of 5 ms with a second mode and a Pareto tail, as an engine on a shared machine has."""
    base = 5e6 * rng.lognormal(0, 0.03, shape)
    base *= np.where(rng.random(shape) < 0.2, 1.3, 1.0)
    return base + np.where(rng.random(shape) < 0.05, 1e6 * rng.pareto(1.5, shape), 0.0)


# ---------------------------------------------------------------- percentiles and intervals


@pytest.mark.parametrize(("name", "runs"), [("p50", 7), ("p90", 44), ("p95", 90), ("p99", 459), ("p99.9", 4603)])
def test_a_percentile_is_allowed_from_the_binomial_bound_on(name: str, runs: int) -> None:
    assert name in latency.allowed_percentiles(runs)
    assert name not in latency.allowed_percentiles(runs - 1)


@pytest.mark.parametrize(
    ("runs", "p90", "p99"),
    [(7, False, False), (43, False, False), (44, True, False), (458, True, False), (459, True, True)],
)
def test_percentiles_of_too_few_runs_are_withheld(runs: int, p90: bool, p99: bool) -> None:
    summary = latency.summarise(np.arange(1, runs + 1) * 1e6)
    assert summary.n == runs
    assert summary.p50_low_ms <= summary.p50_ms <= summary.p50_high_ms
    for name, given, needed in (("p90", p90, 44), ("p99", p99, 459)):
        values = [getattr(summary, f"{name}{part}_ms") for part in ("", "_low", "_high")]
        assert all((value is not None) == given for value in values)
        assert summary.withheld.get(name) == (None if given else needed)


def test_a_median_of_six_runs_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(InputError, match="6 timed runs") as caught:
        latency.summarise(np.ones(6))
    assert "7" in caught.value.expected


@pytest.mark.parametrize(("n", "share"), [(10, 0.5), (60, 0.5), (101, 0.5), (50, 0.9), (300, 0.9), (500, 0.99)])
def test_rank_intervals_cover_and_are_not_wasteful(n: int, share: float) -> None:
    rng = np.random.default_rng(0)
    truth = float(np.quantile(heavy_tail(rng, (2_000_000,)), share))
    low, high = latency.rank_interval(n, share)
    data = np.sort(heavy_tail(rng, (4000, n)), axis=1)
    covered = float(np.mean((data[:, low] <= truth) & (truth <= data[:, high])))
    assert covered >= 0.94
    if high < n - 1 and low > 0 and n >= 50:
        narrower = float(np.mean((data[:, low + 3] <= truth) & (truth <= data[:, high - 3])))
        assert narrower < 0.94  # so the interval is as wide as it must be, not wider


def simulate(rng: np.random.Generator, slowdown: float, rounds: int, runs: int = 8) -> latency.Ratio:
    """Return the ratio of two interleaved candidates that share a wandering machine (3 % a block)."""
    blocks = np.repeat(np.arange(2 * rounds), runs)
    drift = np.cumsum(rng.normal(0, 0.03, 2 * rounds))

    def one(factor: float) -> Blocks:
        own = rng.normal(0, 0.015, 2 * rounds)
        return Blocks((factor * np.exp(drift + own)[blocks] * heavy_tail(rng, blocks.shape)).astype(np.int64), blocks)

    return latency.ratio(one(slowdown), one(1.0))


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
    assert quantiles._signed_rank_cut(n, 0.025) == critical


def test_a_linear_drift_cancels_within_a_round() -> None:
    blocks = np.repeat(np.arange(40), 3)
    # The machine slows down by 4 % a block; the order is A B B A, so A is taken at times 0 and 3 of every four.
    at = {"a": [4 * r + t for r in range(20) for t in (0, 3)], "b": [4 * r + t for r in range(20) for t in (1, 2)]}
    sets = {name: Blocks((1e6 * np.exp(0.04 * np.array(t)))[blocks].astype(np.int64), blocks) for name, t in at.items()}
    found = latency.ratio(sets["a"], sets["b"])
    assert found.median == pytest.approx(1.0, abs=1e-5)


def test_too_few_rounds_are_refused() -> None:
    few = Blocks(np.full(30, 10**6), np.repeat(np.arange(10), 3))
    with pytest.raises(InputError, match="5 interleaved rounds"):
        latency.ratio(few, few)


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

    samples = latency.measure(run, min_runs=50, min_seconds=0, warmup=5)
    assert samples.n == 50
    assert calls == 55
    assert samples.ns.min() > 0
    assert not samples.blocks.any()


def test_measure_goes_on_until_the_seconds_are_over() -> None:
    start = time.monotonic()
    samples = latency.measure(spin(500_000), min_runs=10, min_seconds=0.3, warmup=4)
    assert samples.n > 10
    # The room for samples is twice what the warm-up promised; a warm-up that was disturbed may end the run early.
    assert time.monotonic() - start > 0.1


def test_interleaving_takes_turns_in_abba_order() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "AB"}
    taken = latency.interleave(runs, rounds=8, block_ms=0.0, warmup=2)
    turns = "".join(name for name, before in zip(order, [" ", *order], strict=False) if name != before)
    assert turns.endswith("ABABABABABABABABA")  # A B | B A | A B: neighbours of one name merge
    # One untimed run leads every block, then three timed ones.
    assert len(order) == 2 * 2 + 2 * 16 * (1 + 3)
    for samples in taken.values():
        assert samples.n == 16 * 3
        assert list(samples.blocks) == [block for block in range(16) for _ in range(3)]


def test_a_planted_slowdown_is_measured_and_a_against_a_is_one() -> None:
    base, slow = spin(400_000), spin(800_000)
    taken = latency.interleave({"slow": slow, "a": base, "b": base}, rounds=10, block_ms=2.0)
    planted, nothing = latency.ratio(taken["slow"], taken["a"]), latency.ratio(taken["a"], taken["b"])
    trusted = latency.worst(*(samples.interference.verdict for samples in taken.values())) == "TRUSTED"
    low, high = (1.8, 2.2) if trusted else (1.2, 3.5)  # what a machine with other work on it can still show
    assert low < planted.median < high
    assert low / 2 < nothing.median < high / 2


def test_park_waits_until_the_process_is_quiet_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic_ns()
    monkeypatch.setattr(time, "process_time_ns", lambda: 0)
    assert latency.park()
    # One thread that spins for 100 ms more.
    monkeypatch.setattr(time, "process_time_ns", lambda: min(time.monotonic_ns(), start + 100_000_000))
    assert latency.park()
    assert time.monotonic_ns() >= start + 100_000_000
    monkeypatch.setattr(time, "process_time_ns", time.monotonic_ns)
    start = time.monotonic_ns()
    assert not latency.park()
    assert time.monotonic_ns() - start >= 0.4e9


# ---------------------------------------------------------------- interference


class Quiet(Window):
    """Stand in for a window with known shares."""

    def __init__(self, others: float | None = 0.0, steal: float | None = 0.0) -> None:
        self._known = (2.0, others, steal)

    def shares(self) -> tuple[float, float | None, float | None]:
        return self._known


def evidence(
    window: Window | None = None, switched: int = 0, slow: int = 0, spread: float = 0.0, n: int = 200
) -> interference.Interference:
    switches, canaries = np.zeros(n, np.int64), np.full(n + 1, 100_000)
    switches[:switched] = 1
    canaries[:slow] = 150_000
    ns = np.linspace(1e6 * (1 - spread), 1e6 * (1 + spread), n).astype(np.int64)
    return judge(ns, switches, canaries, window or Quiet())


@pytest.mark.parametrize(
    ("found", "verdict", "reason"),
    [
        (evidence(), "TRUSTED", ""),
        (evidence(switched=10), "TRUSTED", ""),
        (evidence(switched=40), "NOISY", "20% of the runs were disturbed"),
        (evidence(slow=39), "NOISY", "disturbed"),
        (evidence(switched=110), "INVALID", "55% of the runs were disturbed"),
        (evidence(Quiet(others=0.2)), "NOISY", "others used 20% of the processors"),
        (evidence(Quiet(others=0.6)), "INVALID", "others used 60%"),
        (evidence(Quiet(steal=0.05)), "NOISY", "hypervisor took 5%"),
        (evidence(Quiet(steal=0.3)), "INVALID", "hypervisor took 30%"),
        (evidence(spread=0.3), "NOISY", "spread over 30% of the median"),
        (evidence(Quiet(others=None, steal=None)), "TRUSTED", ""),
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
    found = judge(ns, switches, np.full(101, 100_000), Quiet())
    assert found.clean_fraction == pytest.approx(0.7)
    assert found.p50_clean_ms == 1.0
    few = judge(ns[:32], switches[:32], np.full(33, 100_000), Quiet())
    assert few.p50_clean_ms is None


def test_verdicts_are_ordered() -> None:
    assert latency.worst() == "TRUSTED"
    assert latency.worst("NOISY", "TRUSTED") == "NOISY"
    assert latency.worst("NOISY", "INVALID", "TRUSTED") == "INVALID"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/stat")
def test_hogs_on_every_core_are_seen() -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in machine.usable_cpus()]
    try:
        time.sleep(0.3)
        found = latency.measure(spin(1_000_000), min_runs=20, min_seconds=1.0, warmup=3).interference
    finally:
        for process in hogs:
            process.kill()
            process.wait()
    assert found.verdict in ("NOISY", "INVALID")
    assert found.others_share is not None
    assert found.others_share > 0.2


def test_a_short_window_says_that_it_does_not_know() -> None:
    seconds, others, steal = Window().shares()
    assert seconds < 0.5
    assert others is None
    assert steal is None
    assert canary_ns() > 0


# ---------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_json_and_repeatable() -> None:
    found = latency.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert latency.differences(found, latency.fingerprint()) == []
    assert found["libraries"]["numpy"] == np.__version__
    assert "onnxruntime" in found["libraries"]
    assert found["cores"] >= 1
    assert set(found["flags"]) <= set(machine.FLAGS)
    assert "torch" not in found["libraries"]


def test_any_difference_is_named() -> None:
    here = latency.fingerprint()
    assert latency.differences(here, {**here, "governor": "powersave-x"}) == [
        f"governor: {here['governor']} / powersave-x"
    ]
    without = {key: value for key, value in here.items() if key != "microcode"}
    assert len(latency.differences({**here, "microcode": "0x1"}, without)) == 1


def test_unreadable_facts_are_none_and_a_broken_library_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_read", lambda path: None)
    monkeypatch.setitem(machine.LIBRARIES, "json", ("no-such-distribution",))
    monkeypatch.setitem(machine.LIBRARIES, "absent_library", ("no-such-distribution",))
    found = machine.fingerprint()
    assert found["microcode"] is None
    assert found["memory_mib"] is None
    assert found["flags"] == []
    assert found["libraries"]["json"] == json.__version__
    assert "absent_library" not in found["libraries"]

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(machine.importlib, "import_module", refuse)
    monkeypatch.setitem(machine.LIBRARIES, "wave", ("no-such-distribution",))
    assert machine.fingerprint()["libraries"]["wave"] == "broken"


# ---------------------------------------------------------------- a whole bundle

PIXEL = PixelContract(image_px=32)
HERE = Target(
    name="here", title="this machine", engines=("onnxruntime",), precisions=("fp32",), arch="x86_64", isa="avx2",
    threads=1, width_multiple=8, memory_mib=512, source="a test",
)  # fmt: skip


def chain(layers: int) -> bytes:
    """Return an ONNX network of `layers` 192 x 192 products behind (1, 3, 32, 32) pixels."""
    rng = np.random.default_rng(0)
    constants = {
        "shape": np.array([16, 192]), "w": rng.normal(0, 192**-0.5, (192, 192)).astype(np.float32),
        "head": rng.normal(0, 0.1, (192, 4)).astype(np.float32), "axes": np.array([0]),
    }  # fmt: skip
    nodes = [helper.make_node("Reshape", ["pixels", "shape"], ["x0"])]
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"x{i}", "w"], [f"y{i}"]),
            helper.make_node("Tanh", [f"y{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"x{layers}", "axes"], ["embedding"], keepdims=1),
        helper.make_node("MatMul", ["embedding", "head"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "chain", [value("pixels", TensorProto.FLOAT, [1, 3, 32, 32])],
        [value("logits", TensorProto.FLOAT, [1, 4]), value("embedding", TensorProto.FLOAT, [1, 192])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_bundle(path: Path, layers: int) -> Path:
    graph = {"graph/fp32.onnx": chain(layers)}
    frames = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(2)]
    with open_session("onnxruntime", graph, HERE) as session:
        rows = np.concatenate([session(preprocess(frame, PIXEL))["logits"] for frame in frames])
    rung = Rung(
        engine="onnxruntime", files=tuple(graph), precision="fp32", golden=golden_name("onnxruntime-fp32"),
        tolerance=Tolerance(cosine_min=0.999, max_abs=1e-3),
    )  # fmt: skip
    golden, files = golden_files(frames, PIXEL, {rung.id: rows})
    tensor = {name: TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in
              (("pixels", (1, 3, 32, 32)), ("logits", (1, 4)), ("embedding", (1, 192)))}  # fmt: skip
    manifest = Manifest(
        name=path.stem, version=1, created="2026-01-01T00:00:00Z", status="passed", target=HERE, pixel=PIXEL,
        io=IoContract(inputs=(tensor["pixels"],), outputs=(tensor["logits"], tensor["embedding"])), ladder=(rung,),
        golden=golden, labels=("a", "b", "c", "d"),
    )  # fmt: skip
    return write_bundle(path, manifest, {**graph, **files})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "quick.edgemae", 8), make_bundle(folder / "slow.edgemae", 80)


@pytest.fixture(scope="module")
def record(bundles: tuple[Path, Path]) -> profiling.Profile:
    return latency.profile(bundles[0], bundles[1], runs=100)


def test_a_profile_holds_cold_first_steady_and_stages(record: profiling.Profile) -> None:
    assert record.name == "quick"
    assert (record.engine, record.precision) == ("onnxruntime", "fp32")
    assert record.steady.n == 100
    assert record.steady.p90_ms is not None
    assert record.steady.p99_ms is None
    assert record.cold_ms > record.load_ms > 0
    assert record.cold_ms > record.first_ms > 0
    assert set(record.stages) == {"pre", "infer", "post"}
    assert all(stage.n == 100 for stage in record.stages.values())
    assert sum(stage.min_ms for stage in record.stages.values()) <= record.steady.max_ms
    assert record.machine["threads"] == 1


def test_against_another_bundle_is_a_paired_ratio(record: profiling.Profile) -> None:
    assert record.against is not None
    assert record.against.name == "slow"
    assert record.against.paired
    assert record.against.different
    assert record.against.ratio_low > 1  # this one is faster
    assert record.against.ratio_low <= record.against.ratio <= record.against.ratio_high


def test_a_profile_is_one_json_object_and_comes_back(record: profiling.Profile, tmp_path: Path) -> None:
    raw = msgspec.json.encode(record)
    tree = json.loads(raw)
    assert {"verdict", "steady", "cold_ms", "first_ms", "stages", "against", "machine", "schema"} <= set(tree)
    assert {"p50_ms", "n"} <= set(tree["steady"])
    assert tree["verdict"] in ("TRUSTED", "NOISY", "INVALID")
    (tmp_path / "profile.json").write_bytes(raw)
    assert latency.read_profile(tmp_path / "profile.json") == record


def test_lines_for_a_terminal_never_show_a_withheld_percentile(record: profiling.Profile) -> None:
    text = "\n".join(latency.describe(record))
    assert "p99 needs 459 runs" in text
    assert f"p90 {record.steady.p90_ms:8.3f} ms" in text
    assert "times as fast" in text
    assert record.verdict in text


def test_a_stored_profile_of_this_machine_is_compared_and_of_another_refused(
    record: profiling.Profile, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "cold_start", lambda *_: {"cold_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0})
    path = tmp_path / "before.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, verdict="INVALID")))
    with load(bundles[1]) as slow:
        found = latency.profile(slow, path, runs=20)
        assert slow.session is not None
        slow(np.zeros((8, 8, 3), np.uint8))  # a model that was brought along is still open
    assert found.against is not None
    assert not found.against.paired
    assert found.against.name == "quick"
    assert found.against.ratio_high < 1  # the slow one is not as fast
    assert "not in turns" in "\n".join(latency.describe(found))

    other = {**record.machine, "cpu": "another one"}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, machine=other)))
    with pytest.raises(InputError, match=r"another machine.*cpu: another one"):
        latency.profile(bundles[0], path, runs=20)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"not json",
        b"{}",
        b'{"schema":"edgemae.profile/99"}',
        b'{"schema":"edgemae.profile/1"}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a profile"):
        latency.read_profile(path)
    with pytest.raises(InputError, match="cannot be read as a profile"):
        latency.read_profile(tmp_path / "absent.json")


def test_too_few_runs_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 timed runs are too few"):
        latency.profile(tmp_path / "not-even-there", runs=3)


def test_a_child_that_fails_gives_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(EngineRuntimeError, match="does not start in a new process"):
        latency.cold_start(tmp_path / "absent.edgemae")


def test_a_bundle_that_changed_under_a_loaded_model_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "x.edgemae", 2)
    with load(path) as model:
        make_bundle(path, 3)
        with pytest.raises(Exception, match="not the bundle that was loaded"):
            profiling.golden_frames(model)
