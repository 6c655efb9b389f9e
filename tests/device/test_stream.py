from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgemae.device.camera import Camera
from edgemae.device.stream import Streamed, stream
from edgemae.spec.errors import CameraError, EngineRuntimeError
from edgemae.spec.graph import PixelContract

COUNT = 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((6, 6, 3), i, np.uint8))
    return tmp_path


def level(frame_bgr: np.ndarray) -> int:
    return int(frame_bgr[0, 0, 0])


def test_every_frame_of_a_folder_has_its_result(folder: Path) -> None:
    with stream(level, folder) as results:
        seen = list(results)
    assert all(isinstance(item, Streamed) for item in seen)
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
    assert results.failed == COUNT // 4
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
    assert results.failed == 4
    assert not results.camera._reader.is_alive()


def test_an_interrupt_inside_the_model_frees_the_camera(folder: Path) -> None:
    def interrupted(_: np.ndarray) -> int:
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        next(stream(interrupted, folder))
    assert threading.active_count() == threads


def test_a_camera_that_was_brought_along_stays_open(folder: Path) -> None:
    with Camera(folder) as camera:
        with stream(level, camera) as results:
            assert next(results).result == 0
        assert camera.read() is not None


def test_the_pixel_contract_of_the_model_reaches_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((4, 4, 3), np.uint8))
    seen: list[PixelContract] = []
    monkeypatch.setattr(
        "edgemae.device.sources.decode",
        lambda data, pixel: seen.append(pixel) or cv2.imdecode(np.frombuffer(data, np.uint8), 1),
    )

    class Model:
        pixel = PixelContract(image_px=4, exif="ignore")

        def __call__(self, frame_bgr: np.ndarray) -> int:
            return 0

    model = Model()
    assert len(list(stream(model, tmp_path))) == 1
    assert seen == [model.pixel]


def test_results_of_a_slow_model_stay_fresh(tmp_path: Path) -> None:
    path, fps, work_s = tmp_path / "clip.avi", 25.0, 0.12
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (32, 32))
    for _ in range(40):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()

    def slow(_: np.ndarray) -> None:
        time.sleep(work_s)

    with stream(slow, path, "latest", realtime=True) as results:
        ages = sorted(item.age_ms for item in results)
    # At most two frame intervals and one inference; a loop without dropping reaches 2.9 s here.
    assert ages[len(ages) // 2] < 2 * 1000 / fps + 2 * work_s * 1000
    assert results.camera.counters.dropped > 10


def test_a_missing_source_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="does not exist"):
        stream(level, tmp_path / "nothing.mp4")
