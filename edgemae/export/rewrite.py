"""Rewrites: ModelProto -> ModelProto functions that turn what the exporter emits into the graph that engines like.

Every function returns the model it was given, edited; `rewrite` copies first, so a caller's model never changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgemae.export.node_names import drop_unused, name_nodes, own_weights, with_nodes

Array = NDArray[np.generic]
FOLD_LIMIT = 1 << 22  # values; a constant subgraph that would grow beyond 16 MiB stays a subgraph


def rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model` after every function of REWRITES, in that order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for function in REWRITES.values():
        copy = function(copy)
    onnx.checker.check_model(copy, full_check=False)
    return copy


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """Return every initializer as an array, by name."""
    return {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Return the known shape of every tensor, by name; None marks a symbolic axis."""
    graph = model.graph
    known: dict[str, tuple[int | None, ...]] = {i.name: tuple(i.dims) for i in graph.initializer}
    for info in (*graph.input, *graph.value_info, *graph.output):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            known[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
    return known


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn Constant nodes into initializers, so that there is one kind of constant."""
    kept = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
            continue
        model.graph.initializer.add().CopyFrom(value)
        model.graph.initializer[-1].name = node.output[0]
    return with_nodes(model, kept)


def drop_nan_guards(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop `Where(IsNaN(p), 0, p)` after a Softmax.

    No row of our attention is fully masked, so no row is NaN; left in, the guard takes 5-7 % of a small ViT's time and
    hides the attention pattern from every engine's fusion.
    """
    made_by = _producers(model)
    for node in model.graph.node:
        if node.op_type != "Where" or _op(made_by, node.input[0]) != "IsNaN":
            continue
        tested = made_by[node.input[0]].input[0]
        if tested == node.input[2] and _op(made_by, tested) == "Softmax":
            _replace(model, node.output[0], tested)
    return drop_unused(model)


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Evaluate nodes whose inputs are all constants (positions + cls, transposed weights)."""
    known = constants(model)
    outputs = {o.name for o in model.graph.output}
    kept = []
    for node in model.graph.node:
        feeds = [name for name in node.input if name]
        if not feeds or any(name not in known for name in feeds) or outputs & set(node.output):
            kept.append(node)
            continue
        values = _evaluate(model, node, {name: known[name] for name in feeds})
        if sum(value.size for value in values) > FOLD_LIMIT:
            kept.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return drop_unused(with_nodes(model, kept))


def fix_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every Reshape with a computed shape a constant one, -1 on the single symbolic axis.

    A dynamic batch otherwise leaves Shape, Gather, Mul and Concat chains, which no engine folds.
    """
    known, fixed = shapes(model), constants(model)
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] in fixed:
            continue
        shape = known.get(node.output[0], (None, None))
        if sum(d is None for d in shape) != 1:
            continue  # lint names what is left
        value = np.array([-1 if d is None else d for d in shape], np.int64)
        name = f"{node.output[0]}.shape"
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        node.input[1] = name
    return drop_unused(model)


def merge_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compose a Transpose of a Transpose into one."""
    made_by = _producers(model)
    for node in model.graph.node:
        before = made_by.get(node.input[0]) if node.op_type == "Transpose" else None
        if before is None or before.op_type != "Transpose":
            continue
        first, second = _perm(before), _perm(node)
        node.attribute[0].CopyFrom(helper.make_attribute("perm", [first[i] for i in second]))
        node.input[0] = before.input[0]
    return drop_unused(model)


def drop_no_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop Identity, Dropout, Mul by 1, Add of 0, Transposes that keep the order and Reshapes that keep the shape."""
    known, sizes = constants(model), shapes(model)
    for node in model.graph.node:
        if node.op_type in ("Identity", "Dropout"):
            idle = True
        elif node.op_type in ("Mul", "Add") and node.input[1] in known and known[node.input[1]].size == 1:
            idle = known[node.input[1]].item() == (1 if node.op_type == "Mul" else 0)
        elif node.op_type == "Transpose":
            idle = _perm(node) == sorted(_perm(node))
        elif node.op_type == "Reshape":
            before, after = sizes.get(node.input[0]), sizes.get(node.output[0])
            idle = before is not None and before == after and None not in before
        else:
            idle = False
        if idle and node.output[0] not in {o.name for o in model.graph.output}:
            _replace(model, node.output[0], node.input[0])
    return drop_unused(model)


def merge_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a Reshape of a Reshape read the first one's input (both have constant shapes; ours use no 0 entries)."""
    made_by, fixed = _producers(model), constants(model)
    for node in model.graph.node:
        before = made_by.get(node.input[0]) if node.op_type == "Reshape" else None
        if (
            before is not None
            and before.op_type == "Reshape"
            and node.input[1] in fixed
            and (fixed[node.input[1]] != 0).all()
        ):
            node.input[0] = before.input[0]
    return drop_unused(model)


REWRITES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "lift_constants": lift_constants,
    "drop_nan_guards": drop_nan_guards,
    "fix_reshapes": fix_reshapes,
    "fold_constants": fold_constants,
    "merge_transposes": merge_transposes,
    "merge_reshapes": merge_reshapes,
    "drop_no_ops": drop_no_ops,
    "drop_unused": drop_unused,
    "own_weights": own_weights,
    "name_nodes": name_nodes,
}


def _producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _op(made_by: dict[str, onnx.NodeProto], name: str) -> str:
    return made_by[name].op_type if name in made_by else ""


def _perm(node: onnx.NodeProto) -> list[int]:
    return list(node.attribute[0].ints)


def _replace(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _evaluate(model: onnx.ModelProto, node: onnx.NodeProto, feeds: dict[str, Array]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    graph = helper.make_graph(
        [node],
        "fold",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    small = helper.make_model(graph, opset_imports=model.opset_import)
    return [np.asarray(value) for value in ReferenceEvaluator(small).run(None, dict(feeds))]
