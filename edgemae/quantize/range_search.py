"""Search for the ranges with which a float graph loses least in int8, and apply ranges that training has settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemae.quantize import smoothquant
from edgemae.quantize.calibrate import (
    Calibration,
    View,
    batch_of,
    batches,
    channel_ranges,
    check_calibration,
    percentile_ranges,
    session,
)
from edgemae.quantize.qdq_linear import (
    CPU_LEVELS,
    GPU_LEVELS,
    Linear,
    Quantizer,
    find_linears,
    insert_qdq,
    quantize_weight,
)
from edgemae.spec.errors import DataError, EngineRuntimeError, InputError
from edgemae.spec.graph import Graph, Grid, Scales
from edgemae.spec.plan_schema import QuantizePlan

Floats = NDArray[np.float32]
QAT = "+qat"  # ends the scheme of a graph whose scales come from quantization-aware training (QAT)
CHOICE_IMAGES = 64  # images on which alphas are compared; more changed no choice and cost time


@dataclass(frozen=True)
class Choice:
    """Hold one choice of ranges, its error at the outputs, and its model. `qat`: the scales are trained."""

    error: float
    alpha: float
    percentile: float
    model: Any
    qat: bool = False

    @property
    def text(self) -> str:
        if self.qat:
            return "trained scales"
        alpha = "off" if self.alpha == smoothquant.OFF else f"{self.alpha:g}"
        return f"smooth {alpha}, percentile {self.percentile:g}"


def search(
    graph: Graph, calibration: Calibration, plan: QuantizePlan, symmetric: bool
) -> list[tuple[Choice, dict[str, Floats], dict[str, Quantizer]]]:
    """Return all smoothing alphas ("off" is one), each with activations clipped at the plan's percentile and not at
    all, with their divisors and quantizers; the smallest output error is to win.
    """
    model = float_model(graph, calibration)
    linears = find_linears(model)
    divisors, quantizers = _ranges(graph.onnx, linears, calibration.images, plan, symmetric)
    want = session(graph.onnx)
    choices = []
    for (alpha, percentile), chosen in quantizers.items():
        candidate = insert_qdq(smoothquant.fold(model, linears, divisors[alpha]), chosen)
        error = relative_error(want, session(to_bytes(candidate)), some_of(calibration), batch_of(model))
        choices.append((Choice(error, alpha, percentile, candidate), divisors[alpha], chosen))
    return choices


def starting_scales(
    graph: Graph, calibration: Calibration, plan: QuantizePlan, symmetric: bool
) -> tuple[Scales, dict[str, Floats]]:
    """Return what quantization-aware training begins with: the best scales of a calibration, and the divisors that
    are to be moved from LayerNorms into their linears first. They are what `ort_static` or `tensorrt_qdq` would use.
    """
    _, divisors, chosen = min(search(graph, calibration, plan, symmetric), key=lambda row: row[0].error)
    levels = GPU_LEVELS if symmetric else CPU_LEVELS
    grids = {}
    for linear in find_linears(onnx.load_from_string(graph.onnx)):
        weight = linear.weight * divisors.get(linear.name, np.float32(1))
        scale = quantize_weight(weight, levels, fp16=symmetric)[1]
        own = chosen[linear.name]
        grids[linear.name] = Grid(scale=own.scale, zero=own.zero, weight_scale=tuple(scale.tolist()))
    return Scales(symmetric=symmetric, linears=grids), divisors


def is_trained(calibration: Calibration, symmetric: bool) -> bool:
    """Return whether training has settled the scales of this kind."""
    return calibration.scales is not None and calibration.scales.symmetric == symmetric


def with_trained(graph: Graph, calibration: Calibration) -> Choice:
    """Return the graph with exactly the scales of the calibration. Raises InputError when they are another model's."""
    model, scales = float_model(graph, calibration), calibration.scales
    assert scales is not None
    shapes = {linear.name: len(linear.weight) for linear in find_linears(model)}
    given = {name: len(grid.weight_scale) for name, grid in scales.linears.items()}
    if shapes != given:
        wrong = sorted({*shapes.items()} ^ {*given.items()})[0][0]
        raise InputError(
            f"the trained scales do not belong to this graph: '{wrong}' differs",
            expected="the scales of the very weights in the graph",
            fix="quantize the student that quantization-aware training gave, or drop its scales",
        )
    quantizers = {
        name: Quantizer(grid.scale, grid.zero, scales.symmetric, np.asarray(grid.weight_scale, np.float32))
        for name, grid in scales.linears.items()
    }
    candidate = insert_qdq(model, quantizers)
    error = relative_error(session(graph.onnx), session(to_bytes(candidate)), some_of(calibration), batch_of(model))
    return Choice(error, smoothquant.OFF, 100.0, candidate, qat=True)


def relative_error(
    want: Callable[[Floats], list[Any]], have: Callable[[Floats], list[Any]], images: Floats, batch: int
) -> float:
    """Return the squared error of all outputs over the variance of the wanted ones, mean over outputs."""
    pairs = [(want(pixels), have(pixels)) for pixels in batches(images, batch)]
    errors = []
    for i in range(len(pairs[0][0])):
        a = np.concatenate([pair[0][i] for pair in pairs]).astype(np.float64)
        b = np.concatenate([pair[1][i] for pair in pairs]).astype(np.float64)
        errors.append(float(((a - b) ** 2).mean() / max(a.var(), 1e-12)))
    error = float(np.mean(errors))
    if not np.isfinite(error):
        raise EngineRuntimeError(
            "a quantized graph gives NaN or infinity on calibration images",
            expected="finite outputs",
            fix="check the float model with `edgemae eval`, or leave this scheme out of quantize.schemes",
        )
    return error


def _ranges(
    data: bytes, linears: list[Linear], images: Floats, plan: QuantizePlan, symmetric: bool
) -> tuple[dict[float, dict[str, Floats]], dict[tuple[float, float], dict[str, Quantizer]]]:
    """Return the divisors of smoothed linears by alpha, and the quantizers of all linears by (alpha, percentile).

    Two passes over the images, however many alphas: smoothed ranges follow from the unsmoothed activations.
    """
    extremes = channel_ranges(data, [linear.input for linear in linears], images)
    divisors: dict[float, dict[str, Floats]] = {}
    views: dict[str, View] = {}
    for alpha in plan.smooth_alphas:
        divisors[alpha] = {}
        for linear in linears:
            low, high = extremes[linear.input]
            divisor = None
            if alpha != smoothquant.OFF and linear.norm:
                divisor = smoothquant.smoothing(linear, np.maximum(-low, high), alpha)
                divisors[alpha][linear.name] = divisor
                low, high = low / divisor, high / divisor
            key = _key(linear, alpha if divisor is not None else smoothquant.OFF)
            views[key] = View(linear.input, divisor, float(low.min()), float(high.max()))
    clipped = percentile_ranges(data, views, images, tuple(dict.fromkeys((plan.percentile, 100.0))))
    quantizers = {}
    for alpha in plan.smooth_alphas:
        keys = {
            linear.name: _key(linear, alpha if linear.name in divisors[alpha] else smoothquant.OFF)
            for linear in linears
        }
        for percentile, ranges in clipped.items():
            quantizers[alpha, percentile] = {
                name: Quantizer.of(*ranges[key], symmetric=symmetric) for name, key in keys.items()
            }
    return divisors, quantizers


def _key(linear: Linear, alpha: float) -> str:
    return f"{linear.name}@{alpha:g}"


def float_model(graph: Graph, calibration: Calibration) -> onnx.ModelProto:
    """Check what every scheme needs and return the parsed float model."""
    check_calibration(calibration)
    want, have = graph.io.inputs[0].shape[1:], calibration.images.shape[1:]
    if want != have:
        raise DataError(
            f"calibration images have shape {have}",
            expected=f"{want}",
            fix="preprocess them with the graph's contract",
        )
    return onnx.load_from_string(graph.onnx)


def some_of(calibration: Calibration) -> Floats:
    """Return evenly spread images for comparisons."""
    count = min(CHOICE_IMAGES, len(calibration.images))
    return calibration.images[np.linspace(0, len(calibration.images) - 1, count).round().astype(int)]


def to_bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
