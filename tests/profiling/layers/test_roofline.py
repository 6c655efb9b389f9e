"""The roofline: counts, bytes and measured limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemae.device.engines import ENGINES
from edgemae.device.operators import bytes_of, macs_of
from edgemae.profiling.layers import layer_profile as room
from edgemae.profiling.layers import roofline as limits
from edgemae.profiling.layers.layer_profile import profile_layers
from edgemae.profiling.layers.matmul_onnx import product_onnx
from edgemae.profiling.layers.roofline import copy_gbytes, last_level_cache, measured_limits, product_gmacs, roofline
from edgemae.spec.errors import InternalError
from edgemae.spec.target import Target
from tests.support.layers import ON_CPU, PIXELS, operator, stand_in


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
