"""What a header says of its image's size is what the decoder makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemae.device.camera.image_header import (
    MAX_SIDE_PX,
    declared_px,
    declared_size,
    is_image,
    read_regular,
    why_refused,
)

SIZES = [(1, 1), (5, 7), (300, 17), (16, 1030)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_of_every_format(suffix: str, size_hw: tuple[int, int]) -> None:
    data = cv2.imencode(suffix, np.zeros((*size_hw, 3), np.uint8))[1].tobytes()
    assert declared_size(data) == size_hw[::-1]
    assert declared_px(data) == size_hw[0] * size_hw[1]
    assert why_refused(data) == ""


@pytest.mark.parametrize(
    ("suffix", "flags"),
    [(".webp", [cv2.IMWRITE_WEBP_QUALITY, 101]), (".webp", [cv2.IMWRITE_WEBP_QUALITY, 50]),
     (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4])],
)  # fmt: skip
def test_of_the_kinds_of_a_format(suffix: str, flags: list[int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 640, 3), np.uint8)
    assert declared_px(cv2.imencode(suffix, noise, flags)[1].tobytes()) == 640 * 31


def test_metadata_may_hold_an_image_of_its_own() -> None:
    whole = cv2.imencode(".jpg", np.zeros((31, 640, 3), np.uint8))[1].tobytes()
    inner = b"Exif\0\0" + cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    assert declared_px(whole[:2] + b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner + whole[2:]) == 640 * 31
    sides = (639).to_bytes(3, "little") + (30).to_bytes(3, "little")
    assert declared_px(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0" + sides) == 640 * 31


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x89PNG", b"BM", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]))
def test_noise_is_no_error(noise: bytes, head: bytes) -> None:
    assert declared_px(head + noise) >= 0


def stated_png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"), (b"GIF89a" + b"\xff" * 40, "no JPEG"), (b"P4 60000 60000\n" + bytes(40), "no JPEG"),
        (b"II*\0" + bytes(40), "no JPEG"), (stated_png(20000, 20000), "20000 x 20000"), (stated_png(0, 5), "damaged"),
        (stated_png(1, MAX_SIDE_PX + 1), f"1 x {MAX_SIDE_PX + 1}"), (stated_png(2**31, 2**31), "2147483648"),
        (b"\xff\xd8\xff\xd9" + bytes(20), "damaged"), (b"BM" + bytes(20), "no JPEG"),
        (b"BM" + bytes(12) + b"\x28" + bytes(20), "damaged"),
    ],
)  # fmt: skip
def test_what_would_take_the_memory_is_named_before_it_is_decoded(data: bytes, why: str) -> None:
    assert why in why_refused(data)


def test_a_file_is_an_image_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((5, 7, 3), np.uint8))[1].tobytes()
    for name, data in {
        "a.jfif": jpeg,
        "b": jpeg,
        "c.dat": jpeg,
        "d.gif": jpeg,
        "e.txt": b"\xff\xd8",
        "f.md": b"# x",
    }.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "g")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_image(path)] == ["a.jfif", "b", "c.dat"]
    with pytest.raises(OSError, match="regular"):
        read_regular(tmp_path / "g")
    assert read_regular(tmp_path / "b") == jpeg
