"""A bundle is made ready: its engines are built and proved, and a profile that fails takes nothing away."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from edgemae.deploy import finalize as module
from edgemae.deploy.finalize import finalize
from edgemae.spec.errors import EngineRuntimeError
from tests.support.profiles import full_profile
from tests.support.tiny_job import Job, Ran


def test_a_bundle_is_ready_whatever_its_latencies_are_worth(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(job.bundle, tmp_path / "b.edgemae")
    invalid = msgspec.structs.replace(full_profile(verdict="INVALID"), reasons=("a clock jumped",))
    monkeypatch.setattr(module, "profile", lambda *_, **__: invalid)
    found = finalize(tmp_path / "b.edgemae", None)
    assert (found["verdict"], found["reasons"]) == ("INVALID", ("a clock jumped",))
    assert any(engine["ready"] for engine in found["engines"])
    assert "is ready, its latencies are INVALID: a clock jumped" in caplog.text


def test_a_bundle_is_ready_though_it_cannot_be_profiled(
    job: Job, compiled: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EngineRuntimeError("no room for a second copy", expected="memory", fix="free some")

    shutil.copy(job.bundle, tmp_path / "b.edgemae")
    monkeypatch.setattr(module, "profile", broken)
    found = finalize(tmp_path / "b.edgemae", None)
    assert any(engine["ready"] for engine in found["engines"])
    assert "verdict" not in found
    assert "is ready, but could not be profiled: no room for a second copy" in caplog.text
