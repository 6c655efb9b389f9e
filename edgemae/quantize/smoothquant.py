"""Smoothing: move the range of LayerNorm outputs into the next weights (Xiao et al. 2023, SmoothQuant eq. 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemae.quantize.qdq_linear import Linear

Floats = NDArray[np.float32]
OFF = -1.0  # the alpha that means "no smoothing"; which alpha is best is decided on the calibration images


def smoothing(linear: Linear, peak: Floats, alpha: float) -> Floats:
    """Return the divisor (in,) of a linear's input: peak^alpha / max|W|^(1 - alpha), with geometric mean 1."""
    weight_peak = np.maximum(np.abs(linear.weight).max(axis=0), 1e-5)
    divisor = np.maximum(peak, 1e-5) ** alpha / weight_peak ** (1 - alpha)
    divisor /= np.exp(np.log(divisor).mean())
    return np.clip(divisor, 1e-2, 1e2).astype(np.float32)  # a dead channel must not blow up its neighbours' scale


def fold(model: onnx.ModelProto, linears: list[Linear], divisors: dict[str, Floats]) -> onnx.ModelProto:
    """Return a copy with every LayerNorm divided and its linear multiplied, by the linear's divisor: equal outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = {node.name: node for node in copy.graph.node}
    fixed = {init.name: init for init in copy.graph.initializer}
    for linear in linears:
        if linear.name not in divisors:
            continue
        divisor = divisors[linear.name]
        for name in nodes[linear.norm].input[1:]:
            _store(fixed[name], numpy_helper.to_array(fixed[name]) / divisor)
        _store(fixed[nodes[linear.name].input[1]], linear.weight * divisor)
    return copy


def _store(init: onnx.TensorProto, value: NDArray[Any]) -> None:
    init.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), init.name))
