"""What a model file is, and what its import had to assume."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.deploy.describe import describe
from edgemae.spec.errors import InputError
from tests.support.tiny_job import meta_pth


def test_a_file_of_somebody_else_says_what_was_assumed(tmp_path: Path) -> None:
    found = describe(meta_pth(tmp_path / "mae.pth"), heads=2, decoder_heads=2)
    assert found["decoder"]
    assert found["assumed"]
    assert found["history"][0]["stage"] == "import"
    assert "decoder (" in " ".join(describe(meta_pth(tmp_path / "mae.pth"), heads=2)["ignored"])


def test_what_is_not_there_cannot_be_described(tmp_path: Path) -> None:
    for name in ("missing.edgemae", "missing.pth"):
        with pytest.raises(InputError, match=name):
            describe(tmp_path / name)
