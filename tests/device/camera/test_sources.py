"""Which source is which, and what images and arrays give."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgemae.device.camera.camera import Camera, Counters
from edgemae.device.camera.reader import hung_readers
from edgemae.device.camera.sources import MAX_PX, REFUSED_RUN, kind_of
from edgemae.spec.errors import CameraError, InputError
from edgemae.spec.graph import PixelContract


def test_a_folder_is_read_in_order_and_corrupt_files_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "sub/d.bmp", "sub/e.webp")):
        cv2.imwrite(str(tmp_path / name), np.full((20, 30, 3), i * 40, np.uint8))
    (tmp_path / "c.jpg").write_text("this is no image")
    (tmp_path / "f.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("ignored")
    with Camera(tmp_path) as camera:
        frames = list(camera)
    assert [Path(frame.name).name for frame in frames] == ["a.png", "b.jpg", "d.bmp", "e.webp"]
    assert camera.counters == Counters(captured=4, delivered=4, corrupt=2)
    assert [Path(name).name for name in camera.corrupt_names] == ["c.jpg", "f.png"]
    assert "c.jpg" in caplog.text
    assert [frame.seq for frame in frames] == [0, 1, 4, 5]  # corrupt frames leave gaps


def test_a_single_image_is_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "one.PNG"
    assert cv2.imwrite(str(path), np.full((5, 7, 3), 9, np.uint8))
    with Camera(str(path)) as camera:
        (frame,) = camera
    assert frame.array_bgr.shape == (5, 7, 3)
    assert frame.age_ms >= 0


def exif_jpeg(orientation: int) -> bytes:
    """Return a 40 x 20 JPEG with an EXIF orientation."""
    done, data = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))
    assert done
    tiff = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00" + bytes([orientation]) + b"\0" * 6
    body = b"Exif\x00\x00" + tiff
    return b"\xff\xd8\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data.tobytes()[2:]


@pytest.mark.parametrize(("exif", "shape"), [("apply", (40, 20, 3)), ("ignore", (20, 40, 3))])
def test_exif_follows_the_pixel_contract(tmp_path: Path, exif: str, shape: tuple[int, ...]) -> None:
    (tmp_path / "turned.jpg").write_bytes(exif_jpeg(6))
    with Camera(tmp_path, pixel=PixelContract(image_px=8, exif=exif)) as camera:
        assert [frame.array_bgr.shape for frame in camera] == [shape]


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.mkv").touch()
    assert [kind_of(s) for s in (0, "3", "rtsp://a/b", "HTTPS://a", tmp_path, tmp_path / "x.mkv", "/dev/null")] == [
        "camera", "camera", "url", "url", "images", "video", "camera",
    ]  # fmt: skip
    with pytest.raises(CameraError, match="'99999999999999999999'"):
        kind_of("9" * 20)


def test_a_folder_or_file_named_by_digits_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "a.png").write_bytes(cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    (tmp_path / "7").touch()
    assert [kind_of(s) for s in ("2024", Path("2024"), "./2024", 2024, "2025", "7", 7)] == [
        "images", "images", "images", "camera", "camera", "video", "camera",
    ]  # fmt: skip
    with Camera("2024") as camera:
        assert [frame.array_bgr.shape for frame in camera] == [(4, 4, 3)]
    there = os.path.exists
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/video2024" or there(path))
    with pytest.raises(InputError, match="'2024' is a camera"):
        kind_of("2024")
    assert kind_of("./2024") == "images"


def test_arrays_of_the_program_are_frames_of_their_own() -> None:
    own = np.full((5, 6, 3), 7, np.uint8)
    wide = np.arange(2 * 5 * 6 * 3, dtype=np.uint8).reshape(5, 12, 3)
    given = [own, np.full((5, 6), 9, np.uint8), np.full((5, 6, 4), 11, np.uint8), wide[:, ::2], own[:1, :1]]
    with Camera(given) as camera:
        frames = list(camera)
    assert camera.kind == "arrays"
    assert not camera.live
    assert [frame.array_bgr.shape for frame in frames] == [(5, 6, 3)] * 4 + [(1, 1, 3)]
    assert [int(frame.array_bgr[0, 0, 0]) for frame in frames[:3]] == [7, 9, 11]
    assert np.array_equal(frames[3].array_bgr, wide[:, ::2])
    assert not any(np.shares_memory(frame.array_bgr, item) for frame, item in zip(frames, given, strict=True))
    assert camera.counters == Counters(captured=5, delivered=5)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.full((4, 4, 3), np.nan), "float64"),
        (np.zeros((4, 4, 3), np.int8), "int8"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.broadcast_to(np.uint8(0), (16384, 16384, 3)), r"shape \(16384, 16384, 3\)"),
        (b"", "bytes"),
        (None, "NoneType"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_what_is_no_image_is_counted_and_named_never_guessed(
    item: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CameraError, match=rf"array#0: .*{why}"):
        Camera([item])
    with Camera([item, np.zeros((4, 4, 3), np.uint8)]) as camera:
        assert [frame.seq for frame in camera] == [1]
    assert camera.counters == Counters(captured=1, delivered=1, corrupt=1)
    assert "array#0" in caplog.text


def test_a_source_without_end_that_gives_no_image_is_given_up() -> None:
    def wrong() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros((4, 4, 3), np.float32)

    with pytest.raises(InputError, match=rf"{REFUSED_RUN} .*float32"):
        Camera(wrong())

    def late() -> Iterator[np.ndarray]:
        for i in range(2 * REFUSED_RUN):
            yield np.zeros((4, 4, 3), np.uint8 if i % REFUSED_RUN == 0 else np.float32)

    with Camera(late()) as camera:
        assert len(list(camera)) == 2
    assert camera.counters.corrupt == 2 * (REFUSED_RUN - 1)


def test_an_image_that_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    """Its header says how large it is: 32 KB of PNG may be 1.5 GB of pixels."""
    whole = cv2.imencode(".png", np.zeros((5, 7, 3), np.uint8))[1].tobytes()
    head = whole[12:16] + (16384).to_bytes(4, "big") * 2 + whole[24:29]
    (tmp_path / "a.png").write_bytes(whole[:12] + head + zlib.crc32(head).to_bytes(4, "big") + whole[33:])
    (tmp_path / "b.png").write_bytes(whole)
    with Camera(tmp_path) as camera:
        assert [frame.array_bgr.shape for frame in camera] == [(5, 7, 3)]
    assert camera.counters.corrupt == 1
    assert camera.last_error.endswith("a.png: it has 16384 x 16384 px, at most 128 Mpx and 65536 px a side are taken")


def test_a_name_that_is_no_utf8_can_be_told(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(path)).write_bytes(cv2.imencode(".png", np.zeros((5, 7, 3), np.uint8))[1].tobytes())
    with Camera(Path(os.fsdecode(path))) as camera:
        (frame,) = list(camera)
    assert frame.name.encode().endswith(rb"/caf\xe9.png")
    assert camera.source == frame.name


@pytest.mark.parametrize(
    "source", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8), b"x", {}, 1.5, None, True]
)
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match="was given as a frame source"):
        Camera(source)


def test_a_stack_and_a_generator_are_sources_and_a_failing_one_is_an_error() -> None:
    with Camera(np.zeros((3, 4, 4, 3), np.uint8)) as camera:
        assert len(list(camera)) == 3
    closed = []

    def numbers() -> Iterator[np.ndarray]:
        try:
            for i in range(10):
                yield np.full((2, 2, 3), i, np.uint8)
        finally:
            closed.append(True)

    with Camera(numbers()) as camera:
        assert camera.read() is not None
    assert closed == [True]
    waits = threading.Event()

    def slow() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        waits.wait(20)

    with Camera(slow()) as camera:
        assert camera.read() is not None
    assert hung_readers() == 0  # the program takes its time; no driver hangs
    waits.set()

    def failing() -> Iterator[np.ndarray]:
        yield np.zeros((2, 2, 3), np.uint8)
        raise RuntimeError("no more film")

    with Camera(failing()) as camera, pytest.raises(CameraError, match="RuntimeError: no more film"):
        list(camera)
    assert MAX_PX < 16384 * 16384


def test_a_pattern_gives_its_images_in_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"shot{i}.png"), np.full((4, 4, 3), i, np.uint8))
    (tmp_path / "shot.txt").touch()
    with Camera(str(tmp_path / "shot*")) as camera:
        assert [int(frame.array_bgr[0, 0, 0]) for frame in camera] == [0, 1, 2]
    with pytest.raises(CameraError, match=r"none\*\.jpg"):
        Camera(str(tmp_path / "none*.jpg"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.m3u8", "#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), ("a.mp4", "#EXTM3U\n/etc/passwd"),
     ("a.ffconcat", "ffconcat version 1.0\nfile '/etc/passwd'\n"), ("a.sdp", "v=0\nm=video 0 RTP/AVP 96\n"),
     ("a.mpd", "\ufeff<?xml version='1.0'?><MPD/>"), ("a.pls", "[playlist]\nFile1=/etc/passwd\n")],
)  # fmt: skip
def test_a_file_that_names_others_is_no_video(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="playlist"):
        kind_of(tmp_path / name)
