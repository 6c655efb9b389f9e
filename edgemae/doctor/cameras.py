"""The cameras of this machine, from sysfs and from one question to each device."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from edgemae.device.hardware.sensors import text
from edgemae.doctor.board import is_jetson
from edgemae.doctor.finding import Finding
from edgemae.doctor.software import SYSTEM_OPENCV, opencv

AREA = "cameras"
QUERYCAP, QUERYCAP_BYTES = 0x80685600, 104  # VIDIOC_QUERYCAP and its struct v4l2_capability, from linux/videodev2.h
DEVICE_CAPS_AT, HAS_DEVICE_CAPS = 88, 0x80000000  # byte offset of device_caps; capabilities lies 4 before it
CAPTURE = 0x00000001 | 0x00001000  # one plane, several planes
RAW = re.compile(r"unicam|rp1-cfe|tegra-capture|^vi-output")  # drivers that hand over a sensor's raw data
GROUP_FIX = "sudo usermod -aG video $USER and log in again; in a container: --group-add video"
SHARE_FIX = "docker run --device {path} --group-add video"


@dataclass(frozen=True)
class Device:
    """One /dev/video*. `captures` is None where the device did not answer."""

    path: str
    name: str
    by_id: str  # the name that stays the same after unplugging, "" where there is none
    exists: bool
    permitted: bool
    captures: bool | None
    holders: tuple[str, ...]  # programs that have it open, as far as we may see


def devices(root: Path) -> list[Device]:
    """Return every video device that the kernel knows, or that lies in /dev."""
    names = {path.name for folder in ("sys/class/video4linux", "dev") for path in (root / folder).glob("video*")}
    numbered = sorted((name for name in names if name[5:].isdecimal()), key=lambda name: int(name[5:]))
    links = {link.resolve().name: link.name for link in (root / "dev/v4l/by-id").glob("*")}
    return [_device(root, name, links.get(name, "")) for name in numbered]


def _device(root: Path, name: str, link: str) -> Device:
    node = root / "dev" / name
    permitted = os.access(node, os.R_OK | os.W_OK)
    return Device(
        path=f"/dev/{name}", name=text(root / "sys/class/video4linux" / name / "name") or "",
        by_id=f"/dev/v4l/by-id/{link}" if link else "", exists=node.exists(), permitted=permitted,
        captures=captures(node) if permitted else None, holders=holders(root, f"/dev/{name}"),
    )  # fmt: skip


def captures(node: Path) -> bool | None:
    """Ask a device whether it hands over images: a webcam has a second node for metadata, a codec has several."""
    import fcntl

    try:
        handle = os.open(node, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(handle, QUERYCAP, bytes(QUERYCAP_BYTES))
    except OSError:
        return None
    finally:
        os.close(handle)
    whole, own = struct.unpack_from("=II", answer, DEVICE_CAPS_AT - 4)
    return bool((own if whole & HAS_DEVICE_CAPS else whole) & CAPTURE)


def holders(root: Path, path: str) -> tuple[str, ...]:
    """Return "name (process)" of the other programs that hold a device open; those of other users only root can see."""
    found = []
    for process in (root / "proc").glob("[0-9]*"):
        try:
            open_files = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:  # it ended, or it is somebody else's
            continue
        if path in open_files and process.name != str(os.getpid()):
            found.append(f"{text(process / 'comm') or '?'} (process {process.name})")
    return tuple(sorted(found))


def examine_cameras(root: Path, found: list[Device]) -> list[Finding]:
    """Return a finding for each camera; other video devices (codecs, metadata) are left out."""
    findings = [_camera(device) for device in found if device.captures is not False]
    if is_jetson(root):
        findings += _csi(root)
    return findings or [Finding(AREA, "/dev/video*", "grey", "none; streams, videos and folders work without")]


def _camera(device: Device) -> Finding:
    message = ", ".join(part for part in (device.name, device.by_id) if part) or "without a name"
    if not device.exists:
        return Finding(AREA, device.path, "yellow", f"{message}: the kernel has it, /dev has not",
                       SHARE_FIX.format(path=device.path))  # fmt: skip
    if not device.permitted:
        return Finding(AREA, device.path, "yellow", f"{message}: this user may not open it", GROUP_FIX)
    if RAW.search(device.name):
        return Finding(AREA, device.path, "yellow", f"{message}: raw data of a sensor, no images",
                       "start the app under `libcamerify` on a Raspberry Pi, open csi://0 on Jetson")  # fmt: skip
    if device.holders:
        return Finding(AREA, device.path, "yellow", f"{message}: in use by {', '.join(device.holders)}",
                       "stop that program before edgemae opens it")  # fmt: skip
    return Finding(AREA, device.path, "green", message)


def _csi(root: Path) -> list[Finding]:
    """Return the CSI cameras that a Jetson's device tree describes."""
    folder = root / "proc/device-tree/tegra-camera-platform/modules"
    badges = [badge for path in sorted(folder.glob("module*/badge")) if (badge := (text(path) or "").strip("\0"))]
    if not badges:
        return [Finding(AREA, "CSI", "grey", "the device tree describes none",
                        "sudo /opt/nvidia/jetson-io/jetson-io.py, choose the sensor, restart")]  # fmt: skip
    if not opencv()[1].get("GStreamer"):
        return [Finding(AREA, "CSI", "yellow", f"{', '.join(badges)}: this OpenCV has no GStreamer", SYSTEM_OPENCV)]
    return [Finding(AREA, f"csi://{number}", "green", badge) for number, badge in enumerate(badges)]
