"""Stages on disk: kept when nothing changed, made again when anything did, and never half-finished."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgemae
from edgemae.pipeline.stage_cache import StageCache, check_output, file_digest, to_toml
from edgemae.spec.errors import InputError, StorageError
from edgemae.spec.plan_loading import load_plan, plan_from


class Counting:
    """A stage that writes two files and counts how often it was made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "a.bin").write_bytes(b"a" * 100)
        (folder / "b.bin").write_bytes(b"b")


@pytest.fixture
def work(tmp_path: Path) -> StageCache:
    return StageCache(tmp_path / "out")


def test_a_finished_stage_is_kept_and_another_key_is_made(work: StageCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemae")
    make = Counting()
    first = work.run("stage", {"seed": 1}, make)
    written = (first / "done.json").stat().st_mtime_ns
    assert work.run("stage", {"seed": 1}, make) == first
    assert make.made == 1
    assert (first / "done.json").stat().st_mtime_ns == written
    assert work.run("stage", {"seed": 2}, make) != first
    assert work.run("other", {"seed": 1}, make) != first
    assert make.made == 3
    assert [r.getMessage() for r in caplog.records][:2] == ["stage: started", "stage: done before, kept"]


def _flip(folder: Path) -> None:
    data = bytearray((folder / "a.bin").read_bytes())
    data[50] ^= 1
    (folder / "a.bin").write_bytes(data)


SPOILERS: dict[str, Callable[[Path], object]] = {
    "a bit": _flip,
    "a missing file": lambda folder: (folder / "b.bin").unlink(),
    "an empty record": lambda folder: (folder / "done.json").write_bytes(b""),
    "a record of something else": lambda folder: (folder / "done.json").write_bytes(b"[1]"),
}


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_spoilt_stage_is_made_again(spoil: str, work: StageCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "edgemae")
    make = Counting()
    folder = work.run("stage", {}, make)
    SPOILERS[spoil](folder)
    assert work.run("stage", {}, make) == folder
    assert make.made == 2
    assert caplog.records[-1].getMessage() == "stage: its files have changed, made again"
    work.run("stage", {}, make)
    assert make.made == 2


def test_a_stage_that_was_killed_goes_on_from_its_checkpoint(
    work: StageCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgemae")

    def killed(folder: Path) -> None:
        (folder / "train.ckpt").write_bytes(b"half")
        (folder / ".a.bin.77.tmp").write_bytes(b"a write that never ended")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run("stage", {}, killed)

    def going_on(folder: Path) -> None:
        assert (folder / "train.ckpt").read_bytes() == b"half"
        (folder / "a.bin").write_bytes(b"whole")

    folder = work.run("stage", {}, going_on)
    assert caplog.records[-1].getMessage() == "stage: going on from the checkpoint"
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", "done.json"]
    assert json.loads((folder / "done.json").read_bytes())["files"] == {"a.bin": file_digest(folder / "a.bin")}


def test_a_full_disk_leaves_no_stage_that_counts_as_done(work: StageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            work.run("stage", {}, make)
    work.run("stage", {}, make)
    assert make.made == 2


# ------------------------------------------------------------------------------------------------ the folder


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="was not made by edgemae"):
        StageCache(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    StageCache(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_overwrite_drops_finished_stages(tmp_path: Path) -> None:
    make = Counting()
    StageCache(tmp_path / "out").run("stage", {}, make)
    StageCache(tmp_path / "out", overwrite=True).run("stage", {}, make)
    assert make.made == 2


def test_resume_wants_an_earlier_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        StageCache(tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()
    StageCache(tmp_path / "out")
    StageCache(tmp_path / "out", resume=True)


def test_a_file_and_a_place_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be created"):
        StageCache(tmp_path / "file" / "out")


def test_checking_an_output_creates_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ digests and the plan


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    lr=st.floats(min_value=1e-12, max_value=1e9),
    mean=st.lists(st.floats(min_value=0, max_value=1), max_size=3),
    schemes=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), max_size=2),
)
def test_the_plan_in_toml_is_the_same_plan(name: str, lr: float, mean: list[float], schemes: list[str]) -> None:
    plan = plan_from({"name": name, "pretrain": {"lr": lr}, "data": {"mean": mean}, "quantize": {"schemes": schemes}})
    assert plan_from(msgspec.toml.decode(to_toml(plan))) == plan


def test_the_resolved_plan_lies_beside_the_stages(work: StageCache) -> None:
    plan = load_plan(None, ("distill.epochs=7",))
    work.keep_plan(plan)
    assert load_plan(work.folder / "plan.toml") == plan


HOLDER = """
import sys
from pathlib import Path
from edgemae.pipeline.stage_cache import StageCache
work = StageCache(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    where = os.environ | {"PYTHONPATH": str(Path(edgemae.__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=where
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another run is at work"):
            StageCache(tmp_path / "out")
        other.kill()
        other.wait()
    StageCache(tmp_path / "out")  # a kill lets go of it
    StageCache(tmp_path / "out", overwrite=True)  # and the same process may come again
