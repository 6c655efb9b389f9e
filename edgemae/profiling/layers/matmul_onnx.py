"""One large matrix product as an ONNX file, written field by field: a device has no onnx library."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgemae.spec.errors import InternalError

IR_VERSION, OPSET = 10, 20
PRECISIONS = ("fp32", "int8")  # that a product can be written in
_TYPES = {"float32": 1, "uint8": 2, "int8": 3}  # TensorProto.DataType


def product_onnx(size: int, precision: str) -> bytes:
    """Return (size, size) @ constant (size, size) in fp32 or int8, as edgemae's own graphs spell it.

    int8 is Gemm between QuantizeLinear / DequantizeLinear pairs with uint8 activations and 7-bit weights. Field numbers
    are those of onnx.proto. Raises InternalError for another precision.
    """
    if precision not in PRECISIONS:
        raise InternalError(
            f"no product in '{precision}' can be written", expected=" or ".join(PRECISIONS), fix="report this"
        )
    rng = np.random.default_rng(0)
    if precision == "fp32":
        weight = (rng.standard_normal((size, size)) / size**0.5).astype(np.float32)
        return _model([_node("Gemm", ["x", "w"], "y")], {"w": weight}, size)
    constants: dict[str, NDArray[np.generic]] = {
        "w_int8": rng.integers(-63, 64, (size, size)).astype(np.int8),
        "w_scale": np.array(1 / 64, np.float32),
        "w_zero": np.array(0, np.int8),
        "x_scale": np.array(1 / 32, np.float32),
        "x_zero": np.array(128, np.uint8),
    }
    nodes = [
        _node("QuantizeLinear", ["x", "x_scale", "x_zero"], "x_q"),
        _node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], "x_dq"),
        _node("DequantizeLinear", ["w_int8", "w_scale", "w_zero"], "w"),
        _node("Gemm", ["x_dq", "w"], "y"),
    ]
    return _model(nodes, constants, size)


def _model(nodes: list[bytes], constants: dict[str, NDArray[np.generic]], size: int) -> bytes:
    graph = [_block(1, node) for node in nodes]
    graph.append(_block(2, b"product"))
    graph += [_block(5, _tensor(name, value)) for name, value in constants.items()]
    graph += [_block(field, _port(name, (size, size))) for field, name in ((11, "x"), (12, "y"))]
    opset = _number(2, OPSET)
    return _number(1, IR_VERSION) + _block(7, b"".join(graph)) + _block(8, opset)


def _node(kind: str, inputs: Iterable[str], output: str) -> bytes:
    fields = [_block(1, name.encode()) for name in inputs]
    return b"".join([*fields, _block(2, output.encode()), _block(3, output.encode()), _block(4, kind.encode())])


def _tensor(name: str, value: NDArray[np.generic]) -> bytes:
    dims = b"".join(_number(1, size) for size in value.shape)
    return dims + _number(2, _TYPES[value.dtype.name]) + _block(8, name.encode()) + _block(9, value.tobytes())


def _port(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_block(1, _number(1, size)) for size in shape)
    tensor = _number(1, _TYPES["float32"]) + _block(2, dims)
    return _block(1, name.encode()) + _block(2, _block(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
