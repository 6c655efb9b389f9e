"""Whole profiles of real bundles: scenarios, limits, what is stored and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper

from edgemae.cli.output import print_profile
from edgemae.device.engines import open_session
from edgemae.device.hardware.cpu_features import isa_class
from edgemae.device.model import load
from edgemae.device.preprocess import preprocess
from edgemae.device.selfcheck import check, golden_files, golden_name
from edgemae.device.session import Session
from edgemae.profiling import cold_start as cold
from edgemae.profiling import profiler, request
from edgemae.profiling.cold_start import cold_start
from edgemae.profiling.compare.baseline import stored_profile
from edgemae.profiling.compare.graph_benchmark import target_mismatches
from edgemae.profiling.golden_inputs import bundle_of, golden_frames
from edgemae.profiling.output.html_report import page
from edgemae.profiling.output.text_report import describe
from edgemae.profiling.power import PowerSampler
from edgemae.profiling.profiler import profile
from edgemae.profiling.records import Profile, SloVerdict, read_profile
from edgemae.profiling.scenarios import single
from edgemae.profiling.slo import exit_code
from edgemae.profiling.timing import interference
from edgemae.spec.bundle import open_bundle, write_bundle
from edgemae.spec.errors import EngineMissingError, EngineRuntimeError, InputError, StorageError
from edgemae.spec.graph import IoContract, PixelContract, TensorSpec
from edgemae.spec.manifest import Manifest, Tolerance, Variant
from edgemae.spec.target import Target
from tests.support.profiles import full_profile

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
    variant = Variant(
        engine="onnxruntime", files=tuple(graph), precision="fp32", golden=golden_name("onnxruntime-fp32"),
        tolerance=Tolerance(cosine_min=0.999, max_abs=1e-3),
    )  # fmt: skip
    golden, files = golden_files(frames, PIXEL, {variant.id: rows})
    tensor = {name: TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in
              (("pixels", (1, 3, 32, 32)), ("logits", (1, 4)), ("embedding", (1, 192)))}  # fmt: skip
    manifest = Manifest(
        name=path.stem, version=1, created="2026-01-01T00:00:00Z", status="passed", target=HERE, pixel=PIXEL,
        io=IoContract(inputs=(tensor["pixels"],), outputs=(tensor["logits"], tensor["embedding"])), variants=(variant,),
        golden=golden, labels=("a", "b", "c", "d"),
    )  # fmt: skip
    return write_bundle(path, manifest, {**graph, **files})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return make_bundle(folder / "quick.edgemae", 8), make_bundle(folder / "slow.edgemae", 80)


@pytest.fixture(scope="module")
def record(bundles: tuple[Path, Path]) -> Profile:
    return profile(bundles[0], bundles[1], runs=100)


def test_a_profile_holds_cold_first_steady_and_stages(record: Profile) -> None:
    assert record.name == "quick"
    assert (record.engine, record.precision) == ("onnxruntime", "fp32")
    assert record.steady.n == 100
    assert record.steady.p90_ms is not None
    assert record.steady.p99_ms is None
    assert record.start is not None
    assert record.start.cold_ms > record.start.load_ms > 0
    assert record.start.cold_ms > record.start.first_ms > 0
    assert record.start.cold_high_ms is None  # one start has no interval
    assert set(record.stages) == {"pre", "infer", "post"}
    assert all(stage.n == 100 for stage in record.stages.values())
    assert sum(stage.min_ms for stage in record.stages.values()) <= record.steady.max_ms
    assert record.machine["threads"] == 1


def test_against_another_bundle_is_a_paired_ratio(record: Profile) -> None:
    assert record.baseline is not None
    assert record.baseline.name == "slow"
    assert record.baseline.paired
    assert record.baseline.different
    assert record.baseline.ratio_low > 1  # this one is faster
    assert record.baseline.ratio_low <= record.baseline.ratio <= record.baseline.ratio_high


def test_a_profile_is_one_json_object_and_comes_back(record: Profile, tmp_path: Path) -> None:
    raw = msgspec.json.encode(record)
    tree = json.loads(raw)
    assert {"verdict", "steady", "start", "stages", "baseline", "machine", "schema", "slo"} <= set(tree)
    assert {"p50_ms", "n"} <= set(tree["steady"])
    assert tree["verdict"] in ("TRUSTED", "NOISY", "INVALID")
    (tmp_path / "profile.json").write_bytes(raw)
    assert read_profile(tmp_path / "profile.json") == record


def test_lines_for_a_terminal_never_show_a_withheld_percentile(record: Profile) -> None:
    text = "\n".join(describe(record))
    assert "needs 459 runs" in text
    assert f"{record.steady.p90_ms:.3f} [{record.steady.p90_low_ms:.3f}, " in text
    assert "times as fast" in text
    assert record.verdict in text


def test_a_stored_profile_of_this_machine_is_compared_and_of_another_refused(
    record: Profile, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "cold_start", lambda *_: {"cold_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0})
    path = tmp_path / "before.json"
    # A tenth of what was measured: two sessions of a busy machine lie 20 % apart, and this is no test of the machine.
    tenth = {name: getattr(record.steady, name) / 10 for name in ("p50_ms", "p50_low_ms", "p50_high_ms")}
    stored = msgspec.structs.replace(
        record, verdict="INVALID", reasons=("it was hot",), steady=msgspec.structs.replace(record.steady, **tenth)
    )
    path.write_bytes(msgspec.json.encode(stored))
    with load(bundles[1]) as slow:
        found = profile(slow, path, runs=20)
        assert slow.session is not None
        slow(np.zeros((8, 8, 3), np.uint8))  # a model that was brought along is still open
    assert found.baseline is not None
    assert not found.baseline.paired
    assert found.verdict == "INVALID"  # what it is compared with cannot be believed
    assert "comparison: it was hot" in found.reasons
    assert found.baseline.name == "quick"
    assert found.baseline.ratio_high < 1  # the stored one is faster
    assert found.baseline.different is None  # two sessions of one machine differ for reasons of their own
    assert "whether they differ cannot be decided (not interleaved: stored profile)" in "\n".join(describe(found))
    assert "whether they differ cannot be decided" in page(found)
    for asked, what in (({"scenario": "offline"}, "taken in scenario 'single', this profile in scenario 'offline'"),
                        ({"scenario": "camera"}, "this profile behind a camera of 25 frames")):  # fmt: skip
        with pytest.raises(InputError, match=what):
            profile(bundles[0], path, runs=40, **asked)

    other = {**record.machine, "cpu": "another one"}
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, machine=other)))
    with pytest.raises(InputError, match=r"another machine.*cpu: another one"):
        profile(bundles[0], path, runs=20)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"not json",
        b"{}",
        b'{"schema":"edgemae.profile/99"}',
        b'{"schema":"edgemae.profile/1","verdict":"TRUSTED"}',
        b'{"schema":"edgemae.profile/2","verdict":"TRUSTED"}',
        b'{"schema":"edgemae.profile/3","verdict":"TRUSTED"}',
        b'{"schema":"edgemae.profile/4"}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a profile"):
        read_profile(path)
    with pytest.raises(InputError, match="cannot be read as a profile"):
        read_profile(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("schema", "writer"),
    [
        ("edgemae.profile/1", "a development version of edgemae before 0.1.0"),
        ("edgemae.profile/3", "a development version of edgemae before 0.1.0"),
        ("edgemae.profile/99", "no version up to this one"),
    ],
)
def test_a_profile_of_another_schema_says_who_wrote_it(tmp_path: Path, schema: str, writer: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"schema": schema}))
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert f"'{schema}'" in caught.value.what
    assert writer in caught.value.what
    assert "take the profile again" in caught.value.fix


def test_too_few_runs_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 timed runs are too few"):
        profile(tmp_path / "not-even-there", runs=3)


def test_a_child_that_fails_gives_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(EngineRuntimeError, match="does not start in a new process"):
        cold_start(tmp_path / "absent.edgemae")


def test_a_bundle_that_changed_under_a_loaded_model_is_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "x.edgemae", 2)
    with load(path) as model:
        make_bundle(path, 3)
        with pytest.raises(Exception, match="not the bundle that was loaded"):
            golden_frames(bundle_of(model))


# ---------------------------------------------------------------- scenarios, limits, exits


@pytest.fixture
def warm_start(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Leave out the new processes; return the list of those that would have been started."""
    started: list[int] = []

    def start(*_: object) -> dict[str, float]:
        started.append(len(started))
        return {"cold_ms": 100.0 + len(started), "load_ms": 50.0, "first_ms": 5.0}

    monkeypatch.setattr(profiler, "cold_start", start)
    return started


def test_each_scenario_has_its_own_figures(bundles: tuple[Path, Path], warm_start: list[int], tmp_path: Path) -> None:
    with load(bundles[0]) as model:
        single = profile(model, runs=64)
        offline = profile(model, runs=40, scenario="offline")
        camera = profile(model, runs=44, scenario="camera", fps=100.0, slo=("drop<99%", "age_p90<1us", "p50<9s"))
    assert [e.name for e in single.early_stopping] == ["SingleStream p90", "MultiStream p99"]
    assert single.early_stopping[0].value == single.steady.max_ms
    assert (single.early_stopping[1].value, single.early_stopping[1].needed) == (None, 5296)
    assert (single.throughput, single.camera, single.soak) == (None, None, None)
    assert offline.throughput is not None
    (estimate,) = offline.early_stopping
    assert (estimate.name, estimate.value, estimate.needed) == ("Offline", None, 24_576)
    assert camera.camera is not None
    assert set(camera.stages) == {"capture", "decode", "pre", "infer", "post", "sink"}
    assert [limit.passed for limit in camera.slo] == [True, False, True]
    assert (camera.early_stopping, camera.steady.n, len(camera.series.ms)) == ((), 44, 44)
    for record in (single, offline, camera):
        path = tmp_path / f"{record.scenario}.json"
        path.write_bytes(msgspec.json.encode(record))
        assert read_profile(path) == record
        text = "\n".join(describe(record))
        assert f"scenario {record.scenario}" in text
        assert f"verdict     {record.verdict}" in text
        assert all(reason in text for reason in record.reasons)
        assert all(name in text for name in record.interference.absent)
        assert "None" not in text
    assert "MISSED" in text
    assert camera.command == (
        f"edgemae profile {bundles[0]} --scenario camera --runs 44 --fps 100.0 "
        "--slo 'drop<99%' --slo 'age_p90<1us' --slo 'p50<9s'"
    )


def test_a_limit_takes_the_runs_that_it_needs(
    bundles: tuple[Path, Path], warm_start: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "MIN_SECONDS", 0.01)
    found = profile(bundles[0], slo=("p99<90s", "cold<1s", "cold<103ms"))
    assert found.steady.n >= 459
    assert found.start is not None
    assert (len(warm_start), found.start.runs, found.start.cold_ms, found.start.cold_high_ms) == (7, 7, 104.0, 107.0)
    assert [limit.passed for limit in found.slo] == [True, True, False]


@pytest.mark.parametrize(
    ("verdict", "passed", "code"),
    [
        ("TRUSTED", (), 0),
        ("NOISY", (True,), 0),
        ("NOISY", (True, False), 4),
        ("INVALID", (True,), 5),
        ("INVALID", (False,), 5),
    ],
)
def test_the_exit_code_is_that_of_the_worst(
    record: Profile, verdict: str, passed: tuple[bool, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = tuple(SloVerdict(text=f"p50<{i}ms", value=1.0, high=1.1, passed=ok) for i, ok in enumerate(passed))
    found = msgspec.structs.replace(record, verdict=verdict, slo=limits, reasons=("a dog barked",))
    assert exit_code(found) == code
    if code:
        with pytest.raises(typer.Exit) as caught:
            print_profile(found, json=True)
        assert caught.value.exit_code == code
    else:
        print_profile(found, json=True)
    message = capsys.readouterr()
    assert json.loads(message.out)["verdict"] == verdict
    assert ("a dog barked" in message.err) == (verdict != "TRUSTED")
    assert ("not shown to be met" in message.err) == (False in passed)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"runs": -5}, "-5 timed runs are too few"),
        ({"fps": 30.0}, "30 frames a second were asked for in scenario 'single'"),
        ({"fps": 25.0, "scenario": "offline"}, "in scenario 'offline', which has no camera"),
        ({"scenario": "offlin"}, "Did you mean 'offline'"),
        ({"scenario": "camera", "runs": 32}, "32 runs are too few for the intervals"),
        ({"scenario": "offline", "runs": 31}, "31 runs are too few for the intervals"),
        ({"fps": 0.0}, "a camera of 0 frames"),
        ({"fps": float("nan")}, "a camera of nan frames"),
        ({"soak": "1m", "runs": 100}, "both 100 runs and a soak"),
        ({"soak": "1"}, "no length of a soak"),
        ({"slo": ("p99<3ms",), "runs": 100}, "100 runs cannot show"),
        ({"runs": 10**11}, "100,000,000,000 runs were asked for"),
        ({"slo": ("drop<0.0000001%",), "scenario": "camera"}, "or are needed to show the limits"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path: Path, asked: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        profile(tmp_path / "not-even-there", **asked)


def test_a_bundle_for_another_machine_is_refused(
    make_bundle: Callable[..., Path], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, library, None)
    board = msgspec.structs.replace(box, name="board", engines=("tensorrt",))
    with pytest.raises(EngineMissingError, match="'tensorrt' is not installed"):
        profile(make_bundle(engines=("tensorrt",), target=board), runs=20)


def test_a_stored_profile_of_another_camera_or_of_none_is_refused(tmp_path: Path) -> None:
    record = full_profile()  # behind a camera of 25 frames a second
    path = tmp_path / "p.json"
    path.write_bytes(msgspec.json.encode(record))
    assert stored_profile(str(path), record.machine, "camera", 25.2) == record
    with pytest.raises(InputError, match="a camera of 25 frames a second, this profile behind a camera of 30 frames"):
        stored_profile(str(path), record.machine, "camera", 30.0)
    with pytest.raises(InputError, match="does not exist") as caught:
        stored_profile(str(tmp_path / "absent.json"), record.machine, "single", 25.0)
    assert caught.value.fix == "check the path"


# ---------------------------------------------------------------- what is said of it


def test_the_first_inference_is_the_very_first(bundles: tuple[Path, Path]) -> None:
    bundle, runs = open_bundle(bundles[0]), []
    with open_session("onnxruntime", bundle.variant_files(bundle.manifest.variants[0]), HERE) as real:

        def first_is_slow(pixels: Any) -> Any:
            runs.append(pixels)
            time.sleep(0.2 if len(runs) == 1 else 0.0)
            return real(pixels)

        with Session("onnxruntime", first_is_slow, lambda: None) as session:
            assert check(session, bundle, bundle.manifest.variants[0]).first_ms > 200
            assert check(session, bundle, bundle.manifest.variants[0]).first_ms < 200


def test_finding_a_frame_is_no_part_of_a_cold_start(
    bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slowly(model: Any) -> Any:
        time.sleep(60)
        return bundle_of(model)

    ahead, real = [0], time.monotonic_ns
    monkeypatch.setattr(time, "sleep", lambda seconds: ahead.__setitem__(0, round(seconds * 1e9)))
    monkeypatch.setattr(time, "monotonic_ns", lambda: real() + ahead[0])
    monkeypatch.setattr("edgemae.profiling.golden_inputs.bundle_of", slowly)
    cold.main(str(bundles[0]), "auto", "", str(time.monotonic_ns()))
    found = json.loads(capsys.readouterr().out)
    assert ahead[0] == 60 * 10**9
    assert 0 < found["first_ms"] < found["load_ms"] < found["cold_ms"] < 60_000


def test_a_bundle_for_another_machine_is_measured_and_never_trusted(
    bundles: tuple[Path, Path], warm_start: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with load(bundles[0], msgspec.structs.replace(HERE, arch="aarch64", isa="dotprod", threads=64)) as model:
        found = profile(model, runs=20)
    assert found.verdict != "TRUSTED"
    for reason in ("the target is aarch64", "asks for 64 threads, and"):
        assert any(reason in line for line in found.reasons), reason
        assert reason in caplog.text
    mine = msgspec.structs.replace(HERE, isa=isa_class(), threads=1)
    assert target_mismatches(mine) == ()


def test_layers_that_were_disturbed_are_a_reason_and_never_condemn(
    bundles: tuple[Path, Path], warm_start: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = msgspec.structs.replace(full_profile().layers, verdict="INVALID", reasons=("a dog barked",), infer_ms=1e3)
    monkeypatch.setattr(profiler, "layers_of", lambda model: layers)
    quiet = full_profile(verdict="TRUSTED").interference
    monkeypatch.setitem(profiler.RUNNERS, "single", lambda model, options: with_evidence(model, options, quiet))
    monkeypatch.setattr(profiler, "target_mismatches", lambda target: ())
    found = profile(bundles[0], runs=20, per_layer=True)
    assert found.verdict == "NOISY"
    assert found.reasons[0] == "layers: a dog barked"
    assert found.reasons[1].startswith("layers: their plain runs took 1000.000 ms, the inference stage 0.")
    assert "this pass was INVALID: a dog barked" in "\n".join(describe(found))


def test_layers_that_cannot_be_taken_cost_no_profile(
    bundles: tuple[Path, Path], warm_start: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise EngineRuntimeError("no room for a second copy", expected="memory", fix="free some")

    monkeypatch.setattr(profiler, "layers_of", broken)
    found = profile(bundles[0], runs=20, per_layer=True)
    assert found.layers is None
    assert found.steady.n == 20
    assert "layers: they could not be taken: no room for a second copy" in found.reasons
    assert found.verdict != "TRUSTED"
    assert "the layers are lost, the profile is not" in caplog.text


def test_what_cannot_be_compared_is_named_before_the_runs(
    bundles: tuple[Path, Path], warm_start: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    monkeypatch.setitem(profiler.RUNNERS, "single", lambda *_: pytest.fail("an hour was lost"))
    with pytest.raises(EngineRuntimeError, match=r"the comparison with 'onnx:.*bad\.onnx' failed"):
        profile(bundles[0], f"onnx:{tmp_path / 'bad.onnx'}", runs=20)
    with pytest.raises(InputError, match="does not exist"):
        profile(bundles[0], "onnx:", runs=20)


def test_a_cold_start_has_witnesses_of_its_own(bundles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = full_profile(verdict="TRUSTED").interference
    monkeypatch.setitem(profiler.RUNNERS, "single", lambda model, options: with_evidence(model, options, quiet))
    monkeypatch.setattr(profiler, "target_mismatches", lambda target: ())

    def beside_hogs(*_: object) -> dict[str, float]:
        program = [sys.executable, "-c", "import time; end = time.time() + 1.5\nwhile time.time() < end: pass"]
        # Started by somebody else: what our own children use is not others' use.
        hogs = [subprocess.Popen(["setsid", "--fork", *program]) for _ in range(2)]
        time.sleep(1.2)
        for hog in hogs:
            hog.wait()
        return {"cold_ms": 900.0, "load_ms": 1.0, "first_ms": 1.0}

    monkeypatch.setattr(profiler, "cold_start", beside_hogs)
    found = profile(bundles[0], runs=20)
    assert found.verdict == "NOISY"
    assert any(re.match(r"cold start: others used \d+% of the processors", reason) for reason in found.reasons)


def test_what_our_own_children_use_is_not_others_use() -> None:
    before = [interference._own_cpu_s(children) for children in (True, False)]
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    with_them, without = (interference._own_cpu_s(c) - b for c, b in zip((True, False), before, strict=True))
    assert with_them > 0.5
    assert without < 0.3


def with_evidence(model: Any, options: Any, evidence: Any) -> Any:
    measurements = single(model, options)
    return dataclasses.replace(measurements, samples=dataclasses.replace(measurements.samples, interference=evidence))


def test_a_terminal_is_told_as_much_as_the_page() -> None:
    text = "\n".join(describe(full_profile()))
    for message in ("40 switched out, 50 looks at a slow canary", "median of the clean ones 4.980 ms",
                 "power and heat: ina3221", "4.2 W at rest", "not throttled",
                 "operators hold 91% of a watched inference",
                 "torch eager 2.13.0 fp32", "the first inference in it 12.50 ms", "24.800 frames/s"):  # fmt: skip
        assert message in text, message
    layers = msgspec.structs.replace(full_profile().layers, peak_gmacs={}, peak_gbytes=0.0)
    bare = msgspec.structs.replace(full_profile(), layers=layers)
    assert "no limits measured" in "\n".join(describe(bare))
    assert "no limits measured" in page(bare)
    assert "limits here: ," not in "\n".join(describe(bare)) + page(bare)


# ---------------------------------------------------------------- files that cannot be written


def test_a_timeline_without_a_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        profile(tmp_path / "not-even-there", trace=tmp_path / "file" / "trace.json")
    with pytest.raises(InputError):  # the place is fine, and nothing is left in it
        profile(tmp_path / "x", trace=tmp_path / "new" / "trace.json", engine="none", scenario="wrong")
    assert not (tmp_path / "new" / "trace.json").exists()
    (tmp_path / "b.edgemae").write_bytes(b"bundle")
    for source in ({"source": tmp_path / "b.edgemae"}, {"source": "other", "baseline": tmp_path / "b.edgemae"}):
        with pytest.raises(InputError, match="read here"):
            profile(**source, trace=tmp_path / "b.edgemae")
    assert (tmp_path / "b.edgemae").read_bytes() == b"bundle"


def test_a_timeline_that_cannot_be_written_in_the_end_leaves_the_profile(
    bundles: tuple[Path, Path], warm_start: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(path: Path, _: bytes) -> None:
        raise StorageError(f"'{path}' cannot be written: no space", expected="space", fix="free some")

    monkeypatch.setattr(profiler, "store", full)
    found = profile(bundles[0], runs=20, trace=tmp_path / "trace.json")
    assert found.steady.n == 20
    assert "the timeline is lost, the profile is not" in caplog.text


def test_figures_are_printed_before_a_page_that_fails(
    record: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(typer.Exit) as caught:
        print_profile(msgspec.structs.replace(record, verdict="NOISY"), tmp_path / "file" / "page.html", json=True)
    message = capsys.readouterr()
    assert caught.value.exit_code == 5
    assert json.loads(message.out)["name"] == record.name
    assert "cannot be written" in message.err
    assert "The figures were printed and stand" in message.err


# ---------------------------------------------------------------- power beside the runs


def test_nothing_to_read_means_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    seen: list[int] = []
    measurements, power = profiler._with_power(lambda: seen.append(threading.active_count()) or "taken", tmp_path)  # type: ignore[arg-type,func-returns-value]
    assert (measurements, seen) == ("taken", [threads])
    assert power.sensors == ()
    assert power.absent


def test_energy_is_what_a_rail_says_above_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rail = tmp_path / "sys/class/powercap/intel-rapl:0"
    rail.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", "262143328850"), ("energy_uj", "0")):
        (rail / name).write_text(text)
    monkeypatch.setattr(profiler, "IDLE_S", 1.2)
    watts, stop = [1.0], threading.Event()

    def burn() -> None:
        start, joules = time.monotonic(), 0.0
        while not stop.wait(0.02):
            now = time.monotonic()
            joules, start = joules + watts[0] * (now - start), now
            (rail / "energy_uj.new").write_text(str(round(joules * 1e6)))
            os.replace(rail / "energy_uj.new", rail / "energy_uj")

    class Runs:
        runs_done = 100

    def work() -> Runs:
        watts[0] = 6.0
        time.sleep(2.0)
        return Runs()

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        _, power = profiler._with_power(work, tmp_path)  # type: ignore[arg-type]
    finally:
        stop.set()
        thread.join()
    assert power.idle_w == pytest.approx(1.0, rel=0.25)
    assert power.run_w == pytest.approx(6.0, rel=0.25)
    assert power.energy_mj == pytest.approx(1e3 * 5 * 2 / 100, rel=0.35)  # 5 W above rest, 2 s, 100 runs
    rested = msgspec.structs.replace(power, run_w=9.0)
    with PowerSampler(tmp_path) as busy:
        time.sleep(1.2)
    no_more = busy.result(runs=100, idle=rested)  # it was busier at rest than at work
    assert no_more.energy_mj is None
    assert "energy of one inference: the power under load was not above that at rest" in no_more.absent
