"""Rewrites: ModelProto -> ModelProto functions that turn the graph of the exporter into one that engines fuse.

General clean-up is the libraries' (`library_passes`); here stands what they have no pass for. A function may edit the
model it is given; `rewrite` copies first, so a caller's model never changes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgemae.export.library_passes import cancel_operations, drop_unused, fold_constants, lift_constants
from edgemae.export.node_names import name_nodes, own_weights

Array = NDArray[np.generic]


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


def drop_nan_guards(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop `Where(IsNaN(p), 0, p)` after a Softmax: no library may, since it cannot know that no row is masked.

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


def fix_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every Reshape with a computed shape a constant one, -1 on the single symbolic axis.

    A dynamic batch otherwise leaves Shape, Gather, Mul and Concat chains, which neither an engine nor onnxscript's
    constant folding removes, since the batch is in them.
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


def drop_idle_reshapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop Reshapes that keep a static shape: onnxscript has no rule for them."""
    known = shapes(model)
    for node in model.graph.node:
        before, after = known.get(node.input[0]), known.get(node.output[0])
        idle = node.op_type == "Reshape" and before is not None and before == after and None not in before
        if idle and node.output[0] not in {o.name for o in model.graph.output}:
            _replace(model, node.output[0], node.input[0])
    return drop_unused(model)


REWRITES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "lift_constants": lift_constants,
    "drop_nan_guards": drop_nan_guards,
    "fix_reshapes": fix_reshapes,
    "fold_constants": fold_constants,
    "cancel_operations": cancel_operations,
    "drop_idle_reshapes": drop_idle_reshapes,
    "own_weights": own_weights,
    "name_nodes": name_nodes,
}


def _producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _op(made_by: dict[str, onnx.NodeProto], name: str) -> str:
    return made_by[name].op_type if name in made_by else ""


def _replace(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
