from __future__ import annotations

import asyncio
import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device.camera.camera import Camera
from edgemae.device.camera.multi_camera import _listed
from edgemae.device.stream import Stream, stream
from edgemae.device.stream_result import StreamCounters, StreamResult
from edgemae.spec.errors import CameraError, EngineRuntimeError, InputError
from edgemae.spec.graph import PixelContract
from tests.support.stream_servers import MjpegServer

COUNT = 20
FPS = 25.0
INTERVAL_MS = 1000 / FPS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((6, 6, 3), i, np.uint8))
    return tmp_path


def clip(path: Path, frames: int = 40, fps: float = FPS, gray: int = 0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (32, 32))
    for _ in range(frames):
        writer.write(np.full((32, 32, 3), gray, np.uint8))
    writer.release()
    return path


def ours() -> set[str]:
    """Return the names of our threads that live; those that were told to end get a moment."""
    deadline = time.monotonic() + 5
    while True:
        found = {thread.name for thread in threading.enumerate() if thread.name.startswith("edgemae")}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def stamp_ns(_: np.ndarray) -> int:
    return time.monotonic_ns()


def level(frame_bgr: np.ndarray) -> int:
    return int(frame_bgr[0, 0, 0])


def test_every_frame_of_a_folder_has_its_result(folder: Path) -> None:
    with stream(level, folder) as results:
        seen = list(results)
    assert all(isinstance(item, StreamResult) for item in seen)
    assert [item.result for item in seen] == list(range(COUNT))
    assert [Path(item.frame.name).stem for item in seen] == [f"{i:02d}" for i in range(COUNT)]
    assert all(0 <= item.age_ms <= item.frame.age_ms for item in seen)
    assert results.camera.counters.delivered == COUNT
    assert not results.camera._reader.is_alive()


def test_inferences_that_raise_are_counted_and_all_others_done(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def shaky(frame_bgr: np.ndarray) -> int:
        if level(frame_bgr) % 4 == 1:
            raise ValueError(f"no luck with {level(frame_bgr)}")
        return level(frame_bgr)

    with caplog.at_level(logging.WARNING):
        results = stream(shaky, folder)
        seen = [item.result for item in results]
    assert seen == [i for i in range(COUNT) if i % 4 != 1]
    assert results.counters == StreamCounters(inferred=15, delivered=15, failed=5)
    assert "05.png: ValueError: no luck with 5" in caplog.text


def test_failures_in_a_row_open_the_circuit_and_free_the_camera(folder: Path) -> None:
    def broken(frame_bgr: np.ndarray) -> int:
        if level(frame_bgr) >= 3:
            raise RuntimeError("engine lost")
        return level(frame_bgr)

    results = stream(broken, folder, max_failures=4)
    assert [next(results).result for _ in range(3)] == [0, 1, 2]
    with pytest.raises(EngineRuntimeError, match=r"4 frames in a row.*RuntimeError: engine lost") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert results.counters.failed == 4
    assert (results.state, results.error) == ("failed", caught.value)
    with pytest.raises(EngineRuntimeError, match="4 frames in a row"):  # never a silent end, however often it is asked
        next(results)
    assert not results.camera._reader.is_alive()


def test_an_interrupt_inside_the_model_frees_the_camera(folder: Path) -> None:
    def interrupted(_: np.ndarray) -> int:
        raise KeyboardInterrupt

    threads, results = threading.active_count(), stream(interrupted, folder)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert threading.active_count() == threads
    assert results.counters == StreamCounters(dropped=1)


def test_a_camera_that_was_brought_along_stays_open(folder: Path) -> None:
    with Camera(folder) as camera:
        with stream(level, camera) as results:
            assert next(results).result == 0
        assert camera.read() is not None


def test_the_pixel_contract_of_the_model_reaches_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4, 3), np.uint8))
    seen: list[PixelContract] = []
    monkeypatch.setattr(
        "edgemae.device.camera.sources.decode",
        lambda data, pixel: seen.append(pixel) or cv2.imdecode(np.frombuffer(data, np.uint8), 1),
    )

    class Model:
        pixel = PixelContract(image_px=4, exif="ignore")

        def __call__(self, frame_bgr: np.ndarray) -> int:
            return 0

    model = Model()
    assert len(list(stream(model, tmp_path))) == 1
    assert seen == [model.pixel]


def test_a_missing_source_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="does not exist"):
        stream(level, tmp_path / "nothing.mp4")


def test_what_no_stream_can_be_made_of_is_named(folder: Path) -> None:
    for sources in ({}, []):
        with pytest.raises(InputError, match="no source was given"):
            stream(level, sources)
    with pytest.raises(InputError, match="given twice"):
        stream(level, [folder, str(folder)])
    with pytest.raises(InputError, match="max_age_ms is 0"):
        stream(level, folder, max_age_ms=0)
    with stream(level, folder) as results, pytest.raises(InputError, match="without a callback"):
        results.run()
    with stream(level, folder, on_result=print) as results, pytest.raises(InputError, match="with a callback"):
        next(results)


def test_a_list_of_images_is_one_source() -> None:
    images = [np.zeros((4, 4, 3), np.uint8)] * 3
    assert len(_listed(images)) == 1  # type: ignore[arg-type]
    assert _listed(["clip.mp4", 0]) == [("", "clip.mp4"), ("", 0)]
    assert _listed({"door": 0, "yard": 1}) == [("door", 0), ("yard", 1)]


# ---------------------------------------------------------------- how old results are


@pytest.mark.parametrize("sink_ms", [0, 10 * INTERVAL_MS])
def test_results_stay_fresh_behind_a_sink_of_any_speed(tmp_path: Path, sink_ms: float) -> None:
    infer_ms: list[float] = []
    ages: list[float] = []

    def model(_: np.ndarray) -> None:
        start = time.monotonic()
        time.sleep(0.03)
        infer_ms.append((time.monotonic() - start) * 1e3)

    def sink(seen: StreamResult[None]) -> None:
        ages.append(seen.age_ms)
        time.sleep(sink_ms / 1e3)

    path = clip(tmp_path / "clip.avi", frames=50)
    results = stream(model, path, "latest", realtime=True, on_result=sink)
    results.run()
    counts = results.camera.counters
    if sink_ms:
        assert counts.dropped > 30
        ages = ages[:-1]  # the last frame of a file is never dropped: nothing newer comes
    # Promise: two frame intervals and one inference. A loop over cv2.VideoCapture is 1.7 s late here at the end.
    assert np.median(ages) <= 2 * INTERVAL_MS + max(infer_ms)
    assert counts.delivered == results.counters.inferred == results.counters.delivered


def test_a_result_that_is_too_old_is_withheld_and_counted(folder: Path) -> None:
    def slow_sometimes(frame_bgr: np.ndarray) -> int:
        time.sleep(0.7 if level(frame_bgr) == 7 else 0.0)
        return level(frame_bgr)

    with stream(slow_sometimes, folder, max_age_ms=500) as results:
        seen = [item.result for item in results]
    assert 7 not in seen
    assert COUNT - 3 <= len(seen) < COUNT - 1  # the next one lay in the slot all the while, one in the reader's hand
    assert results.counters.withheld == COUNT - len(seen)
    assert results.counters.delivered == len(seen)
    assert results.counters.inferred == len(seen) + 1  # what was too old before its inference was spared it


# ---------------------------------------------------------------- callbacks


def test_one_callback_of_a_hundred_raises_and_all_other_frames_are_processed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[int] = []

    def sink(seen: StreamResult[int]) -> None:
        if seen.result % 10 == 3:
            raise OSError("the broker is away")
        done.append(seen.result)

    results = stream(level, folder, on_result=sink)
    results.run()
    assert done == [i for i in range(COUNT) if i % 10 != 3]
    assert results.counters == StreamCounters(inferred=COUNT, delivered=COUNT, sink_failed=2)
    assert results.state == "ended"
    assert "the callback failed on" in caplog.text
    assert "OSError: the broker is away" in caplog.text


def test_callbacks_that_fail_in_a_row_end_the_stream_aloud(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def sink(_: StreamResult[int]) -> None:
        raise OSError("the broker is away")

    results = stream(level, folder, on_result=sink)
    with pytest.raises(InputError, match=r"callback failed on 5 results in a row.*OSError: the broker is away"):
        results.run()
    assert (results.state, results.counters.sink_failed) == ("failed", 5)
    results = stream(level, folder, on_result=sink).start()
    with pytest.raises(InputError, match="callback failed on 5"):
        results.wait(30)
    assert "the stream of" in caplog.text
    patient = stream(level, folder, on_result=sink, max_failures=None)
    patient.run()
    assert (patient.state, patient.counters.sink_failed) == ("ended", COUNT)
    assert not ours()


@pytest.mark.parametrize("how", ["run", "start"])
def test_a_callback_may_close_its_stream(folder: Path, how: str) -> None:
    done: list[int] = []

    def sink(seen: StreamResult[int]) -> None:
        done.append(seen.result)
        if seen.result == 3:
            results.close()
            results.close()

    results: Stream[int] = stream(level, folder, on_result=sink)
    if how == "run":
        results.run()
    else:
        assert results.start().wait(30)
    assert done == [0, 1, 2, 3]
    assert results.state == "closed"
    assert not ours()


def test_closing_from_another_thread_ends_a_stream_that_waits_for_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.avi", frames=60, fps=1)  # the second frame is a second away
    results = stream(level, path, realtime=True)
    assert next(results).result == 0
    threading.Timer(0.1, results.close).start()
    start = time.monotonic()
    assert list(results) == []
    assert time.monotonic() - start < 20
    assert results.state == "closed"
    with stream(level, path, realtime=True, on_result=lambda _: None).start() as running:
        assert not running.wait(0.05)
    assert running.wait()
    assert running.state == "closed"
    assert not ours()


def test_nothing_is_handed_over_once_a_stream_is_closed(folder: Path) -> None:
    inferring, done = threading.Event(), list[int]()

    def slow(frame_bgr: np.ndarray) -> int:
        inferring.set()
        time.sleep(0.2)
        return level(frame_bgr)

    results = stream(slow, folder, on_result=lambda seen: done.append(seen.result)).start().start()
    assert inferring.wait(30)
    results.close()
    assert done == []
    assert results.counters == StreamCounters(inferred=1, dropped=1)
    assert not ours()


def test_an_interrupt_in_the_callback_frees_the_camera(folder: Path) -> None:
    def sink(_: StreamResult[int]) -> None:
        raise KeyboardInterrupt

    results = stream(level, folder, on_result=sink)
    with pytest.raises(KeyboardInterrupt):
        results.run()
    assert results.state == "closed"
    assert not ours()


# ---------------------------------------------------------------- several cameras


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
    with pytest.raises(CameraError, match="does not exist"):
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


# ---------------------------------------------------------------- the event loop


def test_an_async_loop_over_a_stream_with_a_callback_is_refused(folder: Path) -> None:
    async def main() -> None:
        async with stream(level, folder, on_result=print) as results:
            async for _ in results:
                pass

    with pytest.raises(InputError, match="with a callback was iterated over"):
        asyncio.run(main())


def test_results_reach_an_event_loop_that_goes_on_meanwhile(tmp_path: Path) -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    async def main() -> list[float]:
        ticking = asyncio.create_task(tick())
        ages = []
        async with stream(level, clip(tmp_path / "clip.avi", 15), "latest", realtime=True) as results:
            async for seen in results:
                ages.append(seen.age_ms)
                await asyncio.sleep(0.1)
        assert results.state == "ended"
        ticking.cancel()
        return ages

    ages = asyncio.run(main())
    assert 2 <= len(ages) <= 10
    assert np.median(ages[:-1]) < 2 * INTERVAL_MS + 50
    assert turns > 50  # about 600 ms: a loop that waited for frames would have turned once for each
    assert not ours()


def test_a_cancelled_task_leaves_nothing_behind(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.avi", frames=60, fps=1)
    found: list[Stream[int]] = []

    async def consume(slow: threading.Event) -> None:
        def model(frame_bgr: np.ndarray) -> int:
            slow.set()
            time.sleep(0.2)
            return level(frame_bgr)

        found.append(stream(model, path, realtime=True))
        async for _ in found[-1]:
            slow.set()

    async def main() -> None:
        inferring = threading.Event()
        task = asyncio.create_task(consume(inferring))
        while not inferring.is_set():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (results,) = found
    assert results.state == "closed"
    assert results.counters.dropped == 1  # the inference that nobody waited for any more
    assert not ours()


def test_leaving_an_async_loop_early_closes_the_stream(folder: Path) -> None:
    async def main() -> Stream[int]:
        results = stream(level, folder)
        async with results:
            async for seen in results:
                if seen.result == 4:
                    break
        return results

    assert asyncio.run(main()).state == "closed"

    async def failing() -> None:
        async for _ in stream(broken, folder):
            pass

    def broken(_: np.ndarray) -> None:
        raise RuntimeError("engine lost")

    with pytest.raises(EngineRuntimeError, match="5 frames in a row"):
        asyncio.run(failing())
    assert not ours()
