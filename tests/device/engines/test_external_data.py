"""Hostile graphs: weights in other files, and bytes that are no graph."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemae.device.engines import ENGINES
from edgemae.device.engines._external_data import FIELDS, refuse_external_data
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


SPELLINGS: dict[str, Callable[[int], bytes]] = {
    "as it is": lambda tag: _varint(tag), "bit 32 set": lambda tag: _varint(1 << 32 | tag),
    "bit 63 set": lambda tag: _varint(1 << 63 | tag), "a byte more": lambda tag: _padded(tag, 3),
    "ten bytes": lambda tag: _padded(tag, 10),
}  # fmt: skip


def hidden(location: str, spelled: Callable[[int], bytes]) -> bytes:
    """Return a graph that adds a weight in another file to its input, under tags that are spelled like this."""
    make = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["pixels", "w"], ["embedding"])], "g", [make("pixels", TensorProto.FLOAT, [1, 4])],
        [make("embedding", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    weight = TensorProto(dims=[1, 4], data_type=TensorProto.FLOAT, name="w").SerializeToString()
    where = onnx.StringStringEntryProto(key="location", value=location).SerializeToString()
    weight += spelled(13 << 3 | 2) + _varint(len(where)) + where + spelled(14 << 3) + b"\x01"
    data = model.graph.SerializeToString() + b"\x2a" + _varint(len(weight)) + weight
    model.ClearField("graph")
    found: bytes = model.SerializeToString() + b"\x3a" + _varint(len(data)) + data
    return found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_tag_that_engines_read_in_another_way_is_refused(spelling: str) -> None:
    """Protobuf in C++ keeps the low 32 bits of a tag, so to it all of these are `external_data`."""
    with pytest.raises(EngineRuntimeError, match=r"weights in another file|not an ONNX file"):
        refuse_external_data(hidden("secret.bin", SPELLINGS[spelling]))


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "{here}/secret.bin", "link.bin"])
@pytest.mark.parametrize("spelling", ["as it is", "bit 32 set"])
def test_engines_find_no_file_even_without_the_guard(
    name: str, location: str, spelling: str, box: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    (tmp_path / "link.bin").symlink_to("secret.bin")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below" if location.startswith("../") else tmp_path)
    module = importlib.import_module(f"edgemae.device.engines.{name}")
    monkeypatch.setattr(module, "refuse_external_data", lambda _: None)
    graph = hidden(location.format(here=tmp_path), SPELLINGS[spelling])
    gpu = msgspec.structs.replace(box, compute_capability="8.9")
    with pytest.raises(EngineRuntimeError):
        ENGINES[name].load(ENGINES[name].compile({"x.onnx": graph}, gpu), gpu)


def test_fields_are_those_of_onnx() -> None:
    """The table against the library's own: a version with more fields shows here, not on a device."""
    kinds = {1: 1, 2: 5, 3: 0, 4: 0, 5: 0, 9: 2, 11: 2, 12: 2, 14: 0}  # type of a field -> wire type
    for message, fields in FIELDS.items():
        found = getattr(onnx, message).DESCRIPTOR.fields
        assert {field.number: (kinds[field.type], field.is_repeated) for field in found} == {
            number: (wire, repeated) for number, (wire, repeated, _) in fields.items()
        }
        for field in found:
            inner = field.message_type.name if field.message_type is not None else ""
            assert fields[field.number][2] == (inner if inner in FIELDS else ""), (message, field.name)


def test_a_single_field_that_comes_twice_is_refused(block_onnx: Callable[..., bytes]) -> None:
    """Engines merge two graphs into one, or keep the last: the guard would have to do what each of them does."""
    graph = onnx.load_from_string(block_onnx()).graph.SerializeToString()
    with pytest.raises(EngineRuntimeError, match="field 7 of ModelProto comes twice"):
        refuse_external_data(block_onnx() + b"\x3a" + _varint(len(graph)) + graph)


@pytest.mark.parametrize(
    "data",
    [b"\x0b", b"\x3a\xff", b"\x3a" + b"\x80" * 11, b"\x3d\0", b"\x3a", b"\x00\x00", b"\xa0\x01\x00", b"\x08\x80\x00",
     b"\x18\x00", b"\xfa\xff\xff\xff\xff\x01\x00"],
    ids=repr,
)  # fmt: skip
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


def _padded(value: int, length: int) -> bytes:
    """Return a number in more bytes than it needs."""
    return bytes(value >> 7 * i & 127 | 128 for i in range(length - 1)) + b"\0"


def _varint(size: int) -> bytes:
    out = b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return out + bytes([size])
