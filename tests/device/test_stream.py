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
from edgemae.device.stream import Stream, stream
from edgemae.device.stream_result import StreamCounters, StreamResult
from edgemae.spec.errors import CameraError, EngineRuntimeError, InputError
from edgemae.spec.graph import PixelContract
from tests.support.streams import COUNT, INTERVAL_MS, clip, level, ours


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
    with pytest.raises(EngineRuntimeError, match=r" 4 .*RuntimeError: engine lost") as caught:
        next(results)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert results.counters.failed == 4
    assert (results.state, results.error) == ("failed", caught.value)
    with pytest.raises(EngineRuntimeError, match=r" 4 .*engine lost"):  # never a silent end, however often it is asked
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
    with pytest.raises(CameraError, match=r"nothing\.mp4"):
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
    with pytest.raises(InputError, match=r" 5 .*OSError: the broker is away"):
        results.run()
    assert (results.state, results.counters.sink_failed) == ("failed", 5)
    results = stream(level, folder, on_result=sink).start()
    with pytest.raises(InputError, match=r" 5 .*the broker is away"):
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

    with pytest.raises(EngineRuntimeError, match=r" 5 .*engine lost"):
        asyncio.run(failing())
    assert not ours()
