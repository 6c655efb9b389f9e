"""Graph clean-up that onnx_ir and onnxscript bring: constants, unused nodes, and shape operations that cancel.

Each function takes a ModelProto and returns a new one.
"""

from __future__ import annotations

import onnx
import onnx_ir
from onnx_ir.passes.common import IdentityEliminationPass, LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common

FOLD_LIMIT = 1 << 22  # values; a constant subgraph that would grow beyond 16 MiB stays a subgraph
RULES = [
    common.add_0_rule,
    common.mul_by_1_rule,
    common.dropout_inference_rule,
    common.no_op_transpose_rule,
    common.transpose_transpose_rule,
    common.reshape_reshape_rule,
]


def lift_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn Constant nodes into initializers, so that there is one kind of constant."""
    return _run(model, LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0))


def drop_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Remove nodes, initializers and value infos that no output needs."""
    model = _run(model, RemoveUnusedNodesPass())
    fixed = {init.name for init in model.graph.initializer}
    infos = [info for info in model.graph.value_info if info.name not in fixed]  # onnx_ir writes those of constants too
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    return model


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Evaluate nodes whose inputs are all constants (positions + cls, transposed weights)."""
    graph = onnx_ir.from_proto(model)
    optimizer.fold_constants(graph, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    return drop_unused(lift_constants(onnx_ir.to_proto(graph)))


def cancel_operations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merge successive Transposes and successive Reshapes; drop Identity, Dropout, x + 0 and x * 1."""
    graph = onnx_ir.from_proto(model)
    rewriter.RewritePass(RULES)(graph)
    IdentityEliminationPass()(graph)
    return drop_unused(lift_constants(onnx_ir.to_proto(graph)))


def _run(model: onnx.ModelProto, change: onnx_ir.passes.PassBase) -> onnx.ModelProto:
    return onnx_ir.to_proto(change(onnx_ir.from_proto(model)).model)
