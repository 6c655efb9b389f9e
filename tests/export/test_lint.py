"""Lint: every seeded mistake is found by its own rule, and correct graphs are clean."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.export.lint import FLOAT_RULES, lint
from edgemae.export.lint_qdq import QDQ_RULES

Model = onnx.ModelProto
D = 32


def add(model: Model, name: str, value: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def make(kind: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def put(model: Model, *nodes: onnx.NodeProto) -> None:
    model.graph.node.extend(nodes)


def shell(half: bool = False, opset: int = 20) -> Model:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [8, D]) for name in ("x", "y")]
    graph = helper.make_graph([], "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def float_model() -> Model:
    """LayerNormalization, Gemm, Gelu, Gemm, Add: clean."""
    model = shell()
    w = add(model, "w", np.ones((D, D), np.float32))
    ones = add(model, "ones", np.ones(D, np.float32))
    put(
        model,
        make("LayerNormalization", ["x", ones, ones], "n", epsilon=1e-6),
        make("Gemm", ["n", w], "h", transB=1),
        make("Gelu", ["h"], "g"),
        make("Gemm", ["g", w], "o", transB=1),
        make("Add", ["o", "x"], "y"),
    )
    return model


def qdq_model() -> Model:
    """One fp16 linear with symmetric Q/DQ, as TensorRT wants it: clean."""
    model = shell(half=True)
    scale = add(model, "scale", np.float16(0.05))
    zero = add(model, "zero", np.int8(0))
    w = add(model, "w", np.ones((D, D), np.int8))
    w_scale = add(model, "w_scale", np.full(D, 0.01, np.float16))
    w_zero = add(model, "w_zero", np.zeros(D, np.int8))
    put(
        model,
        make("QuantizeLinear", ["x", scale, zero], "q"),
        make("DequantizeLinear", ["q", scale, zero], "dq"),
        make("DequantizeLinear", [w, w_scale, w_zero], "wdq", axis=0),
        make("Gemm", ["dq", "wdq"], "h", transB=1),
        make("Add", ["h", "x"], "y"),
    )
    return model


def node(model: Model, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def value(model: Model, name: str, new: object) -> None:
    init = next(i for i in model.graph.initializer if i.name == name)
    init.CopyFrom(numpy_helper.from_array(np.asarray(new), name))


def axis(model: Model, name: str, new: int) -> None:
    node(model, name).attribute[0].i = new


def rewire(model: Model, name: str, *inputs: str) -> None:
    node(model, name).input[:] = inputs


def replace_node(model: Model, name: str, *nodes: onnx.NodeProto) -> None:
    at = next(i for i, n in enumerate(model.graph.node) if n.name == name)
    kept = list(model.graph.node)
    new = [*kept[:at], *nodes, *kept[at + 1 :]]
    new = [onnx.NodeProto.FromString(n.SerializeToString()) for n in new]
    del model.graph.node[:]
    model.graph.node.extend(new)


def old_opset(m: Model) -> None:
    m.opset_import[0].version = 17


def layernorm_parts(m: Model) -> None:
    add(m, "two", np.float32(2))
    replace_node(
        m, "n", make("Pow", ["x", "two"], "sq"), make("ReduceMean", ["sq"], "mean"), make("Div", ["x", "mean"], "n")
    )


def gelu_parts(m: Model) -> None:
    replace_node(m, "g", make("Erf", ["h"], "e"), make("Mul", ["h", "e"], "g"))


def nan_guard(m: Model) -> None:
    replace_node(m, "g", make("IsNaN", ["h"], "nan"), make("Where", ["nan", "x", "h"], "g"))


def symbolic(m: Model) -> None:
    m.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def run_time_shape(m: Model) -> None:
    replace_node(m, "g", make("Shape", ["h"], "s"), make("Reshape", ["h", "s"], "g"))


def outside(m: Model) -> None:
    m.graph.initializer[0].data_location = TensorProto.EXTERNAL


def late_scale(m: Model) -> None:
    add(m, "eighth", np.float32(0.125))
    nodes = [make("MatMul", ["h", "w"], "qk"), make("Mul", ["qk", "eighth"], "s"), make("Softmax", ["s"], "g")]
    replace_node(m, "g", *nodes)


def tiny_epsilon(m: Model) -> None:
    node(m, "n").attribute[0].f = 1e-12


FLOAT_MISTAKES: dict[str, Callable[[Model], None]] = {
    "opset-old": old_opset,
    "layernorm-decomposed": layernorm_parts,
    "gelu-decomposed": gelu_parts,
    "nan-guard": nan_guard,
    "dynamic-dim": symbolic,
    "shape-op": run_time_shape,
    "external-weight": outside,
    "scale-after-product": late_scale,
    "epsilon-underflow": tiny_epsilon,
}


def int8_bias(m: Model) -> None:
    add(m, "b", np.zeros(D, np.int32))
    at = next(i for i, n in enumerate(m.graph.node) if n.name == "h")
    m.graph.node.insert(at, make("DequantizeLinear", ["b", "w_scale"], "bdq", axis=0))
    rewire(m, "h", "dq", "wdq", "bdq")


def as_uint8(m: Model) -> None:
    value(m, "zero", np.uint8(0))


def twice(m: Model) -> None:
    pair = [
        make("QuantizeLinear", ["dq", "scale", "zero"], "q2"),
        make("DequantizeLinear", ["q2", "scale", "zero"], "dq2"),
    ]
    at = next(i for i, n in enumerate(m.graph.node) if n.name == "h")
    for n in reversed(pair):
        m.graph.node.insert(at, n)
    rewire(m, "h", "dq2", "wdq")


def quantized_sum(m: Model) -> None:
    put(
        m,
        make("QuantizeLinear", ["h", "scale", "zero"], "hq"),
        make("DequantizeLinear", ["hq", "scale", "zero"], "hdq"),
    )
    last = node(m, "y")
    keep = onnx.NodeProto.FromString(last.SerializeToString())
    m.graph.node.remove(last)
    keep.input[0] = "hdq"
    put(m, keep)


def odd_width(m: Model) -> None:
    value(m, "w", np.ones((D, 20), np.int8))


def long_attention(m: Model) -> None:
    for end in (*m.graph.input, *m.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 577
    put(m, make("Transpose", ["dq"], "t", perm=[1, 0]), make("QuantizeLinear", ["t", "scale", "zero"], "tq"))
    put(m, make("DequantizeLinear", ["tq", "scale", "zero"], "tdq"), make("MatMul", ["dq", "tdq"], "qk"))


def island(m: Model) -> None:
    up = make("Cast", ["h"], "up", to=TensorProto.FLOAT)
    replace_node(m, "y", up, make("Cast", ["up"], "down", to=TensorProto.FLOAT16), make("Add", ["down", "x"], "y"))


def different_scale(m: Model) -> None:
    rewire(m, "dq", "q", add(m, "scale2", np.float16(0.1)), "zero")


QDQ_MISTAKES: dict[str, Callable[[Model], None]] = {
    "zero-point": lambda m: value(m, "zero", np.int8(3)),
    "uint8": as_uint8,
    "int32-bias": int8_bias,
    "scale-invalid": lambda m: value(m, "scale", np.float16(0)),
    "weight-axis": lambda m: axis(m, "wdq", 1),
    "weight-per-tensor": lambda m: value(m, "w_scale", np.float16(0.01)),
    "activation-per-channel": lambda m: value(m, "scale", np.full(D, 0.05, np.float16)),
    "dangling-q": lambda m: put(m, make("QuantizeLinear", ["h", "scale", "zero"], "hq")),
    "dangling-dq": lambda m: rewire(m, "dq", "x", "scale", "zero"),
    "scale-mismatch": different_scale,
    "double-quantized": twice,
    "one-sided": lambda m: rewire(m, "h", "x", "wdq"),
    "stays-float": quantized_sum,
    "width-multiple": odd_width,
    "int8-attention-long": long_attention,
    "fp32-island": island,
}


def test_tables_cover_the_rules() -> None:
    assert set(FLOAT_MISTAKES) == set(FLOAT_RULES)
    assert set(QDQ_MISTAKES) == set(QDQ_RULES)
    assert len(QDQ_MISTAKES) >= 15


@pytest.mark.parametrize("rule", FLOAT_MISTAKES)
def test_float_mistake(rule: str) -> None:
    model = float_model()
    assert lint(model) == []
    FLOAT_MISTAKES[rule](model)
    found = lint(model)
    assert rule in {finding.rule for finding in found}
    assert all(finding.message for finding in found)


@pytest.mark.parametrize("rule", QDQ_MISTAKES)
def test_qdq_mistake(rule: str) -> None:
    model = qdq_model()
    assert lint(model) == []
    QDQ_MISTAKES[rule](model)
    found = {finding.rule for finding in lint(model)}
    assert rule in found


def test_int8_without_fp16_is_one_finding() -> None:
    model = qdq_model()
    for init in model.graph.initializer:
        if init.data_type == TensorProto.FLOAT16:
            init.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(init).astype(np.float32), init.name))
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.elem_type = TensorProto.FLOAT
    assert [finding.rule for finding in lint(model)] == ["fp32-island"]
