"""Live statistics obey the rule of the profiler: no percentile from fewer results than its bound asks for."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from edgemae.viewer.live_stats import ROWS, StatsCollector
from tests.viewer.samples import IMAGE, seen, text, watched


@pytest.mark.parametrize(
    ("results", "stated", "withheld"),
    [(6, (), (7, 44, 459)), (7, ("p50",), (44, 459)), (44, ("p50", "p90"), (459,)), (459, ("p50", "p90", "p99"), ())],
)
def test_no_percentile_from_too_few_results(
    stats: StatsCollector, results: int, stated: tuple[str, ...], withheld: tuple[int, ...]
) -> None:
    for i in range(results):
        stats.note(seen(IMAGE, i))
    live = stats.now()
    for row in ROWS:
        assert tuple(p for p in ("p50", "p90", "p99") if live.percentile(row, p) is not None) == stated
    output = text(stats)
    assert [n for n in (7, 44, 459) if f"needs {n}" in output] == list(withheld)
    assert output.count(" 8.0 ms") == len(stated)  # of the inference


def test_the_rate_is_that_of_the_results(stats: StatsCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stats.fps == 0.0
    now = 100.0
    monkeypatch.setattr("edgemae.viewer.live_stats.time.monotonic", lambda: now)
    for i in range(200):
        now = 100.0 + i / 20
        stats.note(seen(IMAGE, i))
    assert stats.fps == pytest.approx(20.0)
    now += 30  # nothing came for half a minute
    assert stats.fps == 0.0


def test_what_went_wrong_is_counted_by_its_name(tmp_path: Path) -> None:
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), IMAGE)
    (tmp_path / "2.png").write_bytes(b"no image")
    results, found = watched(tmp_path)
    for _ in results:
        pass
    assert found.now().counts == {"captured": 3, "seen": 3, "dropped": 0, "corrupt": 1}
