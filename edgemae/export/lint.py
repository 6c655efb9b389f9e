"""Lint: name what in a graph will be slow, wrong or refused on an engine, before anything is built.

FLOAT_RULES apply to every graph, QDQ_RULES to graphs with QuantizeLinear meant for TensorRT (explicit quantization,
strongly typed). Every rule is `f(view) -> findings`; a message names the fault and its fix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from edgemae.export.graph_view import Rows, View
from edgemae.export.lint_qdq import QDQ_RULES
from edgemae.spec.graph import Graph

MIN_OPSET = 20
SHAPE_OPS = ("Shape", "ConstantOfShape", "NonZero", "Range", "Expand", "If", "Loop", "Scan")


@dataclass(frozen=True)
class Finding:
    """One rule that one node (or tensor) breaks."""

    rule: str
    node: str
    message: str


def lint(model: onnx.ModelProto | Graph) -> list[Finding]:
    """Return every finding, in the order of the rules; an empty list is a clean graph.

    A Graph whose scheme is not for TensorRT is spared QDQ_RULES: uint8 and int32 biases are right on CPUs.
    """
    for_gpu, dynamic = True, False
    if isinstance(model, Graph):
        for_gpu = not model.scheme or model.scheme.startswith("tensorrt")
        dynamic = model.io.inputs[0].shape[0] == -1
        model = onnx.load_from_string(model.onnx)
    view = View(_with_shapes(model), dynamic)
    rules = FLOAT_RULES | (QDQ_RULES if for_gpu and view.of("QuantizeLinear", "DequantizeLinear") else {})
    return [Finding(name, node, message) for name, rule in rules.items() for node, message in rule(view)]


def _opset(v: View) -> Rows:
    opset = next((o.version for o in v.model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        yield "", f"opset {opset} has no whole Gelu; export with opset {MIN_OPSET} or later"


def _layernorm(v: View) -> Rows:
    for node in v.of("Pow", "Mul"):
        squares = list(node.input[:1]) * 2 == list(node.input)
        if node.op_type == "Pow":
            exponent = v.value(node.input[1])
            squares = exponent is not None and exponent.size == 1 and exponent.item() == 2
        if squares and any(reader.op_type == "ReduceMean" for reader in v.reads(node)):
            yield node.name, "LayerNormalization is decomposed: its square overflows fp16 at |x| > 255; export it whole"


def _gelu(v: View) -> Rows:
    for node in v.of("Erf"):
        yield node.name, "Gelu is decomposed into Erf: engines fuse the whole node only; export with opset 20"


def _nan(v: View) -> Rows:
    for node in v.of("IsNaN"):
        yield (
            node.name,
            "a NaN guard stands after attention: it blocks attention fusion; rewrite.drop_nan_guards removes it",
        )


def _dynamic(v: View) -> Rows:
    for name, dims in v.shapes.items():
        if dims is not None and any(
            d is None and not (v.dynamic_batch and _batch_axis(axis)) for axis, d in enumerate(dims)
        ):
            yield (
                name,
                f"tensor of shape {dims} in a static graph; export with batch=1, or batch=None if dynamic is meant",
            )


def _batch_axis(axis: int) -> bool:
    return axis == 0  # tokens travel as (B * N, D): the first axis carries the batch everywhere


def _shape_ops(v: View) -> Rows:
    for node in v.of(*SHAPE_OPS):
        yield (
            node.name,
            f"{node.op_type} computes shapes at run time; rewrite.fix_reshapes and fold_constants remove it",
        )


def _external(v: View) -> Rows:
    for init in v.constants.values():
        if init.data_location == TensorProto.EXTERNAL:
            yield init.name, "weight lies outside the file; a graph must be one piece of bytes"


def _scale(v: View) -> Rows:
    for node in v.of("Mul", "Div"):
        after_product = v.maker(node.input[0]) == "MatMul" and node.input[1] in v.constants
        if after_product and any(reader.op_type == "Softmax" for reader in v.reads(node)):
            yield node.name, "attention is scaled after Q K^T: fold the scale into W_q, or fused attention is missed"


def _epsilon(v: View) -> Rows:
    for node in v.of("LayerNormalization"):
        value = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        if value < 1e-7:
            yield node.name, f"epsilon {value:.0e} is zero in fp16; use 1e-6"


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError:
        return model  # a graph this wrong breaks rules that need no shapes


FLOAT_RULES: dict[str, Callable[[View], Rows]] = {
    "opset-old": _opset,
    "layernorm-decomposed": _layernorm,
    "gelu-decomposed": _gelu,
    "nan-guard": _nan,
    "dynamic-dim": _dynamic,
    "shape-op": _shape_ops,
    "external-weight": _external,
    "scale-after-product": _scale,
    "epsilon-underflow": _epsilon,
}
