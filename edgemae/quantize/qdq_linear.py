"""Linear layers of a graph: find them, quantize their weights, put Q/DQ pairs or dynamic kernels in their place.

Only these are quantized. LayerNorm, Softmax, Gelu, residual sums and the products of attention stay float: quantizing
the sums alone takes a ViT from 85 % to chance. The classifier and the patch convolution stay float too: together they
are about 2 % of the work and the two layers that lose most in int8.

ONNX Runtime's own quantizer (`onnxruntime.quantization.quantize_static`) is not used. It calibrates the scales itself,
while those of quantization-aware training must reach the graph bit for bit; and it places Q/DQ by operator type, while
here a pair stands around exactly the linears that training has rounded, with the dtype of bias and zero point that each
engine fuses: uint8 and an int32 bias for ONNX Runtime, int8 around zero and a float bias for TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgemae.spec.errors import InputError

Floats = NDArray[np.float32]
MIN_DIM = 16  # below, integer kernels pad more than they gain
# Weights for CPUs use -64 .. 64. Without VNNI (AVX2, plain AVX-512) u8 x s8 adds two products in int16: 2 * 255 * 64 =
# 32640 still fits, 2 * 255 * 127 saturates. Cosine to fp32 of a ViT-Tiny on AVX2: 0.94 with 127 levels, 0.9995 with 64
# (0.9998 where nothing saturates). So one file computes the same everywhere, and needs no engine flag.
CPU_LEVELS = 64
GPU_LEVELS = 127
MIN_SCALE = 2.0**-20  # keeps a dead channel's scale above zero, in fp16 too


@dataclass(frozen=True)
class Linear:
    """One quantizable Gemm y = x W^T + b: `weight` (out, in), `bias` (out,) or None, names of its tensors."""

    name: str
    input: str
    output: str
    weight: Floats
    bias: Floats | None
    norm: str = ""  # name of the LayerNormalization that feeds it and nothing else


@dataclass(frozen=True)
class Quantizer:
    """Per-tensor activation quantizer: real = (integer - zero) * scale. Signed int8 when `symmetric`.

    `weight_scale` (out,) is given where training has settled it; None: the largest weight of a row decides.
    """

    scale: float
    zero: int
    symmetric: bool
    weight_scale: Floats | None = None

    @classmethod
    def of(cls, low: float, high: float, *, symmetric: bool) -> Quantizer:
        """Return the quantizer that covers low .. high (0 inside): int8 around zero, or uint8 with a zero point."""
        if symmetric:
            return cls(fp16_up(np.float32(max(-low, high) / 127)).item(), 0, True)
        scale = max((high - low) / 255, MIN_SCALE)
        return cls(float(np.float32(scale)), int(np.clip(round(-low / scale), 0, 255)), False)


def fp16_up(scale: Any) -> NDArray[np.float32]:
    """Return scales that fp16 holds exactly, none smaller, so that an fp16 graph divides by the very same numbers."""
    value = np.maximum(np.asarray(scale, np.float32), np.float32(MIN_SCALE))
    half = value.astype(np.float16)
    half = np.where(half.astype(np.float32) < value, np.nextafter(half, np.float16(np.inf)), half)
    return np.asarray(half, np.float32)


def find_linears(model: onnx.ModelProto) -> list[Linear]:
    """Return every quantizable linear in graph order. Raises InputError when there is none."""
    fixed = {init.name: init for init in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    norms = {node.output[0]: node.name for node in model.graph.node if node.op_type == "LayerNormalization"}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    linears = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.input[1] not in fixed or node.output[0] in outputs:
            continue
        weight = numpy_helper.to_array(fixed[node.input[1]])
        if min(weight.shape) < MIN_DIM or not any(a.name == "transB" and a.i for a in node.attribute):
            continue
        bias = numpy_helper.to_array(fixed[node.input[2]]) if len(node.input) > 2 else None
        source = node.input[0]
        norm = norms.get(source, "") if readers[source] == 1 and source not in outputs else ""
        linears.append(Linear(node.name, source, node.output[0], weight, bias, norm))
    if not linears:
        raise InputError(
            "the graph has no linear layer to quantize",
            expected=f"Gemm nodes with constant weights of at least {MIN_DIM} x {MIN_DIM}",
            fix="export it with edgemae, in fp32, and quantize it once only",
        )
    return linears


def quantize_weight(
    weight: Floats, levels: int, *, fp16: bool = False, scale: Floats | None = None
) -> tuple[NDArray[np.int8], Floats]:
    """Return (int8 (out, in) in -levels .. levels, scale (out,)): symmetric, one scale an output channel."""
    if scale is None:
        scale = np.maximum(np.abs(weight).max(axis=1) / levels, MIN_SCALE).astype(np.float32)
        scale = fp16_up(scale) if fp16 else scale
    return np.clip(np.rint(weight / scale[:, None]), -levels, levels).astype(np.int8), scale


def insert_qdq(model: onnx.ModelProto, quantizers: dict[str, Quantizer]) -> onnx.ModelProto:
    """Return a copy with Q/DQ around the linears named in `quantizers`; weights are stored as int8.

    Asymmetric quantizers get an int32 bias (ONNX Runtime fuses DQ, Gemm into QGemm only then); symmetric ones keep a
    float bias (TensorRT refuses int32 DQ).
    """
    editor = _Editor(model)
    for linear in find_linears(model):
        if linear.name in quantizers:
            editor.qdq(linear, quantizers[linear.name])
    return editor.done()


def insert_dynamic(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose linears quantize their input at run time (ONNX Runtime fuses each to one kernel)."""
    editor = _Editor(model)
    for linear in find_linears(model):
        editor.dynamic(linear)
    return editor.done()


class _Editor:
    """Replace Gemm nodes by others, in place of the node, on a copy of the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.replaced: dict[str, list[onnx.NodeProto]] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def qdq(self, linear: Linear, quantizer: Quantizer) -> None:
        name, kind = linear.name, np.int8 if quantizer.symmetric else np.uint8
        levels = GPU_LEVELS if quantizer.symmetric else CPU_LEVELS
        values, scale = quantize_weight(linear.weight, levels, fp16=quantizer.symmetric, scale=quantizer.weight_scale)
        x = (
            self.constant(f"{name}.x_scale", np.asarray(quantizer.scale, np.float32)),
            self.constant(f"{name}.x_zero", np.asarray(quantizer.zero, kind)),
        )
        w = (
            self.constant(f"{name}.weight_int8", values),
            self.constant(f"{name}.weight_scale", scale),
            self.constant(f"{name}.weight_zero", np.zeros(len(scale), np.int8)),
        )
        nodes = [
            helper.make_node("QuantizeLinear", [linear.input, *x], [f"{name}.x_q"], name=f"{name}.q"),
            helper.make_node("DequantizeLinear", [f"{name}.x_q", *x], [f"{name}.x_dq"], name=f"{name}.dq"),
            helper.make_node("DequantizeLinear", [*w], [f"{name}.w_dq"], name=f"{name}.weight_dq", axis=0),
        ]
        feeds = [f"{name}.x_dq", f"{name}.w_dq"]
        if linear.bias is not None and quantizer.symmetric:
            feeds.append(self.constant(f"{name}.bias_float", linear.bias))
        elif linear.bias is not None:
            bias_scale = scale.astype(np.float64) * quantizer.scale
            limit = 2**31 - 1
            bias = np.clip(np.rint(linear.bias / bias_scale), -limit, limit).astype(np.int32)
            b = (
                self.constant(f"{name}.bias_int32", bias),
                self.constant(f"{name}.bias_scale", bias_scale.astype(np.float32)),
                self.constant(f"{name}.bias_zero", np.zeros(len(scale), np.int32)),
            )
            nodes.append(helper.make_node("DequantizeLinear", [*b], [f"{name}.b_dq"], name=f"{name}.bias_dq", axis=0))
            feeds.append(f"{name}.b_dq")
        nodes.append(helper.make_node("Gemm", feeds, [linear.output], name=name, transB=1))
        self.replaced[name] = nodes

    def dynamic(self, linear: Linear) -> None:
        name = linear.name
        values, scale = quantize_weight(linear.weight, CPU_LEVELS)
        weight = self.constant(f"{name}.weight_int8", values.T)
        zero = self.constant(f"{name}.weight_zero", np.zeros(len(scale), np.int8))
        scales = self.constant(f"{name}.weight_scale", scale)
        x_q, x_scale, x_zero = f"{name}.x_q", f"{name}.x_scale", f"{name}.x_zero"
        last = f"{name}.scaled" if linear.bias is not None else linear.output
        nodes = [
            helper.make_node("DynamicQuantizeLinear", [linear.input], [x_q, x_scale, x_zero], name=f"{name}.q"),
            helper.make_node("MatMulInteger", [x_q, weight, x_zero, zero], [f"{name}.int32"], name=name),
            helper.make_node(
                "Cast", [f"{name}.int32"], [f"{name}.float"], name=f"{name}.cast", to=onnx.TensorProto.FLOAT
            ),
            helper.make_node("Mul", [x_scale, scales], [f"{name}.scale"], name=f"{name}.scales"),
            helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [last], name=f"{name}.dq"),
        ]
        if linear.bias is not None:
            bias = self.constant(f"{name}.bias_float", linear.bias)
            nodes.append(helper.make_node("Add", [last, bias], [linear.output], name=f"{name}.bias"))
        self.replaced[name] = nodes

    def done(self) -> onnx.ModelProto:
        graph = self.model.graph
        nodes = [new for node in list(graph.node) for new in self.replaced.get(node.name, [node])]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        used = {name for node in nodes for name in node.input}
        kept = [init for init in graph.initializer if init.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(kept)
        onnx.checker.check_model(self.model)
        return self.model
