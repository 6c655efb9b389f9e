"""Which files are images, by their suffix, and how large their headers say they are, without a decoder.

The size comes before decoding because 32 KB of PNG may become 1.5 GB of pixels.

PNG 1.2 section 11.2.2 (IHDR), Windows BITMAPINFOHEADER, JPEG (ITU T.81, annex B.2), WebP (RFC 9649, section 2).
"""

from __future__ import annotations

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # of the files that are taken for images, lower case
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the three are tables
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def declared_px(data: bytes) -> int:
    """Return the number of pixels of an encoded image, 0 where its header cannot be read: the decoder decides."""
    if data.startswith(b"\x89PNG"):
        return _product(data[16:20], data[20:24])
    if data.startswith(b"BM"):
        size = 2 if data[14:18] == b"\x0c\0\0\0" else 4
        sides = (int.from_bytes(data[at : at + size], "little", signed=size == 4) for at in (18, 18 + size))
        return abs(next(sides) * next(sides))  # a negative height counts rows from the top
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return 0


def _jpeg(data: bytes) -> int:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            return _product(data[at + 5 : at + 7], data[at + 7 : at + 9])
        if marker == 0xFF:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def _webp(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1) * (int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width * height


def _product(width: bytes, height: bytes) -> int:
    return int.from_bytes(width, "big") * int.from_bytes(height, "big")
