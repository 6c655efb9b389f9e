"""Keep graphs from reading other files: ONNX tensors may name one, and engines then open it.

A bundle that passes every hash could still name a file of the user. No bundle of ours has external data, so any is
refused, without the onnx library, by a parser that is stricter than those of the engines: what one of them might read
in another way (a tag of more than 32 bits, a number with more bytes than it needs, an unknown field, a single field
twice) is no graph here. Beyond that the ground is taken away: engines that resolve paths get an empty private folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemae.spec.errors import EngineRuntimeError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
_SIZES = {FIXED64: 8, FIXED32: 4}
_MAX_DEPTH = 40
_TAG_BITS = 32
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_GRAPH, _NODE, _OP_TYPE = 7, 1, 4

# Message -> {field number: (wire type, repeated, message inside)}, from onnx.proto of ONNX 1.22. Messages that can hold
# no tensor are not entered.
_Field = tuple[int, bool, str]


def _one(wire: int, *numbers: int) -> dict[int, _Field]:
    return dict.fromkeys(numbers, (wire, False, ""))


def _many(wire: int, *numbers: int) -> dict[int, _Field]:
    return dict.fromkeys(numbers, (wire, True, ""))


FIELDS: dict[str, dict[int, _Field]] = {
    "ModelProto": {
        **_one(VARINT, 1, 5), **_one(BYTES, 2, 3, 4, 6), **_many(BYTES, 8, 14, 26), 7: (BYTES, False, "GraphProto"),
        20: (BYTES, True, "TrainingInfoProto"), 25: (BYTES, True, "FunctionProto"),
    },
    "GraphProto": {
        **_one(BYTES, 2, 10), **_many(BYTES, 11, 12, 13, 14, 16), 1: (BYTES, True, "NodeProto"),
        5: (BYTES, True, "TensorProto"), 15: (BYTES, True, "SparseTensorProto"),
    },
    "NodeProto": {**_one(BYTES, 3, 4, 6, 7, 8), **_many(BYTES, 1, 2, 9, 10), 5: (BYTES, True, "AttributeProto")},
    "AttributeProto": {
        **_one(BYTES, 1, 4, 13, 14, 21), **_one(VARINT, 3, 20), **_one(FIXED32, 2), **_many(FIXED32, 7),
        **_many(VARINT, 8), **_many(BYTES, 9, 15), 5: (BYTES, False, "TensorProto"), 6: (BYTES, False, "GraphProto"),
        10: (BYTES, True, "TensorProto"), 11: (BYTES, True, "GraphProto"), 22: (BYTES, False, "SparseTensorProto"),
        23: (BYTES, True, "SparseTensorProto"),
    },
    "TensorProto": {
        **_many(VARINT, 1, 5, 7, 11), **_one(VARINT, 2, 14), **_one(BYTES, 3, 8, 9, 12), **_many(FIXED32, 4),
        **_many(BYTES, 6, 13, 16), **_many(FIXED64, 10),
    },
    "SparseTensorProto": {1: (BYTES, False, "TensorProto"), 2: (BYTES, False, "TensorProto"), **_many(VARINT, 3)},
    "FunctionProto": {
        **_one(BYTES, 1, 8, 10, 13), **_many(BYTES, 4, 5, 6, 9, 12, 14), 7: (BYTES, True, "NodeProto"),
        11: (BYTES, True, "AttributeProto"),
    },
    "TrainingInfoProto": {
        1: (BYTES, False, "GraphProto"), 2: (BYTES, False, "GraphProto"), **_many(BYTES, 3, 4),
    },
}  # fmt: skip


def refuse_external_data(onnx: bytes) -> None:
    """Raise EngineRuntimeError when a tensor of the model has its data in another file, or when this is no ONNX."""
    try:
        external = _external(memoryview(onnx), "ModelProto", 0)
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


def operators_of(onnx: bytes) -> set[str]:
    """Return the types of the operators in a model's graph. Raises ValueError or IndexError for what is no ONNX."""
    found: set[str] = set()
    for number, _, graph in _values(memoryview(onnx)):
        if number == _GRAPH and isinstance(graph, memoryview):
            nodes = (node for field, _, node in _values(graph) if field == _NODE and isinstance(node, memoryview))
            found |= {
                bytes(kind).decode("utf-8", "replace") for node in nodes for field, _, kind in _values(node)
                if field == _OP_TYPE and isinstance(kind, memoryview)
            }  # fmt: skip
    return found


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make an empty folder that only this user may enter, where paths of a graph lead nowhere; remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgemae-graph-") as folder:
        yield Path(folder)


def _external(data: memoryview, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    fields, seen = FIELDS[message], set[int]()
    for number, wire, value in _values(data):
        if number not in fields:
            raise ValueError(f"{message} has no field {number}")
        known, repeated, inner = fields[number]
        if wire != known and not (repeated and wire == BYTES):  # numbers may be packed
            raise ValueError(f"field {number} of {message} has wire type {wire}")
        if number in seen and not repeated:
            raise ValueError(f"field {number} of {message} comes twice")
        seen.add(number)
        if message == "TensorProto" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        if inner and isinstance(value, memoryview) and _external(value, inner, depth + 1):
            return True
    return False


def _values(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) of one protobuf message; values of fixed width are skipped."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if tag >> _TAG_BITS or not number:
            raise ValueError(f"a tag is {tag}")
        value: int | memoryview = 0
        if wire == VARINT:
            value, at = _varint(data, at)
        elif wire == BYTES or wire in _SIZES:
            size, at = _varint(data, at) if wire == BYTES else (_SIZES[wire], at)
            if at + size > len(data):
                raise ValueError("a field is longer than the file")
            value = data[at : at + size] if wire == BYTES else 0
            at += size
        else:
            raise ValueError(f"wire type {wire}")
        yield number, wire, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number and where it ends. Raises ValueError for one of over 64 bits or with bytes that it needs not."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64 or (byte == 0 and shift):
                raise ValueError("a number has more bytes than it needs")
            return value, at
    raise ValueError("a number is longer than 10 bytes")
