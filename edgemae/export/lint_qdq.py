"""Rules for Q/DQ graphs that TensorRT builds: explicit quantization, strongly typed. Each is `f(view) -> rows`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from edgemae.export.graph_view import Rows, View

WIDTH_MULTIPLE = 16  # int8 tensor cores read 16 values at a time
MAX_INT8_ATTENTION = 512  # tokens; TensorRT has no fused int8 attention beyond
WEIGHTED = ("Gemm", "MatMul", "Conv")
STAYS_FLOAT = ("LayerNormalization", "Softmax", "Gelu", "Add", "Attention")


def _pairs(v: View) -> list[onnx.NodeProto]:
    return v.of("QuantizeLinear", "DequantizeLinear")


def _zero_point(v: View) -> Rows:
    for node in _pairs(v):
        zero = v.value(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and np.any(zero != 0):
            yield node.name, f"zero point {zero.ravel()[0]}: only symmetric quantization is built; use zero point 0"


def _dtype(v: View) -> Rows:
    for node in _pairs(v):
        zero = v.value(node.input[2]) if len(node.input) > 2 else None
        kind = None if zero is None else zero.dtype
        if (kind is None and node.op_type == "QuantizeLinear") or kind == np.uint8:
            yield node.name, "quantizes to uint8 (the default without a zero point); give an int8 zero point of 0"


def _int32_bias(v: View) -> Rows:
    for node in v.of("DequantizeLinear"):
        if node.input[0] in v.constants and v.constants[node.input[0]].data_type == TensorProto.INT32:
            yield node.name, "int32 bias behind DequantizeLinear is refused; keep biases float"


def _scale_value(v: View) -> Rows:
    for node in _pairs(v):
        scale = v.value(node.input[1])
        if scale is None:
            yield node.name, "the scale is computed at run time; it must be a constant"
        elif not (np.isfinite(scale).all() and (scale.astype(np.float64) > 0).all()):
            yield node.name, "a scale is zero, negative or not finite; calibrate again"


def _weight_axis(v: View) -> Rows:
    for node, dq in _weight_dqs(v):
        scale = v.value(dq.input[1])
        axis = next((a.i for a in dq.attribute if a.name == "axis"), 1)
        rank = len(v.shapes.get(dq.input[0]) or ())
        if scale is not None and scale.size > 1 and axis % max(rank, 1) != _output_axis(node, rank):
            yield dq.name, f"weight scales lie along axis {axis}, not along the output channels of '{node.name}'"


def _weight_per_tensor(v: View) -> Rows:
    for node, dq in _weight_dqs(v):
        scale = v.value(dq.input[1])
        if scale is not None and scale.size == 1:
            yield (
                dq.name,
                f"weights of '{node.name}' have one scale; one an output channel costs nothing and is more exact",
            )


def _activation_scale(v: View) -> Rows:
    for node in v.of("QuantizeLinear"):
        scale = v.value(node.input[1])
        if node.input[0] not in v.constants and scale is not None and scale.size > 1:
            yield node.name, "an activation has per-channel scales; only per-tensor is built"


def _dangling_q(v: View) -> Rows:
    for node in v.of("QuantizeLinear"):
        if any(r.op_type != "DequantizeLinear" for r in v.reads(node)) or not v.reads(node):
            yield node.name, "QuantizeLinear without DequantizeLinear behind it"


def _dangling_dq(v: View) -> Rows:
    for node in v.of("DequantizeLinear"):
        if node.input[0] not in v.constants and v.maker(node.input[0]) != "QuantizeLinear":
            yield node.name, "DequantizeLinear without QuantizeLinear before it"


def _mismatch(v: View) -> Rows:
    for node in v.of("DequantizeLinear"):
        q = v.makers.get(node.input[0])
        if (
            q is not None
            and q.op_type == "QuantizeLinear"
            and not np.array_equal(v.value(q.input[1]), v.value(node.input[1]))
        ):
            yield node.name, f"its scale differs from that of '{q.name}': values come back multiplied"


def _double(v: View) -> Rows:
    for node in v.of("QuantizeLinear"):
        if v.maker(node.input[0]) == "DequantizeLinear":
            yield node.name, "quantizes what was just dequantized; drop one of the two pairs"


def _one_sided(v: View) -> Rows:
    for node in v.of(*WEIGHTED):
        sides = [v.maker(name) == "DequantizeLinear" for name in node.input[:2]]
        if any(sides) and not all(sides):
            yield node.name, f"only {'the input' if sides[0] else 'the weight'} is quantized; quantize both or neither"


def _stays_float(v: View) -> Rows:
    for node in v.of(*STAYS_FLOAT):
        if any(v.maker(name) == "DequantizeLinear" for name in node.input):
            yield (
                node.name,
                f"{node.op_type} reads quantized values: this ruins a ViT (85 % to chance for Add); keep it float",
            )


def _width(v: View) -> Rows:
    for node, dq in _weight_dqs(v):
        dims = v.shapes.get(dq.input[0]) or ()
        if node.op_type != "Conv" and any(d % WIDTH_MULTIPLE for d in dims if d):
            yield (
                node.name,
                f"weights of {dims} in int8: not multiples of {WIDTH_MULTIPLE}; prune in such steps or keep it float",
            )


def _long_attention(v: View) -> Rows:
    for node in v.of("MatMul"):
        if node.input[1] in v.constants or not all(v.maker(name) == "DequantizeLinear" for name in node.input):
            continue
        if any(d is None or d > MAX_INT8_ATTENTION for d in (v.shapes.get(node.output[0]) or (None,))[-2:]):
            yield (
                node.name,
                f"int8 attention over more than {MAX_INT8_ATTENTION} tokens is not fused; keep its products float",
            )


def _fp32_island(v: View) -> Rows:
    if TensorProto.FLOAT16 not in v.types.values():
        for node in v.of(*WEIGHTED)[:1]:
            yield node.name, "the float side is fp32: int8 layers then run between slow ones; use to_fp16"
        return
    inputs = {port.name for port in v.model.graph.input}  # what is cast there is the border: bytes to numbers
    for node in v.of("Cast"):
        to = next(a.i for a in node.attribute if a.name == "to")
        if to == TensorProto.FLOAT and node.input[0] not in inputs and not v.outputs.intersection(node.output):
            yield node.name, "casts to fp32 inside an fp16 graph: an island that engines cannot fuse across"


def _weight_dqs(v: View) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Return (weighted node, DequantizeLinear of its constant weight)."""
    pairs = []
    for node in v.of(*WEIGHTED):
        dq = v.makers.get(node.input[1])
        if dq is not None and dq.op_type == "DequantizeLinear" and dq.input[0] in v.constants:
            pairs.append((node, dq))
    return pairs


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else rank - 1


QDQ_RULES: dict[str, Callable[[View], Rows]] = {
    "zero-point": _zero_point,
    "uint8": _dtype,
    "int32-bias": _int32_bias,
    "scale-invalid": _scale_value,
    "weight-axis": _weight_axis,
    "weight-per-tensor": _weight_per_tensor,
    "activation-per-channel": _activation_scale,
    "dangling-q": _dangling_q,
    "dangling-dq": _dangling_dq,
    "scale-mismatch": _mismatch,
    "double-quantized": _double,
    "one-sided": _one_sided,
    "stays-float": _stays_float,
    "width-multiple": _width,
    "int8-attention-long": _long_attention,
    "fp32-island": _fp32_island,
}
