"""Linears, quantizers and smoothing, number by number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgemae.quantize import smoothquant
from edgemae.quantize.calibrate import Calibration, session
from edgemae.quantize.qdq_linear import CPU_LEVELS, Linear, Quantizer, find_linears, fp16_up, quantize_weight
from edgemae.spec.graph import Graph


def test_levels_cannot_saturate_int16() -> None:
    assert 2 * 255 * CPU_LEVELS <= 32767 < 2 * 255 * (CPU_LEVELS + 1)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0), (0.0, 0.0)])
def test_asymmetric_quantizer_covers_its_range_and_zero(low: float, high: float) -> None:
    q = Quantizer.of(low, high, symmetric=False)
    assert 0 <= q.zero <= 255
    assert q.scale > 0
    reach = (-q.zero * q.scale, (255 - q.zero) * q.scale)
    assert reach[0] <= low + q.scale
    assert reach[1] >= high - q.scale


def test_symmetric_quantizer_has_an_fp16_scale() -> None:
    q = Quantizer.of(-1.0, 3.3, symmetric=True)
    assert q.zero == 0
    assert q.scale == float(np.float16(q.scale))
    assert q.scale * 127 >= 3.3


def test_fp16_up_rounds_up_and_never_to_zero() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(1000)).astype(np.float32) * 1e-3
    up = fp16_up(values)
    assert (up >= values).all()
    assert (up == up.astype(np.float16)).all()
    assert fp16_up(0.0) > 0


def test_weights_are_symmetric_per_channel() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32) * np.logspace(-3, 2, 8)[:, None]
    weight = weight.astype(np.float32)
    weight[3] = 0  # a dead channel
    values, scale = quantize_weight(weight, CPU_LEVELS)
    assert values.dtype == np.int8
    assert np.isfinite(scale).all()
    assert (values[3] == 0).all()
    assert (np.abs(values).max(axis=1)[[0, 7]] == CPU_LEVELS).all()
    assert (np.abs(values * scale[:, None] - weight) <= scale[:, None] * 0.501).all()


def test_smoothing_changes_no_output(graph: Graph, calibration: Calibration) -> None:
    model = onnx.load_from_string(graph.onnx)
    linears = find_linears(model)
    assert [bool(linear.norm) for linear in linears] == [True, False, True, False] * 2
    random = np.random.default_rng(0)
    divisors = {
        linear.name: random.uniform(0.3, 3, linear.weight.shape[1]).astype(np.float32)
        for linear in linears
        if linear.norm
    }
    folded = smoothquant.fold(model, linears, divisors).SerializeToString()
    assert folded != graph.onnx
    assert model.SerializeToString(deterministic=True) == graph.onnx
    image = calibration.images[:1]
    for a, b in zip(session(graph.onnx)(image), session(folded)(image), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_smoothing_divides_outliers_most() -> None:
    linear = Linear("a", "x", "y", np.ones((4, 3), np.float32), None, "n")
    divisor = smoothquant.smoothing(linear, np.array([1, 1, 100], np.float32), 0.5)
    assert divisor[2] == pytest.approx(10 * divisor[0], rel=1e-4)
    assert np.log(divisor).mean() == pytest.approx(0, abs=1e-5)
