"""The cache as the doctor sees it: used or not, and each blob as it was written or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemae.device import engine_cache
from edgemae.doctor import storage
from edgemae.doctor.storage import examine_cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEMAE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


def test_none_yet_is_in_order(folder: Path) -> None:
    facts, (finding,) = examine_cache()
    assert (facts["exists"], facts["blobs"], finding.state) == (False, 0, "green")
    assert not folder.parent.exists(), "the doctor writes nothing"


def test_blobs_are_counted_and_their_digests_checked(folder: Path) -> None:
    for name in "abc":
        engine_cache._write(folder / f"{name}.blob", name.encode() * 100_000)
    facts, findings = examine_cache()
    assert (facts["blobs"], facts["spoilt"], facts["mib"]) == (3, [], 0.3)
    assert [finding.state for finding in findings] == ["green", "green"]
    (folder / "a.blob").write_bytes(b"b" + b"a" * 99_999)
    (folder / "b.sha256").unlink()
    facts, (_, blobs) = examine_cache()
    assert facts["spoilt"] == ["a.blob", "b.blob"]
    assert (blobs.state, blobs.found) == ("yellow", "2 of 3 are not what was written there")
    assert f"rm '{folder / 'a.blob'}' '{folder / 'b.blob'}'" in blobs.fix
    assert (folder / "a.blob").exists(), "the doctor mends nothing"


def test_a_folder_that_others_may_write_is_told(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    _, (finding,) = examine_cache()
    assert (finding.state, "every start compiles again" in finding.found) == ("yellow", True)
    assert f"chmod go-w '{folder}'" in finding.fix


def test_a_folder_that_cannot_be_written_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    _, (finding,) = examine_cache()
    assert (finding.state, "EDGEMAE_CACHE_DIR" in finding.fix) == ("yellow", True)


def test_a_folder_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_cache._write(folder / "a.blob", b"a")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine_cache, "_bytes", refuse)
    _, (finding,) = examine_cache()
    assert (finding.state, "cannot be read: Permission denied" in finding.found) == ("yellow", True)


def test_a_full_disk_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LITTLE_MIB", 1 << 60)
    _, (finding,) = examine_cache()
    assert (finding.state, "MiB free on its disk" in finding.found) == ("yellow", True)
