"""Fixtures of the tests of image sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.shard_files import write_set


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_set(tmp_path / "shards")
