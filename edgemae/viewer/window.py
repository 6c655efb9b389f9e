"""A window with the live image and the answer in it."""

from __future__ import annotations

import os
import sys

import cv2

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult
from edgemae.spec.errors import MachineError
from edgemae.viewer import overlay
from edgemae.viewer.live_stats import StatsCollector

KEYS = (27, ord("q"))  # Escape and q end the run, as does closing the window


class Window:
    """Show images until q, Escape or the window's own button. Raises MachineError where no window can be opened."""

    def __init__(self, title: str, stats: StatsCollector) -> None:
        self._title, self._stats = title, stats

    def show(self, seen: StreamResult[Result]) -> bool:
        cv2.imshow(self._title, overlay.draw(seen, self._stats.fps))
        if cv2.waitKey(1) & 0xFF in KEYS:
            return False
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def __enter__(self) -> Window:
        cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        return self

    def __exit__(self, *_: object) -> None:
        cv2.destroyAllWindows()


def require_windows() -> None:
    """Raise MachineError where OpenCV has no windows, or there is no screen: Qt would end the process for that."""
    lines = (line.split(":", 1) for line in cv2.getBuildInformation().splitlines() if ":" in line)
    gui = {key.strip(): value.strip() for key, value in lines}.get("GUI", "")
    if gui == "NONE":
        raise MachineError(
            f"this OpenCV ({cv2.__version__}) was built without windows, as the wheel opencv-python-headless is",
            expected="an OpenCV with GTK, Qt or Cocoa",
            fix="pip uninstall opencv-python-headless, then pip install opencv-python; or watch with --webui",
        )
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise MachineError(
            "there is no screen: neither DISPLAY nor WAYLAND_DISPLAY is set",
            expected="a desktop session, or `ssh -X`",
            fix="run it on the desktop, or watch with --webui",
        )
