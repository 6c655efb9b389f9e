"""Several cameras: opened by name, read in turns, and none starves or ends another."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from edgemae.device.camera.camera import Camera
from edgemae.device.camera.multi_camera import _listed
from edgemae.device.stream import stream
from edgemae.device.stream_result import StreamCounters
from edgemae.spec.errors import CameraError, InputError
from tests.support.stream_servers import MjpegServer
from tests.support.streams import COUNT, clip, level, ours, stamp_ns


def test_a_list_of_images_is_one_source() -> None:
    images = [np.zeros((4, 4, 3), np.uint8)] * 3
    assert len(_listed(images)) == 1  # type: ignore[arg-type]
    assert _listed(["clip.mp4", 0]) == [("", "clip.mp4"), ("", 0)]
    assert _listed({"door": 0, "yard": 1}) == [("door", 0), ("yard", 1)]


def test_files_side_by_side_all_give_every_frame(folder: Path, tmp_path: Path) -> None:
    sources = {"folder": folder, "clip": clip(tmp_path / "clip.avi", frames=30, gray=200)}
    with stream(level, sources) as results:
        seen = [(item.source, item.frame.seq, item.result) for item in results]
    assert [(seq, value) for name, seq, value in seen if name == "folder"] == [(i, i) for i in range(COUNT)]
    assert [seq for name, seq, _ in seen if name == "clip"] == list(range(30))
    assert results.counters == StreamCounters(inferred=COUNT + 30, delivered=COUNT + 30)
    assert results.state == "ended"
    assert not ours()


def test_a_fast_camera_does_not_starve_a_slow_one(tmp_path: Path) -> None:
    fast, slow = clip(tmp_path / "fast.avi", 100, 50, gray=200), clip(tmp_path / "slow.avi", 10, 5)

    def model(frame_bgr: np.ndarray) -> int:
        time.sleep(0.06)  # three frames of the fast one
        return level(frame_bgr)

    with stream(model, [fast, slow], "latest", realtime=True) as results:
        seen = list(results)
    of = {path: [item for item in seen if item.source == str(path)] for path in (fast, slow)}
    assert len(of[slow]) >= 8  # of 10
    assert len(of[fast]) < 60
    assert all((item.result > 100) == (item.source == str(fast)) for item in seen)
    # Its own frame waits for one inference at most, then its own: a queue would reach 1.4 s.
    assert np.median([item.age_ms for item in of[slow]]) < 300
    numbers = [item.frame.seq for item in of[fast]]
    assert numbers == sorted(set(numbers))
    read = [camera.counters.delivered for camera in results.cameras.values()]
    assert sum(read) == results.counters.delivered + results.counters.dropped


def test_one_camera_that_fails_does_not_end_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clip(tmp_path / "clip.avi", frames=10)

    class Unplugged(Camera):
        def read(self) -> None:
            raise CameraError("it was unplugged", expected="a camera", fix="plug it in")

    with Unplugged(path) as camera, stream(level, {"a": camera, "b": path}) as results:
        assert [next(results).source for _ in range(10)] == ["b"] * 10
        with pytest.raises(CameraError, match="unplugged"):  # once the others are over
            next(results)
        assert (results.state, list(results.lost)) == ("failed", ["a"])
    assert "a is lost, the other cameras go on: it was unplugged" in caplog.text


def test_several_that_cannot_all_be_opened_leave_none_open(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=r"nothing\.mp4"):
        stream(level, [folder, tmp_path / "nothing.mp4"])
    assert not ours()


def test_a_frame_that_grows_too_old_while_it_waits_for_its_turn_is_dropped(tmp_path: Path) -> None:
    """The policy's limit holds at the model, not only at the camera."""
    path = clip(tmp_path / "one.avi", frames=8, fps=4)

    def model(frame_bgr: np.ndarray) -> float:
        return 0.0

    with stream(model, {"a": path, "b": clip(tmp_path / "b.avi", 8, 4)}, "staleness:100ms", realtime=True) as results:
        ages = []
        for item in results:
            ages.append(item.age_ms)
            time.sleep(0.4)
    assert results.counters.dropped > 0
    assert len(ages) + results.counters.dropped == sum(c.counters.delivered for c in results.cameras.values())
    assert np.median(ages) < 100


def test_what_waits_for_its_turn_is_from_before_no_silence() -> None:
    """The camera clears its own slot when it falls silent; so does the line."""
    with (
        MjpegServer() as still, MjpegServer() as other, stream(stamp_ns, {"a": still.url, "b": other.url}) as results
    ):  # fmt: skip
        assert {next(results).source for _ in range(6)} == {"a", "b"}
        time.sleep(0.2)  # a frame of each waits
        still.freeze()
        while results.cameras["a"].state == "live":
            time.sleep(0.02)
        seen = [next(results) for _ in range(5)]
        assert {item.source for item in seen} == {"b"}
        still.release()
        back_ns = time.monotonic_ns()
        while (item := next(results)).source != "a":
            pass
        assert item.frame.t_capture_ns > back_ns - 1e8


@pytest.mark.parametrize("policy", ["latest", "every"])
def test_counters_of_several_add_up_after_an_early_end(tmp_path: Path, policy: str) -> None:
    paths = [clip(tmp_path / f"{name}.avi") for name in "abc"]
    with stream(level, paths, policy, realtime=True) as results:
        for _ in range(5):
            next(results)
            time.sleep(0.1)
    counters = results.counters
    read = sum(camera.counters.delivered for camera in results.cameras.values())
    assert read == counters.delivered + counters.dropped == counters.dropped + 5


def test_a_camera_that_was_brought_along_keeps_its_own_policy(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.avi")
    with Camera(path) as camera:
        for more in ({"policy": "latest"}, {"realtime": True}):
            with pytest.raises(InputError, match="beside a Camera, which has its own"):
                stream(level, camera, **more)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="one source was given twice"):
            stream(level, {"left": camera, "right": camera})
