"""Layers: real engines watched on a real export; what is planted in stand-ins is found; the roofline; limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgemae.device.engines import ENGINES, open_session
from edgemae.device.model import load
from edgemae.device.operators import Operator, bytes_of, macs_of
from edgemae.device.session import Instrumented
from edgemae.export.to_onnx import ATTENTION_FORMS, to_onnx
from edgemae.model.vit import ViT, ViTShape, count_macs
from edgemae.profiling.layers import layer_profile as room
from edgemae.profiling.layers import roofline as limits
from edgemae.profiling.layers.layer_profile import by_kind, by_module, layers_of, profile_layers
from edgemae.profiling.layers.matmul_onnx import product_onnx
from edgemae.profiling.layers.module_names import module_of, modules_of
from edgemae.profiling.layers.roofline import copy_gbytes, last_level_cache, measured_limits, product_gmacs, roofline
from edgemae.profiling.records import Layers
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.errors import EngineRuntimeError, InternalError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target

SHAPE = ViTShape.uniform(image_px=32, patch_px=8, width=64, depth=2, heads=2, classes=3)
PIXELS = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
ON_CPU = ("onnxruntime", "openvino")
CASES = [
    ("onnxruntime", "explicit"), ("onnxruntime", "fused"), ("onnxruntime", "ort-static"),
    ("onnxruntime", "ort-dynamic"), ("openvino", "explicit"), ("openvino", "fused"), ("openvino", "openvino-static"),
    ("openvino", "ort-static"),
]  # fmt: skip


@pytest.fixture(scope="module")
def graphs() -> dict[str, Mapping[str, bytes]]:
    """Return a student of two blocks in both forms of attention and in int8, as the real tools make it."""
    import torch

    torch.manual_seed(0)
    vit = ViT(SHAPE).eval()
    forms = {form: to_onnx(vit, PixelContract(image_px=32), attention=form) for form in ATTENTION_FORMS}
    rng = np.random.default_rng(1)
    soft = np.cumsum(np.cumsum(rng.standard_normal((32, 3, 32, 32)), 2), 3).astype(np.float32) / 16
    calibration, plan = Calibration.of(soft), QuantizePlan(smooth_alphas=(-1.0,))
    eights = {name: SCHEMES[name](forms["explicit"], calibration, plan) for name in SCHEMES if name != "tensorrt-qdq"}
    return {name: graph.files for name, graph in (forms | eights).items()}


@pytest.fixture(scope="module")
def seen(graphs: dict[str, Mapping[str, bytes]], box: Target) -> dict[tuple[str, str], Layers]:
    return {case: profile_layers(case[0], graphs[case[1]], box, PIXELS, limits=False, rounds=2) for case in CASES}


# ------------------------------------------------------------------------------------------------ real engines


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_operators_add_up_and_belong_to_the_student(case: tuple[str, str], seen: dict[Any, Layers]) -> None:
    layers = seen[case]
    assert sum(row.ms for row in layers.rows) == pytest.approx(layers.infer_ms)
    assert layers.overhead == pytest.approx(layers.instrumented_ms / layers.infer_ms - 1)
    assert layers.runs == 12
    assert layers.unmapped_share <= 0.05
    linears = {f"blocks.{i}.{leaf}" for i in (0, 1) for leaf in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    multiplying = {row.module for row in layers.rows if row.macs}
    assert multiplying == linears | {"patch_embed", "head", "blocks.0.attn", "blocks.1.attn"}
    assert {row.module for row in layers.rows} >= {"blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1"}


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_macs_are_those_of_the_shape(case: tuple[str, str], seen: dict[Any, Layers]) -> None:
    assert sum(row.macs or 0 for row in seen[case].rows) == pytest.approx(count_macs(SHAPE), rel=0.01)


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_precision_is_what_the_kernel_computes_in(case: tuple[str, str], seen: dict[Any, Layers]) -> None:
    found = {row.module: row.precision for row in seen[case].rows if row.macs}
    wanted = "fp32" if case[1] in ATTENTION_FORMS else "int8"
    assert found.pop("patch_embed") == found.pop("head") == found["blocks.0.attn"] == "fp32"
    assert {precision for name, precision in found.items() if not name.endswith("attn")} == {wanted}


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_bytes_hold_the_weights(case: tuple[str, str], seen: dict[Any, Layers]) -> None:
    each = 4 if case[1] in ATTENTION_FORMS else 1
    (row,) = (row for row in seen[case].rows if row.macs and row.module == "blocks.1.mlp.fc2")
    assert row.bytes is not None
    weights, values = 256 * 64 * each, 16 * (256 + 64) * 4
    assert weights < row.bytes <= weights + values + 64 * 9, "weights, activations and a few bytes a channel"


def test_the_trace_of_onnxruntime_is_deleted(
    graphs: dict[str, Mapping[str, bytes]], box: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    watched = ENGINES["onnxruntime"].instrument(graphs["explicit"], box)
    watched(PIXELS)
    assert list(tmp_path.rglob("trace*")), "it is written here, so it would be seen"
    assert watched.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_layers_of_a_bundle_come_with_the_roofline(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PRODUCT_SIZES", (96,))
    monkeypatch.setattr(limits, "MAX_ARRAY", 32 << 20)
    with load(make_bundle()) as model:
        layers = layers_of(model)
        assert layers_of(model, limits=False).peak_gmacs == {}
    assert layers.peak_gmacs["fp32"] > 0
    assert layers.peak_gbytes > 0
    placed = [row for row in layers.rows if row.bound]
    assert placed
    assert all(row.limit_share is not None and 0 < row.limit_share <= 1 for row in placed)
    assert sum(by_kind(layers).values()) == pytest.approx(1, abs=0.01)
    assert sum(by_module(layers).values()) == pytest.approx(1, abs=0.01)


# ------------------------------------------------------------------------------------------------ planted


def operator(name: str, ms: Any, **facts: Any) -> Operator:
    values = {"origin": name, "kind": "MatMul", "precision": "fp32", "macs": None, "bytes": None}
    return Operator(name=name, ms=np.asarray(ms, np.float64), **(values | facts))


def stand_in(monkeypatch: pytest.MonkeyPatch, plain_s: float, watched_s: float, operators: list[Operator]) -> None:
    watched = Instrumented("x", lambda _: time.sleep(watched_s), lambda: time.sleep(0.005), lambda: operators)
    monkeypatch.setattr(room, "find_engine", lambda name: type("E", (), {"instrument": lambda *_: watched}))
    monkeypatch.setattr(room, "open_session", lambda *_: nullcontext(lambda pixels: time.sleep(plain_s)))


def test_the_overhead_is_that_of_the_runs_and_not_of_reading_them(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watched run takes twice as long as a plain one; reading its figures takes longer still and counts nothing."""
    stand_in(monkeypatch, 0.006, 0.012, [operator("a", np.ones(5 + 4 * 4))])
    layers = profile_layers("x", {}, box, PIXELS, limits=False, rounds=2)
    assert 0.6 < layers.overhead < 1.4
    assert layers.rows[0].ms == layers.infer_ms


def test_shares_come_from_timed_runs_only(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three to one in most of the 12 timed runs; warm-up and the first run of each block side with the others."""
    slow, fast = 3 * np.ones(5 + 4 * 4), np.ones(5 + 4 * 4)
    others = [*range(5), *range(5, 21, 4), 6, 7, 10, 14, 18]
    slow[others], fast[others] = 500, 1
    stand_in(monkeypatch, 0.001, 0.001, [operator("a", slow), operator("b", fast, kind="Add")])
    layers = profile_layers("x", {}, box, PIXELS, limits=False, rounds=2)
    assert by_kind(layers) == {"MatMul": 0.75, "Add": 0.25}
    assert by_module(layers) == {"": 1.0}
    assert layers.unmapped_share == pytest.approx(1)


def test_what_no_operator_holds_is_told_and_so_is_what_disturbed_the_pass(
    box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators of 6 ms within watched runs of 10 ms: the other 40 % are shared out, and the sum says nothing of it."""
    stand_in(monkeypatch, 0.01, 0.01, [operator("a", 4 * np.ones(21)), operator("b", 2 * np.ones(21))])
    monkeypatch.setattr("edgemae.profiling.timing.interference.clean_runs", lambda ns, *_: np.zeros(len(ns), bool))
    layers = profile_layers("x", {}, box, PIXELS, limits=False, rounds=2)
    assert layers.covered == pytest.approx(6 / layers.instrumented_ms)
    assert 0.3 < layers.covered < 0.61
    assert sum(row.ms for row in layers.rows) == pytest.approx(layers.infer_ms)
    assert layers.verdict == "INVALID"
    assert "100% of the runs were disturbed" in layers.reasons


def test_an_engine_that_tells_nothing_is_an_error(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, 0, 0, [])
    with pytest.raises(EngineRuntimeError, match="tells of no operator") as error:
        profile_layers("x", {}, box, PIXELS)
    assert "--per-layer" in error.value.fix


# ------------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize(
    ("names", "module"),
    [
        ("blocks.10.attn.qkv", "blocks.10.attn.qkv"),
        ("blocks.0.attn.qkv/WithoutBiases", "blocks.0.attn.qkv"),
        ("blocks.0.attn.qkv.weight_int8", "blocks.0.attn.qkv"),
        ("patch_embed.out_nchwc", "patch_embed"),
        ("blocks.3.norm2,blocks.3", "blocks.3.norm2"),
        ("[ONNX Layer: blocks.1.mlp.fc1]\x1e[ONNX Layer: gelu.23]", "blocks.1.mlp.fc1"),
        ("blocks.1.mlp.fc1 + blocks.1.mlp.fc2", "blocks.1.mlp"),
        ("blocks.1.mlp.fc2,blocks.2.norm1", "blocks.2.norm1"),
        ("logits", "head"),
        ("embedding", "norm"),
        ("layer_norm.3", ""),
        ("norm12", ""),
        ("softmax.15", ""),
        ("subheads", ""),
    ],
)
def test_names_tell_the_module(names: str, module: str) -> None:
    assert module_of(names) == module


def test_operators_without_weights_are_told_by_their_place() -> None:
    rows = [
        ("Reorder", "", "patch_embed"), ("patch_embed", "", "patch_embed"), ("add.3", "Add", "patch_embed"),
        ("MVN_1", "MVN", "blocks.0.norm1"), ("blocks.0.attn.qkv", "", "blocks.0.attn.qkv"),
        ("softmax.5", "Softmax", "blocks.0.attn"), ("blocks.0.attn.proj", "", "blocks.0.attn.proj"),
        ("add.7", "Add", "blocks.0"), ("MVN_8", "MVN", "blocks.0.norm2"), ("blocks.0.mlp.fc1", "", "blocks.0.mlp.fc1"),
        ("gelu.9", "Gelu", "blocks.0.mlp"), ("blocks.0.mlp.fc2", "", "blocks.0.mlp.fc2"), ("add.10", "Add", "blocks.0"),
        ("blocks.1.norm1/FakeQuantize.3", "", "blocks.1.norm1"), ("blocks.1.mlp.fc2", "", "blocks.1.mlp.fc2"),
        ("MVN_99", "MVN", "norm"), ("head", "", "head"),
    ]  # fmt: skip
    assert modules_of([(name, name, kind) for name, kind, _ in rows]) == [module for *_, module in rows]


def test_a_graph_without_our_names_stays_unmapped() -> None:
    assert modules_of([("MatMul.40", "MatMul.40", "MatMul"), ("MVN_1", "MVN_1", "MVN")]) == ["", ""]


def test_the_name_of_an_operator_beats_what_was_fused_into_it() -> None:
    row = (
        "blocks.0.mlp.fc1/WithoutBiases",
        "blocks.0.mlp.fc1/WithoutBiases,gelu.2,blocks.0.mlp.fc2.q",
        "FullyConnected",
    )
    assert modules_of([row]) == ["blocks.0.mlp.fc1"]


# ------------------------------------------------------------------------------------------------ roofline, limits


@pytest.mark.parametrize(
    ("macs", "size", "ms", "share", "bound"),
    [
        (10**9, 10**6, 20.0, 0.5, "compute"),  # 100 GMAC/s: 10 ms at best
        (10**6, 10**8, 20.0, 0.5, "memory"),  # 10 GB/s: 10 ms at best
        (None, 10**8, 40.0, 0.25, "memory"),
        (10**9, None, 40.0, 0.25, "compute"),
        (None, 10**8, 1.0, 1.0, "memory"),  # faster than memory: it lay in a cache
    ],
)
def test_the_roofline(macs: int | None, size: int | None, ms: float, share: float, bound: str) -> None:
    assert roofline(macs, size, ms, 100.0, 10.0) == (pytest.approx(share), bound)


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "macs"),
    [
        ("Gemm", [(16, 64)], [(16, 192)], 16 * 64 * 192),
        ("MatMul", [(1, 2, 16, 32), (1, 2, 32, 16)], [(1, 2, 16, 16)], 2 * 16 * 16 * 32),
        ("Conv", [(1, 3, 32, 32), (64, 3, 8, 8), (64,)], [(1, 64, 4, 4)], 16 * 64 * 3 * 64),
        ("Attention", [(1, 2, 16, 32)] * 3, [(1, 2, 16, 32)], 2 * 2 * 16 * 16 * 32),
        ("Softmax", [(16, 16)], [(16, 16)], None),
        ("Gemm", [], [], None),
    ],
)
def test_macs_of_an_operator(kind: str, inputs: Any, outputs: Any, macs: int | None) -> None:
    assert macs_of(kind, inputs, outputs) == macs


def test_bytes_follow_the_element_type() -> None:
    assert bytes_of([("float", (2, 3)), ("u8", (5,)), ("Half", (4,)), ("string", (9,))]) == 24 + 5 + 8


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_product_is_onnx(precision: str, box: Target) -> None:
    data = product_onnx(16, precision)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    x = np.random.default_rng(0).uniform(-3, 3, (16, 16)).astype(np.float32)
    outputs = {}
    for name in ON_CPU:
        with open_session(name, {"p.onnx": data}, box) as session:
            (outputs[name],) = session(x).values()
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(data).graph.initializer}
    w = weights["w"] if precision == "fp32" else weights["w_int8"] / 64
    for y in outputs.values():
        np.testing.assert_allclose(y, x @ w, atol=1e-4 if precision == "fp32" else 0.5)


def test_only_what_can_be_written_has_a_limit(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InternalError, match="no product in 'fp16'"):
        product_onnx(96, "fp16")
    monkeypatch.setattr(limits, "product_gmacs", lambda *key: 40.0)
    monkeypatch.setattr(limits, "copy_gbytes", lambda threads: 10.0)
    assert measured_limits("x", box, ["fp16", "fp32", "bf16"]).gmacs == {"fp32": 40.0}
    ops = [operator("a", np.ones(21), precision="fp16", macs=10**9, bytes=10**6),
           operator("b", np.ones(21), macs=10**9, bytes=10**6),
           operator("c", np.ones(21), kind="Add", precision="fp16", bytes=10**6)]  # fmt: skip
    stand_in(monkeypatch, 0.001, 0.001, ops)
    found = profile_layers("x", {}, box, PIXELS, rounds=2)
    assert [row.bound for row in found.rows] == ["", "compute", "memory"]
    assert found.rows[0].limit_share is None  # int8's limit, or memory's, would be a wrong one


@pytest.mark.parametrize("engine", ON_CPU)
def test_limits_are_measured_once(engine: str, box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ARRAY", 32 << 20)
    monkeypatch.setattr(limits, "PRODUCT_SIZES", (96,))
    assert product_gmacs(engine, box, "int8") == product_gmacs(engine, box, "int8") > 0
    found = ENGINES[engine].instrument({"p.onnx": product_onnx(96, "int8")}, box)
    found(np.zeros((96, 96), np.float32))
    assert [row.precision for row in found.finish() if row.macs] == ["int8"], "the peak of int8 is that of int8 kernels"
    assert copy_gbytes(1) == copy_gbytes(1) > 0
    both = measured_limits(engine, box, ["fp32", "fp32"])
    assert set(both.gmacs) == {"fp32"}
    assert both.gbytes == copy_gbytes(box.threads)


def test_a_gpu_is_not_held_against_the_limits_of_the_processor(box: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("measured all the same")

    monkeypatch.setattr(room, "measured_limits", refuse)
    stand_in(monkeypatch, 0.001, 0.001, [operator("a", np.ones(21), precision="fp16", macs=10**9, bytes=10**6)])
    found = profile_layers("tensorrt", {}, box, PIXELS, rounds=2)
    assert (found.rows[0].macs, found.rows[0].limit_share, found.peak_gmacs) == (10**9, None, {})


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for i, size in enumerate(("32K", "1024K", "32M", "odd")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(size + "\n")
    assert last_level_cache(tmp_path) == 32 << 20
    assert last_level_cache(tmp_path / "none") == 0
