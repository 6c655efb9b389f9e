"""What a header says of its image's size is what the decoder makes of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemae.device.camera.image_header import declared_px

SIZES = [(1, 1), (5, 7), (300, 17), (16, 1030)]


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_of_every_format(suffix: str, size_hw: tuple[int, int]) -> None:
    data = cv2.imencode(suffix, np.zeros((*size_hw, 3), np.uint8))[1].tobytes()
    assert declared_px(data) == size_hw[0] * size_hw[1]


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
