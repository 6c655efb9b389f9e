"""Operators of an engine's graph: how long each took, and what it has to compute and to move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]

# As the engines spell element types: ONNX Runtime's traces, OpenVINO's execution graph, TensorRT's inspector.
VALUE_BYTES = {
    "float": 4, "float16": 2, "bfloat16": 2, "double": 8, "bool": 1, "uint8": 1, "int8": 1, "int32": 4, "int64": 8,
    "f32": 4, "f16": 2, "bf16": 2, "f64": 8, "boolean": 1, "u8": 1, "i8": 1, "i32": 4, "i64": 8,
    "Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "UInt8": 1, "Int32": 4, "Int64": 8, "Bool": 1,
}  # fmt: skip
PRECISION = {
    "float": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "int8", "int8": "int8",
    "f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8",
    "Float": "fp32", "Half": "fp16", "BFloat16": "bf16", "Int8": "int8", "UInt8": "int8",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Operator:
    """Hold one operator of an engine's graph, in the order of execution. `ms` (runs,) is the time of every run."""

    name: str  # the engine's
    origin: str  # names of the graph's nodes that were fused into it; its own name where the engine tells nothing else
    kind: str
    precision: str
    ms: NDArray[np.float64]
    macs: int | None
    bytes: int | None


def macs_of(kind: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Return the multiply-accumulates of one operator by its kind and shapes, None for kinds that have none.

    Constants may be missing among the inputs: ONNX Runtime repacks the weights of a Gemm and no longer lists them.
    """
    if not outputs or not inputs:
        return None
    if "Conv" in kind:
        kernels = [shape for shape in inputs[1:] if len(shape) == 4]
        return prod(outputs[0]) * prod(kernels[-1][1:]) if kernels else None
    if "Attention" in kind:
        return (prod(inputs[0]) + prod(outputs[0])) * inputs[1][-2]  # queries x keys, shares x values
    if "MatMul" in kind or "Gemm" in kind or kind.startswith("FullyConnected"):
        return prod(outputs[0]) * inputs[0][-1]
    return None


def bytes_of(tensors: Sequence[tuple[str, Shape]]) -> int:
    """Return the size of (element type, shape) pairs; types that no engine names count nothing."""
    return sum(VALUE_BYTES.get(dtype, 0) * prod(shape) for dtype, shape in tensors)
