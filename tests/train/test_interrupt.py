"""Asked to end: the step that is under way is saved first, in every process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgemae.data.image_set import ImageSet
from edgemae.data.loader import Batch, Loader
from edgemae.spec.errors import MachineError
from edgemae.train import loop
from edgemae.train.job import Job
from edgemae.train.loop import fit
from edgemae.train.step_context import StepContext
from tests.support.toy_job import PIXEL, equal, weights


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_the_step_first(
    job_with: Callable[..., Job], tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals
) -> None:
    whole, path = job_with(), tmp_path / "train.ckpt"
    curve = fit(whole)
    before = signal.getsignal(number)
    job = job_with(checkpoint=path)

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        if context.step == 1:  # in the middle of the first epoch, whose end would be the first checkpoint
            signal.raise_signal(number)
        return job.loss(batch, context)

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))
    assert f"toy: {number.name}; stopping after this step" in caplog.text
    assert signal.getsignal(number) is before
    assert torch.load(path, weights_only=True)["done"] == 2
    last = json.loads((tmp_path / "train.events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["why"]) == ("stop", 2, "KeyboardInterrupt")
    again = job_with(checkpoint=path)
    assert fit(again) == curve
    assert equal(weights(whole), weights(again))


@pytest.mark.parametrize("at", [1, 2, 11])  # in an epoch, at its end, and after the last step
def test_it_ends_with_another_process_that_was_asked(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The other one's word comes along with the losses, so that both leave at the same step."""
    job, mean, steps = job_with(checkpoint=tmp_path / "train.ckpt"), loop.ProcessGroup.mean, [0]

    def shared(processes: loop.ProcessGroup, values: Tensor) -> Tensor:
        if values.dim():  # the losses of a step
            steps[0] += 1
            return mean(processes, values) + (torch.arange(len(values)) == len(values) - 1) * 0.5 * (steps[0] > at)
        return mean(processes, values)

    monkeypatch.setattr(loop.ProcessGroup, "mean", shared)
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == at + 1


def test_asked_in_the_very_last_step_it_does_not_go_on_to_the_next_training(
    job_with: Callable[..., Job], tmp_path: Path
) -> None:
    job = job_with(checkpoint=tmp_path / "train.ckpt")
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: signal.raise_signal(signal.SIGTERM) if rates.append(1) or len(rates) == 12 else None
    )
    rates: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        fit(job)
    hook.remove()
    assert torch.load(tmp_path / "train.ckpt", weights_only=True)["done"] == 12


@pytest.mark.parametrize("asked", [True, False])
def test_a_stop_that_ends_the_decoding_processes_too_loses_no_step(
    job_with: Callable[..., Job], pictures: ImageSet, tmp_path: Path, asked: bool
) -> None:
    """A service manager, a scheduler or a launcher signals all of them; memory running out takes one of them."""
    path, rates = tmp_path / "train.ckpt", list[int]()

    def end(*_: Any) -> None:
        rates.append(1)
        if len(rates) == 2:  # in an epoch, and after the step has looked whether it was asked
            if asked:
                signal.raise_signal(signal.SIGTERM)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGTERM)
                worker.join()

    hook = register_optimizer_step_post_hook(end)
    with pytest.raises(KeyboardInterrupt if asked else MachineError):
        fit(job_with(checkpoint=path, loader=Loader(pictures, PIXEL, 8, workers=1), epochs=20))
    hook.remove()
    assert 2 <= torch.load(path, weights_only=True)["done"] == len(rates)


def test_asked_twice_it_ends_at_once(job_with: Callable[..., Job], tmp_path: Path) -> None:
    job = job_with(checkpoint=tmp_path / "train.ckpt")

    def loss(batch: Batch, context: StepContext) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        fit(replace(job, loss=loss))
    assert not (tmp_path / "train.ckpt").exists()
