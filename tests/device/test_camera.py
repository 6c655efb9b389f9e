from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device import camera as camera_module
from edgemae.device.camera import Camera, Counters, Frame
from edgemae.device.sources import Grab, kind_of, redact
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
    assert counters.stale <= counters.dropped


def test_an_old_frame_in_the_slot_is_stale_and_not_delivered(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "only.png"), np.zeros((8, 8, 3), np.uint8))
    with Camera(tmp_path, "staleness:20ms") as camera:
        time.sleep(0.05)
        assert list(camera) == []
    assert camera.counters == Counters(captured=1, dropped=1, stale=1)


# ---------------------------------------------------------------- images


def test_a_folder_is_read_in_order_and_corrupt_files_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "sub/d.bmp", "sub/e.webp")):
        cv2.imwrite(str(tmp_path / name), np.full((20, 30, 3), i * 40, np.uint8))
    (tmp_path / "c.jpg").write_text("this is no picture")
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


def test_every_is_refused_for_a_live_source() -> None:
    with pytest.raises(InputError, match="live source"):
        Camera(0, "every")


def test_kinds_and_redaction(tmp_path: Path) -> None:
    (tmp_path / "x.mkv").touch()
    assert [kind_of(s) for s in (0, "3", "rtsp://a/b", "HTTPS://a", tmp_path, tmp_path / "x.mkv", "/dev/null")] == [
        "camera", "camera", "url", "url", "images", "video", "camera",
    ]  # fmt: skip
    assert redact("rtsp://me:p@ss/w@host:1/x") == "rtsp://***@host:1/x"
    assert redact("/data/a@b.mp4") == "/data/a@b.mp4"


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
    assert Camera.abandoned == 0


def test_close_ends_a_waiting_reader_and_a_waiting_consumer(video: Path) -> None:
    camera = Camera(video, realtime=True)
    timer = threading.Timer(0.15, camera.close)
    timer.start()
    seen = list(camera)
    timer.join()
    assert 0 < len(seen) < FRAMES
    assert camera.read() is None
    assert not camera._reader.is_alive()


def test_a_source_that_hangs_in_c_is_left_behind(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    release = threading.Event()

    class Hanging:
        def read(self) -> Grab | None:
            release.wait()
            return None

        def close(self) -> None:
            pass

    monkeypatch.setattr(camera_module, "open_source", lambda *_: Hanging())
    monkeypatch.setattr(camera_module, "kind_of", lambda _: "camera")
    monkeypatch.setattr(Camera, "abandoned", 0)
    monkeypatch.setattr(camera_module, "CLOSE_TIMEOUT_S", 0.1)
    reader_count = threading.active_count()
    with pytest.raises(CameraError, match=r"no frame came from '5' within 0\.2 s"):
        Camera(5, open_timeout_ms=200)
    assert Camera.abandoned == 1
    release.set()
    end = time.monotonic() + 5
    while threading.active_count() > reader_count and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == reader_count


def test_an_unexpected_exception_in_the_reader_reaches_the_consumer(
    monkeypatch: pytest.MonkeyPatch, video: Path
) -> None:
    class Failing:
        turn = 0

        def read(self) -> Grab:
            self.turn += 1
            if self.turn == 3:
                raise ValueError("driver said no to rtsp://a:b@c")
            return Grab(np.zeros((4, 4, 3), np.uint8), time.monotonic_ns(), None, "x")

        def close(self) -> None:
            pass

    monkeypatch.setattr(camera_module, "open_source", lambda *_: Failing())
    with Camera(video) as camera:
        assert camera.read() is not None
        assert camera.read() is not None
        with pytest.raises(CameraError, match=r"ValueError: driver said no to rtsp://\*\*\*@c"):
            camera.read()


# ---------------------------------------------------------------- a live source over HTTP


class Mjpeg(BaseHTTPRequestHandler):
    """Send `count` JPEG frames at 25 fps, then end (`then` = "end") or fall silent until the server closes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for i in range(self.server.count):  # type: ignore[attr-defined]
                data = cv2.imencode(".jpg", np.full((48, 64, 3), i % 256, np.uint8))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(1 / FPS)
            if self.server.then == "silence":  # type: ignore[attr-defined]
                self.server.over.wait(10)  # type: ignore[attr-defined]
        except OSError:  # the client has gone
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mjpeg() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mjpeg)
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/camera.mjpg"


def test_a_network_stream_is_live_and_its_end_is_an_error(mjpeg: ThreadingHTTPServer) -> None:
    mjpeg.count, mjpeg.then = 40, "end"  # type: ignore[attr-defined]
    ages, seqs = [], []
    with Camera(address(mjpeg), open_timeout_ms=10_000) as camera:
        assert camera.live
        assert camera.policy == "latest"

        def consume() -> None:
            for frame in camera:
                ages.append(frame.age_ms)
                seqs.append(frame.seq)
                time.sleep(0.1)

        with pytest.raises(CameraError, match="stopped delivering"):
            consume()
    assert seqs == sorted(set(seqs))
    assert camera.counters.dropped > 0
    assert sorted(ages)[len(ages) // 2] < 2 * 1000 / FPS


def test_a_stream_that_falls_silent_is_an_error_and_closes_in_time(mjpeg: ThreadingHTTPServer) -> None:
    mjpeg.count, mjpeg.then = 40, "silence"  # type: ignore[attr-defined]
    camera = Camera(address(mjpeg), open_timeout_ms=10_000, read_timeout_ms=300)
    with pytest.raises(CameraError, match=r"stopped delivering|no frame came"):
        list(camera)
    start = time.monotonic()
    camera.close()
    assert time.monotonic() - start < 1.5
    assert camera.counters.delivered > 0


def test_a_server_that_accepts_and_says_nothing_meets_the_open_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(CameraError, match=r"no frame came|cannot be opened"):
            Camera(f"http://127.0.0.1:{silent.getsockname()[1]}/x.mjpg", open_timeout_ms=400, read_timeout_ms=400)
        assert time.monotonic() - start < 10  # OpenCV's own time-out is 30 s
