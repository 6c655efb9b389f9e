"""OpenCV's silent habits, on a capture that is made up."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgemae.device.camera import opencv
from edgemae.device.camera.frame_source import SourceError
from edgemae.device.camera.opencv import RTSP_OPTIONS, Video
from edgemae.device.hardware.heap import trim_heap

IMAGE = np.zeros((4, 4, 3), np.uint8)


class Capture:
    """Do what a script says: "ok", "fail" (at once), "wait" (a read that fails after data came) or "old" (time-out)."""

    opened: list[Any] = []  # noqa: RUF012 - what was asked for

    def __init__(self, what: Any, *_: Any) -> None:
        self.opened.append(what)
        self.script: list[str] = []

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def grab(self) -> bool:
        step = self.script.pop(0) if self.script else "fail"
        if step in ("wait", "old"):
            time.sleep(0.01 if step == "wait" else 0.06)
        return step in ("ok", "old")

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, IMAGE

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"MJPG")), cv2.CAP_PROP_FPS: 25.0}.get(prop, 0.0)

    def release(self) -> None:
        pass


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(Capture, "opened", [])


def read_all(source: str, kind: str, script: list[str]) -> list[str]:
    """Return what a source gives: a frame, a corrupt one, how many were lost before it, the end or an error."""
    video, found = Video(source, kind, (1000, 50)), []
    video.open()
    assert isinstance(video._capture, Capture)
    video._capture.script = script
    try:
        while (captured := video.read()) is not None:
            found.append(
                ("frame" if captured.array_bgr is not None else "corrupt")
                + (f"+{captured.lost}" if captured.lost else "")
            )
        found.append("end")
    except SourceError as error:
        found.append(error.kind)
    finally:
        video.close()
    return found


@pytest.mark.parametrize(
    ("kind", "script", "found"),
    [
        ("video", ["ok", "fail", "fail", "ok"], ["frame", "frame+2", "end"]),
        ("url", ["ok", "wait", "ok"], ["frame", "corrupt", "frame", "end"]),
        ("url", ["ok", "fail", "ok"], ["frame", "frame+1", "end"]),
        ("url", ["ok", "old", "ok", "ok"], ["frame", "frame", "timeout"]),  # nothing is believed after a time-out
        ("camera", ["ok", "fail", "ok"], ["frame", "end"]),  # after an unplug the next read may give an old frame
    ],
)
def test_reads_that_fail(kind: str, script: list[str], found: list[str]) -> None:
    assert read_all("http://camera/x" if kind == "url" else "/dev/null", kind, script) == found


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc can be asked for freed memory: with musl, on macOS and on Windows there is nothing to show",
)
@pytest.mark.parametrize("kind", ["url", "video"])
def test_the_holes_that_a_lost_stream_leaves_are_given_back(kind: str) -> None:
    """Of a file they are not: applications open thousands, and looking through all memory takes milliseconds."""

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    trim_heap()
    blocks = [bytes(60_000) + b"not a page of zeros" for _ in range(1000)]  # 57 MiB
    del blocks[:-1]  # the last one keeps the heap from shrinking by itself
    before = resident_mib()
    read_all("http://camera/x" if kind == "url" else "/dev/null", kind, ["ok"])
    given_back = before - resident_mib()
    assert given_back > 30 if kind == "url" else given_back < 10


def test_a_link_to_a_device_is_followed_at_every_opening(tmp_path: Path) -> None:
    """After it was plugged in again the camera has another number; its link under /dev/v4l/by-id has the same name."""
    link = tmp_path / "usb-camera-index0"
    for name in ("video0", "video1"):
        (tmp_path / name).touch()
        link.unlink(missing_ok=True)
        with pytest.raises(SourceError, match="the device does not exist"):
            Video(str(link), "camera", (1000, 1000)).open()
        link.symlink_to(tmp_path / name)
        video = Video(str(link), "camera", (1000, 1000), again=True)
        video.open()
        video.close()
    assert Capture.opened == [str(tmp_path / "video0"), str(tmp_path / "video1")]


def test_the_options_of_a_stream_reach_no_other_source_and_a_hanging_one_blocks_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opencv, "OPEN_PATIENCE_S", 0.05)
    variable, go_on, inside = "OPENCV_FFMPEG_CAPTURE_OPTIONS", threading.Event(), threading.Event()
    monkeypatch.delenv(variable, raising=False)

    def hang() -> None:
        with opencv.opening(RTSP_OPTIONS):
            inside.set()
            go_on.wait()

    hanging = threading.Thread(target=hang)
    hanging.start()
    inside.wait()
    assert os.environ[variable] == RTSP_OPTIONS
    with opencv.opening(""):  # a file, which those options would break
        assert variable not in os.environ
    with opencv.opening(RTSP_OPTIONS):
        go_on.set()
        hanging.join()
        assert os.environ[variable] == RTSP_OPTIONS
    assert variable not in os.environ
    monkeypatch.setenv(variable, "rtsp_transport;udp")
    with opencv.opening(RTSP_OPTIONS):
        assert os.environ[variable] == "rtsp_transport;udp"  # the user's own
