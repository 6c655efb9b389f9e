"""Running mean of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgemae.train import loop
from edgemae.train.ema import ExponentialMovingAverage
from edgemae.train.job import Job
from edgemae.train.loop import fit
from tests.support.toy_job import equal, interrupted, weights


def module(value: float) -> nn.Module:
    linear = nn.Linear(2, 1)
    for p in linear.parameters():
        nn.init.constant_(p, value)
    return linear


def test_the_decay_begins_low_and_ends_as_asked() -> None:
    linear = module(0.0)
    average, expected = ExponentialMovingAverage(linear, 0.5), 0.0
    for step in range(12):
        with torch.no_grad():
            linear.weight.fill_(step + 1.0)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    torch.testing.assert_close(average.values["weight"], torch.full((1, 2), expected))


def test_only_what_is_trained_is_averaged() -> None:
    linear = module(1.0)
    linear.bias.requires_grad_(False)
    assert set(ExponentialMovingAverage(linear, 0.9).values) == {"weight"}


def test_swapping_is_for_a_while_and_settling_for_good() -> None:
    linear = module(4.0)
    average = ExponentialMovingAverage(linear, 0.9)
    with torch.no_grad():
        linear.weight.fill_(8.0)
    with average.swapped():
        assert linear.weight.tolist() == [[4.0, 4.0]]
    assert linear.weight.tolist() == [[8.0, 8.0]]
    average.settle()
    assert linear.weight.tolist() == [[4.0, 4.0]]
    assert linear.weight.requires_grad


def test_the_average_is_scored_and_returned(job_with: Callable[..., Job]) -> None:
    seen: list[Tensor] = []
    steps: list[Tensor] = []
    job = job_with(ema=0.5, epochs=1)
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(job.module.linear.weight.detach().clone()))  # type: ignore[union-attr]
    first = weights(job)["linear.weight"]
    fit(replace(job, validate=lambda: (seen.append(weights(job)["linear.weight"]), 0.5)[1]))
    hook.remove()
    expected = first
    for step, weight in enumerate(steps):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(weights(job)["linear.weight"], expected)
    torch.testing.assert_close(seen[-1], expected)
    assert not torch.equal(steps[-1], expected)


@pytest.mark.parametrize("after", [2, 7])
def test_a_stopped_training_goes_on_with_its_average(
    job_with: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    whole = job_with(ema=0.9)
    fit(whole)
    interrupted(job_with(checkpoint=tmp_path / "train.ckpt", ema=0.9), after)
    job = job_with(checkpoint=tmp_path / "train.ckpt", ema=0.9)
    fit(job)
    assert equal(weights(whole), weights(job))
