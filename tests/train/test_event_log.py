"""Events of a training: lines for other programs, in order, each step once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from edgemae.data.loader import Batch
from edgemae.spec.errors import MachineError
from edgemae.train import event_log
from edgemae.train.event_log import Events
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.step_context import StepContext


@pytest.fixture(autouse=True)
def _every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "EVERY_S", 0.0)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_an_event(tmp_path: Path) -> None:
    said = Events(tmp_path / "train.ckpt", 0, job="pretrain", steps=2)
    said.step(step=1, loss=0.5)
    said.write("epoch", step=2, loss=0.25)
    said.close()
    found = lines(tmp_path / "train.events.jsonl")
    assert [line["event"] for line in found] == ["start", "step", "epoch"]
    assert found[0]["job"] == "pretrain"
    assert found[1]["loss"] == 0.5
    assert all(line["time"] > 1.6e9 for line in found)


def test_what_lies_behind_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "train.events.jsonl"
    said = Events(tmp_path / "train.ckpt", 0)
    for step in range(1, 6):
        said.step(step=step)
    said.close()
    with open(path, "a") as file:
        file.write('{"event": "step", "st')  # killed in the middle of a line
    again = Events(tmp_path / "train.ckpt", 3)
    again.step(step=4)
    again.close()
    assert [(line["event"], line["step"]) for line in lines(path)] == [
        ("start", 0), ("step", 1), ("step", 2), ("step", 3), ("start", 3), ("step", 4),
    ]  # fmt: skip


def test_steps_come_no_faster_than_every_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "EVERY_S", 5.0)
    now = [100.0]
    monkeypatch.setattr(event_log.time, "monotonic", lambda: now[0])
    said = Events(tmp_path / "train.ckpt", 0)
    for step in range(1, 13):
        said.step(step=step)
        now[0] += 1.0
    said.close()
    assert [line["step"] for line in lines(tmp_path / "train.events.jsonl") if line["event"] == "step"] == [1, 6, 11]


def test_without_a_checkpoint_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = Events(None, 0, tensorboard=True)
    said.step(step=1)
    said.write("end", step=1)
    said.close()
    assert not list(tmp_path.iterdir())


def test_tensorboard_reads_what_is_written(tmp_path: Path, board: Callable[[Path], Any]) -> None:
    said = Events(tmp_path / "train.ckpt", 0, tensorboard=True)
    for step, loss in ((1, 0.5), (2, 0.25)):
        said.step(step=step, loss=loss)
    said.write("epoch", step=2, validation=0.75)
    said.close()
    found = board(tmp_path / "train")
    assert {tag: [(row.step, row.value) for row in found.Scalars(tag)] for tag in found.Tags()["scalars"]} == {
        "step/loss": [(1, 0.5), (2, 0.25)], "epoch/validation": [(2, 0.75)],
    }  # fmt: skip


def test_a_full_disk_ends_the_events_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_log, "_opened", lambda *_: open("/dev/full", "a", buffering=1))  # noqa: SIM115
    said = Events(tmp_path / "train.ckpt", 0)
    assert said.place == ""
    said.step(step=1)
    said.write("end", step=1)
    said.close()
    assert caplog.text.count("train.events.jsonl' any more (No space left on device)") == 1


def test_a_folder_that_cannot_be_written_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "train.events.jsonl").mkdir()  # in the way
    events = Events(tmp_path / "train.ckpt", 0)
    events.write("end", step=1)
    events.close()
    assert "the training goes on without them" in caplog.text


@pytest.fixture
def board() -> Callable[[Path], Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> Any:
        return EventAccumulator(str(folder)).Reload()

    return read


def test_events_lie_beside_the_checkpoint(job_with: Callable[..., Job], tmp_path: Path) -> None:
    fit(job_with(checkpoint=tmp_path / "train.ckpt", validate=lambda: 0.25))
    lines = [json.loads(line) for line in (tmp_path / "train.events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines if line["event"] != "step"] == ["start", *["epoch"] * 4, "end"]
    step = next(line for line in lines if line["event"] == "step")
    assert {"near", "noise", "loss", "rate", "gradient_norm", "images_s", "data_wait_pct"} <= set(step)
    assert [line["validation"] for line in lines if line["event"] == "epoch"] == [0.25] * 4


def test_a_lost_process_is_an_event_in_words(job_with: Callable[..., Job], tmp_path: Path) -> None:
    def loss(batch: Batch, now: StepContext) -> dict[str, Tensor]:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7")

    with pytest.raises(MachineError):
        fit(job_with(checkpoint=tmp_path / "train.ckpt", loss=loss))
    last = json.loads((tmp_path / "train.events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "stop"
    assert last["why"].startswith("toy: another process of this training is gone")
