"""The two checkpoints of a training: which of them is called good, and what becomes of it."""

from __future__ import annotations

import io
import logging
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgemae.spec.errors import InputError
from edgemae.train import divergence, loop
from edgemae.train.checkpoints import Checkpoints, checkpoint_identity
from edgemae.train.job import Job
from edgemae.train.loop import fit
from tests.support.toy_job import equal, interrupted, weights

JOB = {"name": "toy"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "train.ckpt"


def done(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["done"])


@pytest.mark.parametrize("links", [True, False])
def test_the_older_one_takes_the_place_of_one_that_is_not_known_to_be_good(
    path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links on this file system")))
    kept = Checkpoints(path, JOB)
    for step, proved in ((10, 0), (20, 0), (30, 25), (40, 25), (50, 25)):
        kept.save(step, proved, {})
    assert (done(path), done(kept.older)) == (50, 20)
    again = Checkpoints(path, JOB)  # a killed run knows it too
    assert again.restore() is not None
    assert again.fall_back(25) == f"; the last good checkpoint, of step 20, is kept at {path}"
    assert [(p.name, done(p)) for p in path.parent.iterdir()] == [("train.ckpt", 20)]


def test_where_none_is_older_nothing_is_called_good(path: Path) -> None:
    kept = Checkpoints(path, JOB)
    assert kept.fall_back(5) == ""
    kept.save(10, 0, {})
    assert kept.fall_back(5) == f"; the checkpoint at {path}, of step 10, may be bad already, and none is older"
    assert "last good checkpoint, of step 10" in kept.fall_back(10)


def test_an_older_one_that_is_gone_is_not_counted_on(path: Path) -> None:
    kept = Checkpoints(path, JOB)
    for step, proved in ((10, 0), (20, 15)):
        kept.save(step, proved, {})
    kept.older.unlink()  # only the newest was copied elsewhere
    again = Checkpoints(path, JOB)
    assert again.restore() is not None
    assert "step 20, may be bad already, and none is older" in again.fall_back(15)


def test_where_the_newest_was_taken_away_the_older_one_does_not_come_back(path: Path) -> None:
    kept = Checkpoints(path, JOB)
    for step, proved in ((10, 0), (20, 15)):
        kept.save(step, proved, {})
    path.unlink()
    anew = Checkpoints(path, JOB)
    assert anew.restore() is None
    anew.save(5, 0, {})
    path.write_bytes(b"damaged")
    assert Checkpoints(path, JOB).restore() is None


def test_a_training_that_ends_well_leaves_one(path: Path) -> None:
    kept = Checkpoints(path, JOB)
    for step in (10, 20):
        kept.save(step, 15, {})
    kept.finish()
    assert [p.name for p in path.parent.iterdir()] == ["train.ckpt"]


def test_what_a_checkpoint_was_made_from(path: Path) -> None:
    models = [torch.nn.Linear(2, 2) for _ in range(2)]
    identities = [
        checkpoint_identity(path, {"lr": 1.0}, teacher=model, finetuned=None) for model in (*models, models[0])
    ]
    assert identities[0] == identities[2] != identities[1]
    assert identities[0] == {"lr": 1.0, "teacher": identities[0]["teacher"], "finetuned": ""}
    assert checkpoint_identity(None, {"lr": 1.0}, teacher=models[0]) == {}


def spoilt(data: bytes, how: str) -> bytes:
    if how == "flipped":
        weight = torch.load(io.BytesIO(data), weights_only=True)["module"]["linear.weight"]
        at = data.index(weight.numpy().tobytes())
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    return {"truncated": data[: len(data) // 2], "empty": b"", "text": b"epoch 3\n", "other pickle": other_pickle()}[
        how
    ]


def other_pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": random.Random(0)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "text", "other pickle"])
def test_a_damaged_checkpoint_is_ignored_aloud(
    job_with: Callable[..., Job], tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path = tmp_path / "train.ckpt"
    interrupted(job_with(checkpoint=path), 5)
    path.write_bytes(spoilt(path.read_bytes(), how))
    job, whole = job_with(checkpoint=path), job_with()
    assert fit(job) == fit(whole)
    assert equal(weights(whole), weights(job))
    assert f"checkpoint '{path}' is damaged" in caplog.text
    assert "starts anew" in caplog.text


def test_behind_a_damaged_checkpoint_the_older_one_is_taken(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(divergence, "WINDOW", 1)  # a step is known to be in order at once
    caplog.set_level(logging.INFO)
    path, whole = tmp_path / "train.ckpt", job_with()
    interrupted(job_with(checkpoint=path), 7)
    path.write_bytes(spoilt(path.read_bytes(), "truncated"))
    interrupted(job_with(checkpoint=path), 0)  # killed once more, before there is another
    job = job_with(checkpoint=path)
    assert fit(job) == fit(whole)
    assert equal(weights(whole), weights(job))
    assert f"checkpoint '{path}' is damaged" in caplog.text
    assert caplog.text.count("going on after step 6") == 2
    assert "starts anew" not in caplog.text
    assert sorted(file.name for file in tmp_path.glob("*.ckpt")) == ["train.ckpt"]


def test_a_loss_that_goes_wrong_behind_a_damaged_checkpoint_leaves_the_older_one(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(divergence, "WINDOW", 1)
    path = tmp_path / "train.ckpt"
    interrupted(job_with(checkpoint=path), 7)
    path.write_bytes(b"")
    nothing = job_with(checkpoint=path)
    with pytest.raises(InputError, match="became nan") as caught:
        fit(replace(nothing, loss=lambda batch, context: {"near": math.nan * nothing.module(batch.pixels).sum()}))
    assert f"the last good checkpoint, of step 6, is kept at {path}" in caught.value.fix
    assert torch.load(path, weights_only=True)["done"] == 6
