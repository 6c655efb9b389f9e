"""View: an ONNX model with the look-ups that lint rules need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import numpy_helper

Rows = Iterator[tuple[str, str]]  # (node or tensor, message)


class View:
    """A model with the look-ups that rules need."""

    def __init__(self, model: onnx.ModelProto, dynamic_batch: bool) -> None:
        self.model, self.dynamic_batch = model, dynamic_batch
        self.nodes = list(model.graph.node)
        self.constants = {i.name: i for i in model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.graph.output}
        infos = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self.types = {i.name: i.type.tensor_type.elem_type for i in infos}
        self.shapes = {i.name: _dims(i) for i in infos} | {n: tuple(i.dims) for n, i in self.constants.items()}

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def maker(self, name: str) -> str:
        return self.makers[name].op_type if name in self.makers else ""

    def value(self, name: str) -> Any:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def reads(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return [reader for name in node.output for reader in self.readers.get(name, [])]


def _dims(info: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    if not info.type.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in info.type.tensor_type.shape.dim)
