"""Videos of what was seen: as long as the source, whole however the run ends, and a clear word when they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from edgemae.device.model import Result
from edgemae.device.stream_result import StreamResult
from edgemae.spec.errors import InputError, MachineError, StorageError
from edgemae.viewer import video
from edgemae.viewer.video import CODECS, LIVE_FPS, Video
from tests.viewer.samples import clip, seen, watched

FRAMES = 20
GRAY = np.full((360, 480, 3), 90, np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return clip(tmp_path / "source.avi", FRAMES, fps=12.5)


def frames_of(path: Path) -> tuple[float, list[np.ndarray]]:
    capture = cv2.VideoCapture(str(path))
    found = []
    while (got := capture.read())[0]:
        found.append(got[1])
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps, found


def record(source: Path, out: Path, act: Callable[[Video, StreamResult[Result]], object] = Video.show) -> None:
    results, stats = watched(source)
    with results, Video(out, results.camera, stats) as view:
        for item in results:
            act(view, item)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_a_file_keeps_its_rate_and_every_frame(source: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"seen{suffix}"
    record(source, out)
    fps, frames = frames_of(out)
    assert fps == pytest.approx(12.5)
    assert len(frames) == FRAMES
    middle = [round(float(frame[150:200, 200:300].mean())) for frame in frames]
    assert middle == pytest.approx([i * 8 for i in range(FRAMES)], abs=5)  # in order, none twice


def test_frames_that_were_dropped_leave_the_ones_before_them_standing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.avi"
    record(source, out, lambda view, item: item.frame.seq in (0, 1, 7, 19) and view.show(item))
    assert len(frames_of(out)[1]) == FRAMES


def live(fps: float, seconds: list[float], path: Path) -> int:
    """Return how many frames a live source whose frames come at these times has in its video."""
    camera = SimpleNamespace(live=True, source="0")
    with Video(path, camera, SimpleNamespace(fps=fps)) as view:  # type: ignore[arg-type]
        for i, at in enumerate(seconds):
            view.show(seen(GRAY, i, t_capture_ns=1_000_000_000 + round(at * 1e9)))
    return len(frames_of(path)[1])


def test_a_live_source_runs_in_real_time(tmp_path: Path) -> None:
    path = tmp_path / "seen.mp4"
    assert live(10, [i / 10 for i in range(21)], path) == pytest.approx(2 * LIVE_FPS + 1, abs=1)
    assert live(60, [i / 60 for i in range(121)], path) == pytest.approx(2 * LIVE_FPS + 1, abs=1)
    assert live(10, [0.0, 0.1, 3600.0, 3600.1], path) < 3 * LIVE_FPS  # an outage of an hour is no hour of video


def test_images_of_all_sizes_fit(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, image_hw in enumerate([(400, 600), (600, 400), (37, 41)]):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.full((*image_hw, 3), 200, np.uint8))
    record(tmp_path / "in", tmp_path / "seen.mp4")
    _, frames = frames_of(tmp_path / "seen.mp4")
    assert [frame.shape for frame in frames] == [(400, 600, 3)] * 3
    assert frames[1][100, 20].max() < 30  # black beside an image that stands upright
    assert frames[1][100, 300].min() > 150


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_lost_when_a_run_is_broken_off(source: Path, tmp_path: Path, kind: type[BaseException]) -> None:
    def act(view: Video, item: StreamResult[Result]) -> None:
        view.show(item)
        if item.frame.seq == 9:
            raise kind

    with pytest.raises(kind):
        record(source, tmp_path / "seen.mp4", act)
    assert len(frames_of(tmp_path / "seen.mp4")[1]) == 10


def test_what_cannot_be_written_is_said_at_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, stats = watched(source)
    with results:
        with pytest.raises(InputError, match=r"'seen\.gif'"):
            Video(Path("seen.gif"), results.camera, stats)
        with pytest.raises(StorageError, match=r"/none'"):
            Video(tmp_path / "none" / "seen.mp4", results.camera, stats)
        with pytest.raises(InputError, match="is read here"):
            Video(source, results.camera, stats)
    monkeypatch.setitem(CODECS, ".mp4", "zzzz")
    with pytest.raises(MachineError, match=r"seen\.mp4' \(480 x 360, zzzz\)"):
        record(source, tmp_path / "seen.mp4")


def test_a_disk_that_fills_up_ends_the_run_with_a_whole_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter(range(100 << 20, 0, -(10 << 20)))  # 10 MiB less with each look
    monkeypatch.setattr(video, "shutil", SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=next(free))))
    with pytest.raises(StorageError, match=r"30 MiB .* 7 frames"):
        record(source, tmp_path / "seen.mp4")
    assert len(frames_of(tmp_path / "seen.mp4")[1]) == 7


def test_frames_that_did_not_reach_the_disk_are_missed(source: Path, tmp_path: Path) -> None:
    """OpenCV says nothing of a write that fails."""
    out = tmp_path / "seen.mp4"

    def act(view: Video, item: StreamResult[Result]) -> None:
        view.show(item)
        if item.frame.seq == FRAMES - 1:
            assert view._writer is not None
            view._writer.release()
            out.write_bytes(b"")

    with pytest.raises(StorageError, match="0 of 20"):
        record(source, out, act)
