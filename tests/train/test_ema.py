"""Running mean of the weights."""

from __future__ import annotations

import torch
from torch import nn

from edgemae.train.ema import ExponentialMovingAverage


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
