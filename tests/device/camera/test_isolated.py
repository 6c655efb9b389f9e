"""Reading in a child process: the same frames, and nothing left over however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device.camera.camera import Camera
from edgemae.device.camera.isolated import IsolatedSource
from edgemae.spec.errors import CameraError
from tests.support.frame_stamps import age_ms
from tests.support.stream_servers import RtspServer

ROOT = Path(__file__).resolve().parents[3]


def children() -> set[int]:
    """Return the processes that this one has started and that still are."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(path.parent.name))
    return found


def write_video(path: Path, hw: tuple[int, int]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, hw[::-1])
    for i in range(5):
        writer.write(np.full((*hw, 3), i * 8, np.uint8))
    writer.release()
    return path


def test_a_child_gives_the_same_frames_and_leaves_nothing(tmp_path: Path) -> None:
    path, before = write_video(tmp_path / "clip.avi", (48, 64)), (children(), len(os.listdir("/proc/self/fd")))
    with Camera(path) as camera:
        here = [frame.array_bgr for frame in camera]
    with Camera(path, isolate=True) as camera:
        there = [frame.array_bgr for frame in camera]
    assert np.array_equal(here, there)
    assert there[0].flags.writeable
    assert (children(), len(os.listdir("/proc/self/fd"))) == before


def test_errors_cross_over_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "fake.mp4").write_text("no video")
    with pytest.raises(CameraError, match=r"fake\.mp4"):
        Camera(tmp_path / "fake.mp4", isolate=True)


def test_a_child_that_is_killed_is_replaced_and_the_address_is_in_no_argument() -> None:
    with RtspServer(login=("digest", "me", "s3cret")) as server:
        before = children()
        with Camera(server.url, isolate=True) as camera:
            frame = camera.read()
            assert frame is not None
            assert age_ms(frame.array_bgr) is not None
            (child,) = children() - before
            assert b"s3cret" not in Path(f"/proc/{child}/cmdline").read_bytes()
            assert b"torch" not in Path(f"/proc/{child}/maps").read_bytes()
            os.kill(child, signal.SIGKILL)
            while (frame := camera.read(timeout_ms=30_000)) is not None and frame.generation == 0:
                pass
            assert "the process that reads" in camera.last_error
            assert camera.counters.reconnects == 1
        assert children() == before


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed while the child hangs in a call of C."""
    os.mkfifo(tmp_path / "clip.mp4")
    code = (
        "import sys, time, threading\n"
        "from edgemae.device.camera.isolated import IsolatedSource\n"
        f"source = IsolatedSource({str(tmp_path / 'clip.mp4')!r}, 'video', (60000, 60000), False)\n"
        "threading.Thread(target=source.open, daemon=True).start()\n"
        "while source._child is None: time.sleep(0.01)\n"
        "print(source._child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert Path(f"/proc/{child}").exists()
        parent.kill()
    end = time.monotonic() + 20
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_frame_that_grows_gets_more_memory(tmp_path: Path) -> None:
    for hw in ((24, 32), (480, 640)):
        source = IsolatedSource(str(write_video(tmp_path / "clip.avi", hw)), "video", (30_000, 30_000), False)
        try:
            source.open()
            assert source.fps == 25.0
            captured = source.read()
            assert captured is not None
            assert captured.array_bgr is not None
            assert captured.array_bgr.shape == (*hw, 3)
        finally:
            source.close()
            source.close()
