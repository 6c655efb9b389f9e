from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from edgemae.device.camera.camera import Camera, Counters
from edgemae.device.camera.reader import hung_readers
from edgemae.spec.errors import CameraError, InputError
from tests.support.gray_video import FPS, FRAMES, descriptors, number_of, write_video

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


def test_realtime_keeps_the_frame_rate_of_the_file(video: Path) -> None:
    with Camera(video, realtime=True) as camera:
        stamps = [frame.t_capture_ns for frame in camera]
    assert len(stamps) == FRAMES
    assert (stamps[-1] - stamps[0]) / 1e9 >= (FRAMES - 1) / FPS - 0.05  # never faster; a busy machine may be slower


# ---------------------------------------------------------------- sources that cannot be read


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
        (lambda folder: str(folder / "absent.mp4"), r"absent\.mp4"),
        (lambda folder: "/dev/video97", "'/dev/video97'"),
        (lambda folder: 97, "'97'"),
        (lambda folder: "97", "'97'"),
        (lambda folder: str(folder), "folder '/.*'"),
        (lambda folder: "x" * 5000, "'x{5000}'"),
        (lambda folder: "gopher://somewhere", "'gopher'"),
        (text_as_video, r"fake\.mp4"),
        (folder_of_garbage, r"x\.jpg"),
        (truncated_video, r"cut\.mp4"),
        (closed_port, r"rtsp://\*\*\*@127\.0\.0\.1:\d+/stream"),
    ],
)
def test_an_unreadable_source_is_one_error_in_three_parts(tmp_path: Path, make: object, what: str) -> None:
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
    with pytest.raises(InputError, match=re.escape(f"'{policy}'")):
        Camera(video, policy)


@pytest.mark.parametrize("limit_ms", [0, -1, "3", 0.5, None])
def test_a_time_out_that_is_none_is_refused(video: Path, limit_ms: Any) -> None:
    for name in ("open_timeout_ms", "read_timeout_ms"):
        with pytest.raises(InputError, match=f"{name} is {limit_ms!r}"):
            Camera(video, **{name: limit_ms})


def test_every_is_refused_for_a_live_source() -> None:
    with pytest.raises(InputError, match="'every'"):
        Camera(0, "every")


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


# ---------------------------------------------------------------- arrays, rotation, patterns


def test_an_odd_rotation_is_refused(video: Path) -> None:
    with pytest.raises(InputError, match="45"):
        Camera(video, rotation=45)


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
