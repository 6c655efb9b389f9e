"""The search for ranges: the smallest error at the outputs wins, and the error is what it is called."""

from __future__ import annotations

import numpy as np
import pytest

from edgemae.quantize.calibrate import Calibration
from edgemae.quantize.range_search import CHOICE_IMAGES, relative_error, some_of, starting_scales
from edgemae.quantize.schemes import SCHEMES
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.graph import Graph
from edgemae.spec.plan_schema import QuantizePlan


def test_choice_is_by_error(graph: Graph, calibration: Calibration) -> None:
    """The sample has an outlier channel, so smoothing wins; every choice is in the history."""
    quantized = SCHEMES["ort-static"](graph, calibration, QuantizePlan(smooth_alphas=(-1.0, 0.5)))
    step = quantized.history[-1]
    tried = step.scores["tried"]
    assert len(tried) == 4
    assert step.scores["relative_error"] == min(tried.values())
    assert step.plan["smooth_alpha"] == 0.5
    assert quantized.scheme == "ort-static+smooth0.5"
    off = SCHEMES["ort-static"](graph, calibration, QuantizePlan(smooth_alphas=(-1.0,), percentile=100.0))
    assert off.scheme == "ort-static"
    assert list(off.history[-1].scores["tried"]) == ["smooth off, percentile 100"]


def test_an_error_is_squared_and_relative_to_the_variance_of_the_wanted_outputs() -> None:
    images = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1)
    error = relative_error(lambda x: [x, 2 * x], lambda x: [x + 0.5, 2 * x], images, batch=2)
    assert error == pytest.approx((0.25 / images.var() + 0) / 2)


def test_an_output_that_is_not_finite_is_refused() -> None:
    images = np.ones((2, 1, 1, 1), np.float32)
    with pytest.raises(EngineRuntimeError):
        relative_error(lambda x: [x], lambda x: [x * np.nan], images, batch=1)


def test_compared_images_are_spread_over_all() -> None:
    images = np.arange(3 * CHOICE_IMAGES, dtype=np.float32).reshape(-1, 1, 1, 1)
    some = some_of(Calibration(images, ""))
    assert len(some) == CHOICE_IMAGES
    assert (some[0].item(), some[-1].item()) == (0, len(images) - 1)


def test_training_starts_with_a_scale_for_each_row_of_each_linear(graph: Graph, calibration: Calibration) -> None:
    scales, divisors = starting_scales(graph, calibration, QuantizePlan(smooth_alphas=(-1.0, 0.5)), symmetric=True)
    assert scales.symmetric
    assert len(scales.linears) == 8
    assert set(divisors) < set(scales.linears)  # those with a LayerNorm before them
    assert all(grid.zero == 0 and grid.scale > 0 and min(grid.weight_scale) > 0 for grid in scales.linears.values())
