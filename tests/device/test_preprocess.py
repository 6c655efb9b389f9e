"""The one pixel definition: every way to hand over the same image gives the same tensor, to the last bit."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgemae.data.decode_worker import read_image
from edgemae.device.preprocess import ImageBGR, as_bgr, crop, decode, halve, normalise, preprocess
from edgemae.spec.errors import DataError, InputError
from edgemae.spec.graph import PixelContract

PIXEL = PixelContract(image_px=32)


def image(height: int = 61, width: int = 83) -> ImageBGR:
    """Return an image made of integers only: slopes, a checkerboard and a bright corner."""
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x // 5 + y // 3) % 2 * 200], axis=2)
    frame[: height // 4, : width // 4] = 250
    return frame.astype(np.uint8)


def digest(array: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ golden values

GOLDEN = {
    "default": (PIXEL, "5d783fa0330bafb2"),
    "stretch": (PixelContract(image_px=32, resize="stretch"), "bbde1c4ca28796d1"),
    "grow": (PixelContract(image_px=96), "54eb9f890db72c19"),
    "grow stretch": (PixelContract(image_px=96, resize="stretch"), "187a71c8d94d8524"),
    "linear": (PixelContract(image_px=32, kernel="linear"), "49dca5f4ac8d5223"),
    "crop": (PixelContract(image_px=28, crop_fraction=0.875), "c63b1d34543b039e"),
    "bgr": (PixelContract(image_px=32, color="BGR"), "781dcb8a5d8379f0"),
    "gray": (PixelContract(image_px=32, channels=1, color="GRAY", mean=(0.5,), std=(0.25,)), "3dae5c7edf608055"),
    "halve-linear": (PixelContract(image_px=20, kernel="halve-linear"), "a317c29b13d0c50f"),
    "halve-linear stretch": (PixelContract(image_px=20, kernel="halve-linear", resize="stretch"), "ff4d10be8de4773a"),
    "halve-linear crop": (PixelContract(image_px=20, kernel="halve-linear", crop_fraction=0.875), "ef197b5669231df6"),
    "rotated": (PixelContract(image_px=32, rotation_deg=90), "3a96f5a8207a3a92"),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_images_have_these_bytes(case: str) -> None:
    """Golden bytes. A change here changes what every shipped model sees: bundles in the field would refuse to load."""
    pixel, expected = GOLDEN[case]
    assert digest(crop(image(), pixel)) == expected


TENSORS = {"default": "880cf65b3a1835be", "gray": "5548527bbf0a3c65", "bgr": "59ccd6cdea5a93c9"}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_have_these_bytes(case: str) -> None:
    """Likewise: what a faster way to normalise gives must be what the first one gave, to the last bit."""
    assert digest(preprocess(image(), GOLDEN[case][0])) == TENSORS[case]


@pytest.mark.parametrize("values", [3, 1])
def test_normalising_is_one_multiplication_and_one_subtraction_in_float32(values: int) -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(values, axis=2)
    color, mean, std = ("RGB", PIXEL.mean, PIXEL.std) if values == 3 else ("GRAY", (0.45,), (0.3,))
    pixel = PixelContract(image_px=16, channels=values, color=color, mean=mean, std=std)
    factor = np.float32(1) / (np.float32(255) * np.asarray(std, np.float32))
    expected = every.astype(np.float32) * factor - np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    np.testing.assert_array_equal(normalise(every, pixel)[0], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(normalise(every[:, ::-1], pixel)[0], expected.transpose(2, 0, 1)[:, :, ::-1])


def test_a_graph_of_bytes_is_given_the_image_itself() -> None:
    for pixel in (PIXEL, GOLDEN["bgr"][0], GOLDEN["gray"][0]):
        tensor = preprocess(image(), pixel, "uint8")
        assert (tensor.shape, tensor.dtype) == ((1, 32, 32, pixel.channels), np.uint8)
        assert tensor.flags.c_contiguous
        np.testing.assert_array_equal(tensor[0], crop(image(), pixel))


HALVING = PixelContract(image_px=32, kernel="halve-linear")


@pytest.mark.parametrize(("by_y", "by_x"), [(2, 2), (2, 1), (1, 2)])
def test_halving_is_defined_in_integers(by_y: int, by_x: int) -> None:
    """Four values: (sum + 2) >> 2. Two values: their mean, a half to the even side."""
    frame = np.random.default_rng(0).integers(0, 256, (32 * by_y, 32 * by_x, 3), dtype=np.uint8)
    sums = frame.reshape(32, by_y, 32, by_x, 3).astype(np.int32).sum(axis=(1, 3))
    expected = (sums + 2) >> 2 if by_y * by_x == 4 else np.rint(sums / 2)
    np.testing.assert_array_equal(halve(frame, (32, 32)), expected)


def test_halving_goes_on_while_it_can_and_cuts_odd_edges() -> None:
    frame = image(271, 135)
    assert halve(frame, (32, 32)).shape == (33, 33, 3)  # 271 -> 135 -> 67 -> 33, 135 -> 67 -> 33
    assert halve(frame, (136, 68)).shape == frame.shape
    np.testing.assert_array_equal(halve(frame, (135, 135)), halve(frame[:270], (135, 135)))


def test_halve_linear_crops_first_and_ends_in_one_linear_step() -> None:
    frame = image(150, 260)
    square = frame[:, 55:205]
    steps = cv2.resize(square, (75, 75), interpolation=cv2.INTER_AREA)
    steps = cv2.resize(steps[:74, :74], (37, 37), interpolation=cv2.INTER_AREA)
    steps = cv2.resize(steps, (32, 32), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(crop(frame, HALVING), steps[:, :, ::-1])
    small = image(20, 20)
    np.testing.assert_array_equal(
        crop(small, HALVING), cv2.resize(small, (32, 32), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    )


def test_halve_linear_sees_what_area_sees() -> None:
    """Another kernel of the same image, not another image. A square one: both cut a long side to whole pixels, and
    those of INTER_AREA are pixels of the small image."""
    smooth = cv2.resize(image(), (720, 720), interpolation=cv2.INTER_CUBIC)
    area = crop(smooth, PIXEL).astype(int)
    assert np.abs(crop(smooth, HALVING) - area).mean() < 6


def test_halving_is_the_rounded_mean_of_four_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    blocks = frame.reshape(32, 2, 32, 2, 3).astype(np.int32).sum(axis=(1, 3))
    np.testing.assert_array_equal(crop(frame, PIXEL), ((blocks + 2) >> 2)[:, :, ::-1])


def test_a_frame_of_the_right_size_is_only_normalised() -> None:
    frame = image(32, 32)
    expected = (frame[:, :, ::-1] / 255.0 - np.array(PIXEL.mean)) / np.array(PIXEL.std)
    tensor = preprocess(frame, PIXEL)
    assert (tensor.shape, tensor.dtype, tensor.flags.c_contiguous) == ((1, 3, 32, 32), np.float32, True)
    np.testing.assert_allclose(tensor[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_the_middle_is_cropped() -> None:
    frame = np.zeros((32, 96, 3), np.uint8)
    frame[:, 32:64] = 255
    assert crop(frame, PIXEL).min() == 255
    assert crop(frame.transpose(1, 0, 2).copy(), PIXEL).min() == 255


@pytest.mark.parametrize("kernel", ["area-linear", "halve-linear", "linear", "cubic", "area"])
def test_every_kernel_shrinks_and_grows(kernel: str) -> None:
    for side in (16, 200):
        seen = crop(image(side, side), PixelContract(image_px=32, kernel=kernel))
        assert (seen.shape, seen.dtype) == ((32, 32, 3), np.uint8)
    flat = np.full((77, 45, 3), 93, np.uint8)
    assert set(crop(flat, PixelContract(image_px=32, kernel=kernel)).ravel()) == {93}


@pytest.mark.parametrize("deg", [0, 90, 180, 270])
def test_rotation_is_clockwise(deg: int) -> None:
    turned = np.ascontiguousarray(np.rot90(image(), -deg // 90))
    pixel = msgspec.structs.replace(PIXEL, rotation_deg=deg)
    np.testing.assert_array_equal(preprocess(image(), pixel), preprocess(turned, PIXEL))


# ------------------------------------------------------------------------------------------------ forms of one image


def test_every_form_of_a_colour_image_is_one_tensor() -> None:
    frame = image()
    alpha = np.full((*frame.shape[:2], 1), 7, np.uint8)
    rgb = np.ascontiguousarray(frame[:, :, ::-1])
    forms = {
        "BGR": frame,
        "RGB": rgb,
        "BGRA": np.concatenate([frame, alpha], axis=2),
        "RGBA": np.concatenate([rgb, alpha], axis=2),
    }
    expected = preprocess(frame, PIXEL)
    for color, form in forms.items():
        np.testing.assert_array_equal(preprocess(as_bgr(form, color), PIXEL), expected)
    np.testing.assert_array_equal(as_bgr(forms["RGBA"], "RGB"), frame)  # four channels have alpha, whatever was said
    np.testing.assert_array_equal(as_bgr(forms["BGRA"], "BGR"), frame)
    np.testing.assert_array_equal(as_bgr(frame, "BGRA"), frame)
    np.testing.assert_array_equal(as_bgr(rgb, "RGBA"), frame)
    np.testing.assert_array_equal(as_bgr(frame, "GRAY"), frame)
    wide = np.zeros((61, 83 * 2, 3), np.uint8)
    wide[:, ::2] = frame
    np.testing.assert_array_equal(preprocess(wide[:, ::2], PIXEL), expected)  # not contiguous


def test_every_form_of_a_gray_image_is_one_tensor() -> None:
    gray = image()[:, :, 0].copy()
    expected = preprocess(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), PIXEL)
    for color in ("GRAY", "BGR", "RGB"):
        np.testing.assert_array_equal(preprocess(as_bgr(gray, color), PIXEL), expected)
        np.testing.assert_array_equal(preprocess(as_bgr(gray[:, :, None], color), PIXEL), expected)
    one = PixelContract(image_px=32, channels=1, color="GRAY", mean=(0.0,), std=(1.0,))
    tensor = preprocess(as_bgr(gray), one)
    assert tensor.shape == (1, 1, 32, 32)
    np.testing.assert_array_equal(np.rint(tensor[0, 0] * 255), crop(as_bgr(gray), PIXEL)[:, :, 0])


@pytest.mark.parametrize(
    "image_hw", [(1, 1), (1, 7), (7, 1), (31, 97), (97, 31), (33, 32), (1, 500), (479, 641), (32, 33)]
)
@pytest.mark.parametrize("kernel", ["area-linear", "halve-linear"])
def test_odd_sizes_fit(image_hw: tuple[int, int], kernel: str) -> None:
    frame = image(*image_hw)
    for resize in ("short-side", "stretch"):
        pixel = PixelContract(image_px=32, resize=resize, kernel=kernel)
        tensor = preprocess(frame, pixel)
        assert tensor.shape == (1, 3, 32, 32)
        assert np.isfinite(tensor).all()
        np.testing.assert_array_equal(tensor, preprocess(frame.copy(), pixel))


@pytest.mark.parametrize("resize", ["short-side", "stretch"])
@pytest.mark.parametrize("side", [16, 32, 61])
def test_views_of_any_layout_are_what_they_show(side: int, resize: str) -> None:
    """Mirrored, turned, column-major, broadcast and read-only arrays; 32 px is not resized, so nothing copies it."""
    frame, pixel = image(side, side), PixelContract(image_px=32, resize=resize)
    locked = frame.copy()
    locked.setflags(write=False)
    views = {
        "mirrored": frame[:, ::-1], "upside down": frame[::-1], "channels swapped": frame[:, :, ::-1],
        "turned": frame.transpose(1, 0, 2), "column-major": np.asfortranarray(frame),
        "one plane for all": np.broadcast_to(frame[:, :, :1], frame.shape), "gray": frame[::-1, ::-1, 0],
        "read-only": locked, "part of a larger one": np.pad(frame, ((3, 5), (2, 7), (0, 1)))[3:-5, 2:-7, :3],
    }  # fmt: skip
    for name, view in views.items():
        for color in ("BGR", "RGB"):
            expected = preprocess(as_bgr(np.array(view, order="C"), color), pixel)
            np.testing.assert_array_equal(preprocess(as_bgr(view, color), pixel), expected, err_msg=name)


def test_very_large_frames_fit_and_impossible_shapes_are_named() -> None:
    large = np.full((1024, 16384), 200, np.uint8)
    large[:, :8192] = 40
    image_px = crop(as_bgr(large), PixelContract(image_px=32, resize="stretch"))
    assert set(image_px[:, :16].ravel()) == {40}
    assert set(image_px[:, 16:].ravel()) == {200}
    for image_hw in ((1, 16384), (16384, 1), (2, 40000)):
        with pytest.raises(InputError, match=f"{image_hw[0]} x {image_hw[1]} pixels would have to grow to "):
            preprocess(np.zeros((*image_hw, 3), np.uint8), PixelContract(image_px=224))
    assert preprocess(np.zeros((1, 16384, 3), np.uint8), PIXEL).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("frame", "color", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "BGR", "float32"),
        (np.full((4, 4, 3), np.nan), "BGR", "float64"),
        (np.zeros((4, 4, 3), np.uint16), "BGR", r"uint16(.|\n)*scale it to 0\.\.255"),
        (np.zeros((4, 4, 3), np.int8), "BGR", "int8"),
        (np.zeros((4, 4, 3), bool), "BGR", "bool"),
        (np.zeros((4, 4, 3), object), "BGR", "object"),
        (None, "BGR", r"NoneType(.|\n)*cv2\.imread gives None"),
        (b"", "BGR", "bytes"),
        ([[1, 2]], "BGR", "list"),
        (np.zeros(0, np.uint8), "BGR", r"\(0,\)"),
        (np.zeros((), np.uint8), "BGR", r"\(\)"),
        (np.zeros((4, 4, 2), np.uint8), "BGR", r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "BGR", r"\(0, 4, 3\)"),
        (np.zeros(4, np.uint8), "BGR", r"\(4,\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "BGR", r"\(1, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "YUV", "unknown colour order 'YUV'"),
    ],
)
def test_what_is_no_frame_is_named(frame: object, color: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_bgr(frame, color)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ EXIF


def tiff(orientation: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)


def with_exif(data: bytes, suffix: str, orientation: int, image_hw: tuple[int, int]) -> bytes:
    exif = tiff(orientation)
    if suffix == ".jpg":
        segment = b"Exif\0\0" + exif
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    if suffix == ".png":
        chunk = b"eXIf" + exif
        return data[:33] + struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in (image_hw[1], image_hw[0]))
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x08\0\0\0" + size  # 8: EXIF follows
    body = b"WEBP" + extended + data[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
    return b"RIFF" + struct.pack("<I", len(body)) + body


def upright(frame: ImageBGR, orientation: int) -> ImageBGR:
    """Return what a viewer shows for a stored frame, written with numpy from the table of the EXIF standard."""
    ways = {
        1: lambda f: f,
        2: lambda f: f[:, ::-1],
        3: lambda f: f[::-1, ::-1],
        4: lambda f: f[::-1],
        5: lambda f: f.transpose(1, 0, 2),
        6: lambda f: np.rot90(f, -1),
        7: lambda f: f[::-1, ::-1].transpose(1, 0, 2),
        8: lambda f: np.rot90(f, 1),
    }
    return np.ascontiguousarray(ways[orientation](frame))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    """OpenCV 5.0 applies EXIF orientation to jpg, png and webp alike; an older one that does not fails here."""
    frame = image(40, 56)
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else []  # over 100: lossless
    done, plain = cv2.imencode(suffix, frame, quality)
    assert done
    stored = cv2.imdecode(plain, cv2.IMREAD_COLOR)
    data = with_exif(plain.tobytes(), suffix, orientation, frame.shape[:2])
    (tmp_path / f"x{suffix}").write_bytes(data)
    expected = upright(stored, orientation)
    np.testing.assert_array_equal(read_image(str(tmp_path / f"x{suffix}"), PIXEL), expected)
    ignoring = msgspec.structs.replace(PIXEL, exif="ignore")
    np.testing.assert_array_equal(decode(data, ignoring), stored)
    np.testing.assert_array_equal(preprocess(decode(data, PIXEL), PIXEL), preprocess(expected, PIXEL))  # type: ignore[arg-type]


def test_files_of_other_depths_and_channels_become_bgr(tmp_path: Path) -> None:
    gray = image()[:, :, 0].copy()
    for name, array in {
        "gray.png": gray,
        "alpha.png": np.dstack([gray, gray, gray, 255 - gray]),
        "deep.png": gray.astype(np.uint16) * 257,
        "gray.bmp": gray,
    }.items():
        assert cv2.imwrite(str(tmp_path / name), array)
        np.testing.assert_array_equal(read_image(str(tmp_path / name), PIXEL), np.dstack([gray] * 3), err_msg=name)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    assert decode(b"", PIXEL) is None
    assert decode(b"text, not an image", PIXEL) is None
    (tmp_path / "notes.jpg").write_text("text")
    with pytest.raises(DataError, match=r"notes\.jpg"):
        read_image(str(tmp_path / "notes.jpg"), PIXEL)
