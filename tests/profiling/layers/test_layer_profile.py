"""Layers: real engines watched on a real export; what is planted in stand-ins is found; the roofline; limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemae.device.engines import ENGINES
from edgemae.device.model import load
from edgemae.export.to_onnx import ATTENTION_FORMS, to_onnx
from edgemae.model.vit import ViT, ViTShape, count_macs
from edgemae.profiling.layers import roofline as limits
from edgemae.profiling.layers.layer_profile import by_kind, by_module, layers_of, profile_layers
from edgemae.profiling.records import Layers
from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.graph import PixelContract
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target
from tests.support.layers import PIXELS, operator, stand_in

SHAPE = ViTShape.uniform(image_px=32, patch_px=8, width=64, depth=2, heads=2, classes=3)


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
