"""Why a frame source does not open: what can be told without opening it comes first, then it is opened for a moment."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemae.device.camera.address import is_camera_number, redact
from edgemae.device.camera.image_header import is_image
from edgemae.doctor.board import is_jetson
from edgemae.doctor.cameras import GROUP_FIX, SHARE_FIX, devices
from edgemae.doctor.finding import Finding
from edgemae.doctor.software import CAMERA_EXTRA, SYSTEM_OPENCV, opencv
from edgemae.spec.errors import EdgemaeError, nearest

LOOK_S = 1.0  # how long a source is watched
LOOK_FRAMES = 30
PATIENCE_MS = 5000  # for a frame: a source may fall silent after its first ones
HEAD_BYTES = 4096
ARGUS = "/tmp/argus_socket"  # of nvargus-daemon
Opener = Callable[[str], Any]


def examine_source(source: str, root: Path, opener: Opener | None = None) -> Finding:
    """Return whether a source hands over frames, and else why not and what to do. `opener` stands for Camera."""
    if _is_csi(source) or " ! " in source:
        return _pipeline(source, root) or _watched(source, root, opener)
    if "://" in source:
        return _watched(source, root, opener)
    if _is_device(source):
        return _device(source, root) or _watched(source, root, opener)
    return _file(Path(source)) or _watched(source, root, opener)


def _is_csi(source: str) -> bool:
    return source.startswith("csi://") or "nvarguscamerasrc" in source


def _is_device(source: str) -> bool:
    return is_camera_number(source) or source.startswith("/dev/")


def _bad(source: str, found: str, fix: str) -> Finding:
    return Finding("source", redact(source), "red", redact(found), redact(fix))


# ---------------------------------------------------------------- without opening it


def _pipeline(source: str, root: Path) -> Finding | None:
    """CSI cameras and pipelines need GStreamer; the former also a Jetson and its camera service."""
    if not opencv()[1].get("GStreamer"):
        elsewhere = "run it on the device; here, give a /dev/video*, a file or a stream"
        return _bad(source, "this comes through GStreamer, and this OpenCV was built without (no wheel has it)",
                    SYSTEM_OPENCV if is_jetson(root) else elsewhere)  # fmt: skip
    if _is_csi(source) and not is_jetson(root):
        return _bad(source, "nvarguscamerasrc is a part of Jetson Linux, and this is no Jetson",
                    "give a /dev/video*, a file or a stream; on a Raspberry Pi start it under libcamerify")  # fmt: skip
    if _is_csi(source) and not (root / ARGUS.lstrip("/")).exists():
        return _bad(source, f"the camera service of Jetson Linux does not answer: no {ARGUS}",
                    f"sudo systemctl restart nvargus-daemon; in a container: -v {ARGUS}:{ARGUS}")  # fmt: skip
    return None


def _device(source: str, root: Path) -> Finding | None:
    path = f"/dev/video{source}" if source.isdecimal() else source
    known = {device.path: device for device in devices(root)}
    node = root / path.lstrip("/")
    number = f"/dev/{node.resolve().name}"  # of a name below /dev/v4l
    device = known.get(number)
    others = [d.path for d in known.values() if d.exists and d.captures is not False and d.path != number]
    instead = f"; here are {', '.join(others)}" if others else ""
    if not node.exists():
        if device is not None:
            return _bad(source, f"the kernel has {path} ({device.name}), /dev has not", SHARE_FIX.format(path=path))
        return _bad(source, f"there is no {path}{instead}", "plug the camera in (`dmesg | tail` tells whether it was "
                    "seen), or name another; in a container: docker run --device")  # fmt: skip
    if device is not None and not device.permitted:
        return _bad(source, f"this user may not open {path}, which belongs to {_owner(node)}", GROUP_FIX)
    if device is not None and device.captures is False:
        return _bad(source, f"{path} ({device.name}) hands over no images: it is a codec, or a camera's metadata",
                    f"take one that does{instead or ': see the cameras below'}")  # fmt: skip
    return None


def _owner(node: Path) -> str:
    facts = node.stat()
    try:
        import grp

        return f"group {grp.getgrgid(facts.st_gid).gr_name}"
    except (ImportError, KeyError):
        return f"group {facts.st_gid}"


def _file(path: Path) -> Finding | None:
    text = str(path)
    if not os.path.exists(text):  # unlike Path.exists it survives a name that is too long
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        message = nearest(path.name, beside) if beside else f" Neither does its folder '{path.parent}'."
        fix = "correct the path; a relative one counts from this folder"
        return _bad(text, f"does not exist{'.' if message else ''}{message}", fix)
    if not os.access(text, os.R_OK):
        return _bad(text, "this user may not read it", f"chmod a+r '{text}', or run as its owner")
    if not path.is_file() or is_image(path):
        return None  # of a named pipe a look at its head would take it away, or wait for ever
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return _bad(text, "is an empty file", "copy or record it again")
    if head.startswith(b"version https://git-lfs"):
        return _bad(text, "is a pointer of Git LFS, not the video", "git lfs pull")
    if _is_text(head):
        return _bad(text, f"is text, not a video: it begins with {_first_line(head)!r}", "give the "
                    "video itself; a web page or an error message is what a failed download leaves")  # fmt: skip
    return None


def _is_text(head: bytes) -> bool:
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may have been cut in two
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\t\r\n\f" for char in words)


def _first_line(head: bytes) -> str:
    return head.decode(errors="replace").strip().partition("\n")[0][:40]


# ---------------------------------------------------------------- opening it


def _watched(source: str, root: Path, opener: Opener | None) -> Finding:
    """Open the source, read for a moment and close it."""
    if opencv()[0] is None:
        return _bad(source, "cannot be tried without OpenCV", CAMERA_EXTRA)
    if opener is None:
        from edgemae.device.camera.camera import Camera

        opener = Camera
    start = time.monotonic()
    try:
        with opener(source) as camera:
            first = camera.read(timeout_ms=PATIENCE_MS)
            wait_s, count, start = time.monotonic() - start, 1, time.monotonic()
            while first is not None and count < LOOK_FRAMES and time.monotonic() - start < LOOK_S:
                if camera.read(timeout_ms=PATIENCE_MS) is None:
                    break
                count += 1
            per_s = (count - 1) / max(time.monotonic() - start, 1e-6)
            live = camera.live
    except EdgemaeError as error:
        return _bad(source, f"{error.what}{_in_use(source, root)}", error.fix)
    if first is None:
        return _bad(source, "ended before its first frame", "give a source that holds images")
    height, width = first.array_bgr.shape[:2]
    speed = f", {per_s:.0f} frames a second" if live and count > 1 else ""
    return Finding("source", redact(source), "green",
                   f"{width}x{height}, first frame after {wait_s:.1f} s{speed}")  # fmt: skip


def _in_use(source: str, root: Path) -> str:
    """Return who holds a camera open: it may be opened twice, but only one program gets its frames."""
    if not _is_device(source):
        return ""
    path = f"/dev/video{source}" if source.isdecimal() else f"/dev/{(root / source.lstrip('/')).resolve().name}"
    found = next((device for device in devices(root) if device.path == path), None)
    return f"; it is in use by {', '.join(found.holders)}" if found is not None and found.holders else ""
