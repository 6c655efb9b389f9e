"""The statistics of a stream that has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.viewer.live_stats import StatsCollector
from tests.viewer.samples import clip, watched


@pytest.fixture
def stats(tmp_path: Path) -> StatsCollector:
    results, found = watched(clip(tmp_path / "clip.avi", 3))
    for _ in results:
        pass
    return found
