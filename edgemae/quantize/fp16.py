"""Half precision, written into the graph: every float tensor fp16, the input and outputs cast at the border.

TensorRT builds strongly typed, so precision must stand in the ONNX. What could overflow stays safe: LayerNormalization
is one node whose `stash_type` keeps its sums in fp32 (decomposed, its squares overflow fp16 at |x| > 255), and Softmax
subtracts its maximum first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemae.spec.errors import InputError
from edgemae.spec.graph import Graph, Step

FP16_MAX = 65504.0


def to_fp16(graph: Graph) -> Graph:
    """Return the graph with fp16 inside and float32 at its input and outputs; int8 parts stay int8.

    Raises InputError when a weight does not fit fp16.
    """
    model = onnx.load_from_string(graph.onnx)
    halve(model)
    precision = "fp16" if graph.precision == "fp32" else graph.precision
    return replace(
        graph,
        files={"model.onnx": model.SerializeToString(deterministic=True)},
        precision=precision,
        history=(*graph.history, Step(stage="fp16", tools={"onnx": onnx.__version__})),
    )


def halve(model: onnx.ModelProto) -> None:
    """Turn a float32 model into fp16, in place."""
    for init in model.graph.initializer:
        if init.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(init)
            if np.abs(value).max(initial=0) > FP16_MAX:
                raise InputError(
                    f"weight '{init.name}' holds {np.abs(value).max():.3g}",
                    expected=f"values up to {FP16_MAX:.0f}, the largest of fp16",
                    fix="use fp32 or int8 on another engine for this model",
                )
            init.CopyFrom(numpy_helper.from_array(value.astype(np.float16), init.name))
    for info in model.graph.value_info:
        if info.type.tensor_type.elem_type == TensorProto.FLOAT:
            info.type.tensor_type.elem_type = TensorProto.FLOAT16
    borders = {i.name: f"{i.name}.half" for i in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        node.input[:] = [borders.get(name, name) for name in node.input]
        node.output[:] = [borders.get(name, name) for name in node.output]
    casts_in = [_cast(i.name, borders[i.name], TensorProto.FLOAT16) for i in model.graph.input]
    casts_out = [_cast(borders[o.name], o.name, TensorProto.FLOAT) for o in model.graph.output]
    nodes = [*casts_in, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node), *casts_out]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast.{target}", to=to)
