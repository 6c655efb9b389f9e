"""Find ONNX tensors that live in other files, without the onnx library.

Engines are handed bytes, and would look for external data below the current folder: a bundle that passes every hash
could still name a file of the user there. No bundle of ours has external data, so any is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgemae.spec.errors import EngineRuntimeError

# Message -> {field number: message inside it}, from onnx.proto. Tensors are the leaves that matter.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 40


def refuse_external_data(onnx: bytes) -> None:
    """Raise EngineRuntimeError when a tensor of the model has its data in another file, or when this is no protobuf."""
    try:
        external = _external(memoryview(onnx), "model", 0)
    except (IndexError, ValueError) as error:
        raise EngineRuntimeError(
            f"the graph is not an ONNX file: {error}",
            expected="a serialized ModelProto",
            fix="compile it again",
        ) from error
    if external:
        raise EngineRuntimeError(
            "the ONNX graph keeps weights in another file", expected="all weights inside the graph", fix="do not use it"
        )


def _external(data: memoryview, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    for number, value in _fields(data):
        if message == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        inner = _INSIDE[message].get(number)
        if inner and isinstance(value, memoryview) and _external(value, inner, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one protobuf message; values of fixed width are skipped."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data):
            raise ValueError("a field is longer than the file")
        if wire == 2:
            yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is longer than 10 bytes")
