"""Why a source does not open: each reason is told, with what to do about it, and no password is."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device.camera.frame_source import silence_error
from edgemae.doctor import cameras, source
from edgemae.doctor.finding import Finding
from edgemae.doctor.source import examine_source
from edgemae.spec.errors import CameraError
from tests.doctor.test_cameras import METADATA, answers, webcam
from tests.doctor.test_machine import put

__all__ = ["answers"]
CSI = "nvarguscamerasrc sensor-id=0 ! nvvidconv ! appsink"


def red(found: Finding, message: str, fix: str) -> None:
    assert found.state == "red"
    assert message in found.found
    assert fix in found.fix


def never(text: str) -> object:
    raise AssertionError(f"{text} was opened")


# ---------------------------------------------------------------- files


def test_files_that_are_no_video(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("<!DOCTYPE html>\n<html>not found</html>")
    (tmp_path / "long.mp4").write_bytes(b"x" * 4095 + "é".encode() * 9)
    (tmp_path / "lfs.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (tmp_path / "empty.mp4").touch()
    for name, message, fix in [
        ("clip.mp4", "is text, not a video: it begins with '<!DOCTYPE html>'", "a failed download"),
        ("long.mp4", "is text", "the video itself"),
        ("lfs.mp4", "Git LFS", "git lfs pull"),
        ("empty.mp4", "is an empty file", "again"),
        ("clap.mp4", "does not exist. Did you mean 'clip.mp4'?", "correct the path"),
        ("nowhere/clip.mp4", "Neither does its folder", "correct the path"),
        ("x" * 300, "does not exist", "correct the path"),
    ]:
        red(examine_source(str(tmp_path / name), Path("/"), never), message, fix)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftyp")
    monkeypatch.setattr(source.os, "access", lambda path, mode: False)
    red(examine_source(str(tmp_path / "clip.mp4"), Path("/"), never), "may not read it", "chmod a+r")


def test_bytes_that_nothing_decodes_are_left_to_the_camera(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(range(256)) * 40)
    red(examine_source(str(tmp_path / "clip.mp4"), Path("/")), "clip.mp4", "")


def test_pictures_open(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "0.png"), np.zeros((24, 32, 3), np.uint8))
    for path in (tmp_path, tmp_path / "0.png"):
        found = examine_source(str(path), Path("/"))
        assert (found.state, found.found.partition(",")[0]) == ("green", "32x24")


# ---------------------------------------------------------------- cameras


def test_a_camera_that_is_not_there(tmp_path: Path) -> None:
    red(
        examine_source("3", webcam(tmp_path), never), "there is no /dev/video3; here are /dev/video0", "plug the camera"
    )
    red(examine_source("/dev/video3", tmp_path, never), "there is no /dev/video3", "--device")
    put(tmp_path, {"sys/class/video4linux/video3/name": "Other"})
    red(examine_source("3", tmp_path, never), "the kernel has /dev/video3 (Other)", "docker run --device /dev/video3")


def test_a_camera_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras.os, "access", lambda path, mode: False)
    red(examine_source("0", webcam(tmp_path), never), "belongs to group ", "usermod -aG video")
    by_id = "/dev/v4l/by-id/usb-HD_Webcam-index0"
    red(examine_source(by_id, tmp_path, never), f"may not open {by_id}", "usermod -aG video")


def test_the_second_node_of_a_webcam(tmp_path: Path, answers: dict[str, int]) -> None:
    answers.update(video0=1, video10=METADATA)
    red(examine_source("10", webcam(tmp_path), never), "hands over no images", "here are /dev/video0")


def test_a_busy_camera_names_who_has_it(tmp_path: Path) -> None:
    (webcam(tmp_path) / "proc/77/fd/5").symlink_to("/dev/video0")

    def refuse(text: str) -> object:
        raise CameraError(f"'{text}' cannot be opened", expected="a camera", fix="stop it")

    assert "in use" not in examine_source("rtsp://camera/video0", tmp_path, refuse).found
    for name in ("0", "/dev/video0", "/dev/v4l/by-id/usb-HD_Webcam-index0"):
        red(examine_source(name, tmp_path, refuse), "cannot be opened; it is in use by cheese (process 77)", "stop it")


# ---------------------------------------------------------------- CSI


@pytest.mark.parametrize("text", ["csi://0", CSI])
def test_csi_is_refused_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    built = {"GStreamer": False}
    monkeypatch.setattr(source, "opencv", lambda: ("4.8", built, ""))
    red(examine_source(text, tmp_path, never), "this OpenCV was built without", "run it on the device")
    put(tmp_path, {"etc/nv_tegra_release": "# R36"})
    red(examine_source(text, tmp_path, never), "this OpenCV was built without", "apt install python3-opencv")
    built["GStreamer"] = True
    red(examine_source(text, tmp_path, never), "no /tmp/argus_socket", "restart nvargus-daemon")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp/argus_socket").touch()
    assert examine_source(text, tmp_path, Frames).state == "green"
    (tmp_path / "etc/nv_tegra_release").unlink()
    red(examine_source(text, tmp_path, never), "this is no Jetson", "libcamerify")


def test_another_pipeline_needs_gstreamer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"GStreamer": False}
    monkeypatch.setattr(source, "opencv", lambda: ("4.8", built, ""))
    text = "rtspsrc location=rtsp://camera/live ! decodebin ! appsink"
    red(examine_source(text, tmp_path, never), "this OpenCV was built without", "run it on the device")
    built["GStreamer"] = True
    assert examine_source(text, tmp_path, Frames).state == "green"


# ---------------------------------------------------------------- streams


def test_a_refused_stream_says_so_without_its_password() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    found = examine_source(f"http://me:secret@127.0.0.1:{port}/x.mjpg", Path("/"))
    assert (found.state, found.name) == ("red", f"http://***@127.0.0.1:{port}/x.mjpg")
    assert "secret" not in f"{found}"
    assert found.fix


class Frames:
    """A live camera of three frames."""

    live = True

    def __init__(self, text: str) -> None:
        self.left = 3

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.left = -1

    def read(self, timeout_ms: float) -> Frames | None:
        self.left -= 1
        return self if self.left >= 0 else None

    array_bgr = np.zeros((48, 64, 3), np.uint8)


def test_a_stream_that_runs_is_green() -> None:
    found = examine_source("rtsp://me:secret@camera/live", Path("/"), Frames)
    assert (found.state, found.name) == ("green", "rtsp://***@camera/live")
    assert found.found.startswith("64x48, first frame after 0.0 s, ")


def test_a_stream_that_falls_silent_is_red() -> None:
    class Silent(Frames):
        def read(self, timeout_ms: float) -> Frames | None:
            if self.left == 1:
                raise silence_error("rtsp://camera/live", timeout_ms / 1e3)
            return super().read(timeout_ms)

    red(examine_source("rtsp://camera/live", Path("/"), Silent), "no frame came", "switched on")


def test_a_named_pipe_is_not_read(tmp_path: Path) -> None:
    """To look at what is in it would take it away, and wait for ever while there is nothing."""
    os.mkfifo(tmp_path / "pipe")
    found = examine_source(str(tmp_path / "pipe"), Path("/"), Frames)
    assert found.state == "green"


def test_an_unknown_scheme_is_red() -> None:
    red(examine_source("gopher://camera", Path("/")), "unknown scheme", "correct the address")


def test_without_opencv_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "opencv", lambda: (None, {}, "not installed"))
    red(examine_source("rtsp://camera/live", Path("/"), never), "without OpenCV", "edgemae[camera]")
