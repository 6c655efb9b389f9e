"""OpenCV's own log is quiet while somebody asks for it, and as it was before once nobody does."""

from __future__ import annotations

import cv2

from edgemae.device.opencv_log import quiet_opencv, restore_opencv_log, silence_opencv

LOG = cv2.utils.logging


def test_the_level_comes_back_when_the_last_one_leaves() -> None:
    before = LOG.getLogLevel()
    silence_opencv()
    with quiet_opencv():
        assert LOG.getLogLevel() == LOG.LOG_LEVEL_SILENT
    assert LOG.getLogLevel() == LOG.LOG_LEVEL_SILENT
    restore_opencv_log()
    assert LOG.getLogLevel() == before
