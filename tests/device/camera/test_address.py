"""Addresses: what they hold is read, and of what they hide nothing is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.device.camera.address import redact, split
from edgemae.device.camera.camera import Camera
from edgemae.doctor.source import examine_source
from edgemae.spec.errors import EdgemaeError, InputError

SECRETS = ("s3cret", "adm1n")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://adm1n:s3cret@cam:554/live", "rtsp://***@cam:554/live"),
        ("rtsp://adm1n:s3c@s3cret@cam/live", "rtsp://***@cam/live"),
        ("rtsp://adm1n:a/s3cret@cam/live", "rtsp://***@cam/live"),
        ("rtsp://adm1n:a s3cret@cam/live", "rtsp://***@cam/live"),
        ("rtsp://adm1n:a#s3cret?@cam/live", "rtsp://***@cam/live"),
        ("rtsp:/adm1n:s3cret@cam/live", "rtsp:/***@cam/live"),
        ("http://cam/video?usr=adm1n&pwd=s3cret&fps=5", "http://cam/video?usr=***&pwd=***&fps=5"),
        ("rtsp://cam/user=adm1n&password=s3cret&channel=1", "rtsp://cam/user=***&password=***&channel=***"),
        ("rtsp://cam/user=adm1n_password=s3cret_stream=0.sdp", "rtsp://cam/user=***"),
        ("http://cam/x?access_token=s3cret'", "http://cam/x?access_token=***'"),
        ("it said 'rtsp://adm1n:s3cret@cam' is away", "it said 'rtsp://***@cam' is away"),
        ("rtsp://cam:554/live?fps=5", "rtsp://cam:554/live?fps=5"),
        ("http://cam/x?pw=s3cret&code=adm1n;s=s3cret", "http://cam/x?pw=***&code=***;s=***"),
        ("http://cam/x?fps=s3cret&width=12345678", "http://cam/x?fps=***&width=***"),
        ("http://cam/x#s3cret", "http://cam/x#***"),
        ("http://cam/x?next=/a?b=s3cret 'gone'", "http://cam/x?next=*** 'gone'"),
        ("csi://0?width=1280&fps=30", "csi://0?width=1280&fps=30"),
        ("rtsp://cam/\x1b[2J\u202e", r"rtsp://cam/\x1b[2J\u202e"),
        ("/data/a@b/user=1.mp4", "/data/a@b/user=1.mp4"),
        ("C:/data/a@b.mp4", "C:/data/a@b.mp4"),
        ("\udce9t\udce9.mp4", r"\xe9t\xe9.mp4"),  # a name of a file that is no UTF-8, as Python gives it
    ],
)
def test_an_address_is_shown_without_its_login(given: str, shown: str) -> None:
    assert redact(given) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://adm1n:s3cret/more@cam/live", "rtsp://adm1n:s3cret#more@cam/live", "rtsp://adm1n:s3cret?more@cam/live",
        "rtsp://adm1n:s3cret[more@cam/live", "rtsp://adm1n:s3cret\u2100@cam/live", "rtsp:/adm1n:s3cret@cam/live",
        "ftp://adm1n:s3cret@cam/live", "csi://adm1n:s3cret[@0", "csi://adm1n:s3cret@0", "csi://0?password=s3cret",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_clear_error_that_tells_no_secret(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EdgemaeError) as caught:
        Camera(address)
    found = examine_source(address, Path("/"))
    assert found.state == "red"
    for text in (str(caught.value), caught.value.what, caught.value.fix, repr(found), caplog.text):
        assert not any(secret in text for secret in SECRETS), text


def test_a_port_that_is_no_number_is_refused_with_what_to_write() -> None:
    with pytest.raises(InputError, match=r"'rtsp://\*\*\*@cam/live'") as caught:
        split("rtsp://adm1n:a/b@cam/live")
    assert "/ as %2F" in caught.value.fix
    assert split("rtsp://me:a%2Fb@cam:8554/live").port == 8554
