"""A window, and clear words where there can be none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgemae.spec.errors import MachineError
from edgemae.viewer import window
from edgemae.viewer.window import Window, require_windows
from tests.viewer.samples import seen

BUILDS = {"none": "  GUI:                           NONE\n", "qt": "  GUI:                           QT5\n"}


def test_an_opencv_without_windows_is_named_with_the_package_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: BUILDS["none"])
    with pytest.raises(MachineError, match="opencv-python-headless") as error:
        require_windows()
    assert "pip install opencv-python" in error.value.fix
    assert "--webui" in error.value.fix


def test_no_screen_is_said_before_qt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: BUILDS["qt"])
    monkeypatch.setattr(window.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(MachineError, match="DISPLAY"):
        require_windows()
    monkeypatch.setenv("DISPLAY", ":0")
    require_windows()


@pytest.mark.parametrize(
    ("key", "visible", "goes_on"), [(-1, 1.0, True), (ord("q"), 1.0, False), (27, 1.0, False), (-1, 0.0, False)]
)
def test_a_window_goes_on_until_a_key_or_its_button(
    monkeypatch: pytest.MonkeyPatch, key: int, visible: float, goes_on: bool
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: calls.append("open"))
    monkeypatch.setattr(cv2, "imshow", lambda title, image: calls.append(f"{title} {image.shape}"))
    monkeypatch.setattr(cv2, "waitKey", lambda _: key)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: visible)
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: calls.append("close"))

    class Still:
        fps = 20.0

    with Window("edgemae 0", Still()) as view:  # type: ignore[arg-type]
        assert view.show(seen(np.zeros((400, 600, 3), np.uint8))) is goes_on
    assert calls == ["open", "edgemae 0 (400, 600, 3)", "close"]
