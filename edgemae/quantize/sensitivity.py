"""Sensitivity: how much each linear layer alone, in int8, moves the outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemae.quantize.calibrate import Calibration, View, batch_of, channel_ranges, percentile_ranges, session
from edgemae.quantize.qdq_linear import Quantizer, find_linears, insert_qdq
from edgemae.quantize.range_search import relative_error
from edgemae.spec.graph import Graph

PERCENTILE = 100.0  # clip nothing: what is compared is the layers
RANGE_IMAGES, ERROR_IMAGES = 32, 8  # 48 layers of a ViT-Tiny: 48 small sessions, 8 pictures each


@dataclass(frozen=True)
class LayerSensitivity:
    """Error of the outputs when only this layer is int8: mean squared over variance, and as a ratio in decibels."""

    name: str
    relative_error: float
    sqnr_db: float


def per_layer(graph: Graph, calibration: Calibration) -> list[LayerSensitivity]:
    """Return one row a quantizable linear of a float graph, most sensitive first.

    Each row is measured at the outputs with that layer alone in static int8 (uint8 activations, no smoothing) and all
    others in float, by real integer kernels.
    """
    model = onnx.load_from_string(graph.onnx)
    linears = find_linears(model)
    images = calibration.images[_spread(len(calibration.images), RANGE_IMAGES)]
    extremes = channel_ranges(graph.onnx, [linear.input for linear in linears], images)
    views = {
        linear.name: View(
            linear.input, None, float(extremes[linear.input][0].min()), float(extremes[linear.input][1].max())
        )
        for linear in linears
    }
    ranges = percentile_ranges(graph.onnx, views, images, (PERCENTILE,))[PERCENTILE]
    want = session(graph.onnx)
    few = images[_spread(len(images), ERROR_IMAGES)]
    rows = []
    for linear in linears:
        quantizer = Quantizer.of(*ranges[linear.name], symmetric=False)
        only = insert_qdq(model, {linear.name: quantizer}).SerializeToString()
        error = relative_error(want, session(only), few, batch_of(model))
        rows.append(LayerSensitivity(linear.name, error, -10 * math.log10(max(error, 1e-20))))
    return sorted(rows, key=lambda row: row.sqnr_db)


def _spread(total: int, count: int) -> NDArray[np.int_]:
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)
