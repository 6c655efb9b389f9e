"""What an image file is, for training, evaluation and cameras alike: which files, in which formats, how large.

The header decides, not the ending: OpenCV decodes by content, and a GIF or a PBM of 50 bytes named .png takes 6 GB. So
only the four formats whose size is read here are decoded, and none that is too large: 49 KB of PNG may hold 400 Mpx.

PNG 1.2 section 11.2.2 (IHDR), Windows BITMAPINFOHEADER, JPEG (ITU T.81, annex B.2), WebP (RFC 9649, section 2).
"""

from __future__ import annotations

import os
from pathlib import Path

from edgemae.spec.regular_file import read_regular

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")  # of images, lower case
# Images of other formats: they are named where they are left out. OpenCV reads some of them, on some systems.
OTHER_SUFFIXES = (
    ".gif", ".avif", ".heic", ".heif", ".tif", ".tiff", ".jp2", ".jxl", ".pbm", ".pgm", ".ppm", ".pnm", ".exr", ".hdr",
    ".dng", ".cr2", ".nef", ".arw", ".tga", ".ico", ".svg", ".psd",
)  # fmt: skip
FORMATS = "JPEG, PNG, WebP or BMP"
MAX_PX = 2**27  # of an image: 400 MB as BGR
MAX_SIDE_PX = 2**16  # a strip of 1 x 1,000,000 px makes OpenCV fail, or grows to gigabytes in a resize
SNIFFED = 18  # bytes that tell the format
MAX_FILE_BYTES = 512 << 20  # of an image file
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the three are tables
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def is_image(path: str | Path) -> bool:
    """Tell whether a file is taken for an image: by its ending, or by its first bytes where the ending is unknown."""
    ending = os.path.splitext(path)[1].lower()
    if ending in IMAGE_SUFFIXES or ending in OTHER_SUFFIXES:
        return ending in IMAGE_SUFFIXES
    try:
        return _format(read_regular(path, SNIFFED)) != ""
    except OSError:
        return False


def why_refused(data: bytes) -> str:
    """Return why an encoded image is not decoded; "" for one that is."""
    if not data:
        return "empty file"
    if len(data) > MAX_FILE_BYTES:
        return f"it has more than {MAX_FILE_BYTES >> 20} MiB"
    if not _format(data):
        return f"it is no {FORMATS}"
    width, height = declared_size(data)
    if width < 1 or height < 1:
        return "its header is damaged"
    if width * height > MAX_PX or max(width, height) > MAX_SIDE_PX:
        return f"it has {width} x {height} px, at most {MAX_PX >> 20} Mpx and {MAX_SIDE_PX} px a side are taken"
    return ""


def declared_px(data: bytes) -> int:
    """Return the number of pixels that the header of an encoded image states, 0 where it cannot be read."""
    width, height = declared_size(data)
    return width * height


def declared_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) as the header of an encoded image states them, (0, 0) where it cannot be read."""
    return _READERS[kind](data) if (kind := _format(data)) else (0, 0)


def _format(data: bytes) -> str:
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith(b"BM"):  # as any text may: the size of the second header tells
        return "bmp" if int.from_bytes(data[14:18], "little") in _BMP_HEADERS else ""
    return next((kind for kind, magic in _MAGIC.items() if data.startswith(magic)), "")


def _png(data: bytes) -> tuple[int, int]:
    return _sides(data[16:20], data[20:24])


def _bmp(data: bytes) -> tuple[int, int]:
    size = 2 if data[14:18] == b"\x0c\0\0\0" else 4
    width, height = (int.from_bytes(data[at : at + size], "little", signed=size == 4) for at in (18, 18 + size))
    return abs(width), abs(height)  # a negative height counts rows from the top


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            return _sides(data[at + 7 : at + 9], data[at + 5 : at + 7])
        if marker == 0xFF:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _sides(width: bytes, height: bytes) -> tuple[int, int]:
    return int.from_bytes(width, "big"), int.from_bytes(height, "big")


_MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff"}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # bytes, of the versions of the format
_READERS = {"png": _png, "jpeg": _jpeg, "bmp": _bmp, "webp": _webp}
