"""Hostile graphs: weights in other files, and bytes that are no graph."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.device.engines import ENGINES
from edgemae.device.engines._external_data import refuse_external_data
from edgemae.spec.errors import EngineRuntimeError
from edgemae.spec.target import ENGINE_NAMES, Target


def external(model: onnx.ModelProto, tensor: onnx.TensorProto) -> bytes:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "sparse", "function"])
def test_weights_in_another_file_are_refused(
    name: str, where: str, block_onnx: Callable[..., bytes], box: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(block_onnx())
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    if where == "attribute":
        model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        found = model.graph.node[-1].attribute[0].t
    elif where == "subgraph":
        model.graph.node.append(helper.make_node("If", ["b"], ["c"], then_branch=inner, else_branch=inner))
        found = model.graph.node[-1].attribute[1].g.initializer[0]
    elif where == "sparse":
        found = model.graph.sparse_initializer.add().values
        found.CopyFrom(tensor)
    elif where == "function":
        function = model.functions.add(name="f", domain="d")
        function.node.append(helper.make_node("Constant", [], ["c"], value=tensor))
        found = function.node[0].attribute[0].t
    else:
        found = model.graph.initializer[0]
    refuse_external_data(model.SerializeToString())
    gpu = msgspec.structs.replace(box, compute_capability="8.9")
    with pytest.raises(EngineRuntimeError, match="weights in another file"):
        ENGINES[name].compile({"x.onnx": external(model, found)}, gpu)


@pytest.mark.parametrize("data", [b"\x0b", b"\x3a\xff", b"\x3a" + b"\x80" * 11, b"\x3d\0", b"\x3a"], ids=repr)
def test_bytes_that_are_no_protobuf_are_refused(data: bytes) -> None:
    with pytest.raises(EngineRuntimeError, match="not an ONNX file"):
        refuse_external_data(data)


def test_a_graph_nested_without_end_is_refused() -> None:
    data = b""
    for _ in range(60):  # graph -> node -> attribute -> graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size, length = len(data), b""
            while size > 127:
                length += bytes([size & 127 | 128])
                size >>= 7
            data = tag + length + bytes([size]) + data
    with pytest.raises(EngineRuntimeError, match="nested too deeply"):
        refuse_external_data(b"\x3a" + _varint(len(data)) + data)


def _varint(size: int) -> bytes:
    out = b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size])
