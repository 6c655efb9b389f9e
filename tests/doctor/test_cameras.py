"""Cameras on made-up trees of /dev, /proc and /sys, and what a device answers."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from edgemae.doctor import cameras
from edgemae.doctor.cameras import captures, devices, examine_cameras
from tests.doctor.test_machine import put

SYSFS = "sys/class/video4linux"
CAPTURE, METADATA, HAS_OWN = 0x1, 0x00800000, 0x80000000


def webcam(root: Path) -> Path:
    """Make a webcam with a second node, a stable name, and a program that holds it."""
    put(root, {f"{SYSFS}/video0/name": "HD Webcam", f"{SYSFS}/video10/name": "HD Webcam", "dev/video0": "",
               "dev/video10": "", "proc/77/comm": "cheese"})  # fmt: skip
    (root / "dev/v4l/by-id").mkdir(parents=True)
    (root / "dev/v4l/by-id/usb-HD_Webcam-index0").symlink_to("../../video0")
    (root / "proc/77/fd").mkdir()
    return root


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Let files answer VIDIOC_QUERYCAP as devices do: file name -> device_caps."""
    import fcntl

    caps: dict[str, int] = {}

    def ioctl(handle: int, request: int, buffer: bytes) -> bytes:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if name not in caps:
            raise OSError(25, "not a typewriter")
        assert request == 0x80685600
        return struct.pack("=16s32s32sIII12x", b"uvcvideo", b"", b"", 0, HAS_OWN | CAPTURE | METADATA, caps[name])

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return caps


def test_the_question_is_as_long_as_the_kernel_wants() -> None:
    assert struct.calcsize("=16s32s32sIII12x") == cameras.QUERYCAP_BYTES
    assert struct.calcsize("=16s32s32sII") == cameras.DEVICE_CAPS_AT


def test_a_webcam_is_named_and_its_second_node_left_out(tmp_path: Path, answers: dict[str, int]) -> None:
    answers.update(video0=CAPTURE, video10=METADATA)
    found = devices(webcam(tmp_path))
    assert [(d.path, d.captures, d.permitted) for d in found] == [
        ("/dev/video0", True, True), ("/dev/video10", False, True),
    ]  # fmt: skip
    (finding,) = examine_cameras(tmp_path, found)
    assert (finding.name, finding.state) == ("/dev/video0", "green")
    assert finding.found == "HD Webcam, /dev/v4l/by-id/usb-HD_Webcam-index0"


def test_what_is_no_device_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert captures(tmp_path / "file") is None
    assert captures(tmp_path / "absent") is None


def test_who_holds_it_is_told(tmp_path: Path) -> None:
    (webcam(tmp_path) / "proc/77/fd/5").symlink_to("/dev/video0")
    first = examine_cameras(tmp_path, devices(tmp_path))[0]
    assert (first.state, "in use by cheese (process 77)" in first.found) == ("yellow", True)


def test_a_camera_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras.os, "access", lambda path, mode: False)
    first = examine_cameras(tmp_path, devices(webcam(tmp_path)))[0]
    assert (first.state, "usermod -aG video" in first.fix) == ("yellow", True)


def test_a_camera_that_a_container_was_not_given(tmp_path: Path) -> None:
    put(tmp_path, {f"{SYSFS}/video2/name": "HD Webcam"})
    (finding,) = examine_cameras(tmp_path, devices(tmp_path))
    assert (finding.state, "docker run --device /dev/video2" in finding.fix) == ("yellow", True)


def test_the_raw_sensor_of_a_raspberry_pi(tmp_path: Path) -> None:
    put(tmp_path, {f"{SYSFS}/video0/name": "unicam-image", "dev/video0": ""})
    (finding,) = examine_cameras(tmp_path, devices(tmp_path))
    assert (finding.state, "libcamerify" in finding.fix) == ("yellow", True)


def test_csi_cameras_of_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"etc/nv_tegra_release": "# R36"})
    (finding,) = examine_cameras(tmp_path, [])
    assert (finding.state, "jetson-io.py" in finding.fix) == ("grey", True)
    put(tmp_path, {"proc/device-tree/tegra-camera-platform/modules/module0/badge": "imx219_rear\0"})
    monkeypatch.setattr(cameras, "opencv", lambda: ("4.8", {"GStreamer": False}, ""))
    (finding,) = examine_cameras(tmp_path, [])
    assert (finding.state, "system's OpenCV" in finding.fix) == ("yellow", True)
    monkeypatch.setattr(cameras, "opencv", lambda: ("4.8", {"GStreamer": True}, ""))
    (finding,) = examine_cameras(tmp_path, [])
    assert (finding.name, finding.state, finding.found) == ("csi://0", "green", "imx219_rear")


def test_no_camera_is_no_fault(tmp_path: Path) -> None:
    (finding,) = examine_cameras(tmp_path, [])
    assert finding.state == "grey"
