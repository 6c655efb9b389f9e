"""Schemes: ways from a float graph to an int8 one. Each is `f(graph, calibration, plan) -> Graph`, a row of SCHEMES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import onnx

from edgemae.quantize import openvino_int8, smoothquant
from edgemae.quantize.calibrate import Calibration, batch_of, session
from edgemae.quantize.fp16 import halve
from edgemae.quantize.qdq_linear import insert_dynamic
from edgemae.quantize.range_search import (
    QAT,
    Choice,
    float_model,
    is_trained,
    relative_error,
    search,
    some_of,
    to_bytes,
    with_trained,
)
from edgemae.spec.errors import PlanError, nearest
from edgemae.spec.graph import Graph, Step
from edgemae.spec.plan_schema import QuantizePlan
from edgemae.spec.target import Target

Scheme = Callable[[Graph, Calibration, QuantizePlan], Graph]


def ort_dynamic(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize activations at run time, per tensor uint8; nothing to calibrate, images only give the error."""
    model = insert_dynamic(float_model(graph, calibration))
    data = to_bytes(model)
    error = relative_error(session(graph.onnx), session(data), some_of(calibration), batch_of(model))
    return _result(
        graph, calibration, {"model.onnx": data}, "ort-dynamic", [Choice(error, smoothquant.OFF, 100.0, None)]
    )


def ort_static(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize with fixed ranges: uint8 activations with a zero point, 7-bit weights that saturate on no CPU."""
    return _static(graph, calibration, plan, "ort-static", symmetric=False)


def tensorrt_qdq(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize with fixed ranges: int8 around zero on both sides, everything else fp16, as TensorRT builds it."""
    return _static(graph, calibration, plan, "tensorrt-qdq", symmetric=True)


def _static(graph: Graph, calibration: Calibration, plan: QuantizePlan, name: str, *, symmetric: bool) -> Graph:
    """Quantize with fixed ranges and Q/DQ: those of a training, or else the best that calibration finds."""
    if is_trained(calibration, symmetric):
        choices = [with_trained(graph, calibration)]
    else:
        choices = [choice for choice, _, _ in search(graph, calibration, plan, symmetric)]
    best = min(choices, key=lambda choice: choice.error)
    if symmetric:
        halve(best.model)
    return _result(graph, calibration, {"model.onnx": to_bytes(best.model)}, name, choices)


def openvino_static(graph: Graph, calibration: Calibration, plan: QuantizePlan) -> Graph:
    """Quantize through NNCF with fixed ranges, once for every smoothing alpha; the smallest output error wins.

    Trained scales skip NNCF: OpenVINO reads our Q/DQ graph and runs the same eight-bit kernels for it.
    """
    float_model(graph, calibration)
    if is_trained(calibration, symmetric=False):
        choice = with_trained(graph, calibration)
        files = openvino_int8.ir_of(to_bytes(choice.model))
        return _result(graph, calibration, files, "openvino-static", [choice])
    want = session(graph.onnx)
    batch = batch_of(onnx.load_from_string(graph.onnx))
    choices = []
    for alpha in plan.smooth_alphas:
        files = openvino_int8.quantize_ir(graph.onnx, calibration.images, alpha)
        run = openvino_int8.openvino_session(files)
        choices.append(Choice(relative_error(want, run, some_of(calibration), batch), alpha, 100.0, files))
    best = min(choices, key=lambda choice: choice.error)
    return _result(graph, calibration, best.model, "openvino-static", choices)


SCHEMES: dict[str, Scheme] = {
    "ort-dynamic": ort_dynamic,
    "ort-static": ort_static,
    "openvino-static": openvino_static,
    "tensorrt-qdq": tensorrt_qdq,
}
STATIC_SCHEMES = {"ort-static": False, "openvino-static": False, "tensorrt-qdq": True}  # name: symmetric
ENGINE_SCHEMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("ort-static", "ort-dynamic"),
    "openvino": ("openvino-static",),
    "tensorrt": ("tensorrt-qdq",),
}


def schemes_for(target: Target, plan: QuantizePlan) -> tuple[str, ...]:
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


def _result(graph: Graph, calibration: Calibration, files: dict[str, bytes], name: str, choices: list[Choice]) -> Graph:
    """Return the new graph; its history holds every choice that was compared."""
    best = min(choices, key=lambda choice: choice.error)
    packages = ("onnx", "onnxruntime", *(("openvino", "nncf") if name == "openvino-static" else ()))
    step = Step(
        stage="quantize",
        plan={
            "scheme": name,
            "smooth_alpha": best.alpha,
            "percentile": best.percentile,
            "calibration_images": len(calibration.images),
        },
        scores={"relative_error": best.error, "tried": {choice.text: choice.error for choice in choices}},
        tools={package: version(package) for package in packages},
        data=calibration.digest,
    )
    scheme = name if best.alpha == smoothquant.OFF else f"{name}+smooth{best.alpha:g}"
    if best.qat:
        scheme = f"{name}{QAT}"
    return replace(graph, files=files, precision="int8", scheme=scheme, history=(*graph.history, step))
