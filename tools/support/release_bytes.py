"""Bytes that nobody writes by accident: protobuf, PNG and NumPy files that state what is not so."""

from __future__ import annotations

import struct
import zlib


def varint(value: int, length: int = 0) -> bytes:
    """Return a protobuf number, padded to `length` bytes where it would be shorter."""
    found = bytearray()
    while value > 0x7F or len(found) + 1 < length:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(found) + bytes([value])


def field(number: int, data: bytes, tag: bytes = b"") -> bytes:
    """Return a protobuf field that holds bytes."""
    return (tag or varint(number << 3 | 2)) + varint(len(data)) + data


def png(width: int, height: int, color: int = 0, depth: int = 8, rows: int = 0) -> bytes:
    """Return a PNG that states this size and holds that many rows of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = depth * {0: 1, 2: 3, 6: 4}[color]
    packed = zlib.compress((b"\0" + bytes(-(-width * bits // 8))) * rows)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def npy(shape: str, descr: str = "<f4", data: bytes = b"") -> bytes:
    """Return a .npy whose header states a shape and a type."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data
