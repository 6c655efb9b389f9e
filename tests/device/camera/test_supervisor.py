"""A live camera beside servers that fail on purpose. Ages are those of the images, not what the camera says."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest

from edgemae.device.camera import supervisor
from edgemae.device.camera.camera import Camera, Counters, Frame
from edgemae.spec.errors import CameraError
from tests.support.frame_stamps import age_ms, read_stamp_ns
from tests.support.stream_servers import FPS, MjpegServer, RtspServer, Server

INTERVAL_MS = 1000 / FPS
SERVERS = [RtspServer, MjpegServer]
LONG_S = 20.0  # nothing here takes that long, on the slowest machine


@pytest.fixture(params=SERVERS, ids=["rtsp", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with request.param() as running:
        yield running


@pytest.fixture
def rtsp() -> Iterator[RtspServer]:
    with RtspServer() as running:
        yield running


def until(true: Callable[[], bool]) -> float:
    """Wait until something is true; return how long that took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < LONG_S, "it did not happen"
        time.sleep(0.005)
    return time.monotonic() - start


def first_made_after(camera: Camera, back_ns: int) -> Frame:
    """Return the next frame, after showing by the time in its image that it was made after `back_ns`."""
    (frame,) = take(camera, 1)
    stamp_ns = read_stamp_ns(frame.array_bgr)
    assert stamp_ns is not None
    assert stamp_ns >= back_ns
    return frame


def take(camera: Camera, count: int) -> list[Frame]:
    """Return the next frames."""
    frames = [camera.read(timeout_ms=LONG_S * 1000) for _ in range(count)]
    assert None not in frames
    return frames  # type: ignore[return-value]


def median_age(camera: Camera, count: int = 9) -> float:
    ages = []
    for _ in range(count):
        age = age_ms(take(camera, 1)[0].array_bgr)
        if age is not None:
            ages.append(age)
    return float(np.median(ages))


def adds_up(counters: Counters) -> bool:
    return counters.captured == counters.delivered + counters.dropped


# ---------------------------------------------------------------- a healthy source


def test_a_healthy_stream_is_fresh_and_every_frame_is_accounted_for(server: Server) -> None:
    with Camera(server.url) as camera:
        assert (camera.live, camera.policy, camera.state) == (True, "latest", "live")
        frames = take(camera, 4)
        assert median_age(camera) < 3 * INTERVAL_MS
        time.sleep(6 * INTERVAL_MS / 1e3)  # a consumer that is too slow
        assert median_age(camera, 3) < 3 * INTERVAL_MS
    seqs = [frame.seq for frame in frames]
    assert seqs == sorted(set(seqs))
    assert {frame.generation for frame in frames} == {0}
    assert all(frame.array_bgr.shape == (128, 160, 3) for frame in frames)
    counters = camera.counters
    assert adds_up(counters)
    assert counters.overwritten >= 3
    assert (counters.reconnects, counters.corrupt) == (0, 0)


def test_the_age_of_a_frame_covers_what_the_decoder_holds_back(rtsp: RtspServer) -> None:
    """OpenCV gives an H.264 frame only when the next one comes. Counted from `grab` its age is 40 ms too small."""
    with Camera(rtsp.url) as camera:
        hidden = []
        for frame in take(camera, 12):
            own_ms, age = frame.age_ms, age_ms(frame.array_bgr)
            assert age is not None
            hidden.append(age - own_ms)
    assert np.median(hidden) < INTERVAL_MS / 2


# ---------------------------------------------------------------- silence


def test_a_stall_is_flagged_and_nothing_from_before_comes_after(server: Server) -> None:
    with Camera(server.url) as camera:
        take(camera, 5)
        server.freeze()
        assert until(lambda: camera.state == "stalled") < 3  # 0.35 s on a quiet machine
        assert "no frame for" in camera.last_error
        with pytest.raises(CameraError, match=r"within 0\.1 s: stalled"):
            camera.read(timeout_ms=100)
        back_ns = time.monotonic_ns()
        server.release()
        first_made_after(camera, back_ns)
        assert camera.state == "live"
        assert camera.counters.stalls >= 1
    assert adds_up(camera.counters)


@pytest.mark.parametrize("read_timeout_ms", [1000, 200], ids=["connected", "opened-again-meanwhile"])
def test_what_piled_up_in_a_silence_is_discarded_and_counted(rtsp: RtspServer, read_timeout_ms: int) -> None:
    with Camera(rtsp.url, read_timeout_ms=read_timeout_ms) as camera:
        take(camera, 5)
        rtsp.hold()
        plays = rtsp.plays
        until(lambda: rtsp.plays > plays or read_timeout_ms > 500)
        until(lambda: rtsp.held > 12)
        held = camera.counters.captured
        rtsp.release()
        (frame,) = take(camera, 1)
        age = age_ms(frame.array_bgr)
        assert age is not None
        assert age < 6 * INTERVAL_MS  # the first one that was held is 500 ms old
        assert camera.counters.captured > held
        assert camera.counters.backlog >= 5
    assert adds_up(camera.counters)


def test_a_source_that_stays_silent_is_opened_again(rtsp: RtspServer) -> None:
    with Camera(rtsp.url, read_timeout_ms=400) as camera:
        take(camera, 5)
        rtsp.freeze(deaf=True)
        until(lambda: camera.state == "reconnecting")
        back_ns = time.monotonic_ns()
        rtsp.release()
        frame = first_made_after(camera, back_ns)
        assert frame.generation > 0
        assert camera.counters.reconnects == 1
    assert adds_up(camera.counters)


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("make", "how"),
    [(RtspServer, "reset"), (RtspServer, "half_frame"), (RtspServer, "restart"), (MjpegServer, "reset")],
)
def test_a_source_that_ends_is_opened_again(make: Callable[..., Server], how: str) -> None:
    with make() as server, Camera(server.url) as camera:
        before = take(camera, 5)[-1]
        if how == "restart":
            server.stop()
            until(lambda: camera.state == "reconnecting")
            server.start()
        else:
            getattr(server, how)()
        while (frame := take(camera, 1)[0]).generation == 0:
            pass  # what had arrived before the end
        assert frame.seq > before.seq
        age = age_ms(frame.array_bgr)
        assert age is not None
        assert age < 6 * INTERVAL_MS
        assert camera.counters.reconnects == 1
        assert camera.state == "live"
    assert adds_up(camera.counters)


def test_without_reconnect_the_end_is_an_error(server: Server) -> None:
    with Camera(server.url, reconnect=False) as camera:
        take(camera, 3)
        server.reset()
        with pytest.raises(CameraError, match=r"stopped .* \d+"):
            list(camera)
        assert camera.state == "failed"
    assert adds_up(camera.counters)


def test_without_reconnect_silence_is_an_error_and_closes_in_time(server: Server) -> None:
    with Camera(server.url, reconnect=False, read_timeout_ms=300) as camera:
        take(camera, 3)
        server.freeze()
        with pytest.raises(CameraError, match=re.escape(f"'{server.url}'")):
            list(camera)
        start = time.monotonic()
        camera.close()
        assert time.monotonic() - start < 1.5


def test_close_ends_a_consumer_that_waits_for_a_source_that_is_away(rtsp: RtspServer) -> None:
    camera = Camera(rtsp.url)
    rtsp.stop()
    got: list[Frame | None] = []
    consumer = threading.Thread(target=lambda: got.extend(iter(camera.read, None)))
    consumer.start()
    until(lambda: camera.state == "reconnecting")
    time.sleep(0.3)
    assert consumer.is_alive()
    start = time.monotonic()
    camera.close()
    assert time.monotonic() - start < 1.5
    consumer.join(LONG_S)
    assert not consumer.is_alive()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["basic", "digest"])
@pytest.mark.parametrize("make", SERVERS)
def test_a_refused_login_fails_for_good_and_no_password_is_told(
    make: Callable[..., Server], kind: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with make(login=(kind, "me", "s3cret")) as server:
        with Camera(server.url) as camera:
            take(camera, 2)
            assert "s3cret" not in camera.source + camera.last_error + take(camera, 1)[0].name
        for wait in (False, True):
            with pytest.raises(CameraError, match=r"\(401\)") as caught:
                Camera(server.url.replace("s3cret", "wr0ng"), wait=wait).read()
            assert "user and password" in caught.value.fix
        with pytest.raises(CameraError, match=r"\(404\)"):
            Camera(server.url.replace("/live", "/none"), wait=True).read()
    output = caplog.text + str(caught.value) + "".join(capfd.readouterr())
    assert "s3cret" not in output
    assert "wr0ng" not in output


def test_a_refusal_by_a_source_that_was_live_has_to_last(rtsp: RtspServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Camera(rtsp.url) as camera:
        take(camera, 2)
        rtsp.status = 404  # its media server restarts, and the publisher is not back yet
        rtsp.reset()
        until(lambda: camera.state == "reconnecting" and "404" in camera.last_error)
        rtsp.status = 0
        while take(camera, 1)[0].generation == 0:
            pass
        monkeypatch.setattr(supervisor, "BELIEVE_AFTER_S", 0.5)
        rtsp.status = 404
        rtsp.reset()
        with pytest.raises(CameraError, match="404"):
            list(camera)
        assert camera.state == "failed"


def test_an_overloaded_server_is_asked_again(server: Server) -> None:
    server.status = 503
    with pytest.raises(CameraError, match="503"):
        Camera(server.url)
    with Camera(server.url, wait=True) as camera:
        until(lambda: "503" in camera.last_error)
        server.status = 0
        assert take(camera, 1)
    assert camera.counters.reconnects == 0


def test_a_source_that_is_not_there_yet_can_be_waited_for(rtsp: RtspServer) -> None:
    rtsp.stop()
    with pytest.raises(CameraError, match="the connection is refused"):
        Camera(rtsp.url)
    with Camera(rtsp.url, wait=True) as camera:
        until(lambda: camera.state == "reconnecting")
        assert "refused" in camera.last_error
        rtsp.start()
        assert take(camera, 1)[0].generation > 0
        assert camera.state == "live"
    with Camera("/dev/v4l/by-id/usb-none-video-index0", wait=True) as camera:
        until(lambda: "the device does not exist" in camera.last_error)
        assert camera.kind == "camera"


def test_a_server_that_accepts_and_says_nothing_meets_the_open_timeout() -> None:
    with RtspServer() as server:
        server.freeze(deaf=True)
        with pytest.raises(CameraError, match=r"there is no answer in time|no frame came"):
            Camera(server.url, open_timeout_ms=400, read_timeout_ms=400)


def test_a_server_that_is_slow_to_play_is_waited_for() -> None:
    with RtspServer() as server:
        server.hold_play_s = 0.2
        with Camera(server.url) as camera:
            assert median_age(camera) < 3 * INTERVAL_MS


# ---------------------------------------------------------------- what is in the stream


def test_a_change_of_size_is_scaled_by_opencv_until_the_source_is_opened_again(rtsp: RtspServer) -> None:
    """OpenCV scales what comes to the size it began with and says nothing; the images stay whole."""
    with Camera(rtsp.url) as camera:
        take(camera, 3)
        rtsp.resize(320, 256)
        time.sleep(0.2)
        for frame in take(camera, 5):
            assert frame.array_bgr.shape in ((128, 160, 3), (256, 320, 3))
            assert age_ms(frame.array_bgr) is not None
        rtsp.reset()
        while (frame := take(camera, 1)[0]).generation == 0:
            pass
        assert frame.array_bgr.shape == (256, 320, 3)


def test_noise_is_counted_and_no_damaged_image_follows_it(server: Server) -> None:
    with Camera(server.url) as camera:
        take(camera, 3)
        server.garbage = 1
        until(lambda: camera.counters.corrupt > 0)
        assert all(read_stamp_ns(frame.array_bgr) is not None for frame in take(camera, 10))
        assert camera.corrupt_names
    assert adds_up(camera.counters)


def test_a_jump_of_the_clock_of_the_source_changes_no_age(rtsp: RtspServer) -> None:
    with Camera(rtsp.url) as camera:
        pts = [frame.pts_ms or 0.0 for frame in take(camera, 2)]
        rtsp.jump_s = -5000.0
        time.sleep(0.2)
        pts += [frame.pts_ms or 0.0 for frame in take(camera, 2)]
        assert median_age(camera, 5) < 3 * INTERVAL_MS
        assert max(abs(b - a) for a, b in pairwise(pts)) > 1e5
        assert camera.counters.reconnects == 0


# ---------------------------------------------------------------- nothing is left over


def test_reconnects_leave_nothing_behind(rtsp: RtspServer) -> None:
    with Camera(rtsp.url) as camera:
        held: list[tuple[int, int]] = []
        for turn in range(6):
            take(camera, 2)
            until(lambda: len(rtsp._clients) == 1)
            held.append((len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))))
            rtsp.reset()
            until(lambda turn=turn: camera.counters.reconnects > turn)  # type: ignore[misc]
    assert camera.counters.reconnects == 6
    threads, descriptors = zip(*held[2:], strict=True)  # what FFmpeg opens once and keeps
    assert max(threads) <= min(threads) + 3  # a reader or a thread of the server that is just ending
    assert max(descriptors) <= min(descriptors) + 3


def test_the_environment_is_as_before(rtsp: RtspServer) -> None:
    with Camera(rtsp.url):
        assert "OPENCV_FFMPEG_CAPTURE_OPTIONS" not in os.environ
