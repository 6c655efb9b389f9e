"""Rewrites on small hand-made graphs: each changes what it should, keeps the numbers, and leaves its input alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgemae.export import library_passes
from edgemae.export.rewrite import REWRITES, rewrite
from tests.export.small_graphs import model, node

X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def ops(value: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in value.graph.node]


def same(before: onnx.ModelProto, after: onnx.ModelProto) -> bool:
    a, b = (ReferenceEvaluator(m).run(None, {"x": X})[0] for m in (before, after))
    return bool(np.allclose(a, b, atol=1e-6))


ZERO = np.float32(0)
CASES = {
    "nan-guard": (
        [node("Softmax", "x", "p"), node("IsNaN", "p", "n"), node("Where", "n zero p", "w"), node("Relu", "w", "y")],
        {"zero": ZERO},
        ["Softmax", "Relu"],
    ),
    "other-where-stays": (
        [node("IsNaN", "x", "n"), node("Where", "n zero x", "y")],
        {"zero": ZERO},
        ["IsNaN", "Where"],
    ),
    "constants": (
        [node("Add", "a b", "c"), node("Mul", "x c", "y")],
        {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)},
        ["Mul"],
    ),
    "transposes-that-cancel": (
        [node("Transpose", "x", "t", perm=[1, 0]), node("Transpose", "t", "u", perm=[1, 0]), node("Relu", "u", "y")],
        {},
        ["Relu"],
    ),
    "reshapes": (
        [node("Reshape", "x s", "r"), node("Reshape", "r t", "u"), node("Relu", "u", "y")],
        {"s": np.array([8]), "t": np.array([4, 2])},
        ["Reshape", "Relu"],
    ),
    "constant-nodes": (
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(4, np.float32))),
            node("Mul", "x c", "m"),
            node("Add", "m c", "y"),
        ],
        {},
        ["Mul", "Add"],
    ),
    "no-ops": (
        [node("Mul", "x one", "a"), node("Add", "a zero", "b"), node("Identity", "b", "c"), node("Relu", "c", "y")],
        {"one": np.float32(1), "zero": ZERO},
        ["Relu"],
    ),
    "scale-is-no-no-op": ([node("Mul", "x two", "y")], {"two": np.float32(2)}, ["Mul"]),
    "unused": ([node("Sqrt", "x", "z"), node("Relu", "x", "y")], {}, ["Relu"]),
}


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    nodes, constants, expected = CASES[case]
    before = model(nodes, **constants)
    data = before.SerializeToString()
    after = rewrite(before)
    assert ops(after) == expected
    assert same(before, after)
    assert before.SerializeToString() == data


def test_computed_shapes_become_constants() -> None:
    nodes = [
        node("Shape", "x", "s", start=0, end=1),
        node("Concat", "s two two2", "shape", axis=0),
        node("Reshape", "x shape", "r"),
        node("Relu", "r", "y"),
    ]
    before = model(nodes, ("batch", 4), rank=3, two=np.array([2]), two2=np.array([2]))
    before.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ("batch", 2, 2)))
    after = rewrite(before)
    assert ops(after) == ["Reshape", "Relu"]
    assert same(before, after)
    assert [list(numpy_helper.to_array(i)) for i in after.graph.initializer] == [[-1, 2, 2]]


def test_a_reshape_that_keeps_its_shape_goes() -> None:
    before = model(
        [node("Sqrt", "x", "s"), node("Reshape", "s kept", "r"), node("Relu", "r", "y")], kept=np.array([2, 4])
    )
    for name in "sr":
        before.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 4)))
    assert ops(rewrite(before)) == ["Sqrt", "Relu"]


def test_a_constant_that_would_grow_large_stays_a_subgraph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_passes, "FOLD_LIMIT", 7)
    nodes = [node("Expand", "one wide", "large"), node("Mul", "x large", "y")]
    before = model(nodes, one=np.ones(1, np.float32), wide=np.array([2, 4]))
    assert ops(rewrite(before)) == ["Expand", "Mul"]
    monkeypatch.setattr(library_passes, "FOLD_LIMIT", 8)
    assert ops(rewrite(before)) == ["Mul"]


def test_order_of_rewrites() -> None:
    """Constants come first (others look for them), names last (they mark what remains)."""
    names = list(REWRITES)
    assert names[0] == "lift_constants"
    assert names[-2:] == ["own_weights", "name_nodes"]
