from __future__ import annotations

import cv2
import pytest

from edgemae.device.camera.camera import Camera
from edgemae.device.camera.csi import pipeline
from edgemae.device.camera.sources import kind_of
from edgemae.spec.errors import CameraError, InputError


def test_the_pipeline_of_a_jetson() -> None:
    assert pipeline("csi://1?width=1920&height=1080&fps=60&flip=2") == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM), width=1920, height=1080, framerate=60/1, format=NV12 "
        "! nvvidconv flip-method=2 ! video/x-raw, format=BGRx ! videoconvert ! video/x-raw, format=BGR "
        "! appsink drop=true max-buffers=1 sync=false"
    )
    assert "width=1280, height=720, framerate=30/1" in pipeline("csi://0")
    assert kind_of("csi://0?fps=15") == "csi"


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("csi://0?widht=640", r"'widht'.* 'width'"),
        ("csi://0?fps=0", "fps .*'0'"),
        ("csi://0?fps=fast", "fps .*'fast'"),
        ("csi://0?flip=8", "flip .*'8'"),
        ("csi://", "'csi://'"),
        ("csi://front", "'csi://front'"),
        ("csi://0/1", "'csi://0/1'"),
        ("csi://0 ! fakesink", "'csi://0 ! fakesink'"),
    ],
)
def test_a_wrong_address_is_refused(address: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        Camera(address)


@pytest.mark.skipif(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER), reason="this OpenCV has GStreamer")
def test_an_opencv_without_gstreamer_says_so() -> None:
    with pytest.raises(CameraError, match=r"was built without GStreamer") as caught:
        Camera("csi://0")
    assert "JetPack" in caught.value.expected
