"""Schemes: ways from a float graph to an int8 one. Each is `f(graph, calibration, plan) -> Graph`, a row of SCHEMES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgemae.quantize import openvino_int8, smooth
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
from edgemae.quantize.half import halve
from edgemae.quantize.linear import Linear, Quantizer, find_linears, insert_dynamic, insert_qdq
from edgemae.spec.errors import DataError, EngineRuntimeError, PlanError, nearest
from edgemae.spec.graph import Graph, Step
from edgemae.spec.sections import QuantizePlan
from edgemae.spec.target import Target

Floats = NDArray[np.float32]
Scheme = Callable[[Graph, Calibration, QuantizePlan], Graph]
CHOICE_IMAGES = 64  # pictures on which alphas are compared; more changed no choice and cost time


@dataclass(frozen=True)
class Choice:
    """One way that was tried, its error at the outputs, and the model it gave."""

    error: float
    alpha: float
    percentile: float
    model: Any

    @property
    def text(self) -> str:
        alpha = "off" if self.alpha == smooth.OFF else f"{self.alpha:g}"
        return f"smooth {alpha}, percentile {self.percentile:g}"


def ort_dynamic(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize activations at run time, per tensor uint8; nothing to calibrate, pictures only give the error."""
    model = insert_dynamic(_float_model(graph, calibration))
    data = _bytes(model)
    error = relative_error(session(graph.onnx), session(data), _some(calibration), batch_of(model))
    return _result(graph, calibration, {"model.onnx": data}, "ort-dynamic", [Choice(error, smooth.OFF, 100.0, None)])


def ort_static(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize with fixed ranges: uint8 activations with a zero point, 7-bit weights that saturate on no CPU."""
    return _static(graph, calibration, plan, "ort-static", symmetric=False)


def tensorrt_qdq(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize with fixed ranges: int8 around zero on both sides, everything else fp16, as TensorRT builds it."""
    return _static(graph, calibration, plan, "tensorrt-qdq", symmetric=True)


def _static(graph: Graph, calibration: Calibration, plan: QuantizePlan, name: str, *, symmetric: bool) -> Graph:
    """Quantize with fixed ranges and Q/DQ. Of all smoothing alphas ("off" is one), each with activations clipped at the
    plan's percentile and not at all, the pair with the smallest output error wins.
    """
    model = _float_model(graph, calibration)
    linears = find_linears(model)
    divisors, quantizers = _ranges(graph.onnx, linears, calibration.images, plan, symmetric)
    want = session(graph.onnx)
    tried = []
    for (alpha, percentile), chosen in quantizers.items():
        candidate = insert_qdq(smooth.fold(model, linears, divisors[alpha]), chosen)
        error = relative_error(want, session(_bytes(candidate)), _some(calibration), batch_of(model))
        tried.append(Choice(error, alpha, percentile, candidate))
    best = min(tried, key=lambda choice: choice.error)
    if symmetric:
        halve(best.model)
    return _result(graph, calibration, {"model.onnx": _bytes(best.model)}, name, tried)


def openvino_static(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize through NNCF with fixed ranges, once for every smoothing alpha; the smallest output error wins."""
    _float_model(graph, calibration)
    want = session(graph.onnx)
    batch = batch_of(onnx.load_from_string(graph.onnx))
    tried = []
    for alpha in plan.smooth_alphas:
        files = openvino_int8.quantize_ir(graph.onnx, calibration.images, alpha)
        run = openvino_int8.openvino_session(files)
        tried.append(Choice(relative_error(want, run, _some(calibration), batch), alpha, 100.0, files))
    best = min(tried, key=lambda choice: choice.error)
    return _result(graph, calibration, best.model, "openvino-static", tried)


SCHEMES: dict[str, Scheme] = {
    "ort-dynamic": ort_dynamic,
    "ort-static": ort_static,
    "openvino-static": openvino_static,
    "tensorrt-qdq": tensorrt_qdq,
}
ENGINE_SCHEMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("ort-static", "ort-dynamic"),
    "openvino": ("openvino-static",),
    "tensorrt": ("tensorrt-qdq",),
}


def candidates(target: Target, plan: QuantizePlan) -> tuple[str, ...]:
    """Return the schemes worth trying for a target: the plan's, or those of its engines, in order of preference.

    Raises PlanError for an unknown scheme and for one that no engine of the target runs.
    """
    fitting = tuple(name for engine in target.engines for name in ENGINE_SCHEMES[engine])
    for name in plan.schemes:
        if name not in SCHEMES:
            raise PlanError(
                f"unknown quantization scheme '{name}'.{nearest(name, list(SCHEMES))}",
                expected=f"names among {', '.join(SCHEMES)}",
                fix="correct quantize.schemes",
            )
        if name not in fitting:
            raise PlanError(
                f"no engine of target '{target.name}' runs the scheme '{name}'",
                expected=f"names among {', '.join(fitting)}",
                fix="correct quantize.schemes or choose another target",
            )
    if "int8" not in target.precisions:
        return ()
    return plan.schemes or fitting


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
            "a quantized graph gives NaN or infinity on calibration pictures",
            expected="finite outputs",
            fix="check the float model with `edgemae eval`, or leave this scheme out of quantize.schemes",
        )
    return error


def _ranges(
    data: bytes, linears: list[Linear], images: Floats, plan: QuantizePlan, symmetric: bool
) -> tuple[dict[float, dict[str, Floats]], dict[tuple[float, float], dict[str, Quantizer]]]:
    """Return the divisors of smoothed linears by alpha, and the quantizers of all linears by (alpha, percentile).

    Two passes over the pictures, however many alphas: smoothed ranges follow from the unsmoothed activations.
    """
    extremes = channel_ranges(data, [linear.input for linear in linears], images)
    divisors: dict[float, dict[str, Floats]] = {}
    views: dict[str, View] = {}
    for alpha in plan.smooth_alphas:
        divisors[alpha] = {}
        for linear in linears:
            low, high = extremes[linear.input]
            divisor = None
            if alpha != smooth.OFF and linear.norm:
                divisor = smooth.smoothing(linear, np.maximum(-low, high), alpha)
                divisors[alpha][linear.name] = divisor
                low, high = low / divisor, high / divisor
            key = _key(linear, alpha if divisor is not None else smooth.OFF)
            views[key] = View(linear.input, divisor, float(low.min()), float(high.max()))
    clipped = percentile_ranges(data, views, images, tuple(dict.fromkeys((plan.percentile, 100.0))))
    quantizers = {}
    for alpha in plan.smooth_alphas:
        keys = {
            linear.name: _key(linear, alpha if linear.name in divisors[alpha] else smooth.OFF) for linear in linears
        }
        for percentile, ranges in clipped.items():
            quantizers[alpha, percentile] = {
                name: Quantizer.of(*ranges[key], symmetric=symmetric) for name, key in keys.items()
            }
    return divisors, quantizers


def _key(linear: Linear, alpha: float) -> str:
    return f"{linear.name}@{alpha:g}"


def _float_model(graph: Graph, calibration: Calibration) -> onnx.ModelProto:
    """Check what every scheme needs and return the parsed float model."""
    check_calibration(calibration)
    want, have = graph.io.inputs[0].shape[1:], calibration.images.shape[1:]
    if want != have:
        raise DataError(
            f"calibration pictures have shape {have}",
            expected=f"{want}",
            fix="preprocess them with the graph's contract",
        )
    return onnx.load_from_string(graph.onnx)


def _some(calibration: Calibration) -> Floats:
    """Return evenly spread pictures for comparisons."""
    count = min(CHOICE_IMAGES, len(calibration.images))
    return calibration.images[np.linspace(0, len(calibration.images) - 1, count).round().astype(int)]


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _result(graph: Graph, calibration: Calibration, files: dict[str, bytes], name: str, tried: list[Choice]) -> Graph:
    """Return the new graph; its history holds every choice that was tried."""
    best = min(tried, key=lambda choice: choice.error)
    packages = ("onnx", "onnxruntime", *(("openvino", "nncf") if name == "openvino-static" else ()))
    step = Step(
        stage="quantize",
        plan={
            "scheme": name,
            "smooth_alpha": best.alpha,
            "percentile": best.percentile,
            "calibration_images": len(calibration.images),
        },
        scores={"relative_error": best.error, "tried": {choice.text: choice.error for choice in tried}},
        tools={package: version(package) for package in packages},
        data=calibration.digest,
    )
    scheme = name if best.alpha == smooth.OFF else f"{name}+smooth{best.alpha:g}"
    return replace(graph, files=files, precision="int8", scheme=scheme, history=(*graph.history, step))
