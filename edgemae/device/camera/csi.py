"""The camera connector of a Jetson: its address, and the GStreamer pipeline that opens it. Both only here."""

from __future__ import annotations

from urllib.parse import parse_qsl

from edgemae.device.camera.address import redact, split
from edgemae.spec.errors import InputError, nearest

DEFAULTS = {"width": 1280, "height": 720, "fps": 30, "flip": 0}


def pipeline(address: str) -> str:
    """Return the GStreamer pipeline of `csi://0?width=1280&height=720&fps=30&flip=0`. Raises InputError.

    `flip` is nvvidconv's flip-method, 0 to 7 (2 turns by 180 degrees). The appsink keeps the newest frame.
    """
    parts = split(address)
    settings = dict(DEFAULTS)
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in settings:
            raise InputError(
                f"camera address '{redact(address)}' has the unknown setting '{name}'.{nearest(name, list(DEFAULTS))}",
                expected=f"some of {', '.join(DEFAULTS)}",
                fix="correct the name",
            )
        if not value.isdecimal() or (int(value) > 7 if name == "flip" else int(value) == 0):
            raise InputError(
                f"camera address '{redact(address)}' sets {name} to '{value}'",
                expected="a whole number above 0 (flip: 0 to 7)",
                fix="correct the number",
            )
        settings[name] = int(value)
    if not parts.netloc.isdecimal() or parts.path.strip("/"):
        raise InputError(
            f"camera address '{redact(address)}' names no connector",
            expected="csi://0 or csi://1, then settings such as ?width=1280&fps=30",
            fix="see the connectors with `v4l2-ctl --list-devices`",
        )
    return (
        f"nvarguscamerasrc sensor-id={parts.netloc} ! "
        f"video/x-raw(memory:NVMM), width={settings['width']}, height={settings['height']}, "
        f"framerate={settings['fps']}/1, format=NV12 ! nvvidconv flip-method={settings['flip']} ! "
        "video/x-raw, format=BGRx ! videoconvert ! video/x-raw, format=BGR ! "
        "appsink drop=true max-buffers=1 sync=false"
    )
