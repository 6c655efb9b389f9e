"""An A/B test in a process each: in which order, what rests, what a planted slowdown does, and what goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgemae.device import child_process
from edgemae.device.engines import ENGINES
from edgemae.export.to_onnx import to_onnx
from edgemae.export.uint8_input import take_uint8
from edgemae.model.student import Student
from edgemae.model.vit import ViT, ViTShape
from edgemae.profiling.compare import ab_test as module
from edgemae.profiling.compare.ab_test import ABSide, ab_test
from edgemae.profiling.compare.baseline import baseline_of
from edgemae.spec.bundle import open_bundle
from edgemae.spec.errors import BundleError, CheckpointError, EngineRuntimeError, InputError, InternalError, error_of
from edgemae.spec.graph import PixelContract

PLANTED = """
import os, sys, time
from edgemae.profiling.compare.ab_worker import serve
from edgemae.spec.errors import BundleError

def hold(order):
    print("a library that prints")
    how = order["path"]
    if how == "dies":
        sys.exit("out of luck")
    if how == "refuses":
        raise BundleError("no frames", expected="frames", fix="add some")
    seconds = float(how.split(":")[0])
    log = how.partition(":")[2]
    turns = [0]

    def run():
        turns[0] += 1
        if log.startswith("/"):
            with open(log, "a") as file:
                file.write(f"{os.getpid()} {time.monotonic_ns()}\\n")
        end = time.perf_counter_ns() + int(seconds * 1e9)
        while time.perf_counter_ns() < end:
            pass
        if log == "dies later" and turns[0] == 40:
            os._exit(9)
        if log == "hangs" and turns[0] == 40:
            time.sleep(60)
    return run, {"name": how, "engine": "loop", "precision": "none"}

serve({"planted": hold})
"""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ABSide]:
    (tmp_path / "planted_baseline.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda how: ABSide("planted", how, module="planted_baseline")


def test_a_planted_slowdown_is_the_ratio(planted: Callable[[str], ABSide]) -> None:
    found, evidence = ab_test(planted("0.002"), planted("0.003"), rounds=8)
    # Both are loops of a fixed time by the clock; beside other work the longer one is switched out more often.
    assert found.ratio == pytest.approx(1.5, rel=0.05 if evidence.verdict == "TRUSTED" else 0.2)
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.different
    assert (found.paired, found.rounds, len(found.ratios)) == (True, 8, 8)
    assert (found.name, found.kind, found.engine) == ("0.003", "planted", "loop")
    assert evidence.verdict in ("TRUSTED", "NOISY", "INVALID")


def test_they_take_turns_and_the_idle_one_rests(planted: Callable[[str], ABSide], tmp_path: Path) -> None:
    log = tmp_path / "log"
    ab_test(planted(f"0.002:{log}"), planted(f"0.0020:{log}"), rounds=8)
    rows = sorted((int(at), pid) for pid, at in (line.split() for line in log.read_text().splitlines()))
    owners = [pid for _, pid in rows]
    assert len(set(owners)) == 2
    spells = [owner for i, owner in enumerate(owners) if i == 0 or owner != owners[i - 1]]
    # Warm-up of one, of the other, then A | B B | A A | ... | B: 8 rounds of A B B A have 17 spells.
    assert len(spells) == 2 + 17


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("dies", EngineRuntimeError, "ended with status 1: out of luck"),
        ("refuses", BundleError, "no frames"),
        ("0.002:dies later", EngineRuntimeError, "ended with status 9"),
        ("0.002:hangs", EngineRuntimeError, "gave no answer within 2 s"),
    ],
)
def test_what_a_process_cannot_do_is_told(
    planted: Callable[[str], ABSide], monkeypatch: pytest.MonkeyPatch, how: str, kind: type[Exception], message: str
) -> None:
    monkeypatch.setattr(module, "BLOCK_TIMEOUT_S", 2.0)
    with pytest.raises(kind, match=message):
        ab_test(planted("0.002"), planted(how), rounds=8)


def test_no_process_is_left_behind(planted: Callable[[str], ABSide], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = child_process.subprocess.Popen

    def noted(*args: object, **kwargs: object) -> object:
        process = popen(*args, **kwargs)  # type: ignore[call-overload]
        started.append(process.pid)
        return process

    monkeypatch.setattr(child_process.subprocess, "Popen", noted)
    with pytest.raises(BundleError):
        ab_test(planted("0.002"), planted("refuses"), rounds=8)
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_whose_parent_is_gone_ends(planted: Callable[[str], ABSide]) -> None:
    process = module._Process(planted("0.002"))
    process.load(8)
    assert process._process.close(10.0) == 0
    process.__exit__(None, None, None)


@pytest.mark.parametrize(("text", "kind"), [("{}", "bundle"), ("onnx:{}", "onnx"), ("pytorch:{}", "pytorch")])
def test_what_against_names(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "model.file"
    path.touch()
    found = baseline_of(text.format(path), tmp_path / "b.edgemae", "openvino", "laptop")
    assert (found.kind, found.path, found.target) == (kind, str(path), "laptop")
    assert found.engine == ("openvino" if kind == "bundle" else "auto")
    worker = "edgemae.pipeline.torch_worker" if kind == "pytorch" else "edgemae.profiling.compare.ab_worker"
    assert found.module == worker


@pytest.mark.parametrize(
    ("text", "message"),
    [("tflite:x", "unknown prefix 'tflite:'"), ("onnx:nothing.onnx", "'nothing.onnx', which does not")],
)
def test_what_against_cannot_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        baseline_of(text, tmp_path, "auto", "")


def test_a_bundle_against_its_own_graph(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle(engines=("onnxruntime",))
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(open_bundle(bundle).read("graph/fp32.onnx"))
    this = baseline_of(str(bundle), bundle, "onnxruntime", "")
    found, _ = ab_test(this, baseline_of(f"onnx:{graph}", bundle, "auto", ""), rounds=8)
    assert (found.name, found.kind, found.engine) == ("graph", "onnx", "onnxruntime")
    assert found.version == ENGINES["onnxruntime"].version()
    assert found.n >= 48
    assert 0.2 < found.ratio < 5  # the same graph in the same engine; how equal is for a benchmark to say


def test_a_graph_that_takes_bytes(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle, graph = make_bundle(), tmp_path / "bytes.onnx"
    shape = ViTShape.uniform(image_px=32, patch_px=8, width=16, depth=1, heads=2, classes=5)
    pixel = PixelContract(image_px=32)
    graph.write_bytes(take_uint8(to_onnx(ViT(shape).eval(), pixel), pixel).onnx)
    found, _ = ab_test(
        baseline_of(str(bundle), bundle, "auto", ""), baseline_of(f"onnx:{graph}", bundle, "", ""), rounds=8
    )
    assert found.name == "bytes"


def test_a_graph_that_is_none_is_told(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(EngineRuntimeError, match="the graph is not an ONNX file"):
        ab_test(
            baseline_of(str(bundle), bundle, "auto", ""),
            baseline_of(f"onnx:{tmp_path / 'text.onnx'}", bundle, "", ""),
        )


def test_a_bundle_against_pytorch(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle, path = make_bundle(), tmp_path / "student.safetensors"
    shape = ViTShape.uniform(image_px=32, patch_px=8, width=16, depth=1, heads=2, classes=5)
    Student(ViT(shape), PixelContract(image_px=32), tuple("abcde")).save(path)
    this = baseline_of(str(bundle), bundle, "auto", "")
    found, _ = ab_test(this, baseline_of(f"pytorch:{path}", bundle, "auto", ""), rounds=8)
    assert (found.name, found.kind, found.engine, found.precision) == ("student", "pytorch", "torch eager", "fp32")
    with pytest.raises(CheckpointError, match="is not an edgemae student"):
        ab_test(
            baseline_of(str(bundle), bundle, "auto", ""), baseline_of(f"pytorch:{bundle}", bundle, "", ""), rounds=8
        )


def test_an_error_that_was_written_down_comes_back_as_its_kind() -> None:
    row = {"code": "bundle", "what": "a", "expected": "b", "fix": "c"}
    assert type(error_of(row)) is BundleError
    assert str(error_of(row)) == "a\n  expected: b\n  fix: c"
    assert type(error_of(row | {"code": "of a later version"})) is InternalError
