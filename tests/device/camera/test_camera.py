from __future__ import annotations

import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgemae.device.camera import camera as camera_module
from edgemae.device.camera import reader as reader_module
from edgemae.device.camera import supervisor as supervisor_module
from edgemae.device.camera.camera import Camera, Counters, Frame
from edgemae.device.camera.frame_source import CapturedFrame
from edgemae.device.camera.reader import hung_readers
from edgemae.device.camera.sources import MAX_PX, REFUSED_RUN, kind_of
from edgemae.spec.errors import CameraError, InputError
from edgemae.spec.graph import PixelContract

FRAMES, FPS = 30, 25.0
STEP = 8  # gray levels between two frames: survives both codecs


def write_video(path: Path, codec: str, frames: int = FRAMES) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), FPS, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), i * STEP % 256, np.uint8))
    writer.release()
    return path


def number_of(frame: Frame) -> int:
    return round(float(frame.array_bgr.mean()) / STEP)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.avi", "MJPG")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(("name", "codec"), [("clip.avi", "MJPG"), ("clip.mp4", "mp4v")])
def test_a_file_gives_every_frame_in_order(tmp_path: Path, name: str, codec: str) -> None:
    with Camera(write_video(tmp_path / name, codec)) as camera:
        frames = list(camera)
    assert [number_of(frame) for frame in frames] == list(range(FRAMES))
    assert [frame.seq for frame in frames] == list(range(FRAMES))
    assert camera.policy == "every"
    assert camera.counters == Counters(captured=FRAMES, delivered=FRAMES)
    assert all(frame.array_bgr.shape == (48, 64, 3) and frame.generation == 0 for frame in frames)
    pts = [frame.pts_ms for frame in frames]
    assert pts == sorted(pts)
    assert pts[-1] > pts[0]


def test_every_waits_for_a_slow_consumer(video: Path) -> None:
    with Camera(video) as camera:
        for _ in camera:
            time.sleep(0.005)
    assert camera.counters.delivered == FRAMES
    assert camera.counters.dropped == 0


def test_latest_gives_a_slow_consumer_fresh_frames_and_counts_the_rest(video: Path) -> None:
    with Camera(video, "latest", realtime=True) as camera:
        seen = []
        for frame in camera:
            seen.append((frame.seq, frame.age_ms))
            time.sleep(0.15)  # 6.7 fps behind a source of 25 fps
    counters = camera.counters
    numbers = [seq for seq, _ in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == FRAMES - 1  # the last frame is never dropped
    assert counters.captured == FRAMES == counters.delivered + counters.dropped
    assert counters.delivered == len(seen) < FRAMES / 2
    # A frame waits at most one interval for its successor; a queue would reach 600 ms here.
    ages = sorted(age for _, age in seen[:-2])  # at the end of the file nothing newer comes
    assert ages[len(ages) // 2] < 2 * 1000 / FPS


def test_realtime_keeps_the_frame_rate_of_the_file(video: Path) -> None:
    with Camera(video, realtime=True) as camera:
        stamps = [frame.t_capture_ns for frame in camera]
    assert len(stamps) == FRAMES
    assert (stamps[-1] - stamps[0]) / 1e9 >= (FRAMES - 1) / FPS - 0.05  # never faster; a busy machine may be slower


def test_staleness_withholds_old_frames(video: Path) -> None:
    with Camera(video, "staleness:60ms", realtime=True) as camera:
        time.sleep(0.3)
        ages = []
        for frame in camera:
            ages.append(frame.age_ms)
            time.sleep(0.1)
    # 60 ms is the limit at the hand-over; the rest is the time that this thread took to look at its clock.
    assert ages
    assert sorted(ages)[len(ages) // 2] < 70
    counters = camera.counters
    assert counters.captured == counters.delivered + counters.dropped
    assert counters.stale <= counters.dropped == counters.stale + counters.overwritten


def test_an_old_frame_in_the_slot_is_stale_and_not_delivered(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), np.zeros((8, 8, 3), np.uint8))
    with Camera(tmp_path, "staleness:20ms") as camera:
        time.sleep(0.05)
        assert list(camera) == []
    assert camera.counters == Counters(captured=1, stale=1)


# ---------------------------------------------------------------- images


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


# ---------------------------------------------------------------- broken sources


def text_as_video(folder: Path) -> str:
    (folder / "fake.mp4").write_text("not a video")
    return str(folder / "fake.mp4")


def folder_of_garbage(folder: Path) -> str:
    (folder / "x.jpg").write_text("garbage")
    return str(folder)


def truncated_video(folder: Path) -> str:
    path = write_video(folder / "cut.mp4", "mp4v")
    path.write_bytes(path.read_bytes()[:400])  # the index of an mp4 lies at its end
    return str(path)


def closed_port(folder: Path) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"rtsp://user:secret@127.0.0.1:{probe.getsockname()[1]}/stream"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda folder: str(folder / "absent.mp4"), "does not exist"),
        (lambda folder: "/dev/video97", "does not exist"),
        (lambda folder: 97, "cannot be opened"),
        (lambda folder: "97", "cannot be opened"),
        (lambda folder: str(folder), "holds no images"),
        (lambda folder: "x" * 5000, "does not exist"),
        (lambda folder: "gopher://somewhere", "unknown scheme 'gopher'"),
        (text_as_video, "cannot be opened as a video"),
        (folder_of_garbage, "holds no readable frame"),
        (truncated_video, "cannot be opened as a video"),
        (closed_port, "cannot be opened as a url"),
    ],
)
def test_a_broken_source_is_one_error_in_three_parts(tmp_path: Path, make: object, what: str) -> None:
    threads = threading.active_count()
    with pytest.raises(CameraError, match=what) as caught:
        Camera(make(tmp_path))  # type: ignore[operator]
    assert caught.value.expected
    assert caught.value.fix
    assert caught.value.exit_code == 5
    assert "secret" not in str(caught.value)
    assert threading.active_count() == threads


@pytest.mark.parametrize("policy", ["newest", "staleness", "staleness:200", "staleness:-5ms", "staleness:0ms", ""])
def test_an_unknown_policy_is_refused(video: Path, policy: str) -> None:
    with pytest.raises(InputError, match="unknown frame policy"):
        Camera(video, policy)


@pytest.mark.parametrize("limit_ms", [0, -1, "3", 0.5, None])
def test_a_time_out_that_is_none_is_refused(video: Path, limit_ms: Any) -> None:
    for name in ("open_timeout_ms", "read_timeout_ms"):
        with pytest.raises(InputError, match=f"{name} is {limit_ms!r}"):
            Camera(video, **{name: limit_ms})


def test_every_is_refused_for_a_live_source() -> None:
    with pytest.raises(InputError, match="live source"):
        Camera(0, "every")


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.mkv").touch()
    assert [kind_of(s) for s in (0, "3", "rtsp://a/b", "HTTPS://a", tmp_path, tmp_path / "x.mkv", "/dev/null")] == [
        "camera", "camera", "url", "url", "images", "video", "camera",
    ]  # fmt: skip
    with pytest.raises(CameraError, match="'99999999999999999999' does not exist"):
        kind_of("9" * 20)


# ---------------------------------------------------------------- life cycle


def test_a_hundred_opened_and_closed_leave_nothing_behind(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.avi", "MJPG", frames=10)
    with Camera(video) as camera:  # what OpenCV opens once and keeps
        camera.read()
    threads, before = threading.active_count(), descriptors()
    for i in range(100):
        camera = Camera(video, ("every", "latest")[i % 2], realtime=i % 3 == 0)
        camera.read()
        camera.close()
        camera.close()
    assert threading.active_count() == threads
    assert descriptors() == before
    assert hung_readers() == 0


def test_close_ends_a_waiting_reader_and_a_waiting_consumer(video: Path) -> None:
    camera = Camera(video, realtime=True)
    timer = threading.Timer(0.15, camera.close)
    timer.start()
    seen = list(camera)
    timer.join()
    assert 0 < len(seen) < FRAMES
    assert camera.read() is None
    assert not camera._reader.is_alive()
    assert camera.state == "closed"


class Fake:
    """A source of the tests: gives what `make_frames` yields."""

    fps = 0.0

    def __init__(self, make_frames: Callable[[], Iterator[CapturedFrame]]) -> None:
        self._make_frames = make_frames

    def open(self) -> None:
        self._items = self._make_frames()

    def read(self) -> CapturedFrame | None:
        return next(self._items, None)

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


def gray(level: int = 0) -> CapturedFrame:
    return CapturedFrame(np.full((4, 4, 3), level, np.uint8), time.monotonic_ns(), None, f"x#{level}")


def test_a_source_that_hangs_in_c_is_left_behind_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang() -> Iterator[CapturedFrame]:
        release.wait()
        yield from ()

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(hang))
    threads, start = threading.active_count(), time.monotonic()
    with pytest.raises(CameraError, match=r"no frame came from '5' within 1\.1 s; its driver hangs"):
        Camera(5, open_timeout_ms=100, read_timeout_ms=100)
    assert time.monotonic() - start < 10
    assert hung_readers() == 1
    release.set()
    end = time.monotonic() + 10
    while hung_readers() and time.monotonic() < end:
        time.sleep(0.01)
    assert hung_readers() == 0
    assert threading.active_count() == threads


def test_an_unexpected_exception_in_the_reader_reaches_the_consumer(
    monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    def fail() -> Iterator[CapturedFrame]:
        yield gray()
        yield gray()
        raise ValueError("driver said no to rtsp://a:b@c")

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(fail))
    with Camera(video) as camera:
        assert camera.read() is not None
        assert camera.read() is not None
        for _ in range(2):
            with pytest.raises(CameraError, match=r"ValueError: driver said no to rtsp://\*\*\*@c"):
                camera.read()
        assert camera.state == "failed"
        assert "rtsp://***@c" in camera.last_error
    assert camera.state == "closed"
    assert camera.read() is None


def test_readers_that_hang_are_bounded_then_a_child_process_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    """An open of a FIFO that nobody writes blocks in C: a thread cannot be stopped there, a child process can."""
    monkeypatch.setattr(camera_module, "FILE_TIMEOUT_MS", 200)
    monkeypatch.setattr(supervisor_module, "GRACE_S", 0.3)
    os.mkfifo(tmp_path / "clip.mp4")
    before = descriptors()
    try:
        for count in range(1, reader_module.MAX_HUNG_READERS + 1):
            with pytest.raises(CameraError, match="its driver hangs"):
                Camera(tmp_path / "clip.mp4")
            assert hung_readers() == count
        with pytest.raises(CameraError, match=r"did not answer within 1\.7 s and was killed"):
            Camera(tmp_path / "clip.mp4")
        assert hung_readers() == reader_module.MAX_HUNG_READERS  # no further one
        with Camera(video) as camera:  # other sources work all the same, in a child as well
            assert [number_of(frame) for frame in camera] == list(range(FRAMES))
    finally:
        writers = [os.open(tmp_path / "clip.mp4", os.O_RDWR | os.O_NONBLOCK)]
        end = time.monotonic() + 10
        while hung_readers() and time.monotonic() < end:
            os.close(writers.pop())
            writers.append(os.open(tmp_path / "clip.mp4", os.O_RDWR | os.O_NONBLOCK))
            time.sleep(0.02)
        os.close(writers.pop())
    assert hung_readers() == 0
    assert descriptors() == before


def test_close_is_quick_while_a_reader_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang_later() -> Iterator[CapturedFrame]:
        for i in range(5):
            time.sleep(0.03)
            yield gray(i)
        release.wait()

    monkeypatch.setattr(camera_module, "make_source", lambda *_: Fake(hang_later))
    camera = Camera(0, read_timeout_ms=1000)
    while camera.state != "stalled":
        time.sleep(0.02)
    start = time.monotonic()
    camera.close()
    assert time.monotonic() - start < 1.5
    assert hung_readers() == 1
    release.set()
    assert camera.read() is None
    counters = camera.counters
    assert counters.captured == 5 == counters.delivered + counters.dropped


# ---------------------------------------------------------------- arrays, rotation, patterns


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
    with pytest.raises(CameraError, match=rf"holds no readable frame \(array#0: .*{why}"):
        Camera([item])
    with Camera([item, np.zeros((4, 4, 3), np.uint8)]) as camera:
        assert [frame.seq for frame in camera] == [1]
    assert camera.counters == Counters(captured=1, delivered=1, corrupt=1)
    assert "array#0" in caplog.text


def test_a_source_without_end_that_gives_no_image_is_given_up() -> None:
    def wrong() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros((4, 4, 3), np.float32)

    with pytest.raises(InputError, match=rf"{REFUSED_RUN} arrays in a row are no images; .*float32"):
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
    assert camera.last_error.endswith("a.png: it has 256 Mpx, at most 128 are taken")


def test_a_name_that_is_no_utf8_can_be_told(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(path)).write_bytes(cv2.imencode(".png", np.zeros((5, 7, 3), np.uint8))[1].tobytes())
    with Camera(Path(os.fsdecode(path))) as camera:
        (frame,) = list(camera)
    assert frame.name.encode().endswith(b"/caf?.png")
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


@pytest.mark.parametrize(("rotation", "corner"), [(0, 1), (90, 3), (180, 4), (270, 2)])
def test_rotation_is_applied_and_told(rotation: int, corner: int) -> None:
    image = np.repeat(np.array([[1, 2], [3, 4]], np.uint8)[..., None], 3, axis=2)
    with Camera([image], rotation=rotation) as camera:
        (frame,) = camera
    assert frame.array_bgr[0, 0, 0] == corner
    assert (frame.rotation, frame.color) == (rotation, "BGR")


def test_an_odd_rotation_is_refused(video: Path) -> None:
    with pytest.raises(InputError, match="45 degrees"):
        Camera(video, rotation=45)


def test_a_pattern_gives_its_images_in_order(tmp_path: Path) -> None:
    for i in (2, 0, 1):
        cv2.imwrite(str(tmp_path / f"shot{i}.png"), np.full((4, 4, 3), i, np.uint8))
    (tmp_path / "shot.txt").touch()
    with Camera(str(tmp_path / "shot*")) as camera:
        assert [int(frame.array_bgr[0, 0, 0]) for frame in camera] == [0, 1, 2]
    with pytest.raises(CameraError, match=r"pattern '.*' holds no images"):
        Camera(str(tmp_path / "none*.jpg"))


# ---------------------------------------------------------------- damaged files


def test_a_damaged_frame_in_the_middle_does_not_end_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One read that fails is not the end: this one lost 26 of 30 frames without a word."""
    path = write_video(tmp_path / "clip.avi", "MJPG")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xd8", len(data) // 2)
    data[frame : frame + 200] = bytes(200)
    path.write_bytes(data)
    with Camera(path) as camera:
        numbers = [number_of(frame) for frame in camera]
    counters = camera.counters
    assert numbers[-1] == FRAMES - 1
    assert FRAMES - 3 <= len(numbers) < FRAMES
    assert counters.corrupt >= 1 or "could be read" in caplog.text
    assert counters.captured == counters.delivered == len(numbers)
